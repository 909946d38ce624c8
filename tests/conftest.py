"""A tiny data set in CIFAR-10's own layout, configs composed as the command line would, and runs of train.py itself."""

import copy
import gc
import hashlib
import logging
import os
import pickle
import re
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from browsing import browser  # noqa: F401  # a fixture
from hydra._internal.hydra import Hydra
from hydra.utils import get_class
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torchvision.datasets import CIFAR10

from cifar_lightning import models
from cifar_lightning.checkpoint.format import FORMAT_VERSION, read
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.cli.overrides_from_checkpoint import data_files, overrides_from
from cifar_lightning.commands.export import export
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.data import Arrays, Batches
from cifar_lightning.data.synthetic import Synthetic
from cifar_lightning.optim.builders import sgd

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a process in the background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tests' steps are too small to share out, and sums take the same order on every machine

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("data.batch_size=10", "logger=none", "callbacks=none", "trainer.enable_progress_bar=false")
TINY = "data.dataset._target_=conftest.TinyCIFAR10"  # a class is never taken from a file, so it is typed each time
FAST = ("trainer.max_epochs=2", "trainer.log_every_n_steps=5", "trainer.accelerator=cpu")
BARE = ("callbacks=none", "logger=none")  # drawing the pictures takes a second
TIMES = ("seconds", "images_per_second", "output_dir", "save_dir", "resume", "versions", "commit", "dirty")
LAUNCHERS = (  # how the variables begin that tell a process of its cluster; and HYDRA_FULL_ERROR
    *("SLURM_", "TORCHELASTIC_", "JSM_", "LSB_", "MASTER_", "PL_", "HYDRA_"),
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _write(path: Path, content: object) -> list[str]:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


class TinyCIFAR10(CIFAR10):
    """torchvision's own class over 60 training and 20 test images of noise; `write` makes its files."""

    train_list: ClassVar[list[list[str]]] = []
    test_list: ClassVar[list[list[str]]] = []
    meta: ClassVar[dict[str, str]] = {"filename": "batches.meta", "key": "label_names", "md5": ""}

    @classmethod
    def write(cls, root: Path) -> None:
        folder = root / cls.base_folder
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)

        def batch(num_images: int) -> dict[str, object]:
            pixels = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
            return {"data": pixels, "labels": [i % 10 for i in range(num_images)]}

        cls.train_list = [_write(folder / f"data_batch_{i}", batch(30)) for i in (1, 2)]
        cls.test_list = [_write(folder / "test_batch", batch(20))]
        _, md5 = _write(folder / "batches.meta", {"label_names": CLASSES})
        cls.meta = {**cls.meta, "md5": md5}


class WithVal(TinyCIFAR10):
    """A data set that brings validation images: the last 12 of its 60 training images."""

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        super().__init__(root, train=train, download=download)
        self.num_val = 12 if train else 0


def pytest_configure(config: pytest.Config) -> None:
    """Make the environment the same on every machine, for this process and those that tests start.

    Lightning takes a job of a cluster, where the tests may run, for a job of its own. Tests use the CPU, also where
    there is a GPU, except for those that ``-m gpu`` asks for.
    """
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        del os.environ[name]
    rank_zero_only.rank = 0  # Lightning has read it from there when it was imported
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of a GPU where none is to be seen."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU: python -m pytest -m gpu"))


