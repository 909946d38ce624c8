"""Who may import whom: a room imports only what stands above it, and only the libraries it is allowed."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cifar_lightning"
PURE = {"torch", "torchmetrics", "numpy", "scipy", "matplotlib", "jaxtyping"}
GLUE = PURE | {"lightning", "hydra", "omegaconf", "rich", "yaml"}
LIBRARIES = {
    "errors": set(),
    "typehints": set(),
    "files": set(),
    "cores": set(),
    "locks": {"filelock"},
    "device": PURE,
    "ranks": PURE,
    "patches": GLUE | {"tensorboard", "hydra_plugins", "ray", "submitit"},
    "augment": PURE,
    "corruptions": PURE,
    "models": PURE | {"torchvision"},
    "optim": PURE,
    "calibration": PURE,
    "metrics": PURE,
    "analysis": PURE,
    "tta": PURE,
    "data": PURE | {"lightning", "torchvision", "requests", "urllib3", "rich", "PIL", "pillow_heif"},
    "classifier": PURE | {"lightning"},
    "config": GLUE,
    "checkpoint": GLUE | {"onnx", "onnxruntime"},
    "predictor": PURE | {"lightning", "PIL"},
    "serve": PURE | {"starlette", "uvicorn", "python_multipart", "PIL"},
    "report": GLUE | {"jinja2", "markupsafe", "PIL"},
    "runs": GLUE | {"tensorboard"},
    "export": GLUE | {"onnx", "onnxruntime", "onnxscript", "safetensors"},
    "callbacks": GLUE,
    "engine": GLUE,
    "search": GLUE | {"optuna", "markupsafe"},
    "commands": GLUE,
    "cli": GLUE | {"ray", "submitit"},
}
"""The rooms in their order, and the libraries that each may import."""

SIDE_BY_SIDE = {("cli", "commands")}
"""Rooms that only the entries bring together."""


def rooms() -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        files.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    del files["__init__"]
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


def test_every_room_has_its_place():
    assert set(rooms()) == set(LIBRARIES)


@pytest.mark.parametrize("room", LIBRARIES)
def test_a_room_imports_what_stands_above_it(room):
    order = list(LIBRARIES)
    above = set(order[: order.index(room) + 1]) - {other for one, other in SIDE_BY_SIDE if one == room}
    for path in rooms()[room]:
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "cifar_lightning":
                assert rest.partition(".")[0] in above | {"STARTED", "__version__"}, (
                    f"{path.relative_to(PACKAGE)} imports {name}"
                )
            else:
                allowed = LIBRARIES[room] | set(sys.stdlib_module_names)
                assert top in allowed, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("file", ["figures.py"])
def test_figures_work_in_a_notebook(file):
    for name in imports(PACKAGE / "report" / file):
        top, _, rest = name.partition(".")
        needed = LIBRARIES[rest.partition(".")[0]] if top == "cifar_lightning" else {top} - set(sys.stdlib_module_names)
        assert needed <= PURE, name


def test_entries_and_commands_have_the_same_names():
    entries = {path.name for path in ROOT.glob("*.py")}
    assert entries == {path.name for path in (PACKAGE / "commands").glob("*.py")} - {"__init__.py"}


def test_entries_import_nothing_heavy_at_the_top():
    for entry in (path.name for path in ROOT.glob("*.py")):
        tops = ast.parse((ROOT / entry).read_text()).body
        modules = {node.module for node in tops if isinstance(node, ast.ImportFrom)}
        assert modules <= {"pathlib", "omegaconf", "cifar_lightning.cli.main", "cifar_lightning.config.invocation"}
