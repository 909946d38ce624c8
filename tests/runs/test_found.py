"""Which runs are found where, and what is known of each."""

import json
import os
import re

import pytest
from generated import failed, finished, started

from cifar_lightning.commands.train import train
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.errors import UserError
from cifar_lightning.locks import held
from cifar_lightning.runs.failure import FAILED
from cifar_lightning.runs.folder import LOCK
from cifar_lightning.runs.found import comparison_folder, find_runs


@pytest.fixture
def sweep(tmp_path):
    for number in range(11):
        finished(tmp_path / "logs" / "sweep" / str(number), "optimizer.lr=0.1", seed=number)
    (tmp_path / "logs" / "sweep" / "multirun.yaml").touch()
    (tmp_path / "logs" / "sweep" / "compare").mkdir()
    return tmp_path / "logs" / "sweep"


def seeds(*places):
    return [run.seed for run in find_runs(list(map(str, places))).runs]


def test_runs_are_found_in_folders_patterns_and_files(sweep, monkeypatch):
    everything = list(range(11))
    assert seeds(sweep) == seeds(sweep.parent) == seeds(sweep / "*") == everything  # 10 comes after 9
    assert seeds(sweep / "3") == seeds(sweep / "3" / "metrics.json") == [3]
    assert seeds(sweep / "[12]*") == [1, 2, 10]
    assert seeds(sweep.parent / "**" / "metrics.json") == everything
    monkeypatch.chdir(sweep)
    assert seeds(".") == everything


def test_each_run_counts_once(sweep):
    assert seeds(sweep / "3", sweep, sweep / "3" / "metrics.json", sweep / "*") == [3, 0, 1, 2, *range(4, 11)]
    (sweep.parent / "again").symlink_to(sweep)
    assert seeds(sweep, sweep.parent / "again") == list(range(11))
    assert seeds(sweep.parent) == list(range(11))  # links within a folder are not followed


def test_a_record_by_itself(sweep, tmp_path):
    raw = tmp_path / "tutorial-3.json"
    (sweep / "3" / "metrics.json").rename(raw)
    [run] = find_runs([str(raw)]).runs
    assert (run.place, run.seed, run.number("test/acc")) == (str(raw), 3, 0.5)
    assert run.overrides["optimizer.lr"].normal == 0.1


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "there is no such file or folder"), ("no*where", "pattern matches nothing")],
)
def test_what_is_not_there_is_said(place, message):
    with pytest.raises(UserError, match=rf"^runs=no.*: {message}; give a folder of runs, such as runs=logs/sweep"):
        find_runs([place])


def test_evaluations_are_no_runs(sweep):
    record = {"ckpt": "last.ckpt", "test/acc": 0.5, "seed": 0, "overrides": []}
    record |= {"test/class_acc": {"cat": 0.5, "dog": None}}
    for folder in (sweep / "3" / "evaluate" / "last", sweep.parent / "evaluate" / "1"):
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(record))
    found = find_runs([str(sweep.parent)])
    assert (len(found.runs), found.num_evaluations, found.left_out) == (11, 1, [])  # the other is within its run


