import io
import json
import os
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT
from hydra.errors import ConfigCompositionException

from cifar_lightning.config.schema import CONF, groups_of

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
    for file in (file for group in groups_of("train") for file in (CONF / group).glob("*.yaml")):
        assert file.stem in shown, file
    assert "label_smoothing" in shown
    assert "*cifar10, cifar100" in shown
    assert "defaults:" not in shown


@pytest.mark.parametrize(
    "script", ["train.py", "evaluate.py", "compare.py", "search.py", "predict.py", "export.py", "serve.py"]
)
def test_help_begins_with_examples_and_tells_how_tab_completes(command, script):
    shown = command(script, "--help").out
    assert f"Examples:\n    python {script}" in shown
    assert f'eval "$(python {script} -sc install=bash)"' in shown


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("experiment=speedrun9", {"experiment=speedrun95", "experiment=speedrun96"}), ("optimizer.l", {"optimizer.lr="})],
)
def test_hydra_completes_groups_and_keys(command, monkeypatch, typed, offered):
    line = f"python train.py {typed}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert set(command("train.py", "-sc", "query=bash").out.split()) == offered


ON_CPU = ("trainer.accelerator=cpu",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=0.1"], "optimizer.lrr=0.1: there is no key optimizer.lrr: did you mean optimizer.lr?"),
        (["lr=0.1"], "lr=0.1: there is no key lr: did you mean optimizer.lr?"),
        (["optimiser.lr=0.1"], "optimiser.lr=0.1: there is no optimiser: did you mean optimizer?"),
        (["sed=3"], "sed=3: there is no key sed: did you mean seed?"),
        (["model=torchvision", "model.imagesize=64"], "did you mean model.image_size?"),
        (["experment=smoke"], "there is no key experment: did you mean experiment?"),
        (["model=resnt18"], "model=resnt18 is not one of its choices: did you mean resnet18?"),
        (["trainer.max_epoch=3"], "there is no key trainer.max_epoch: did you mean trainer.max_epochs?"),
        (["epochs=3"], "epochs=3: there is no key epochs: did you mean trainer.max_epochs?"),
        (["trainer.num_epochs=3"], "there is no key trainer.num_epochs: did you mean trainer.max_epochs?"),
        (["device=cpu"], "device=cpu: there is no key device: did you mean trainer.accelerator?"),
        (["gpus=2"], "gpus=2: there is no key gpus: did you mean trainer.devices?"),
        (["zzz=1"], "zzz=1: there is no key zzz; allowed: augment, callbacks, checkpoint, class_weights, compile, "),
        (["trainer.logger=false"], "trainer.logger=false: this argument of the Trainer is the project's own"),
        (["seed=one"], "seed: Value 'one' of type 'str' could not be converted to Integer"),
        (["seed="], "seed: Value '' of type 'str' could not be converted to Integer"),
        (["tta=3"], "tta must be 0 (none), 1 (mirror images) or 2 (mirrored and translated), got 3"),
        (["num_threads=0"], "num_threads must be in [1, 1024], or null for a sensible number, got 0"),
        (["compile=1"], "compile must be true, false or one of default, reduce-overhead, max-autotune, "),
        (
            ["freeze=[[conv1,half]]"],
            "freeze must be parts of the network and fractions, as in [[conv1,0.5]], got [['con",
        ),
        (["freeze=0.5"], "freeze must be parts of the network and fractions, as in [[conv1,0.5]], got 0.5"),
        (["freeze_trunk=1"], "freeze_trunk must be in [0, 1), the share of the steps, got 1.0"),
        (["freeze_trunk=0.5", "freeze=[[conv1,0.5]]"], "freeze must be [] where freeze_trunk is above 0, got [['con"),
        (["freeze_trunk=0.5", "compile=true"], "compile must be false where freeze_trunk is above 0, got True"),
        (["freeze_trunk=0.5", "trainer.max_epochs=-1"], "freeze_trunk: it counts from the first step to the last"),
        (["+typo=1"], "+typo=1: no key can be added; write typo=1"),
        (["++optimizer.typo=1"], "++optimizer.typo=1: no key can be added"),
        (["~callbacks"], "~callbacks: no key can be removed; write callbacks=null"),
        (["output_dir=a=b"], "cannot read 'output_dir=a=b'"),
        (["output_dir=/dev/null"], "output_dir=/dev/null cannot be used: "),
        (["output_dir=/proc/x"], "output_dir=/proc/x cannot be used: "),
        ([f"output_dir={'x' * 300}"], "cannot be used: [Errno 36] File name too long"),
        (["hydra.run.dir=/dev/null/x"], "hydra.run.dir=/dev/null/x cannot be used: [Errno 20] Not a directory"),
        (["-m", "hydra.sweep.dir=/dev/null/x"], "hydra.sweep.dir=/dev/null/x cannot be used: [Errno 20] Not a"),
        (["-m", "seed=0,1", "output_dir=/dev/null/x"], "output_dir=/dev/null/x cannot be used: [Errno 20] Not a"),
        (["hydra.output_subdir=.hydra"], "hydra.output_subdir=.hydra: leave it out; a run writes its own .hydra/"),
        (["--resolve"], "The --resolve flag can only be used in conjunction with"),
        (["--config-dir", "/nowhere"], "Additional config directory '/nowhere' not found"),
        (["--epochs", "3"], "unrecognized arguments: --epochs; a key is set as key=value, and --help lists the keys"),
        (["--cfg", "jobb"], "argument --cfg/-c: invalid choice: 'jobb'"),
        (["-m", "optimizer.lrr=0.1,0.2"], "there is no key optimizer.lrr: did you mean optimizer.lr?"),
    ],
)
def test_composition_errors_are_one_line_and_exit_2(command, arguments, message):
    assert message in command("train.py", *arguments).refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=abc"], "optimizer.lr must be a finite number, got 'abc'"),
        (["optimizer.lr=-1"], "optimizer.lr must be a finite number of at least 0, got -1"),
        (["optimizer.lr=nan"], "optimizer.lr must be a finite number, got nan"),
        (["schedule=cosine", "schedule.warmup_fraction=2"], "schedule.warmup_fraction must be in [0, 1), got 2"),
        (["seed=-1"], "seed: "),
        (["class_weights=x"], "class_weights must be balanced or null, got x"),
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
        (
            ["trainer.devices=2", "trainer.accelerator=cpu", "checkpoint.every_minutes=-1"],
            "checkpoint.every_minutes must",
        ),
        (
            ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"],
            "trainer.sync_batchnorm must",
        ),
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
        (["data.val_size=abc"], "data.val_size must be a whole number or auto or null, got 'abc'"),
    ],
)
def test_bad_values_are_one_line_and_exit_2(command, arguments, message):
    assert command("train.py", *FAST, *arguments, tiny=True).refusal.startswith(message)


