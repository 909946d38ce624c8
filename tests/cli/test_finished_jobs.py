"""A sweep that is started again: which of its jobs are composed, which are launched, and what is printed."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from cifar_lightning.config import schema
from cifar_lightning.config.invocation import FROM_PYTHON
from cifar_lightning.runs.folder import LOCK, record
from cifar_lightning.runs.jobkeys import KEY
from cifar_lightning.runs.metrics_file import write_metrics

SHORT = (
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"),
    *("callbacks=none", "logger=none", "data.val_size=20"),
)


class Again:
    """A sweep of three finished jobs, and commands that start it again.

    Attributes:
        folder: Of the sweep.
        composed: Overrides of the jobs that the last command has composed, before the first one ran and then.
        launched: Numbers of the jobs that it has launched.
    """

    def __init__(self, folder, command):
        self.folder, self._command = folder, command
        self.composed, self.launched = [], []

    def __call__(self, *overrides):
        self.composed.clear()
        # Relative, so that a copy of the sweep elsewhere has the same overrides.
        outcome = self._command("train.py", "-m", *SHORT, f"output_dir={self.folder.name}", *overrides, tiny=True)
        self.launched = [int(line[2:].split()[0]) for line in outcome.out.splitlines() if line.startswith("\t#")]
        return outcome


@pytest.fixture
def again(command, tmp_path, tiny_root, monkeypatch):
    started = Again(tmp_path / "sweep", command)
    load = ConfigLoaderImpl.load_sweep_config

    def load_noted(self, master_config, sweep_overrides):
        started.composed.append(next(override for override in sweep_overrides if override.startswith("seed=")))
        return load(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load_noted)
    cfg = schema.compose(f"data.root={tiny_root}", TINY, *SHORT)
    for seed in range(3):
        folder = started.folder / str(seed)
        cfg.seed, cfg.output_dir = seed, str(folder)
        record(folder, cfg, FROM_PYTHON)
        (folder / LOCK).touch()
        write_metrics(folder, {"steps": 2, "val/acc": 0.5 + seed / 10})
    return started


ALL = ["seed=0", "seed=1", "seed=2"]
LINES = [f"job {number}  seed={number}  done: 0.{5 + number}000" for number in range(3)]


def listed(outcome):
    return [line for line in outcome.out.splitlines() if line.startswith("job ")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where a sweep is kept whose keys are known, once one has been made."""
    return tmp_path_factory.mktemp("made") / "sweep"


@pytest.fixture
def known(again, made):
    """The same, of jobs whose keys are known."""
    if made.exists():
        shutil.rmtree(again.folder)
        shutil.copytree(made, again.folder)
        return again
    first = again("seed=range(3)")
    assert (first.code, first.err, listed(first)) == (0, "", LINES)
    assert again.composed == ALL + ALL
    assert again.launched == [0, 1, 2]
    shutil.copytree(again.folder, made)
    return again


def test_finished_jobs_are_neither_composed_nor_launched(known):
    outcome = known("seed=range(3)")
    assert (outcome.code, outcome.err, listed(outcome)) == (0, "", LINES)
    assert (known.composed, known.launched) == ([], [])
    done = [line for line in outcome.out.splitlines() if line.endswith(" is done already")]
    assert done == [f"{known.folder / str(number)} is done already" for number in range(3)]


def test_jobs_are_found_under_other_numbers(known):
    outcome = known("seed=2,0,1")
    assert (known.composed, known.launched) == ([], [])
    assert listed(outcome) == [
        "job 0  seed=2  done: 0.7000",
        "job 1  seed=0  done: 0.5000",
        "job 2  seed=1  done: 0.6000",
    ]


@pytest.mark.parametrize("batches", [(), ("hydra.sweeper.max_batch_size=2",)])
def test_an_unfinished_job_runs_under_its_own_number(again, batches):
    assert again("seed=range(3)", *batches).code == 0
    (again.folder / "1" / "metrics.json").unlink()
    outcome = again("seed=range(3)", *batches)
    assert outcome.code == 0, outcome.err
    assert again.composed == ["seed=1", "seed=1"]
    assert again.launched == [1]
    accuracy = json.loads((again.folder / "1" / "metrics.json").read_text())["val/acc"]
    assert listed(outcome) == [LINES[0], f"job 1  seed=1  done: {accuracy:.4f}", LINES[2]]
    assert again("seed=range(3)", *batches).code == 0
    assert (again.composed, again.launched) == ([], [])


def test_what_lies_between_unfinished_jobs_is_launched_with_them(known):
    for number in (0, 2):
        (known.folder / str(number) / "metrics.json").unlink()
    outcome = known("seed=range(4)")
    assert outcome.code == 0, outcome.err
    assert known.composed == ["seed=0", "seed=2", "seed=3", *ALL, "seed=3"]
    assert known.launched == [0, 1, 2, 3]
    assert [line.split()[1] for line in listed(outcome)] == ["0", "1", "2", "3"]
    assert listed(outcome)[1] == LINES[1]
    known("seed=range(4)")
    assert (known.composed, known.launched) == ([], [])  # the last of them by the key that it was started with


