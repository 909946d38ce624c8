"""Sweeps as jobs of a real Slurm: interrupted, put into the queue again, killed, and run again."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, differences, last
from slurm import Unavailable, running, until

pytestmark = pytest.mark.cluster

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
    out, err = process.communicate(timeout=100)
    return process.returncode, out.splitlines(), err.splitlines()


def job_id(sweep, number):
    """Slurm's name of a job that is in the midst of its training."""
    until((sweep / str(number) / "checkpoints" / "last.ckpt").exists, f"the first epoch of job {number}")
    [folder] = (sweep / ".submitit").glob(f"*_{number}")
    return folder.name


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def done(sweep, number, override):
    return f"job {number}  {override}  done: {metrics(sweep / str(number))['val/acc']:.4f}"


def assert_same(here, there):
    """Both runs have the same numbers and weights, to the last bit."""
    for run in (here, there):
        assert {"train/acc", "val/acc", "test/loss"} <= metrics(run).keys()
    ours, theirs = ({key: value for key, value in metrics(run).items() if "/" in key} for run in (here, there))
    assert differences(ours, theirs) == []
    assert differences(last(here)["state_dict"], last(there)["state_dict"]) == []


def test_jobs_that_are_interrupted_end_as_those_of_a_serial_sweep(slurm, launch, command, tmp_path):
    epochs = (1, 25, 26, 2)
    swept = f"trainer.max_epochs={','.join(map(str, epochs))}"
    sweep, serial = tmp_path / "sweep", tmp_path / "serial"
    launcher = launch(swept, f"output_dir={sweep}")
    # As before its time is up. To its step, as submitit has done: to the job, scancel would send it once more.
    slurm.run("scancel", "--signal=USR2", f"{(signalled := job_id(sweep, 1))}.0")
    slurm.run("scontrol", "requeue", requeued := job_id(sweep, 2))  # as where its node is wanted; sends SIGTERM
    code, out, err = ended(launcher)
    assert (code, err) == (0, [])
    lines = [line for line in out if line.startswith("job ")]
    assert lines == [done(sweep, number, f"trainer.max_epochs={num}") for number, num in enumerate(epochs)]
    assert "Comparison of smoke: 4 runs, 4 groups" in out
    for job in (signalled, requeued):
        assert " Restarts=1 " in slurm.run("scontrol", "show", "job", job)
        log = (sweep / job.partition("_")[2] / "train.log").read_text()
        [step] = re.findall(r"resume    .*, after step (\d+)$", log, re.MULTILINE)
        assert int(step) < 25 * 100

    assert command("train.py", "-m", *SWEEP, swept, f"output_dir={serial}").code == 0
    for number in range(len(epochs)):
        assert_same(sweep / str(number), serial / str(number))


def test_a_killed_job_is_told_of_and_runs_again(slurm, launch, tmp_path):
    sweep = tmp_path / "sweep"
    overrides = ("trainer.max_epochs=25,1", f"output_dir={sweep}")
    launcher = launch(*overrides)
    slurm.run("scancel", "--signal=KILL", f"{(killed := job_id(sweep, 0))}.0")
    code, out, err = ended(launcher)
    assert code == 1
    log = sweep / ".submitit" / killed / f"{killed}_0_log.err"
    words = f"ended without a result (Slurm: FAILED); {log} has its last words"
    assert err[-1] == f"job 0  trainer.max_epochs=25  {words}"
    finished = done(sweep, 1, "trainer.max_epochs=1")
    assert [line for line in out if line.startswith("job ")] == [finished]
    before = metrics(sweep / "1")

    code, out, err = ended(launch(*overrides))
    assert (code, err) == (0, [])
    assert f"{sweep / '1'} is done already" in out
    assert [line for line in out if line.startswith("job ")] == [done(sweep, 0, "trainer.max_epochs=25"), finished]
    assert metrics(sweep / "1") == before  # with its seconds: it has not been run again