def test_a_run_that_has_not_finished(tmp_path):
    started(tmp_path / "0", "optimizer.lr=0.1", "seed=4")
    failed(tmp_path / "1", "optimizer.lr=-1", "seed=5", reason="optimizer.lr must be positive")
    started(tmp_path / "2", "seed=6")
    with held(tmp_path / "2" / LOCK):
        runs = find_runs([str(tmp_path)]).runs
    assert [(run.seed, run.status, run.reason) for run in runs] == [
        (4, "unfinished", ""),
        (5, "failed", "optimizer.lr must be positive"),
        (6, "running", ""),
    ]
    assert find_runs([str(tmp_path)]).runs[2].status == "unfinished"
    assert runs[1].overrides["optimizer.lr"].normal == -1


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ("", "Expecting value"),
        ("[]", "it holds no metrics by name"),
        ('{"test/acc": "high"}', "test/acc is no number"),
        ("[" * 100_000, "it is nested too deeply"),
        ("x" * 2_000_000, "larger than"),
        ({"seed": "0"}, "its seed is no whole number"),
        ({"seed": True}, "its seed is no whole number"),
        ({"overrides": "seed=0"}, "its overrides are no list of texts"),
        ({"overrides": [1]}, "its overrides are no list of texts"),
        ({"test/acc": 1.5}, r"test/acc must be in \[0, 1\], got 1.5"),
        ({"test/acc": -1e300}, r"test/acc must be in \[0, 1\], got -1e\+300"),
        ({"test/loss": 1e300}, "test/loss is no number that can be compared"),
        ({"train_seconds": float("inf")}, "train_seconds is no number that can be compared"),
    ],
)
def test_a_broken_file_is_named_and_left_out(tmp_path, record, why):
    finished(tmp_path / "0")
    path = finished(tmp_path / "1", seed=1) / "metrics.json"
    path.write_text(record if isinstance(record, str) else json.dumps(json.loads(path.read_text()) | record))
    found = find_runs([str(tmp_path)])
    assert [run.seed for run in found.runs] == [0]
    [(place, reason)] = found.left_out
    assert place == str(tmp_path / "1")
    assert re.search(why, reason), reason


def test_pipes_and_links_of_others(tmp_path):
    folder = finished(tmp_path / "0")
    (folder / "metrics.json").unlink()
    os.mkfifo(folder / "metrics.json")
    dangling = started(tmp_path / "1")
    (dangling / "metrics.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(started(tmp_path / "2") / FAILED)
    found = find_runs([str(tmp_path)])
    assert [reason for _, reason in found.left_out] == [f"{folder / 'metrics.json'} is no regular file"]
    assert [run.status for run in found.runs] == ["unfinished", "unfinished"]


def test_a_run_that_was_started_from_python_has_what_it_sets(compose, tmp_path):
    for number, lr in enumerate((0.02, 0.03)):
        short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks=none", "logger=none")
        train(compose(*short, f"optimizer.lr={lr}", f"output_dir={tmp_path / 'runs' / str(number)}"))
    runs = find_runs([str(tmp_path / "runs")]).runs
    assert [run.overrides["optimizer.lr"].normal for run in runs] == [0.02, 0.03]
    assert runs[0].overrides["trainer.max_epochs"].normal == ("1", "number")
    assert "optimizer.momentum" not in runs[0].overrides  # as it is in conf/
    assert "seed" not in runs[0].overrides


def test_a_failure_is_noted_until_the_run_is_started_again(compose, tmp_path, monkeypatch):
    def breaks(*args):
        raise RuntimeError("out of\nluck")

    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks=none", "logger=none", "seed=3")
    folder = tmp_path / "sweep" / "0"
    cfg, invocation = compose(*short, f"output_dir={folder}"), Invocation(overrides=("seed=3",), is_sweep=True)
    with monkeypatch.context() as patch:
        patch.setattr("cifar_lightning.classifier.ImageClassifier.training_step", breaks)
        with pytest.raises(RuntimeError, match="out of"):
            train(cfg, invocation)
    [run] = find_runs([str(folder)]).runs
    assert (run.seed, run.status, run.reason) == (3, "failed", "RuntimeError: out of luck")
    train(cfg, invocation)
    assert find_runs([str(folder)]).runs[0].status == "finished"
    assert not (folder / FAILED).exists()


def test_a_command_that_is_refused_is_no_failed_run(compose, tmp_path):
    folder = started(tmp_path / "run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match="holds a run already"):
        train(compose(f"output_dir={folder}"))
    assert not (folder / FAILED).exists()


def test_where_a_comparison_is_written(sweep, tmp_path, monkeypatch):
    assert comparison_folder([str(sweep)]) == str(sweep / "compare")
    assert comparison_folder([str(sweep.parent)]) == str(sweep.parent / "compare")
    for places in ([str(sweep / "0")], [str(sweep), str(sweep)], [str(sweep / "*")]):
        assert comparison_folder(places).startswith("logs/compare/")
    (sweep / "compare").rmdir()
    (sweep / "compare").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link: there must be a plain folder or none"):
        comparison_folder([str(sweep)])
