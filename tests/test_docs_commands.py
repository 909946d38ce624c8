"""Whatever README, docs/ and --help say can be typed is typed: the commands of a page in turn, in one folder.

They are those of the page but for what makes them long; see ``shortened``. In place of CIFAR-10 there are a few images.
"""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, ROOT, Outcome, after_each_save
from documents import ENTRIES, EXTENSIONS, ORIGINALS, QUICK, TIME, Help, one_by_one
from generated import finished
from PIL import Image
from trying import work_here

from cifar_lightning.commands.train import train

NOT_RUN = {
    "python3 -m venv .venv": "the tests have an environment already",
    ". .venv/bin/activate": "the tests have an environment already",
    "pip install -e .": "a download",
    **{f"pip install -e '.[{extra}]'": "a download" for extra in ("dev", "cluster", "search", "export")},
    **{
        f"python -m pytest {which}": "the tests themselves"
        for which in ("-n auto", "-m slow", "-m gpu", "-m processes -n auto")
    },
    "pre-commit install": "it changes the checkout",
    "python benchmarks/mutants.py --num 100": "all tests, a hundred times",
    "tensorboard --logdir logs": "a server of others; tests/test_tensorboard_page.py looks at its pages",
    "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 train.py trainer.devices=8 "
    "trainer.num_nodes=2": "two machines",
    "srun --nodes=2 --ntasks-per-node=8 python train.py trainer.devices=8 trainer.num_nodes=2": "two machines",
    "python train.py -m hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1 hydra.launcher.partition=gpu "
    "seeds=5": "Slurm; tests/cli/test_launchers.py has a stand-in",
    "for metrics in 'logs/lr/*/metrics.json;' do rm -r '${metrics%/*}/checkpoints;' done": "tests/test_scale.py does",
    "'code=$?'": "a line of the script below",
    "'[' '$code' -eq 143 ']'": "a line of the script below",
    "scontrol requeue '$SLURM_JOB_ID'": "a line of the script below",
    "exit '$code'": "a line of the script below",
}
"""Lines that are not typed here, each with the reason. Those that call an entry are composed in tests/test_docs.py."""

ELSEWHERE = {
    str(command)
    for text in EXTENSIONS.values()
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    for command in one_by_one(line)
}
"""Lines that want files of their section: tests/test_extending.py types them."""

SOURCES = [source for source in [*ORIGINALS, *map(Help, ENTRIES)] if source.typed]
PROMISED = {
    "train.py": "metrics.json",
    "evaluate.py": "report.html",
    "compare.py": "compare.html",
    "search.py": "report.html",
    "predict.py": "predictions.csv",
    "export.py": "export.json",
}
"""A file that each command leaves."""

FEWER = {"seed": "0,1", "seeds": "2", "n_trials": "2", "data.val_size": "10", "trainer.accelerator": "cpu"}
SPEEDRUN = ("model.widths=[8,8,8]", "data.batch_size=60", "trainer.max_epochs=2")
SMALLER = {
    "experiment=finetune": (
        "model.pretrained=false",
        "data.image_size=32",
        "data.batch_size=5",
        "trainer.max_epochs=1",
    ),
    "experiment=resnet18": ("data.batch_size=60", "trainer.max_epochs=1"),
    "experiment=speedrun": SPEEDRUN,
    "experiment=speedrun_gpu": SPEEDRUN,
    "model=resnet18": ("trainer.max_epochs=1",),
    "data=synthetic": ("trainer.limit_train_batches=20",),
}
"""What takes the place of values, and what is added to a choice."""


EXTRAS = {
    "search.py": "optuna",
    "serve.py": "starlette",
    "format=onnx": "onnxscript",
    "format=safetensors": "safetensors",
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=ray": "ray",
}
"""What commands want that has to be installed besides; where it is not, they are left out."""

IN_PROCESSES = ("hydra/launcher=joblib", "hydra/launcher=ray")
"""Launchers that run jobs in other processes of this machine."""

ODD = "data.dataset._target_=odd_data.Odd"


def starts_processes(call):
    return not {"trainer.devices=2", *IN_PROCESSES}.isdisjoint(call)


