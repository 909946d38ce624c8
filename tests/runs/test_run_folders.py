"""Run folders: claimed, recorded, resumed; and sweeps that are run again."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import CLASSES, SMALL, TINY, differences, last
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lightning.callbacks.saving import RunCheckpoints
from cifar_lightning.checkpoint.format import described
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.cli.overrides_from_run import overrides_to_resume
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.resolve import resolve
from cifar_lightning.data.arrays import to_arrays
from cifar_lightning.errors import SweepError, UserError
from cifar_lightning.runs.folder import CONFIG, LOCK, claimed, record, refuse_foreign_sweep, run_of
from cifar_lightning.runs.resume import take_over
from cifar_lightning.runs.sweep import folder_of_job, refuse_other_job


def scalars(folder, tag):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


# Folders


def test_a_folder_in_use_is_refused_and_names_the_process(tmp_path):
    (tmp_path / "run").mkdir()
    # What claimed() holds; importing that takes seconds.
    code = "import sys; from pathlib import Path; from cifar_lightning.locks import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run" / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"is in use by process {holder.pid}: wait until"),
            claimed(tmp_path / "run"),
        ):
            pass
        holder.kill()
    with claimed(tmp_path / "run"):  # the system has let go of it
        assert (tmp_path / "run" / LOCK).read_text() == str(os.getpid())


@pytest.mark.parametrize(("written", "left"), [([], []), (["train.log"], [LOCK, "train.log"])])
def test_a_lock_does_not_stay_alone_after_an_error(written, left, tmp_path):
    @claimed(tmp_path / "run")
    def refuse():
        for name in written:
            (tmp_path / "run" / name).touch()
        raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        refuse()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == left


TEMPORARY = ".last.ckpt.ab1_z9xy.cifar-lightning.tmp"


def test_what_an_interrupted_save_left_is_swept_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(Killed))
        patch.setattr(os, "unlink", lambda path: None)  # a process that is killed tidies nothing up
        with pytest.raises(Killed, match="killed"):
            write_durably(folder / "last.ckpt", b"half")
    [left] = folder.iterdir()
    others = (".notes.tmp", "a.tmp", ".last.ckpt.abc.tmp", "last.ckpt.ab1_z9xy.cifar-lightning.tmp", ".ab.tmp~")
    for name in (*others, f"{TEMPORARY}.bak", "whole.ckpt"):
        (folder / name).write_text("kept")
    (folder / ".folder.ab1_z9xy.cifar-lightning.tmp").mkdir()
    (folder / ".link.ab1_z9xy.cifar-lightning.tmp").symlink_to(folder / "whole.ckpt")
    before = set(folder.iterdir())
    with claimed(tmp_path):
        assert set(folder.iterdir()) == before - {left}


STEMS = st.text("ab.-_ ~", min_size=1, max_size=8)
NAMES = st.one_of(STEMS, STEMS.map(lambda stem: f".{stem}.tmp"), STEMS.map(lambda stem: f".{stem}.ab1_z9xy.tmp"))


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)), deadline=None, derandomize=True)
@given(
    names=st.sets(st.one_of(NAMES, NAMES.map(lambda name: f".{name}.tmp"), NAMES.map(lambda n: n + TEMPORARY[-28:])))
)
def test_files_of_others_are_still_there_after_a_run(names):
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own = re.compile(r"\..+\.ab1_z9xy\.cifar-lightning\.tmp")  # which this project could have written itself
        kept = [folder / name for name in names if name not in (".", "..") and not own.fullmatch(name)]
        for path in kept:
            path.write_text(path.name)
        with claimed(folder):
            write_durably(folder / "checkpoints" / "last.ckpt", b"")
        assert [path.read_text() for path in kept] == [path.name for path in kept]


@pytest.mark.parametrize("name", [".hydra/config.yaml", ".hydra/overrides.yaml", "metrics.json", "metrics.csv"])
def test_files_of_others_are_not_written_over(name, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("of another program")
    for _ in range(2):
        refusal = rf"output_dir=.*run holds {name}, which would be written over"
        with pytest.raises(UserError, match=refusal), claimed(tmp_path / "run"):
            pass
    assert path.read_text() == "of another program"
    with claimed(tmp_path / "own"):
        pass
    (tmp_path / "own" / "metrics.json").write_text("of a run that was there before")
    with claimed(tmp_path / "own"):
        pass


@pytest.mark.parametrize("place", [".hydra", "checkpoints"])
def test_a_file_in_the_place_of_a_runs_folder(place, tmp_path):
    (tmp_path / place).write_text("")
    with pytest.raises(UserError, match=rf"output_dir=.* cannot be used: .*{place}"), claimed(tmp_path):
        pass


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"output_dir=.*run cannot be used: .*File exists"), claimed(tmp_path / "run"):
        pass


def test_a_used_folder_is_refused(compose):
    train(compose(*SMALL))
    with pytest.raises(UserError, match=r"output_dir=.* holds a run already: resume it with resume="):
        train(compose(*SMALL))


# Resuming, from the command line


RENAMED = ("zebra", *CLASSES[1:])


@pytest.fixture
def folder(command, tmp_path):
    """A finished run of two epochs, in a folder whose name wants quotes."""
    outcome = command(
        "train.py", *SMALL, "trainer.max_epochs=2", "optimizer.lr=0.01", f"output_dir='{tmp_path / 'a b é'}'", tiny=True
    )
    assert outcome.code == 0, outcome.err
    return tmp_path / "a b é"


def test_resume_takes_the_runs_own_overrides(folder, command):
    outcome = command("train.py", f"resume='{folder}'", TINY, "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.err
    assert "after step 12" in outcome.out
    config = last(folder)["settings"]
    assert (config["optimizer"]["lr"], config["data"]["batch_size"], config["trainer"]["max_epochs"]) == (0.01, 10, 3)
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 3
    assert "trainer.max_epochs=2" in OmegaConf.load(folder / ".hydra" / "overrides.yaml")  # as it was started


def test_evaluate_in_a_folder_whose_name_wants_quotes(folder, command):
    outcome = command("evaluate.py", f"ckpt='{folder}/checkpoints/last.ckpt'", TINY)
    assert outcome.code == 0, outcome.err
    evaluated, trained = (json.loads((folder / name / "metrics.json").read_text()) for name in ("evaluate/last", "."))
    assert evaluated["test/loss"] == trained["test/loss"]


@pytest.mark.parametrize("before", [{"torch": "1.0\x1b", "lightning": "0.9"}, {}, None, "x"])
def test_other_versions_are_named(before, folder, command):
    path = folder / "checkpoints" / "last.ckpt"
    contents = last(folder)
    assert contents["versions"].keys() == {"cifar-lightning", "torch", "torchvision", "lightning"}
    torch.save(contents | {"versions": before}, path)
    outcome = command("train.py", f"resume='{folder}'", TINY, "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.err
    named = re.search(
        r"^versions  torch 1\.0\\x1b -> .*, lightning 0\.9 -> .*: from here on", outcome.out, re.MULTILINE
    )
    assert (named is not None) == (isinstance(before, dict) and "torch" in before)
    assert ("versions" in outcome.out) == (named is not None)


def test_a_raised_number_of_epochs_is_remembered(folder, command):
    assert command("train.py", f"resume='{folder}'", TINY, "trainer.max_epochs=3").code == 0
    outcome = command("train.py", f"resume='{folder}'", TINY)
    assert outcome.code == 0, outcome.err
    assert "already finished: 3 epochs, 18 steps" in outcome.out


def test_a_finished_run_says_so(folder, command):
    before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    outcome = command("train.py", f"resume='{folder}'", TINY)
    assert outcome.code == 0, outcome.err
    assert "already finished: 2 epochs, 12 steps; a larger trainer.max_epochs trains on" in outcome.out
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.1"], r"optimizer\.lr: 0\.01 -> 0\.1\. Leave that as it was"),
        (["data.batch_size=20"], r"data\.batch_size: 10 -> 20"),
        (
            ["optimizer=adamw"],
            r"optimizer\._target_: sgd -> adamw",
        ),
        (["seed=1"], "seed: 0 -> 1"),
        (["schedule=linear", "trainer.max_epochs=4"], r"trainer\.max_epochs: 2 -> 4"),
    ],
)
def test_what_may_not_change_is_refused_with_a_diff(folder, command, overrides, message):
    outcome = command("train.py", f"resume='{folder}'", TINY, *overrides)
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_an_option_that_came_later_may_be_off_but_not_on(compose):
    off, on = (resolve(compose("model=speedrun", f"model.fourier={choice}")) for choice in ("false", "true"))
    before = described(off)
    del before["model"]["fourier"]
    assert take_over(off, before) == off
    with pytest.raises(UserError, match=r"model\.fourier: None -> True"):
        take_over(on, before)
    with pytest.raises(UserError, match=r"model\.fourier: True -> False"):
        take_over(off, described(on))


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("nowhere", "resume=nowhere is no folder of a run"),
        ("auto", "resume=auto resumes the run in output_dir, if there is one: set output_dir=FOLDER too"),
    ],
)
def test_nothing_to_resume(command, resume, message):
    outcome = command("train.py", f"resume={resume}", TINY)
    assert outcome.code == 2
    assert message in outcome.err


def test_resume_into_another_folder_is_refused(folder, command):
    outcome = command("train.py", f"resume='{folder}'", TINY, "output_dir=elsewhere")
    assert outcome.code == 2
    assert "output_dir=elsewhere: a run is resumed in its own folder" in outcome.err


def test_a_folder_without_a_checkpoint(folder, command):
    (folder / "checkpoints" / "last.ckpt").unlink()
    outcome = command("train.py", f"resume='{folder}'", TINY)
    assert outcome.code == 2
    assert "last.ckpt to resume from" in outcome.err


def test_auto_starts_then_resumes_then_is_done(command, tmp_path):
    auto = ("train.py", *SMALL, "resume=auto", f"output_dir={tmp_path / 'run'}/")
    first = command(*auto, tiny=True)
    assert (first.code, "nothing in" in first.out) == (0, True), first.err
    again = command(*auto, tiny=True)
    assert (again.code, "already finished: 2 epochs" in again.out) == (0, True), again.err


def test_a_run_is_not_resumed_with_other_classes(folder, command, monkeypatch):
    monkeypatch.setattr(
        "cifar_lightning.data.datamodule.to_arrays", lambda data: replace(to_arrays(data), classes=RENAMED)
    )
    outcome = command("train.py", f"resume='{folder}'", TINY, "trainer.max_epochs=3")
    assert outcome.code == 2
    lists = "the run has the classes airplane, .*, the data have zebra, .*"
    assert re.fullmatch(rf"error: resume=.*: {lists}\n", outcome.err)


@pytest.mark.parametrize(
    "override",
    [
        "+new=1",
        "~augment",
        "hydra.run.dir=/tmp/x",
        "model={name:tutorial,_target_:os.system}",
        "data.dataset._target_=os.system",
        "name=${oc.env:HOME}",
        "experiment=../../../tmp/evil",
        "experiment=/tmp/evil",
        "model@data=tutorial",
        "no override at all",
        "seed=1,2",
        "name=$\\{oc.env\\:HOME\\}",
        "data.note=\\{_tar\\: x\\}",
        "logger.csv.save_dir=/elsewhere",
        "callbacks.pictures={num_images:3}",
        "data.urls=[https://example.org/x]",
        "data={urls:[https://example.org/x]}",
        "seed=" + "[" * 2000 + "]" * 2000,
    ],
)
def test_overrides_that_are_not_taken_from_a_file(tmp_path, override):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(json.dumps([override]))
    with pytest.raises(UserError, match="which is not taken from a file; type it again if you trust it"):
        overrides_to_resume(str(tmp_path), [])


@pytest.mark.parametrize("content", ["{", "a: 1", "[1, 2]", "!!python/object/apply:os.system [ls]", "- ${oc.env:HOME}"])
def test_records_that_are_something_else(tmp_path, content):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(content)
    with pytest.raises(UserError, match=r"resume=.*(cannot be read|is no list of overrides|not taken from a file)"):
        overrides_to_resume(str(tmp_path), [])


# Curves


def test_curves_go_on_without_doubled_points(compose, tmp_path, monkeypatch):
    overrides = ("logger=both", "callbacks=none", "data.batch_size=10", "trainer.log_every_n_steps=1", "num_threads=1")
    train(compose(*overrides, "trainer.max_epochs=3"))
    cut = tmp_path / "cut"

    with monkeypatch.context() as patch:
        stop_after(patch, step=14)
        with pytest.raises(Killed, match="killed"):
            train(compose(*overrides, "trainer.max_epochs=3", f"output_dir={cut}"))
    with next(cut.glob("events*")).open("ab") as events:
        events.write(b"\x00\x01half a record")  # as a kill leaves it
    train(compose(*overrides, "trainer.max_epochs=3", f"output_dir={cut}", f"resume={cut}"))
    for tag in ("train/loss", "train/acc", "lr"):
        assert scalars(cut, tag) == scalars(tmp_path / "run", tag)
    assert [step for step, _ in scalars(cut, "train/loss")] == list(range(1, 19))
    one, other = ((folder / "metrics.csv").read_text().splitlines() for folder in (cut, tmp_path / "run"))
    assert len(one) == len(other)
    assert [row.split(",")[one[0].split(",").index("step")] for row in one] == [
        row.split(",")[other[0].split(",").index("step")] for row in other
    ]


def test_curves_go_forward_though_the_clock_goes_back(compose, tmp_path, monkeypatch):
    overrides = ("logger=both", "callbacks=none", "data.batch_size=10", "trainer.log_every_n_steps=1")
    folder = tmp_path / "run"
    train_until_killed(compose(*overrides), monkeypatch, step=8)
    for path in folder.glob("events*"):
        time, rest = path.name.removeprefix("events.out.tfevents.").split(".", 1)
        path.rename(folder / f"events.out.tfevents.{int(time) + 9999}.{rest}")
    rows = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    torn = rows[-1].replace(",8,", ",6,")[:-5]  # as of a point that is kept
    (folder / "metrics.csv").write_text("".join([*rows, torn]), newline="")
    for epochs in (2, 3):  # the second time within the same second
        train(compose(*overrides, f"resume={folder}", f"trainer.max_epochs={epochs}"))
    assert [step for step, _ in scalars(folder, "train/loss")] == list(range(1, 19))
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 19)]


class Killed(BaseException):
    def __str__(self):
        return "killed"


def test_validations_are_drawn_once_wherever_it_is_killed(compose, tmp_path, monkeypatch):
    overrides = ("logger=both", "callbacks=none", "data.batch_size=10", "data.val_size=20", "num_threads=1")
    overrides += (
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=2",
        "checkpoint.every_minutes=0",
    )
    whole = train(compose(*overrides))
    assert [step for step, _ in scalars(tmp_path / "run", "val/acc")] == [2, 4, 6, 8]
    for killed_at in ("on_validation_end", "on_test_start"):
        folder = tmp_path / killed_at

        def kill(self, trainer, *args):
            if trainer.global_step == 8 and not trainer.sanity_checking:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(RunCheckpoints, killed_at, kill)
            with pytest.raises(Killed, match="killed"):
                train(compose(*overrides, f"output_dir={folder}"))
        metrics = train(compose(*overrides, f"output_dir={folder}", f"resume={folder}"))
        assert differences(metrics, whole) == []
        for tag in ("val/acc", "val/loss", "test/acc"):
            assert scalars(folder, tag) == scalars(tmp_path / "run", tag)
        rows = [row for row in (folder / "metrics.csv").read_text().splitlines() if row]
        assert len(rows) == len((tmp_path / "run" / "metrics.csv").read_text().splitlines())


def test_a_run_that_has_stopped_early_stays_stopped(compose, tmp_path, monkeypatch):
    early = "+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping"
    overrides = (*SMALL, "data.val_size=20", early, "+callbacks.early.monitor=val/loss", "trainer.max_epochs=9")
    overrides += ("+callbacks.early.patience=1", "+callbacks.early.mode=max", "num_threads=1")
    whole = train(compose(*overrides))
    assert whole["epochs"] < 9
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "on_test_start", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed, match="killed"):
            train(compose(*overrides, f"output_dir={tmp_path / 'killed'}"))
    metrics = train(compose(*overrides, f"output_dir={tmp_path / 'killed'}", f"resume={tmp_path / 'killed'}"))
    assert differences(metrics, whole) == []


def test_a_run_killed_before_its_first_checkpoint_may_start_over(compose, tmp_path, monkeypatch):
    overrides = ("logger=both", "callbacks=none", "data.batch_size=10", "trainer.log_every_n_steps=1")
    train_until_killed(compose(*overrides), monkeypatch, step=3)
    with pytest.raises(UserError, match=r"last\.ckpt to resume from; start over there with resume=auto output_dir="):
        train(compose(*overrides, f"resume={tmp_path / 'run'}"))
    train(compose(*overrides))
    assert [step for step, _ in scalars(tmp_path / "run", "train/loss")] == list(range(1, 13))


def test_a_damaged_csv_is_set_aside(compose, tmp_path, monkeypatch):
    overrides = ("logger=csv", "callbacks=none", "data.batch_size=10", "trainer.log_every_n_steps=1")
    train_until_killed(compose(*overrides), monkeypatch, step=8)
    (tmp_path / "run" / "metrics.csv").write_bytes(b"\xff\xfe\x00 damaged")
    train(compose(*overrides, f"resume={tmp_path / 'run'}"))
    assert (tmp_path / "run" / "metrics.damaged.csv").read_bytes() == b"\xff\xfe\x00 damaged"
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith("images_per_second,")


def stop_after(patch, *, step):
    """End training after a step as a kill would: nothing is saved or written any more."""
    from cifar_lightning.callbacks.curves import TrainingCurves

    original = TrainingCurves.on_train_batch_end

    def on_train_batch_end(self, trainer, pl_module, *args):
        original(self, trainer, pl_module, *args)
        if trainer.global_step == step:
            raise Killed

    patch.setattr(TrainingCurves, "on_train_batch_end", on_train_batch_end)


def train_until_killed(cfg, monkeypatch, *, step):
    with monkeypatch.context() as patch:
        stop_after(patch, step=step)
        with pytest.raises(Killed, match="killed"):
            train(cfg)


# Sweeps


@pytest.mark.parametrize("typed", ["hydra.sweep.dir", "output_dir"])
@pytest.mark.parametrize("content", ["of: another program", "\0", None])
def test_a_foreign_multirun_yaml_is_refused(command, tmp_path, typed, content):
    path = tmp_path / "sweep" / "multirun.yaml"
    path.parent.mkdir()
    path.symlink_to(tmp_path / "nowhere") if content is None else path.write_text(content)
    refusal = command("train.py", "-m", *SMALL, f"{typed}={path.parent}", tiny=True).refusal
    assert refusal == (
        f"output_dir={path.parent} holds multirun.yaml, which would be written over and no run of this project has "
        "written: name another folder"
    )
    assert content is None or path.read_text() == content
    assert [*path.parent.iterdir(), *tmp_path.glob("nowhere")] == [path]


def test_a_linked_multirun_yaml_is_refused_whatever_it_leads_to(tmp_path):
    outside = tmp_path / "notes.yaml"
    outside.write_text("of cifar_lightning.models")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").symlink_to(outside)
    with pytest.raises(UserError, match=r"sweep holds multirun\.yaml, which would be written over"):
        refuse_foreign_sweep(tmp_path / "sweep")
    os.replace(outside, tmp_path / "sweep" / "multirun.yaml")
    refuse_foreign_sweep(tmp_path / "sweep")


def test_a_sweep_that_is_run_again(command, tmp_path, monkeypatch):
    sweep = ("train.py", "-m", *SMALL, "data.val_size=20", f"output_dir={tmp_path / 'sweep'}")
    with monkeypatch.context() as patch:
        stop_after(patch, step=7)  # within the second epoch of the first job
        with pytest.raises(Killed, match="killed"):
            command(*sweep, "seed=0,1", tiny=True)
    broken = last(tmp_path / "sweep" / "0")
    assert broken["global_step"] == 4
    first = command(*sweep, "seed=0,1", tiny=True)
    assert first.code == 0, first.err
    assert "after step 4" in (tmp_path / "sweep" / "0" / "train.log").read_text()  # resumed, not started over
    whole = command("train.py", *SMALL, "data.val_size=20", f"output_dir={tmp_path / 'whole'}", tiny=True)
    assert whole.code == 0, whole.err
    assert differences(last(tmp_path / "sweep" / "0"), last(tmp_path / "whole")) == []

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("last.ckpt")}
    again = command(*sweep, "seed=1,0", tiny=True)  # the same jobs under other numbers
    assert again.code == 0, again.err
    assert again.out.count("is done already") == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("last.ckpt")} == times

    other = command(*sweep, "seed=2,1", tiny=True)
    assert other.code == 2
    assert "sweep holds a run already, whose job 0 has another config: name another folder" in other.err

    later = command(*sweep, "seed=1,2", tiny=True)  # the first job is done, the place of the second is taken
    assert later.code == 2
    assert "whose job 1 has another config" in later.err
    assert "is done already" not in later.out  # it is found before the first job runs
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("last.ckpt")} == times


@pytest.fixture
def recorded(tmp_path):
    """A sweep of finished jobs, with one seed each; gives their config by seed."""
    made = schema.compose("data=synthetic")

    def config(seed, folder=None):
        made.seed, made.output_dir, made.resume = seed, str(folder) if folder else None, "auto"
        return made.copy()

    for seed in range(5):
        record(tmp_path / str(seed), config(seed, tmp_path / str(seed)), FROM_PYTHON)
    return config


SWEEP = Invocation(is_sweep=True)


def test_each_job_is_found_wherever_it_is(recorded, tmp_path):
    for seed in range(5):
        assert folder_of_job(recorded(seed, tmp_path / "9"), SWEEP) == tmp_path / str(seed)
    assert folder_of_job(recorded(7, tmp_path / "7"), SWEEP) == tmp_path / "7"
    with pytest.raises(SweepError, match="whose job 3 has another config"):
        folder_of_job(recorded(7, tmp_path / "3"), SWEEP)


def test_records_that_come_change_and_go_are_seen(recorded, tmp_path):
    assert folder_of_job(recorded(6, tmp_path / "9"), SWEEP) == tmp_path / "9"
    record(tmp_path / "6", recorded(6), FROM_PYTHON)  # by another process
    assert folder_of_job(recorded(6, tmp_path / "9"), SWEEP) == tmp_path / "6"
    record(tmp_path / "6", recorded(8), FROM_PYTHON)
    assert folder_of_job(recorded(6, tmp_path / "9"), SWEEP) == tmp_path / "9"
    assert folder_of_job(recorded(8, tmp_path / "9"), SWEEP) == tmp_path / "6"
    shutil.rmtree(tmp_path / "6")
    assert folder_of_job(recorded(8, tmp_path / "9"), SWEEP) == tmp_path / "9"


def test_a_record_is_read_once(recorded, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("cifar_lightning.runs.sweep.read_text", lambda path: (read.append(path), read_text(path))[1])
    for _ in range(3):
        for seed in reversed(range(5)):
            assert folder_of_job(recorded(seed, tmp_path / str(4 - seed)), SWEEP) == tmp_path / str(seed)
    assert len(read) == 5


@pytest.mark.parametrize(
    "content", ["", "[", "- a", "text", "a: &a [x]\nb: [*a, *a]", "[" * 300_000, "- " * 300_000, "\xff", "{1: 2, a: 3}"]
)
def test_records_of_something_else_hold_no_job(content, recorded, tmp_path):
    (tmp_path / "3" / CONFIG).write_text(content, encoding="latin-1")
    assert folder_of_job(recorded(3, tmp_path / "9"), SWEEP) == tmp_path / "9"
    with pytest.raises(SweepError, match="whose job 3 has another config"):
        refuse_other_job(recorded(3), tmp_path / "3")


def test_a_free_place_is_not_refused(recorded, tmp_path):
    refuse_other_job(recorded(7), tmp_path / "7")
    refuse_other_job(recorded(7), tmp_path / "no" / "sweep" / "yet")


def test_which_run_a_file_stands_in(tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "export").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run_of("run/checkpoints/last.ckpt") == Path("run")
    assert run_of("run/export/last.onnx") == Path("run")
    assert run_of("export/last.onnx") is None  # a folder of another kind
    assert run_of("last.ckpt") is None
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    assert run_of("last.ckpt").resolve() == tmp_path / "run"
