"""Sweeps whose jobs run in other processes: results, what is left after a failure or a signal, running them again."""

import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import OmegaConf
from picture_folder import write_pictures

from cifar_lightning.cli import launching, remote_job
from cifar_lightning.cli.launching import LauncherLost, NotedLauncher, NotFinished, runs_here
from cifar_lightning.cli.remote_job import STOP_FILE, JobExited, JobStopped, in_own_process
from cifar_lightning.config import schema
from cifar_lightning.data.folder import ImageFolder
from cifar_lightning.data.pixels import CACHE_FOLDER
from cifar_lightning.errors import RunError, UserError
from cifar_lightning.locks import held
from cifar_lightning.runs.signals import SIGNALS, Stopped, signals

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher"
SWEEP = (
    "data.batch_size=10",
    "logger=none",
    "callbacks=none",
    "data=folder",
    "data.val_size=2",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
)


@pytest.fixture
def heard():
    """The signals as a terminal leaves them; they are taken meanwhile."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def folder(tmp_path):
    """Sixteen pictures of two classes."""
    return write_pictures(tmp_path / "pictures", train=6, test=2)


@pytest.mark.processes
def test_jobs_of_joblib_are_those_of_a_serial_sweep(command, tmp_path, folder):
    pytest.importorskip(JOBLIB)
    sweep = ("train.py", "-m", *SWEEP, f"data.root={folder}", f"output_dir={tmp_path / 'serial'}")

    def metrics(job):
        return json.loads((tmp_path / job / "metrics.json").read_text())

    assert command(*sweep, "optimizer.lr=0.01").code == 0
    shutil.copytree(tmp_path / "serial", tmp_path / "side_by_side")
    assert command(*sweep, "optimizer.lr=0.01,0.02").code == 0
    sweep = (*sweep[:-1], f"output_dir={tmp_path / 'side_by_side'}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    shutil.rmtree(folder / CACHE_FOLDER)

    # In a process of its own, as the typechecking of tests makes functions that cannot be pickled.
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    started = [sys.executable, str(ROOT / "train.py"), *sweep[1:], "optimizer.lr=0.01,-1,0.02"]
    environment = {**os.environ, "PYTHONPATH": path, "HYDRA_FULL_ERROR": "0"}
    outcome = subprocess.run(started, capture_output=True, text=True, env=environment)
    assert outcome.returncode == 1, outcome.stderr
    assert metrics("side_by_side/0") == metrics("serial/0")  # with its seconds: it has not been run again
    done = [
        f"job {job}  optimizer.lr={lr}  done: {metrics(f'side_by_side/{job}')['val/acc']:.4f}"
        for job, lr in ((0, 0.01), (2, 0.02))
    ]
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("job ")]
    assert lines[-2:] == done
    failure = "optimizer.lr must be a finite number of at least 0, got -1"
    errors = outcome.stderr.splitlines()
    assert errors[-1] == f"job 1  optimizer.lr=-1  failed: {failure}"
    assert f"error: job 1 (optimizer.lr=-1): {failure}" in errors
    assert not [line for line in errors if "Warning" in line or "Traceback" in line]
    assert "Comparison of tutorial: 3 runs" in outcome.stdout
    serial, parallel = metrics("serial/1"), metrics("side_by_side/2")
    assert {"test/acc", "val/loss"} <= set(serial)
    assert {key: serial[key] for key in serial if "/" in key} == {key: parallel[key] for key in parallel if "/" in key}


def test_jobs_decode_a_folder_once(folder, caplog):
    """One process holds the lock while it decodes; another one waits, and reads what that has cached."""
    caplog.set_level("INFO")
    before = ImageFolder(folder).data
    [file] = (folder / CACHE_FOLDER).glob("train-32-*.pixels")
    inode = file.stat().st_ino
    waiting = []
    with held(folder / CACHE_FOLDER / ".train-32.lock"):
        hidden = file.rename(folder.parent / "hidden")
        thread = threading.Thread(target=lambda: waiting.append(ImageFolder(folder).data))
        thread.start()
        while "is decoding the images into" not in caplog.text:
            time.sleep(0.01)
        hidden.rename(file)
    thread.join()
    assert (waiting[0] == before).all()
    assert file.stat().st_ino == inode  # it has not been written again


@pytest.mark.parametrize(
    ("launcher", "module", "extra"),
    [("joblib", "joblib", "cluster"), ("submitit_slurm", "submitit", "cluster"), ("ray", "ray", "ray")],
)
def test_a_missing_extra_is_named(launcher, module, extra, command, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "set_up_ray", lambda: None)  # of this process's environment
    monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{module}_launcher.{module}_launcher", None)
    outcome = command("train.py", "-m", f"hydra/launcher={launcher}", "seed=0,1", f"output_dir={tmp_path / 'sweep'}")
    assert outcome.refusal == f"hydra-{module}-launcher is not installed: pip install -e '.[{extra}]'"
    assert not (tmp_path / "sweep").exists()


@pytest.fixture
def six_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)


@pytest.mark.parametrize(("num_threads", "jobs"), [(None, 6), (1, 6), (2, 3), (4, 1), (8, 1)])
def test_jobs_at_once_share_the_cores(num_threads, jobs, six_cores):
    config = OmegaConf.load(schema.CONF / "hydra" / "launcher" / "joblib.yaml")
    config.num_threads = num_threads
    assert config.n_jobs == jobs


@pytest.mark.parametrize(
    ("gpus", "overrides", "num_gpus", "num_cpus"),
    [
        (0, {}, 0, 1),
        (0, {"num_threads": 4}, 0, 6),  # one job at once
        (0, {"trainer": {"accelerator": "gpu", "devices": 1}}, 0, 1),  # which the job refuses
        (2, {}, 1, 3),
        (2, {"trainer": {"accelerator": "gpu", "devices": 2}}, 2, 6),
        (2, {"trainer": {"accelerator": "auto", "devices": "auto"}}, 1, 3),
        (2, {"trainer": {"accelerator": "cuda", "devices": [0, 1]}}, 2, 6),
        (2, {"trainer": {"accelerator": "gpu", "devices": "0,1"}}, 2, 6),
        (2, {"trainer": {"accelerator": "gpu", "devices": -1}}, 1, 3),
        (2, {"trainer": {"accelerator": "cpu", "devices": 2}, "num_threads": 2}, 0, 2),
        (8, {"trainer": {"accelerator": "gpu", "devices": 1}}, 1, 1),  # six jobs at once
        (2, {"num_threads": 4}, 1, 6),
        (2, {"remote": 0.5}, 0.5, 1),
    ],
)
def test_a_job_of_ray_has_its_share(gpus, overrides, num_gpus, num_cpus, six_cores, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = OmegaConf.load(schema.CONF / "hydra" / "launcher" / "ray.yaml")
    if remote := overrides.get("remote"):
        config.ray.remote.num_gpus = remote
    config = OmegaConf.merge(config, {"trainer": {"accelerator": "auto", "devices": 1}}, overrides)
    assert config.ray.init.num_cpus == 6
    assert (config.ray.init.num_gpus, config.ray.remote.num_gpus, config.ray.remote.num_cpus) == (
        gpus,
        num_gpus,
        num_cpus,
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "hydra.launcher.ray.remote.num_cpus=1000",
            "remote.num_cpus must be at most 6, which is all there is",
        ),
        ("trainer.devices=3", "remote.num_gpus must be at most 2, which is all there is, got 3"),
        ("+hydra.launcher.ray.remote.num_tpus=1", "Invalid option keyword num_tpus for remote functions"),
    ],
)
def test_what_no_job_of_ray_can_have_is_refused(override, words, command, six_cores, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launching, "set_up_ray", lambda: None)
    outcome = command("train.py", "-m", "hydra/launcher=ray", "seed=0,1", override, tiny=True)
    assert words in outcome.refusal


class Fake(Launcher):
    """Returns what it is told to, after an action."""

    def __init__(self, *results, action=lambda: None):
        self.results, self.action = results, action

    def setup(self, **options):
        raise NotImplementedError

    def launch(self, job_overrides, initial_job_idx):
        self.action()
        returned = []
        for overrides, result in zip(job_overrides, self.results, strict=True):
            job = JobReturn(overrides=overrides)
            job.status = JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED
            job.return_value = result
            returned.append(job)
        return returned


@pytest.fixture
def launched():
    """Launch three jobs, of which files tell that the first is done; gives what is noted, filled even on errors."""
    noted = {}

    def launch(launcher, target=f"{JOBLIB}.JoblibLauncher"):
        config = OmegaConf.create({"hydra": {"launcher": {"_target_": target}, "mode": "MULTIRUN"}})
        note = lambda number, overrides, result: noted.update({number: result})  # noqa: E731
        NotedLauncher(launcher, config, note, lambda jobs: {4: 0.5}).launch([["seed=0"], ["seed=1"], ["seed=2"]], 4)

    launch.noted = noted
    return launch


def test_results_are_noted(launched):
    failure = UserError("wrong")
    launched(Fake(0.25, failure, None))
    assert launched.noted == {4: 0.25, 5: failure, 6: None}


def test_a_job_that_exits_ends_the_sweep_with_its_code(launched):
    with pytest.raises(SystemExit, match=r"^3$"):
        launched(Fake(0.25, JobExited("it has", 3), 0.5))
    assert list(launched.noted) == [4, 5, 6]


class TerminatedWorkerError(Exception):
    """As loky calls it."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TerminatedWorkerError("unexpectedly\nThe exit codes are {SIGKILL(-9)}"), "was killed by SIGKILL, as the"),
        (ValueError("a\n----------\nb"), "ValueError of the launcher: a b; the same command"),
    ],
)
def test_where_the_launcher_is_lost_files_tell_what_is_done(error, words, launched):
    def fail():
        raise error

    with pytest.raises(LauncherLost, match=re.escape(words)):
        launched(Fake(action=fail))
    assert launched.noted[4] == 0.5
    assert [str(launched.noted[number]) for number in (5, 6)] == ["not finished"] * 2
    assert isinstance(launched.noted[5], NotFinished)


