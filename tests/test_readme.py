"""What a newcomer needs of the README; the tree, the pieces of speedruns and the comparison that pages show."""

import ast
import json
import re

import pytest
from documents import ROOT, Page

from cifar_lightning.commands.train import train
from cifar_lightning.config.recipe import recipe
from cifar_lightning.config.schema import CONF
from cifar_lightning.report.comparison import Run, compared
from cifar_lightning.report.comparison_text import group_rows, pair_rows
from cifar_lightning.runs.grouping import group_runs

PACKAGE = ROOT / "cifar_lightning"
README, DEVELOP, SPEEDRUNS, COMPARE = (
    Page(ROOT / name) for name in ("README.md", "docs/develop.md", "docs/speedruns.md", "docs/compare.md")
)
TEXT = README.text


def test_two_commands_set_up_a_fresh_machine():
    set_up = [command for command in README.commands if "venv" in command]
    assert [command[command.index("python") :] for command in set_up] == [
        ["python", "train.py", "data=synthetic"],
        ["python", "-m", "pytest", "-n", "auto"],
    ]


def test_the_first_screen_has_what_a_newcomer_looks_for():
    first_screen = "\n".join(TEXT.splitlines()[:40])
    for needed in ("python train.py data=synthetic", "python -m pytest -n auto", "](docs/", "RESULTS.md"):
        assert needed in first_screen


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_every_choice_is_listed(name):
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", Page(ROOT / name).text, re.MULTILINE))
    for group in (
        "experiment",
        "data",
        "model",
        "normalize",
        "augment",
        "optimizer",
        "schedule",
        "callbacks",
        "logger",
    ):
        choices = {file.stem for file in (CONF / group).glob("*.yaml")}
        assert set(re.findall(r"`(\w+)`", table[group])) == choices


def rooms() -> dict[str, set[str]]:
    """The tree of the package: names of folders, and of the files that it lists in each."""
    tree = re.search(r"^cifar_lightning/\n(.*?)^tests/", DEVELOP.text, re.DOTALL | re.MULTILINE)[1]
    found: dict[str, set[str]] = {}
    for line in tree.splitlines():
        if head := re.match(r"  (\w+)/", line):
            names = found.setdefault(head[1], set())
        if head or line.startswith(" " * 28):
            names |= set(line[28:].rpartition(": ")[2].split())
    return found


def test_the_tree_names_every_file_of_the_package():
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    in_rooms = {f"{room}/{name}.py" for room, names in rooms().items() for name in names}
    assert in_rooms == {str(path) for path in modules if path.parent.name}
    top_level = {path.name for path in modules if not path.parent.name}
    assert top_level <= set(re.findall(r"\b(\w+\.py)\b", DEVELOP.text))


PIECES = [
    [cell.strip() for cell in line.split("|")[2:4]]
    for line in re.search(r"\| piece \| where .*?(?:\n\n|\Z)", SPEEDRUNS.text, re.DOTALL)[0].splitlines()[2:]
    if line
]


@pytest.mark.parametrize("where", [where for where, _ in PIECES])
def test_each_piece_of_a_speedrun_is_where_it_is_said_to_be(where):
    path, name = re.fullmatch(r"`(.*)`, `(.*)`", where).groups()
    tree = ast.parse((PACKAGE / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("line", [line.strip("`").removesuffix("` turns it on") for _, line in PIECES])
def test_each_piece_of_a_speedrun_can_be_turned_off_by_its_line(compose, tiny_root, line):
    data = (f"data.root={tiny_root}", "data.dataset._target_=conftest.TinyCIFAR10", "data.batch_size=60")
    small = ("model.widths=[8,8,8]", "trainer.max_epochs=2", "callbacks=none", "logger=none")
    metrics = train(compose("experiment=speedrun", *data, *small, *line.split()))
    assert metrics["steps"] == 2


def test_the_comparison_that_is_shown_is_that_of_its_record():
    runs = json.loads((ROOT / "benchmarks" / "results" / "lr.json").read_text())["runs"]
    grouping = group_runs([Run("", recipe(run["overrides"]), run["seed"], "finished", run) for run in runs])
    comparison = compared(grouping.groups, "test/acc")
    shown = [re.split("  +", line) for line in COMPARE.text.splitlines() if re.match(r"optimizer\.lr=\S+  ", line)]
    made = [row[:-1] for row in group_rows(comparison, is_short=True).rows]  # without the seconds
    assert shown == [*made, *pair_rows(comparison).rows]