def shortened(call):
    """A command with fewer seeds, trials, epochs and images, a smaller network, no download and no GPU."""
    entry, *arguments = call
    kept = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "trainer.max_epochs" and int(value) > 4:
            value = "2"
        kept.append(f"{key}={FEWER.get(key, value)}" if value else argument)
    more = [extra for argument in arguments for extra in SMALLER.get(argument, ())]
    if entry in ("train.py", "search.py"):
        more.append("callbacks.pictures=null")
    if entry == "search.py":
        more.append("n_trials=2")
    if starts_processes(call):  # which do not know of what stands for CIFAR-10 in this one
        more.append(ODD)
    return [entry, *kept, *more]


def num_jobs(arguments):
    if "-m" not in arguments:
        return 1
    given = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    return int(given.get("seeds", 1)) * math.prod(value.count(",") + 1 for value in given.values() if "[" not in value)


WITH_PROCESSES = {
    typed: source
    for source in reversed(SOURCES)
    for typed in source.typed
    if starts_processes(typed.call) and str(source) not in QUICK
}
"""Lines that start processes, each of which takes seconds to import: they are typed once, where they stand first."""


class Few:
    """What stands for CIFAR-10 and CIFAR-100: 130 training and 20 test images of noise."""

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        rng, num = np.random.default_rng(train), 130 if train else 20
        self.data, self.targets = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8), [i % 10 for i in range(num)]
        self.classes = CLASSES