def test_a_signal_is_told_to_the_jobs_which_are_waited_for(launched, heard):
    told = []

    def signalled():
        os.kill(os.getpid(), signal.SIGTERM)
        with open(os.environ[STOP_FILE]) as file:
            told.append((file.name, int(file.read())))

    stopped = JobStopped("stopped by SIGUSR1; resume with: the same command")
    with signals, pytest.raises(Stopped, match=r"^stopped by SIGTERM$") as info:
        launched(Fake(0.25, stopped, JobStopped("stopped by SIGTERM"), action=signalled))
    assert (info.value.advice, info.value.exit_code) == ("; resume with: the same command", 143)
    assert launched.noted == {4: 0.25}
    assert told == [(told[0][0], signal.SIGTERM)]
    assert not os.path.exists(told[0][0])
    assert STOP_FILE not in os.environ


def test_a_signal_does_not_wait_for_the_jobs_of_a_cluster(launched, heard):
    slurm = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    with signals, pytest.raises(Stopped, match="SIGTERM"):
        launched(Fake(action=lambda: os.kill(os.getpid(), signal.SIGTERM)), slurm)
    assert launched.noted == {}


def test_a_job_stops_where_the_launching_process_says_so(tmp_path, monkeypatch, heard):
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))

    def job():
        (tmp_path / "stop").write_text(str(int(signal.SIGINT)))
        time.sleep(10)

    with pytest.raises(JobStopped, match="stopped by SIGTERM"):
        in_own_process(job, shows_traceback=False)
    with pytest.raises(JobStopped, match="stopped by SIGINT"):  # before it begins
        in_own_process(lambda: pytest.fail("it began"), shows_traceback=False)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def test_what_a_job_raises_can_be_pickled(capsys):
    def fail(error):
        raise error

    for error, kind, words in (
        (Unpicklable("a", "b"), RunError, "Unpicklable: a b (HYDRA_FULL_ERROR=1 shows where)"),
        (UserError("wrong key"), UserError, "wrong key"),
        (RunError("disk is full"), RunError, "disk is full"),
        (SystemExit(2), JobExited, "the job has ended itself with exit code 2"),
    ):
        with pytest.raises(kind, match=re.escape(words)) as info:
            in_own_process(lambda error=error: fail(error), shows_traceback=False)
        copy = pickle.loads(pickle.dumps(info.value))
        assert (type(copy), str(copy)) == (kind, words)
        assert getattr(copy, "code", None) == getattr(error, "code", None)
    assert capsys.readouterr().err == ""
    with pytest.raises(RunError, match="a b"):
        in_own_process(lambda: fail(Unpicklable("a", "b")), shows_traceback=True)
    assert "in fail" in capsys.readouterr().err