def _with_room(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return function(**arguments)


# CPython keeps frames in pieces of 16 kB and returns a piece that gets empty to the system: calls back and forth across
# the edge of one take it again each time. pytest, Hydra and its recursions lie so deep that this was a fifth of the
# tests' time. A frame of this many values (8 bytes each) takes a piece of a megabyte, with room for what is called.
_with_room.__code__ = _with_room.__code__.replace(co_stacksize=100_000)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Call each test with room on Python's stack."""
    function = pyfuncitem.obj
    pyfuncitem.obj = lambda **arguments: _with_room(function, arguments)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = function


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what the imports have made: a million objects, of which none goes."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Have it collect them at the end, as libraries in C++ report what is left then."""
    gc.unfreeze()


@contextmanager
def no_synchronizing() -> Iterator[None]:
    """Whatever waits for a GPU raises meanwhile."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches beyond this machine, so that none downloads a data set where there is a network."""
    original = socket.getaddrinfo

    def getaddrinfo(host: str, *args: object, **kwargs: object) -> object:
        if host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
            raise socket.gaierror(f"tests look up no address: {host}")
        return original(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


DRAW_SYNTHETIC = Synthetic.__init__


@pytest.fixture(scope="session", autouse=True)
def synthetic_is_drawn_once() -> Iterator[None]:
    """Drawing its 12,000 images takes longer than most tests."""
    drawn: dict[bool, dict[str, object]] = {}

    def draw(self: Synthetic, root: str | None = None, train: bool = True, download: bool = False) -> None:
        if train not in drawn:
            DRAW_SYNTHETIC(self, train=train)
            drawn[train] = vars(self).copy()
        vars(self).update(drawn[train])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synthetic, "__init__", draw)
        yield


@pytest.fixture(scope="session", autouse=True)
def yaml_is_parsed_once() -> Iterator[None]:
    """Each run composes its config from the same files of conf/, whose parsing is a sixth of most tests' time."""
    parse, parsed = yaml.load, dict[tuple[str, str], Any]()

    def load(stream: Any, Loader: type) -> Any:
        if not hasattr(stream, "seek"):
            return parse(stream, Loader=Loader)
        begin = stream.tell()
        key = (str(Loader), stream.read())
        if key not in parsed:
            stream.seek(begin)  # not a text, so that errors name the file
            parsed[key] = parse(stream, Loader=Loader)
        return copy.deepcopy(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load)
        yield


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    TinyCIFAR10.write(root)
    return root


@pytest.fixture(scope="session")
def real_cifar10() -> list[str]:
    """Overrides that choose CIFAR-10 itself; skips where it is not on disk.

    CIFAR10_ROOT names its folder (default: data in the checkout), CIFAR10_DATASET a class other than torchvision's.
    """
    target = os.environ.get("CIFAR10_DATASET", "torchvision.datasets.CIFAR10")
    root = Path(os.environ.get("CIFAR10_ROOT", ROOT / "data")).resolve()
    try:
        get_class(target)(root=root, train=False, download=False)
    except RuntimeError:
        pytest.skip(f"CIFAR-10 is not in {root}: python train.py downloads it")
    return [f"data.root={root}", f"data.dataset._target_={target}"]


def save_checkpoint(
    path: Path,
    *,
    size: int = 32,
    classes: list[str] = CLASSES,
    dtype: torch.dtype = torch.float32,
    temperature: float | None = None,
    **model: Any,
) -> Path:
    """A checkpoint of a network that has seen noise, so that its batch norms are no identities."""
    settings: dict[str, Any] = {"name": "test", "seed": 0, "tta": 0, "num_threads": None, "compile": False}
    settings |= {"classes": classes, "image_size": [size, size], "fingerprint": {}, "data": {"name": "noise"}}
    settings |= {"model": {"num_classes": len(classes), "in_channels": 3, **model}, "trainer": {"precision": None}}
    settings |= {"normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}}
    torch.manual_seed(0)
    classifier = ImageClassifier(models.build(**settings["model"]), **settings["normalize"])
    classifier(torch.randint(256, (20, 3, size, size), dtype=torch.uint8))
    classifier.to(dtype)
    contents = {"format_version": FORMAT_VERSION, "settings": settings, "temperature": temperature}
    torch.save({**contents, "state_dict": classifier.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """The folder of a run on the tiny data set, with its last checkpoint exported to ONNX and to torch.export's form.

    It is validated, so the checkpoint has a temperature. Nothing may be written into the folder.
    """
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("runs") / "run"
    fixed = (f"output_dir={folder}", "trainer.accelerator=cpu", f"data.root={tiny_root}", TINY)
    recipe = ("trainer.precision=bf16-mixed", "trainer.max_epochs=1", "data.val_size=20")
    train(schema.compose(*fixed, *FAST, *SMALL, *recipe))
    for name in ("onnx", "torch_export"):
        ckpt = f"ckpt={folder}/checkpoints/last.ckpt"
        export(schema.compose(ckpt, f"format={name}", config_name="export"))
    return folder


@pytest.fixture
def compose(tmp_path: Path, tiny_root: Path) -> Callable[..., DictConfig]:
    """conf/train.yaml with overrides, on the tiny data set unless told otherwise, and its run folder in tmp_path.

    Recipes set precision=auto, which depends on the CPU: on a CPU they train in fp32 here unless told otherwise.
    """

    def composed(*overrides: str) -> DictConfig:
        fixed = [f"output_dir={tmp_path / 'run'}", "trainer.accelerator=cpu"]
        tiny = [f"data.root={tiny_root}", TINY]
        if "trainer.accelerator=gpu" not in overrides and any(o.startswith("experiment=") for o in overrides):
            fixed.append("trainer.precision=32-true")
        if any(override.startswith(("data=", "experiment=")) for override in overrides):
            tiny = []
        return schema.compose(*fixed, *tiny, *overrides)

    return composed


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """What is wrong with the command line, which exit code 2 and a single line on stderr tell."""
        assert self.code == 2, self.err
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").removesuffix("\n")


@pytest.fixture
def command(tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an entry in this process as the command line would, in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    # Hydra composes everything once more to look up hydra.mode, which no test sets: a fifth of the tests' time.
    monkeypatch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)

    def run(script: str, *arguments: str, tiny: bool = False) -> Outcome:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        if tiny:
            arguments = (f"data.root={tiny_root}", TINY, *arguments)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        root_logger = logging.getLogger()
        handlers, level = root_logger.handlers[:], root_logger.level
        try:
            with pytest.raises(SystemExit) as exit_info:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        finally:
            for handler in set(root_logger.handlers) - set(handlers):
                handler.close()
            root_logger.handlers[:] = handlers  # Hydra's point at this test's captured streams
            root_logger.setLevel(level)
        captured = capsys.readouterr()
        return Outcome(int(exit_info.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def ended(command: Callable[..., Outcome], tmp_path: Path) -> Path:
    """The folder of a run of train.py that has ended, with its curves in metrics.csv."""
    small = [*(override for override in SMALL if override != "logger=none"), "logger=csv"]
    outcome = command("train.py", *small, "trainer.max_epochs=1", f"output_dir={tmp_path / 'whole'}", tiny=True)
    assert outcome.code == 0, outcome.err
    return tmp_path / "whole"


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """Keys of what differs by a bit between two checkpoints or metrics, but for times and places."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [name for name in one | other if not any(time in str(name) for time in TIMES)]
        return [found for name in keys for found in differences(one.get(name), other.get(name), f"{key}.{name}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{key}.{i}")
        ]
    is_nan = isinstance(one, float) and isinstance(other, float) and one != one and other != other
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other or is_nan
    return [] if same else [key]


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def of_checkpoint(folder: Path) -> list[str]:
    """What evaluate.py puts before the command line for the last checkpoint of a run."""
    path = folder / "checkpoints" / "last.ckpt"
    return overrides_from(str(path), read(path)["settings"], {}, data_files())


def make_classifier(**arguments) -> ImageClassifier:
    torch.manual_seed(0)
    net = models.build("tutorial", num_classes=10, in_channels=3)
    return ImageClassifier(net, **{"mean": [0.5], "std": [0.5], "optimizer": lambda net: sgd(net, lr=0.01)} | arguments)


def make_batches(num_images: int = 40, batch_size: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    arrays = Arrays(images, torch.arange(num_images) % 10, tuple("abcdefghij"))
    return Batches(arrays, torch.arange(num_images), batch_size=batch_size, seed=0)


def make_trainer(tmp_path, **arguments) -> L.Trainer:
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet = {"max_epochs": 1, "limit_val_batches": 0}  # a classifier that has no validation images is warned about
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **off | quiet | arguments)


def after_each_save(patch: pytest.MonkeyPatch, action: Callable[[L.Trainer, Path], object]) -> None:
    """Have something happen after each save of last.ckpt; it gets the Trainer and the file's path."""
    save = L.Trainer.save_checkpoint

    def saving(trainer: L.Trainer, path: Path, *args: Any, **options: Any) -> None:
        save(trainer, path, *args, **options)
        if path.name == "last.ckpt":
            action(trainer, path)

    patch.setattr(L.Trainer, "save_checkpoint", saving)


@pytest.fixture
def run(compose: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Train on the tiny data set; gives the metrics and the run's folder."""

    def trained(*overrides: str) -> tuple[dict[str, Any], Path]:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return train(compose(*FAST, f"output_dir={folder}", *overrides)), folder

    return trained
