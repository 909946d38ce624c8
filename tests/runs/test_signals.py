"""Signals: the run saves at the next step and says how to resume."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, TINY, differences, last

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.runs.signals import SIGNALS, Signals, Stopped, signals

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143, "SIGHUP": 143}


@pytest.fixture(autouse=True)
def heard():
    """The signals as a terminal leaves them, in this process and those it starts: nohup and & have some ignored."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send_at(monkeypatch, name, *, step, hook=(TrainingCurves, "on_train_batch_end")):
    """Send this process a signal when a hook is called after so many steps."""
    owner, attribute = hook
    original = getattr(owner, attribute)

    def sending(self, *args):
        result = original(self, *args)
        trainer = args[0] if owner is TrainingCurves else self.trainer
        if trainer.global_step == step:
            os.kill(os.getpid(), getattr(signal, name))
        return result

    monkeypatch.setattr(owner, attribute, sending)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_saves_and_says_how_to_go_on(name, command, tmp_path, monkeypatch):
    run = ("train.py", *SMALL, f"output_dir={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        send_at(patch, name, step=8)
        outcome = command(*run, tiny=True)
    assert outcome.code == CODES[name], outcome.err
    assert outcome.err == f"stopped by {name}; resume with: python train.py resume={tmp_path / 'run'}\n"
    assert last(tmp_path / "run")["global_step"] == 8
    assert not (tmp_path / "run" / "metrics.json").exists()

    again = command("train.py", f"resume={tmp_path / 'run'}", TINY)
    assert again.code == 0, again.err
    unstopped = command("train.py", *SMALL, f"output_dir={tmp_path / 'whole'}", tiny=True)
    assert unstopped.code == 0, unstopped.err
    assert differences(last(tmp_path / "run"), last(tmp_path / "whole")) == []


@pytest.mark.parametrize(
    ("hook", "step", "saved_at"),
    [
        ((ImageClassifier, "validation_step"), 4, 4),  # of the first epoch
        ((TrainingCurves, "on_train_batch_end"), 4, 4),  # the last step of an epoch: its validation comes first
        ((ImageClassifier, "test_step"), 8, 8),
    ],
)
def test_signals_outside_of_training_steps(hook, step, saved_at, command, tmp_path, monkeypatch):
    run = ("train.py", *SMALL, "data.val_size=20", f"output_dir={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        send_at(patch, "SIGTERM", step=step, hook=hook)
        outcome = command(*run, tiny=True)
    assert outcome.code == 143
    assert last(tmp_path / "run")["global_step"] == saved_at
    assert command("train.py", f"resume={tmp_path / 'run'}", TINY).code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_seconds"] > 0
    # of the last process alone
    assert {metrics[name] for name in ("warm_seconds", "seconds", "process_seconds")} == {None}
    assert command("train.py", *run[1:-1], f"output_dir={tmp_path / 'whole'}", tiny=True).code == 0
    assert differences(last(tmp_path / "run"), last(tmp_path / "whole")) == []


def test_before_the_first_step_there_is_nothing_to_save(command, tmp_path, monkeypatch):
    send_at(monkeypatch, "SIGTERM", step=0, hook=(ImageClassifier, "validation_step"))  # the sanity check
    outcome = command("train.py", *SMALL, "data.val_size=20", f"output_dir={tmp_path / 'run'}", tiny=True)
    assert (outcome.code, outcome.err) == (143, "stopped by SIGTERM\n")


def test_while_gradients_are_accumulated_it_waits_for_the_step(command, tmp_path, monkeypatch):
    send_at(monkeypatch, "SIGTERM", step=1)  # called after batches 2 and 3 too: the step counts after the first of them
    outcome = command(
        *("train.py", *SMALL, "trainer.accumulate_grad_batches=2", f"output_dir={tmp_path / 'run'}"), tiny=True
    )
    assert outcome.code == 143
    assert last(tmp_path / "run")["global_step"] in (1, 2)
    assert last(tmp_path / "run")["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] % 2 == 0


def test_a_sweep_stops_and_lists_what_is_done(command, tmp_path, monkeypatch):
    def send(self, trainer, pl_module, *args):
        original(self, trainer, pl_module, *args)
        if Path(trainer.default_root_dir).name == "1" and trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    original = TrainingCurves.on_train_batch_end
    monkeypatch.setattr(TrainingCurves, "on_train_batch_end", send)
    outcome = command("train.py", "-m", *SMALL, "seed=0,1,2", f"output_dir={tmp_path / 'sweep'}", tiny=True)
    assert outcome.code == 143
    assert re.search(r"job 0 .*seed=0  done", outcome.out)
    expected = f"stopped by SIGTERM; resume with: the same command with output_dir={tmp_path / 'sweep'}\n"
    assert outcome.err == expected
    assert last(tmp_path / "sweep" / "1")["global_step"] == 8
    assert not (tmp_path / "sweep" / "2" / "checkpoints").exists()


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_not_deferred_it_stops_at_once():
    with Signals(), pytest.raises(Stopped, match="stopped by SIGHUP"):
        os.kill(os.getpid(), signal.SIGHUP)
    with Signals() as deferring:
        deferring.deferred = True
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped, match="stopped by SIGHUP"):
            deferring.stop_if_requested()
    assert signals.requested is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_during_an_import_it_ends_the_process_itself(name, monkeypatch, tmp_path, capsys):
    """What is imported may drop any exception, as this module does."""
    module = f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{name})\nexcept BaseException:\n    pass\n"
    (tmp_path / f"dropping_{name}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with Signals():
        importlib.import_module(f"dropping_{name}")
    assert codes == [CODES[name]]
    assert capsys.readouterr().err == f"stopped by {name}\n"


def test_a_second_ctrl_c_ends_it_on_the_spot():
    code = "import time; from cifar_lightning.runs.signals import signals\n"
    code += "signals.__enter__().deferred = True; print('ready', flush=True)\nwhile True: time.sleep(0.01)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=10) == 130
        finally:
            process.kill()


def test_under_slurm_lightning_does_not_requeue(command, tmp_path, monkeypatch):
    """Its own handler would save in the middle of a step, as hpc_ckpt_1.ckpt, and call scontrol."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    send_at(monkeypatch, "SIGUSR1", step=8)
    outcome = command("train.py", *SMALL, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 143
    assert last(tmp_path / "run")["global_step"] == 8
    assert [path.name for path in (tmp_path / "run").rglob("*.ckpt")] == ["last.ckpt"]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_at_the_very_end_of_training_is_not_lost(command, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageClassifier, "on_train_end", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    outcome = command("train.py", *SMALL, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 143
    assert last(tmp_path / "run")["global_step"] == 12