class Reader:
    """Types commands into one folder, in which stands what the commands name."""

    def __init__(self, command, folder):
        self.command, self.folder = command, folder
        self.times = {}  # of the first run of each name

    def types(self, typed):
        call = [self.with_time(word) for word in shortened(typed.call)]
        self.bring(call)
        before = self.left(call[0])
        outcome = self.served(call) if call[0] == "serve.py" else self.run(call)
        if typed.answer:
            assert (outcome.code, outcome.err) == (2, typed.answer)
            return
        assert outcome.code == (130 if call[0] == "serve.py" else 0), f"{typed}\n{outcome.err}"
        for path in re.findall(r"^(?:numbers|wrote|page|tables) +([^\s,]+)", outcome.out, re.MULTILINE):
            assert Path(path).exists(), f"{typed}\n{path}"
        if call[0] in PROMISED and "--help" not in call:
            made = self.left(call[0]) - before
            assert len(made) == num_jobs(call), f"{typed}\n{outcome.out}"

    def run(self, call):
        if not {*IN_PROCESSES}.isdisjoint(call):  # the typechecking of tests makes functions that cannot be pickled
            path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
            environment = {**os.environ, "PYTHONPATH": path}
            ran = subprocess.run(
                [sys.executable, str(ROOT / call[0]), *call[1:]], capture_output=True, text=True, env=environment
            )
            return Outcome(ran.returncode, ran.stdout, ran.stderr)
        outcome = self.command(*call)
        if found := re.search(r"^folder +logs/([^/\s]+)/(\S+)$", outcome.out, re.MULTILINE):
            self.times.setdefault(*found.groups())
        return outcome

    def left(self, entry):
        """The files that an entry promises, as far as they are there now."""
        found = [path for path in self.folder.rglob(PROMISED.get(entry, "nothing")) if "evaluate" not in path.parts]
        if entry == "evaluate.py":
            found = list(self.folder.rglob("evaluate/*/report.html"))
        return {(path, path.stat().st_mtime_ns) for path in found}

    def with_time(self, word):
        """A word with a run's folder in place of ``<time>``; to be resumed, it is that of one that was stopped."""
        if not (found := re.search(rf"logs/(\w+)/{TIME}", word)):
            return word
        name = found[1]
        if word.startswith("resume="):
            if not (self.folder / "logs" / name / "stopped").exists():
                self.stop(name)
            return word.replace(TIME, "stopped")
        if name not in self.times:  # no line before has made one
            recipe = [] if name == "tutorial" else [f"experiment={name}"]
            assert self.run(shortened(["train.py", *recipe, "data.val_size=10"])).code == 0
        return word.replace(TIME, self.times[name])

    def stop(self, name):
        """A run that was stopped in its first epoch."""
        with pytest.MonkeyPatch.context() as patch:
            after_each_save(patch, lambda trainer, path: signal.raise_signal(signal.SIGTERM))
            outcome = self.command("train.py", f"output_dir=logs/{name}/stopped", "checkpoint.every_minutes=0")
        assert outcome.code == 143, outcome.err

    def bring(self, call):
        """Checkpoints and runs that no line of a page makes."""
        for name in re.findall(r"\b[ab]\.ckpt", " ".join(call)):
            if not (self.folder / name).exists():
                last = self.with_time(f"logs/tutorial/{TIME}/checkpoints/last.ckpt")
                shutil.copy(self.folder / last, self.folder / name)
        if "ckpt=CKPT" in call:
            assert self.command("train.py", "output_dir=logs/odd", ODD, "callbacks=none").code == 0
            shutil.copy(self.folder / "logs" / "odd" / "checkpoints" / "last.ckpt", self.folder / "CKPT")
        if "export/last.onnx" in " ".join(call):
            pytest.importorskip("onnxscript")
            [path] = [call.partition("=")[2] for call in call if call.startswith("ckpt=")]
            if not (self.folder / path).exists():
                ckpt = path.replace("export/last.onnx", "checkpoints/last.ckpt")
                assert self.command("export.py", f"ckpt={ckpt}", "format=onnx").code == 0
        if call[0] == "compare.py":
            for name in re.findall(r"logs/\w+", " ".join(call)):
                if not (self.folder / name).exists():
                    for job in range(4):
                        more = {"seed": job % 2, "test": 0.5 + job / 100, "test/acc_tta": 0.6}
                        finished(self.folder / name / str(job), f"optimizer.lr=0.00{1 + job // 2}", **more)

    def served(self, call):
        """serve.py on a free port, until it has answered and gets Ctrl-C."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        answers, has_ended = [], threading.Event()

        def ask():
            deadline = time.monotonic() + 60
            while not (answers or has_ended.is_set()) and time.monotonic() < deadline:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                        answers.append(answer.status)
                except OSError:
                    time.sleep(0.05)
            if not has_ended.is_set():
                os.kill(os.getpid(), signal.SIGINT)

        asking = threading.Thread(target=ask)
        asking.start()
        outcome = self.command(*[word for word in call if not word.startswith("port=")], f"port={port}")
        has_ended.set()
        asking.join()
        assert answers == [200]
        return outcome


@pytest.fixture
def reader(command, tmp_path, monkeypatch):
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(f"cifar_lightning.data.{name}", Few)
    pictures = [f"pets/{split}/{name}/{i}" for split in ("train", "test") for name in ("cat", "dog") for i in range(6)]
    for name in [*pictures, "holiday/a", "holiday/b", "new_photos/a", "new_photos/b", "cat", "a", "b"]:
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(path)
    work_here(monkeypatch, train)
    return Reader(command, tmp_path)


def test_each_line_is_typed_or_it_is_said_why_not():
    lines = {str(command): command for source in SOURCES for command in source.typed}
    assert set(NOT_RUN) <= set(lines)
    assert set(ELSEWHERE) <= set(lines)
    assert [line for line, command in lines.items() if not command.call and line not in NOT_RUN] == []


@pytest.mark.parametrize(
    "source",
    [pytest.param(source, marks=[] if str(source) in QUICK else pytest.mark.slow) for source in SOURCES],
    ids=str,
)
def test_what_a_page_says_can_be_typed(source, reader):
    by_call = {typed.call: typed for typed in source.typed if str(typed) not in NOT_RUN | dict.fromkeys(ELSEWHERE)}
    for call, typed in by_call.items():
        is_installed = all(find_spec(EXTRAS[word]) for word in call if word in EXTRAS)
        if is_installed and (not starts_processes(call) or source is WITH_PROCESSES.get(typed, source)):
            reader.types(typed)


SCRIPTS = {block.text for page in ORIGINALS for block in page.blocks("bash") if block.text.startswith("#!")}


@pytest.mark.parametrize(("code", "requeued"), [(143, "requeue 7\n"), (0, ""), (1, "")])
def test_the_script_for_slurm(tmp_path, code, requeued):
    [script] = SCRIPTS
    for name, lines in (("srun", f'echo "$@" > typed\nexit {code}'), ("scontrol", 'echo "$@" > asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment)
    asked = tmp_path / "asked"
    assert (ran.returncode, asked.read_text() if asked.exists() else "") == (code, requeued)
    assert (tmp_path / "typed").read_text().startswith("python train.py output_dir=")
