"""The table of DESIGN's layers: who may import whom."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cifar_lightning"
PURE = {"augment", "generators", "hints", "metrics", "models", "muon", "optim", "evaluation", "figures", "precision"}
PIECES = {"data", "classifier"}
GLUE = {
    "config",
    "entry",
    "devices",
    "loggers",
    "callbacks",
    "records",
    "progress",
    "checkpoint",
    "checkpoint_io",
    "explain",
    "lookahead",
    "compilation",
    "stopping",
    "gate",
    "saving",
    "runs",
}
OUTSIDE = {"torch", "torchmetrics", "numpy", "matplotlib", "jaxtyping"}
ALLOWED = {
    **{module: (PURE, OUTSIDE | ({"torchvision"} if module == "models" else set())) for module in PURE},
    "classifier": (PURE | PIECES, OUTSIDE | {"lightning"}),
    "data": (PURE | PIECES, OUTSIDE | {"lightning", "torchvision", "filelock", "requests", "urllib3", "rich", "PIL"}),
    **{
        module: (PURE | PIECES | GLUE, OUTSIDE | {"lightning", "hydra", "omegaconf", "rich", "filelock", "yaml"})
        for module in GLUE
    },
}


def modules() -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        files.setdefault(relative.parts[0].removesuffix(".py"), []).append(path)
    return files


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "cifar_lightning":
            found |= {f"cifar_lightning.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_every_module_has_its_layer():
    commands = {"training", "building", "judging", "trainer", "reporting"}  # which may import all
    assert set(modules()) - set(ALLOWED) == {"__init__", *commands}


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_imports_stay_in_their_layer(module):
    import sys

    ours, outside = ALLOWED[module]
    for path in modules()[module]:
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "cifar_lightning":
                assert rest.partition(".")[0] in ours | {module}, f"{path.name} imports {name}"
            else:
                assert top in outside | set(sys.stdlib_module_names), f"{path.name} imports {name}"


def test_hydra_and_lightning_stay_out_of_the_pure_layer():
    for module in PURE:
        for path in modules()[module]:
            assert not {"hydra", "omegaconf", "lightning"} & {name.partition(".")[0] for name in imports(path)}, path


def test_entries_import_nothing_heavy_at_the_top():
    for entry in ("train.py", "evaluate.py"):
        tops = ast.parse((ROOT / entry).read_text()).body
        heavy = [
            node
            for node in tops
            if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "omegaconf", None)
        ]
        assert {node.module for node in heavy} <= {"cifar_lightning.entry", "cifar_lightning.config"}
