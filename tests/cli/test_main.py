import json
import logging
import os
import subprocess
import sys

import hydra
import pytest
from conftest import ROOT
from hydra.core.hydra_config import HydraConfig

from cifar_lightning.cli.main import Console
from cifar_lightning.commands.train import train
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import UserError

FAST = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "callbacks=none",
    "logger=none",
    "trainer.accelerator=cpu",
)


def test_help_lists_the_choices_without_importing_torch():
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--help']\ntry: runpy.run_path('train.py', run_name='__main__')\n"
    )
    code += "except SystemExit as e: assert e.code == 0 and 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in (ROOT / "conf").glob("*/*.yaml"):
        assert file.stem in shown, file
    assert "label_smoothing" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=0.1"], "optimizer.lrr=0.1: there is no key optimizer.lrr: did you mean optimizer.lr?"),
        (["lr=0.1"], "lr=0.1: there is no key lr: did you mean optimizer.lr?"),
        (["optimiser.lr=0.1"], "optimiser.lr=0.1: there is no optimiser: did you mean optimizer?"),
        (["sed=3"], "sed=3: there is no key sed: did you mean seed?"),
        (["model=resnet18_imagenet", "model.imagesize=64"], "did you mean model.image_size?"),
        (["experment=smoke"], "there is no key experment: did you mean experiment?"),
        (["model=resnt18"], "model=resnt18 is not one of its choices: did you mean resnet18?"),
        (["trainer.max_epoch=3"], "there is no key trainer.max_epoch: did you mean trainer.max_epochs?"),
        (["trainer.logger=false"], "trainer.logger=false: this argument of the Trainer is the project's own"),
        (["seed=one"], "seed: Value 'one' of type 'str' could not be converted to Integer"),
        (["seed="], "seed: Value '' of type 'str' could not be converted to Integer"),
        (["tta=3"], "tta must be 0 (none), 1 (mirror images) or 2 (six views), got 3"),
        (["num_threads=0"], "num_threads must be in [1, 1024], or null for a sensible number, got 0"),
        (["compile=1"], "compile must be true, false or one of default, reduce-overhead, max-autotune, "),
        (
            ["freeze=[[conv1,half]]"],
            "freeze must be parts of the network and fractions, as in [[conv1,0.5]], got [['con",
        ),
        (["freeze=0.5"], "freeze must be parts of the network and fractions, as in [[conv1,0.5]], got 0.5"),
        (["+typo=1"], "+typo=1: no key can be added; write typo=1"),
        (["++optimizer.typo=1"], "++optimizer.typo=1: no key can be added"),
        (["~callbacks"], "~callbacks: no key can be removed; write callbacks=null"),
        (["output_dir=a=b"], "cannot read 'output_dir=a=b'"),
        (["output_dir=/dev/null"], "output_dir cannot be used: "),
        (["--epochs", "3"], "unrecognized arguments: --epochs; a key is set as key=value, and --help lists the keys"),
        (["--cfg", "jobb"], "argument --cfg/-c: invalid choice: 'jobb'"),
        (["-m", "optimizer.lrr=0.1,0.2"], "there is no key optimizer.lrr: did you mean optimizer.lr?"),
    ],
)
def test_composition_errors_are_one_line_and_exit_2(command, arguments, message):
    outcome = command("train.py", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=abc"], "optimizer.lr must be a finite number, got 'abc'"),
        (["optimizer.lr=-1"], "optimizer.lr must be a finite number of at least 0, got -1"),
        (["optimizer.lr=nan"], "optimizer.lr must be a finite number, got nan"),
        (["schedule=cosine", "schedule.warmup_fraction=2"], "schedule.warmup_fraction must be in [0, 1), got 2"),
        (["seed=-1"], "seed: "),
        (["label_smoothing=2"], "label_smoothing must be in [0, 1], got 2.0"),
        (["normalize.std=[0.0]"], "normalize.std must be positive, got [0.0]"),
        (["normalize.mean=[0.5,0.5]"], "normalize.mean must have 1 or 3 numbers, got [0.5, 0.5]"),
        (["normalize.mean=0.5"], "normalize.mean must be a list of numbers or auto, got 0.5"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
        (["data.batch_size=61"], "data.batch_size must be at most the 60 training images, got 61"),
        (["data.val_size=60"], "data.val_size must be in [0, 60), got 60"),
        (["data.root=/dev/null"], "data.root must be a folder that holds the data or will hold them, got a file: /dev"),
        (["data.dataset._target_=no.such.Class"], "data.dataset._target_: "),
        (["augment=crop_flip", "augment.padding=32"], "augment.padding must be in [0, 32), got 32"),
        (["augment=crop_flip", "augment.mode=mirror"], "augment.mode must be constant, reflect, got 'mirror'"),
        (
            ["trainer.accelerator=gpuu"],
            "trainer.accelerator=gpuu trainer.devices=1: You selected an invalid accelerator",
        ),
        (["trainer.devices=0", "trainer.accelerator=cpu"], "trainer.accelerator=cpu trainer.devices=0: "),
        (["trainer.devices=2", "trainer.accelerator=cpu"], "trainer.devices: a run uses 1 device so far, got 2"),
        (["trainer.precision=fp12"], "trainer.precision must be 64, 32, 16 or "),
        (["trainer.max_epochs=0"], "trainer: max_epochs, max_steps and limit_train_batches must leave a step to do"),
        (["trainer.max_steps=0", "schedule=cosine"], "trainer: max_epochs, max_steps and limit_train_batches must"),
        (["trainer.max_epochs=-5"], "trainer: `max_epochs` must be a non-negative integer or -1"),
        (
            ["trainer.max_epochs=-1", "schedule=cosine"],
            "schedule: it counts from the first step to the last; set trainer",
        ),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches must be at least 1, got 0"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch must be at least 1, got 0"),
        (["trainer.val_check_interval=16"], "trainer.val_check_interval must be at most the 15 batches of an epoch"),
        (["trainer.limit_test_batches=0.5"], "trainer.limit_test_batches=0.5 leaves none of the 1 batches"),
        (["data.val_size=20", "trainer.limit_val_batches=0.5"], "trainer.limit_val_batches=0.5 leaves none of the 1"),
        (["trainer.limit_train_batches=0.01"], "trainer.limit_train_batches=0.01 leaves none of the 15 batches"),
        (["trainer.fast_dev_run=-1"], "trainer: fast_dev_run=-1 is not a valid configuration"),
        (["data.val_size=abc"], "data.val_size must be a whole number or null, got 'abc'"),
    ],
)
def test_bad_values_are_one_line_and_exit_2(command, arguments, message):
    outcome = command("train.py", *FAST, *arguments, tiny=True)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1


def test_an_accelerator_that_is_not_there(command, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.accelerators.CUDAAccelerator.is_available", lambda: False)
    outcome = command("train.py", *FAST, "trainer.accelerator=cuda", tiny=True)
    assert outcome.code == 2
    assert outcome.err.startswith("error: trainer.accelerator=cuda trainer.devices=1: ")
    assert outcome.err.count("\n") == 1


def test_flags_may_stand_anywhere(command):
    outcome = command("train.py", "seed=7", "--cfg", "job", "optimizer.lr=0.25")
    assert outcome.code == 0, outcome.err
    assert "seed: 7\n" in outcome.out
    assert "lr: 0.25\n" in outcome.out


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_hydras_own_help_needs_no_checkpoint(command, script):
    outcome = command(script, "--hydra-help")
    assert outcome.code == 0
    assert "--hydra-help" in outcome.out


def test_a_folder_that_holds_a_run_is_left_as_it_is(command, tmp_path):
    def contents():
        files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != "multirun.yaml"]
        return {path: path.read_bytes() for path in files}  # Hydra rewrites that one before any job is known

    assert command("train.py", *FAST, f"output_dir={tmp_path / 'run'}", tiny=True).code == 0
    assert command("train.py", *FAST, "-m", "seed=1,2", f"output_dir={tmp_path / 'sweep'}", tiny=True).code == 0
    before = contents()
    assert tmp_path / "run" / "train.log" in before
    again = (
        ("train.py", *FAST, "seed=5", f"output_dir={tmp_path / 'run'}"),
        ("train.py", *FAST, "-m", "seed=5,6", f"output_dir={tmp_path / 'sweep'}"),
        ("train.py", *FAST, "-m", "seed=5,6", f"output_dir={tmp_path / 'run'}"),
        ("evaluate.py", f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", f"output_dir={tmp_path / 'run'}"),
    )
    for arguments in again:
        outcome = command(*arguments, tiny=True)
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: output_dir={tmp_path}")
        assert "holds a run already" in outcome.err
        assert outcome.err.count("\n") == 1
    assert before.items() <= contents().items()


def test_a_failure_while_running_exits_1_and_keeps_its_traceback_in_the_log(command, monkeypatch, tmp_path):
    def breaks(*args: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("cifar_lightning.classifier.ImageClassifier.training_step", breaks)
    outcome = command("train.py", *FAST, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 1
    assert outcome.err == "error: RuntimeError: out of luck (HYDRA_FULL_ERROR=1 shows where)\n"
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_full_error_shows_the_traceback():
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    arguments = [sys.executable, "train.py", "optimizer.lrr=1"]
    outcome = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 1
    assert "Traceback" in outcome.stderr


def test_sweep_goes_on_past_a_failing_job_and_names_it(command, tmp_path):
    sweep = (*FAST, "-m", "optimizer.lr=0.001,-1,0.01", "data.val_size=20", f"output_dir={tmp_path / 'sweep'}")
    outcome = command("train.py", *sweep, tiny=True)
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith(("error", "job"))]
    message = "optimizer.lr must be a finite number of at least 0, got -1"
    assert lines[0].startswith("error: job 1 (") and lines[0].endswith(message)  # noqa: PT018
    assert lines[-1].startswith("job 1 ") and lines[-1].endswith(f"failed: {message}")  # noqa: PT018
    assert [line.split()[1] for line in outcome.out.splitlines() if line.startswith("job ")] == ["0", "2"]
    learning_rates = {}
    for number in (0, 2):
        folder = tmp_path / "sweep" / str(number)
        assert (folder / "checkpoints" / "last.ckpt").exists()
        learning_rates[number] = (folder / ".hydra" / "overrides.yaml").read_text()
        assert json.loads((folder / "metrics.json").read_text())["val/acc"] >= 0
    assert "optimizer.lr=0.001" in learning_rates[0]
    assert "optimizer.lr=0.01" in learning_rates[2]


def test_runs_of_the_same_second_have_their_own_folders(command, tmp_path, monkeypatch):
    for _ in range(2):
        assert command("train.py", *FAST, tiny=True).code == 0
    folders = sorted((tmp_path / "logs" / "tutorial").iterdir())
    assert len(folders) == 2
    assert all((folder / "metrics.json").exists() for folder in folders)


@pytest.fixture
def main(monkeypatch):
    """The task of train.py."""
    monkeypatch.syspath_prepend(str(ROOT))
    import train

    return train.main


@pytest.fixture
def hydra_config(tmp_path):
    """Set what Hydra tells of itself while a task runs."""

    def compose(*overrides):
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            HydraConfig.instance().set_config(hydra.compose("train", list(overrides), return_hydra_config=True))

    yield compose
    HydraConfig.instance().cfg = None


def test_train_returns_the_validation_accuracy_to_sweepers(monkeypatch, main, hydra_config):
    hydra_config("hydra.mode=RUN")
    monkeypatch.setattr("cifar_lightning.commands.train.train", lambda cfg: {"val/acc": 0.5, "test/acc": 0.9})
    assert main(None) == 0.5
    monkeypatch.setattr("cifar_lightning.commands.train.train", lambda cfg: {"test/acc": 0.9})
    assert main(None) is None


def test_an_optimising_sweeper_needs_validation_images(capsys, compose, main, hydra_config, monkeypatch):
    monkeypatch.setattr("cifar_lightning.commands.train.train", lambda cfg: {"val/acc": 0.5})
    for sweeper in ("BasicSweeper", "OptunaSweeper"):
        hydra_config("hydra.mode=MULTIRUN", f"hydra.sweeper._target_=hydra_plugins.x.{sweeper}")
        assert main(compose("data.val_size=20")) == 0.5
    with pytest.raises(SystemExit, match="2"):
        main(compose())
    assert capsys.readouterr().err.startswith("error: data.val_size must be above 0 for a sweeper that optimises")


def test_an_optimising_sweeper_is_told_before_training_that_the_data_bring_no_validation_images(compose, hydra_config):
    hydra_config("hydra.mode=MULTIRUN", "hydra.sweeper._target_=hydra_plugins.x.OptunaSweeper")
    with pytest.raises(UserError, match=r"data\.val_size must be above 0 for a sweeper"):
        train(compose("data.val_size=null"))


# evaluate.py


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt=PATH is missing"),
        (["ckpt=nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["ckpt=http://example.org/a.ckpt"], "ckpt=http://example.org/a.ckpt is an address"),
    ],
)
def test_evaluate_without_a_checkpoint(command, arguments, message):
    outcome = command("evaluate.py", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1


def test_a_run_goes_on_when_nobody_reads_what_it_prints(capsys):
    reader, writer = os.pipe()
    os.close(reader)
    console = Console(os.fdopen(writer, "w"))
    console.emit(logging.makeLogRecord({"msg": "one"}))
    console.emit(logging.makeLogRecord({"msg": "two"}))
    console.stream.close()
    assert capsys.readouterr() == ("", "")


def test_an_epoch_shorter_than_the_interval_of_logging_warns_no_one(command):
    outcome = command("train.py", *FAST, "logger=csv", tiny=True)  # 2 steps, where Lightning logs every 50
    assert (outcome.code, outcome.err) == (0, "")