def test_a_job_shows_nothing_on_the_console_it_shares(capsys):
    assert in_own_process(lambda: print("a table") or 0.5, shows_traceback=False) == 0.5
    assert capsys.readouterr().out == ""


class Ended(BaseException):
    pass


@pytest.fixture
def handed(monkeypatch, heard):
    """What happens in a job of submitit's; takes the place of its handler of a signal, which ``action`` belongs to."""

    def leave(code):
        happened.append("left")
        raise Ended(code)

    happened = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(remote_job.os, "_exit", leave)

    def handle(signum, action=lambda: None):
        def handler(signum, frame):
            happened.append("handed")
            action()

        signal.signal(signum, handler)
        return happened

    return handle


def interrupted(signum):
    signals.deferred = True
    os.kill(os.getpid(), signum)
    signals.stop_if_requested()


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_goes_on_to_submitit_once_the_job_has_saved(name, handed):
    happened = handed(signum := getattr(signal, name))

    def job():
        signals.deferred = True
        os.kill(os.getpid(), signum)
        happened.append("saved")
        signals.stop_if_requested()

    with pytest.raises(Ended, match="143"):
        in_own_process(job, shows_traceback=False)
    assert happened == ["saved", "handed", "left"]


def test_submitit_gets_a_signal_that_comes_twice_once(handed):
    def requeue():
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)  # as Slurm ends what it puts into the queue again
        sys.exit(-1)

    happened = handed(signal.SIGUSR2, requeue)
    with pytest.raises(Ended, match="143"):
        in_own_process(lambda: interrupted(signal.SIGUSR2), shows_traceback=False)
    assert happened == ["handed", "left"]


def test_a_job_that_submitit_does_not_start_again_says_why(handed):
    def refuse():
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    happened = handed(signal.SIGUSR2, refuse)
    with pytest.raises(JobStopped, match=r"^stopped by SIGUSR2; Job not requeued because: timed-out too many times\.$"):
        in_own_process(lambda: interrupted(signal.SIGUSR2), shows_traceback=False)
    assert happened == ["handed"]


def test_submitit_gets_a_signal_that_comes_during_an_import(handed, monkeypatch, tmp_path):
    (tmp_path / "interrupted_import.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGUSR2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    happened = handed(signal.SIGUSR2)
    with pytest.raises(Ended, match="143"):
        in_own_process(lambda: importlib.import_module("interrupted_import"), shows_traceback=False)
    assert happened[:2] == ["handed", "left"]


def test_where_a_job_runs():
    basic, other = ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", f"{JOBLIB}.JoblibLauncher")
    for mode, target, here in (
        (RunMode.RUN, other, True),
        (RunMode.MULTIRUN, basic, True),
        (RunMode.MULTIRUN, other, False),
    ):
        hydra = OmegaConf.create({"mode": mode, "launcher": {"_target_": target}})
        assert runs_here(hydra) is here
