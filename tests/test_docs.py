"""README and the pages of docs/: what they say can be typed, what they say comes out, and what they link to."""

import ast
import contextlib
import io
import re
from itertools import pairwise

import numpy as np
import pytest
from conftest import TinyCIFAR10, save_checkpoint
from documents import ENTRIES, EXTENSIONS, ORIGINALS, PAGES, QUICK, ROOT, TIME, Page, examples
from omegaconf import OmegaConf
from PIL import Image

from cifar_lightning.cli.launching import take_own_launchers
from cifar_lightning.cli.overrides_to_search import search_prelude
from cifar_lightning.cli.seeds import with_seeds
from cifar_lightning.config.schema import CONF, compose
from cifar_lightning.config.searching import resolve_search
from cifar_lightning.search.check import check_space
from cifar_lightning.search.space import read_space

LINES_OF_A_SCREEN = 45

pages = pytest.mark.parametrize("page", PAGES, ids=str)
SHOWN = [call for page in PAGES for call in page.calls] + [
    (entry, arguments) for entry in ENTRIES for arguments in examples(entry)
]
TYPED = {typed.call for page in PAGES if str(page) in QUICK for typed in page.typed}
CALLS = sorted(
    {
        (entry, *arguments)
        for entry, arguments in SHOWN
        if (entry, *arguments) not in TYPED
        and not any(f"python {entry} {' '.join(arguments)}\n" in text for text in EXTENSIONS.values())
    }
)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_commands_compose(call, tmp_path):
    entry, *arguments = call
    if entry == "search.py":
        settings = resolve_search(compose(*search_prelude(arguments), config_name="search"))
        assert check_space(read_space(settings.space, settings.overrides), tmp_path).seed == 0
        return
    arguments = with_seeds(arguments, is_sweep="-m" in arguments)
    take_own_launchers()  # as the command line does
    is_sweep = "-m" in arguments
    first_values = [a.partition(",")[0] if is_sweep else a for a in arguments if not a.startswith("-")]
    cfg = compose(*first_values, config_name=entry.removesuffix(".py"))
    launcher = next((a.partition("=")[2] for a in first_values if a.startswith("hydra/launcher=")), "basic")
    for key, _, value in (argument.partition("=") for argument in first_values):
        if key.startswith("hydra.launcher."):
            settings = OmegaConf.load(CONF / "hydra" / "launcher" / f"{launcher}.yaml")
            assert key.rpartition(".")[2] in settings
        elif not (CONF / key).is_dir():  # a value, no choice of a file
            chosen = OmegaConf.select(cfg, key)
            shown = f"[{','.join(chosen)}]" if OmegaConf.is_list(chosen) else str(chosen)
            assert shown.lower() == value.lower()


@pages
def test_links_lead_somewhere(page):
    for link in page.links:
        path, _, heading = link.partition("#")
        target = page.path.parent / path if path else page.path
        assert target.exists(), link
        if heading:
            assert heading in Page(target).anchors, link


@pages
def test_paths_that_are_named_exist(page):
    quoted = re.findall(r"`((?:tests|benchmarks|conf|cifar_lightning|docs)/[\w./]*)`", page.text)
    typed = [word for command in page.commands for word in command if word.startswith("benchmarks/")]
    assert [path for path in [*quoted, *typed] if not (ROOT / path).exists()] == []


@pages
def test_three_screens_have_a_picture_or_a_table(page):
    seen = [i for i, line in enumerate(page.text.splitlines()) if line.startswith(("|", "!["))]
    ends = [0, *seen, len(page.text.splitlines())]
    assert max(after - before for before, after in pairwise(ends)) <= 3 * LINES_OF_A_SCREEN


def uses_data(code: str) -> bool:
    """Whether what a block prints depends on the images of ``data``, which are others here."""
    return any(isinstance(node, ast.Name) and node.id == "data" for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("page", [page for page in ORIGINALS if page.blocks("python")], ids=str)
def test_python_runs_as_shown(page, tmp_path, tiny_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cifar_lightning.data.CIFAR10", TinyCIFAR10)
    (tmp_path / "data").symlink_to(tiny_root)
    checkpoints = tmp_path / "logs" / "tutorial" / TIME / "checkpoints"
    checkpoints.mkdir(parents=True)
    save_checkpoint(checkpoints / "last.ckpt", name="tutorial")
    for name in ("cat.jpg", "dog.jpg"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in page.blocks("python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block.text, namespace)
        if block.output is not None and not uses_data(block.text):
            assert printed.getvalue() == block.output


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ORIGINALS], ids=str)
def test_a_translation_has_the_same_code_and_is_linked(page):
    original = Page(page.path.with_name(page.path.name.replace(".zh-CN", "")))
    assert page.blocks() == original.blocks()
    assert page.commands == original.commands
    assert original.path.name in page.links
    assert page.path.name in original.links