def test_an_accelerator_that_is_not_there(command, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.accelerators.CUDAAccelerator.is_available", lambda: False)
    outcome = command("train.py", *FAST, "trainer.accelerator=cuda", tiny=True)
    assert outcome.refusal.startswith("trainer.accelerator=cuda trainer.devices=1: ")


def test_flags_may_stand_anywhere(command):
    outcome = command("train.py", "seed=7", "--cfg", "job", "optimizer.lr=0.25")
    assert outcome.code == 0, outcome.err
    assert "seed: 7\n" in outcome.out
    assert "lr: 0.25\n" in outcome.out


@pytest.mark.parametrize(
    "flags", [("--info",), ("-i",), ("--info=all",), ("-i", "all"), ("--info", "--config-dir", ".")]
)
@pytest.mark.parametrize("is_first", [True, False])
def test_info_takes_no_override_for_its_value(flags, is_first, command):
    typed = ("ckpt=none.ckpt", "tta=1")
    outcome = command("evaluate.py", *((*flags, *typed) if is_first else (*typed, *flags)))
    assert (outcome.code, outcome.err) == (0, "")
    assert "Installed Hydra Plugins" in outcome.out
    assert "tta: 1\n" in outcome.out


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
        refusal = command(*arguments, tiny=True).refusal
        assert refusal.startswith(f"output_dir={tmp_path}")
        assert "holds a run already" in refusal
    assert before.items() <= contents().items()


def test_what_is_in_the_way_is_told_with_the_key_that_helps(command, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "0").write_text("a file in the place of the first job's folder")
    override = f"output_dir={tmp_path / 'sweep'}"
    refusal = command("train.py", *FAST, "-m", "seed=0,1", override, tiny=True).refusal
    assert refusal.startswith(f"{override} cannot be used: ")
    assert refusal.endswith("name a folder that can be written with output_dir=")
    assert (tmp_path / "sweep" / "0").exists()


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_from_a_folder_that_has_been_deleted(script, command, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert command(script, "ckpt=x").refusal == "the current folder has been deleted: go to one that exists, as with cd"


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o777])
def test_without_a_home_or_a_place_for_temporary_files(umask, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "experiment=smoke", "trainer.accelerator=cpu"]
    command += ["trainer.limit_train_batches=2", f"output_dir={tmp_path / 'run'}"]
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"TMPDIR": "/nowhere"}
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, umask=umask, capture_output=True, text=True)
    if umask == 0o022 or os.geteuid() == 0:  # whom no mode of a file stops
        assert (outcome.returncode, outcome.stderr) == (0, "")
        assert (tmp_path / "run" / "metrics.json").exists()
    else:
        assert outcome.returncode == 2
        assert outcome.stderr.startswith(f"error: output_dir={tmp_path / 'run'} cannot be used: ")


