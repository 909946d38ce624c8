"""kill -9 at random moments of a real run: what comes out in the end is the run that was never killed."""

import csv
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, differences, last

NUM_KILLS = 20

RECIPE = (
    *("data.val_size=1000", "data.batch_size=50", "num_threads=1"),
    *("augment=crop_flip", "schedule=cosine", "logger=csv", "callbacks=none"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "overrides"),
    [
        ("synthetic", ("trainer.max_epochs=12", "trainer.precision=bf16-mixed")),
        ("cifar10", ("trainer.max_epochs=4", "trainer.precision=32-true")),
    ],
)
def test_20_kills(data, overrides, tmp_path, request):
    """The same command is given again and again, as a scheduler would."""
    dataset = request.getfixturevalue("real_cifar10") if data == "cifar10" else ()

    def start(folder):
        command = [sys.executable, str(ROOT / "train.py"), f"data={data}", *RECIPE, *overrides, *dataset]
        command += ["checkpoint.every_minutes=0.01", "resume=auto", f"output_dir={folder}"]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    random.seed(0)
    num_kills, steps = 0, []
    while num_kills < NUM_KILLS:
        process = start(tmp_path / "killed")
        for line in process.stdout:
            if line.startswith("folder"):  # set up: the first step is next
                break
        time.sleep(random.uniform(0.2, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the recipe is too short: it had ended before it was killed"
        num_kills += 1
        if (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists():
            steps.append(last(tmp_path / "killed")["global_step"])
    process = start(tmp_path / "killed")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    process = start(tmp_path / "whole")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole = last(tmp_path / "whole")
    steps_per_epoch = whole["global_step"] // whole["settings"]["trainer"]["max_epochs"]
    assert len({step % steps_per_epoch for step in steps}) >= 5, steps  # most kills were within an epoch
    assert differences(last(tmp_path / "killed"), whole) == []
    columns = ("step", "train/loss", "train/acc", "lr")
    assert rows(tmp_path / "killed", columns) == rows(tmp_path / "whole", columns)


def rows(folder, columns):
    with (folder / "metrics.csv").open() as file:
        return [[row.get(column) for column in columns] for row in csv.DictReader(file)]
