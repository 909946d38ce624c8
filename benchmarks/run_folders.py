"""Folders of thousands of runs, as a sweep of train.py leaves them: one real run, with other seeds and numbers.

A run has the curves of the tutorial's recipe: 500 points in training, the test, three pictures. Files of checkpoints
have their size and take no blocks of the disk; nothing that is timed over many runs reads them.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra

from cifar_lightning.config.schema import CONF
from cifar_lightning.runs.folder import CONFIG, HYDRA, METRICS, OVERRIDES
from cifar_lightning.runs.jobkeys import KEY, common_key, job_key, record_key
from cifar_lightning.runs.metrics_file import write_metrics

TUTORIAL = ("data=synthetic", "trainer.max_epochs=1", "trainer.limit_train_batches=500", "trainer.log_every_n_steps=1")
"""The tutorial's recipe in a second, with as many points in its curves as it has by itself."""

RECIPE = (*TUTORIAL, "data.val_size=500")
"""The same in a sweep, which chooses by validation images."""

_TEXTS = (CONFIG, OVERRIDES, HYDRA, Path(METRICS), KEY)
"""Files of a run that are written anew; others are copied."""


def original(folder: Path, overrides: Sequence[str]) -> Path:
    """The folder of a run that train.py makes here, as the only job of a sweep."""
    command = [sys.executable, str(CONF.parent / "train.py"), "-m", *overrides, f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "0"


def restarted(sweep: Path, overrides: Sequence[str], num_runs: int, num_seeds: int) -> list[str]:
    """What is typed after ``train.py`` to start the sweep again that ``multiply`` has made."""
    rates = ",".join(str(_rate(group)) for group in range(-(-num_runs // num_seeds)))
    seeds = ",".join(map(str, range(num_seeds)))
    return ["-m", *overrides, f"optimizer.lr={rates}", f"seed={seeds}", f"output_dir={sweep}"]


def multiply(run: Path, sweep: Path, overrides: Sequence[str], num_runs: int, num_seeds: int, has_keys: bool) -> None:
    """Write the folders of a sweep over learning rates and seeds, all of whose jobs have ended.

    Args:
        run: What ``original`` has made with the same overrides.
        sweep: The folder to make.
        overrides: What all jobs have in common.
        num_runs: How many; a multiple of ``num_seeds``.
        num_seeds: Runs of each learning rate.
        has_keys: Whether the jobs have keys, by which train.py knows them without composing them.
    """
    assert num_runs % num_seeds == 0, (num_runs, num_seeds)
    random.seed(0)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        common = common_key(hydra.compose("train", ["hydra.mode=MULTIRUN"], return_hydra_config=True).hydra)
    texts = {path: (run / path).read_text() for path in (CONFIG, HYDRA)}
    metrics = json.loads((run / METRICS).read_text())
    for number in range(num_runs):
        group, seed = divmod(number, num_seeds)
        own, folder = (
            [*overrides, f"optimizer.lr={_rate(group)}", f"seed={seed}", f"output_dir={sweep}"],
            sweep / str(number),
        )
        _copy(run, folder)
        values = {"seed": seed, "  lr": _rate(group), "output_dir": folder}
        (folder / CONFIG).write_text(_with_values(texts[CONFIG], values))
        (folder / HYDRA).write_text(texts[HYDRA].replace(str(run.parent), str(sweep)))
        (folder / OVERRIDES).write_text("".join(f"- {override}\n" for override in own))
        write_metrics(folder, {**_other_numbers(metrics), "seed": seed, "overrides": own, "output_dir": str(folder)})
        if has_keys:
            record_key(folder, job_key(common, own))


def files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that is in a folder and below, folders too."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from files(Path(entry.path))


def _rate(group: int) -> float:
    return (group + 1) / 10_000


def _copy(run: Path, folder: Path) -> None:
    for entry in files(run):
        source = Path(entry.path)
        target = folder / source.relative_to(run)
        if entry.is_dir():
            target.mkdir(parents=True)
        elif source.relative_to(run) in _TEXTS:
            pass
        elif source.suffix == ".ckpt":
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.truncate(source.stat().st_size)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _with_values(text: str, values: dict[str, Any]) -> str:
    for key, value in values.items():
        text, num = re.subn(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
        assert num == 1, key
    return text


def _other_numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    is_noisy = {key: "/" in key and isinstance(value, float) for key, value in metrics.items()}
    return {
        key: min(value * random.gauss(1, 0.02), 1.0) if is_noisy[key] and "loss" not in key else value
        for key, value in metrics.items()
    }