def test_a_failure_while_running_exits_1_and_keeps_its_traceback_in_the_log(command, monkeypatch, tmp_path):
    def breaks(*args: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("cifar_lightning.classifier.ImageClassifier.training_step", breaks)
    outcome = command("train.py", *FAST, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 1
    assert outcome.err == "error: RuntimeError: out of luck (HYDRA_FULL_ERROR=1 shows where)\n"
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_full_error_leaves_the_exception_to_python_which_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "optimizer.lrr=1"])
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'optimizer\.lrr'"):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def test_a_sweep_continues_past_a_failing_job_and_names_it(command, tmp_path):
    sweep = (*FAST, "-m", "optimizer.lr=0.001,-1,0.01", "data.val_size=20", f"output_dir={tmp_path / 'sweep'}")
    outcome = command("train.py", *sweep, tiny=True)
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert len(lines) == 2
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


def test_the_jobs_of_a_sweep_share_a_folder_that_is_named_by_its_time(command, tmp_path):
    assert command("train.py", *FAST, "-m", "seed=0,1", "name=sweep", tiny=True).code == 0
    [sweep] = (tmp_path / "logs" / "sweep").iterdir()
    assert sorted(path.parent.name for path in sweep.glob("*/metrics.json")) == ["0", "1"]


def test_runs_of_the_same_second_have_their_own_folders(command, tmp_path):
    for _ in range(2):
        assert command("train.py", *FAST, tiny=True).code == 0
    folders = sorted((tmp_path / "logs" / "tutorial").iterdir())
    assert len(folders) == 2
    assert all((folder / "metrics.json").exists() for folder in folders)


@pytest.fixture
def optimise(command, tmp_path):
    """Run train.py under an optimising sweeper; its jobs are in the folder sweep."""
    sweeper = "hydra.sweeper._target_=hydra_plugins.optimiser.Optimiser"
    sweep = (*FAST, "-m", sweeper, f"output_dir={tmp_path / 'sweep'}")
    return lambda *overrides: command("train.py", *sweep, *overrides, tiny=True)


def test_an_optimising_sweeper_gets_the_validation_accuracy(optimise, tmp_path):
    outcome = optimise("data.val_size=15", "seed=0,1")
    assert outcome.code == 0, outcome.err
    metrics = [json.loads((tmp_path / "sweep" / job / "metrics.json").read_text()) for job in ("0", "1")]
    assert f"returned {[found['val/acc'] for found in metrics]}\n" in outcome.out
    assert all(found["val/acc"] != found["test/acc"] for found in metrics)  # of 15 and of 20 images


