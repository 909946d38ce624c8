"""Sweeps as jobs of a real Slurm: interrupted, put into the queue again, killed, and run again."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, differences, last
from slurm import Unavailable, running, until

pytestmark = pytest.mark.processes

SWEEP = (
    *("experiment=smoke", "callbacks=none", "trainer.accelerator=cpu", "trainer.limit_train_batches=100"),
    *("data.val_size=20", "num_threads=1"),
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher.submitit_launcher")
    try:
        with running(tmp_path_factory.mktemp("slurm")) as slurm:
            yield slurm
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def launch(slurm, tmp_path):
    """Start a sweep as jobs of Slurm; ``wait`` gives exit code and the lines of stdout and stderr."""
    started = []

    def start(*overrides):
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        command = [sys.executable, ROOT / "train.py", "-m", "hydra/launcher=submitit_slurm", *SWEEP, *overrides]
        environment = {**slurm.environment, "PYTHONPATH": path, "HYDRA_FULL_ERROR": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=400)
    return process.returncode, out.splitlines(), err.splitlines()


def job_id(sweep, number):
    """Slurm's name of a job that is in the midst of its training."""
    until((sweep / str(number) / "checkpoints" / "last.ckpt").exists, f"the first epoch of job {number}")
    [folder] = (sweep / ".submitit").glob(f"*_{number}")
    return folder.name


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def resumed_at(folder):
    """The step at which a run was resumed, the only time."""
    [step] = re.findall(r"resume    .*, after step (\d+)$", (folder / "train.log").read_text(), re.MULTILINE)
    return int(step)


def done(sweep, number, override):
    return f"job {number}  {override}  done: {metrics(sweep / str(number))['val/acc']:.4f}"


def assert_same(here, there):
    """Both runs have the same numbers and weights, to the last bit."""
    for run in (here, there):
        assert {"train/acc", "val/acc", "test/loss"} <= metrics(run).keys()
    ours, theirs = ({key: value for key, value in metrics(run).items() if "/" in key} for run in (here, there))
    assert differences(ours, theirs) == []
    assert differences(last(here)["state_dict"], last(there)["state_dict"]) == []


def test_jobs_that_are_killed_or_interrupted_end_as_those_of_a_serial_sweep(slurm, launch, command, tmp_path):
    epochs = (14, 30, 16, 1)
    overrides = tuple(f"trainer.max_epochs={num}" for num in epochs)
    swept = f"trainer.max_epochs={','.join(map(str, epochs))}"
    sweep, serial = tmp_path / "sweep", tmp_path / "serial"

    launcher = launch(swept, f"output_dir={sweep}")
    slurm.run("scancel", "--signal=KILL", f"{(killed := job_id(sweep, 0))}.0")
    # As before its time is up. To its step, as submitit has done: to the job, scancel would send it once more.
    slurm.run("scancel", "--signal=USR2", f"{(signalled := job_id(sweep, 1))}.0")
    slurm.run("scontrol", "requeue", requeued := job_id(sweep, 2))  # as where its node is wanted; sends SIGTERM
    code, out, err = ended(launcher)
    assert code == 1
    log = sweep / ".submitit" / killed / f"{killed}_0_log.err"
    assert err[-1] == f"job 0  {overrides[0]}  ended without a result (Slurm: FAILED); {log} has its last words"
    lines = [done(sweep, number, overrides[number]) for number in (1, 2, 3)]
    assert [line for line in out if line.startswith("job ")] == lines
    for number, job in ((1, signalled), (2, requeued)):
        assert " Restarts=1 " in slurm.run("scontrol", "show", "job", job)
        assert 0 < resumed_at(sweep / str(number)) < epochs[number] * 100

    before = metrics(sweep / "1")
    code, out, err = ended(launch(swept, f"output_dir={sweep}"))
    assert (code, err) == (0, [])
    assert [line for line in out if line.endswith("is done already")] == [f"{sweep / n} is done already" for n in "123"]
    assert [line for line in out if line.startswith("job ")] == [done(sweep, 0, overrides[0]), *lines]
    assert "Comparison of smoke: 4 runs, 4 groups" in out
    assert 0 < resumed_at(sweep / "0") < epochs[0] * 100
    assert metrics(sweep / "1") == before  # with its seconds: it has not been run again

    assert command("train.py", "-m", *SWEEP, swept, f"output_dir={serial}").code == 0
    for number in range(len(epochs)):
        assert_same(sweep / str(number), serial / str(number))