def test_a_failing_job_beside_finished_ones(known):
    outcome = known("seed=range(3)", "optimizer.lr=0.001,-1")  # the former is the default
    assert outcome.code == 2  # the second job's place is taken
    for folder in ("1", "2"):
        (known.folder / folder).rename(known.folder.parent / folder)
    outcome = known("seed=0", "optimizer.lr=0.001,-1")
    assert known("seed=0", "optimizer.lr=0.001,-1").code == 1
    assert known.launched == [1]
    assert listed(outcome) == ["job 0  optimizer.lr=0.001  done: 0.5000"]
    assert outcome.err.splitlines()[-1].startswith("job 1  optimizer.lr=-1  failed: optimizer.lr must be")


def test_a_changed_override_is_a_conflict_before_any_job_runs(known):
    refusal = known("seed=range(3)", "label_smoothing=0.1").refusal
    assert refusal == "output_dir=sweep holds a run already, whose job 0 has another config: name another folder"
    assert (known.composed, known.launched) == (["seed=0"], [])
    outcome = known("seed=0,7", "hydra.sweeper.max_batch_size=1")
    assert "whose job 1 has another config" in outcome.refusal  # found before the first batch
    assert "is done already" not in outcome.out
    assert known.launched == []


def test_a_changed_file_has_the_jobs_composed_again(again, tmp_path):
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\nlabel_smoothing: 0.0\n")
    typed = ("seed=range(3)", "--config-dir", str(tmp_path / "conf"), "experiment=mine")
    for composed in (ALL + ALL, []):
        assert again(*typed).code == 0
        assert again.composed == composed
    mine.write_text("# @package _global_\nlabel_smoothing: 0.0  # as it was\n")
    for composed in (ALL + ALL, []):
        outcome = again(*typed)
        assert (outcome.code, listed(outcome)) == (0, LINES)
        assert again.composed == composed
    mine.write_text("# @package _global_\nlabel_smoothing: 0.1\n")
    assert "whose job 0 has another config" in again(*typed).refusal
    assert (again.composed, again.launched) == (["seed=0"], [])


@pytest.mark.slow
def test_a_search_path_has_the_jobs_composed(known, tmp_path):
    for _ in range(2):
        outcome = known("seed=range(3)", f"hydra.searchpath=[file://{tmp_path}]")
        assert (outcome.code, listed(outcome)) == (0, LINES)
        assert known.composed == ALL + ALL


@pytest.mark.slow
def test_an_optimising_sweeper_has_all_jobs_composed(known):
    typed = ("seed=range(3)", "hydra.sweeper._target_=hydra_plugins.optimiser.Optimiser")
    for _ in range(2):
        outcome = known(*typed)
        assert outcome.code == 0, outcome.err
        assert known.composed == ALL + ALL
        assert "returned [0.5, 0.6, 0.7]\n" in outcome.out


def test_a_key_file_from_elsewhere_finishes_no_job(known):
    (known.folder / "1" / "metrics.json").unlink()
    (known.folder / "1" / KEY).write_bytes((known.folder / "2" / KEY).read_bytes())
    assert known("seed=range(3)").code == 0
    assert known.launched == [1]
    (known.folder / "3").mkdir()
    (known.folder / "3" / ".hydra").mkdir()
    for name in (KEY, ".hydra/config.yaml"):  # a copy that has not ended
        (known.folder / "3" / name).write_bytes((known.folder / "2" / name).read_bytes())
    (known.folder / "2" / KEY).unlink()
    assert known("seed=range(3)").code == 0
    assert known.launched == [2]


@pytest.mark.parametrize("metrics", ["", "[]", '{"val/acc": "high"}', '{"val/acc": [0.5]}', "x" * 2_000_000])
def test_metrics_that_are_none_finish_no_job(known, metrics):
    (known.folder / "1" / "metrics.json").write_text(metrics)
    known("seed=range(3)")
    assert known.composed == ["seed=1", "seed=1"]
    assert known.launched == [1]


def test_a_multirun_yaml_of_ones_own_is_written_over(known):
    path = Path(known.folder, "multirun.yaml")
    for content in (path.read_text(), ""):
        path.write_text(content)
        assert known("seed=range(3)").code == 0
    path.write_text("of: another program")
    assert known("seed=range(3)").code == 0  # as the jobs there are this project's
    for lock in known.folder.rglob(LOCK):
        lock.unlink()
    path.write_text("of: another program")
    assert "holds multirun.yaml, which would be written over" in known("seed=range(3)").refusal