def test_a_sweep_lists_the_validation_accuracy_where_there_is_one(command, tmp_path):
    sweep = (*FAST, "-m", "data.val_size=15,0", f"output_dir={tmp_path / 'sweep'}")
    outcome = command("train.py", *sweep, tiny=True)
    assert outcome.code == 0, outcome.err
    accuracy = json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())["val/acc"]
    listed = [line for line in outcome.out.splitlines() if line.startswith("job ")]
    assert listed == [f"job 0  data.val_size=15  done: {accuracy:.4f}", "job 1  data.val_size=0  done"]


@pytest.mark.parametrize("size", [0, "null"])  # null: as many as the data set brings, here none
def test_an_optimising_sweeper_needs_validation_images(optimise, tmp_path, size):
    outcome = optimise(f"data.val_size={size}", "seed=0,1")
    assert outcome.code > 0
    assert "data.val_size must be above 0 for a sweeper" in outcome.err
    assert not list((tmp_path / "sweep").rglob("last.ckpt"))  # it is told before anything is trained


# evaluate.py


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt=PATH is missing"),
        (["ckpt=nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["ckpt=http://example.org/a.ckpt"], "http://example.org/a.ckpt is an address"),
    ],
)
def test_evaluate_without_a_checkpoint(command, arguments, message):
    assert command("evaluate.py", *arguments).refusal.startswith(message)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_with_a_closed_stream(command, monkeypatch, tmp_path, stream):
    monkeypatch.setattr(sys, stream, None)
    outcome = command("train.py", *FAST, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "run" / "metrics.json").exists()
    assert "- 1/1 " in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


def test_a_run_in_an_encoding_without_lines(command, monkeypatch, tmp_path):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    name = "猫 \x1b[31m\udcff"
    logged = ("logger=both", f"name='{name}'", f"output_dir={tmp_path / 'run'}")
    outcome = command("train.py", *FAST, *logged, tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert r"\u732b \x1b[31m\udcff on cifar10, seed 0" in written.getvalue().decode("cp1252")
    assert r"猫 \x1b[31m\udcff on cifar10, seed 0" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["name"] == name


def test_a_run_without_a_log_file(command, tmp_path):
    outcome = command("train.py", *FAST, "hydra/job_logging=stdout", f"output_dir={tmp_path / 'run'}", tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert "\n1/1 " in outcome.out
    assert not (tmp_path / "run" / "train.log").exists()


def test_a_run_that_is_refused_leaves_no_folder(command, tmp_path):
    refused = command("train.py", "trainer.precision=16-mixed", *ON_CPU)
    assert refused.code == 2
    assert "trainer.precision=16-mixed is for a GPU" in refused.err
    assert list((tmp_path / "logs" / "tutorial").iterdir()) == []


def test_error_lines_hold_no_control_characters(command):
    refusal = command("train.py", "resume='\x1b[31m\u202e'").refusal
    assert refusal.startswith(r"resume=\x1b[31m\u202e is no folder of a run: ")


def test_help_in_ascii():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, env=environment, capture_output=True)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"+- 1.45 %" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirections", [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2> /dev/full", "| head -n 1"]
)
@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_run_ends_well_whatever_its_streams_are(tmp_path, redirections, environment):
    line = f"{sys.executable} {ROOT / 'train.py'} data=synthetic {' '.join(FAST)} output_dir=run {redirections}"
    shell = ["bash", "-c", f"set -o pipefail; {line}"]
    ended = subprocess.run(shell, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True)
    assert ended.returncode == 0
    assert b"Traceback" not in ended.stderr
    assert ended.stderr.count(b"\n") <= 1
    assert (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_an_epoch_shorter_than_the_interval_of_logging_warns_no_one(command):
    outcome = command("train.py", *FAST, "logger=csv", tiny=True)  # 2 steps, where Lightning logs every 50
    assert (outcome.code, outcome.err) == (0, "")
