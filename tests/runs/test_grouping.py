"""Which runs are one group, and what it is called."""

import re

import pytest

from cifar_lightning.config.recipe import recipe
from cifar_lightning.errors import UserError
from cifar_lightning.report.comparison import Run
from cifar_lightning.runs.grouping import group_runs


def run(*overrides, seed=0, status="finished", place="logs/sweep/0", **record):
    record = {"test/acc": 0.5, **record} if status == "finished" else {}
    return Run(place, recipe(overrides), seed, status, record)


def labels(*runs, by=()):
    return {group.label: [one.seed for one in group.runs] for group in group_runs(runs, by).groups}


def test_runs_are_grouped_by_all_overrides_but_the_seed():
    grouping = group_runs(
        [
            run("optimizer.lr=0.01", "data.val_size=5000", "seed=0", seed=0),
            run("data.val_size=5000", "seed=1", "optimizer.lr=1e-2", seed=1),  # another order and spelling
            run("optimizer.lr=0.1", "data.val_size=5000", "seed=0", "output_dir=elsewhere", seed=0),
        ]
    )
    assert [(group.label, sorted(group.counted)) for group in grouping.groups] == [
        ("optimizer.lr=0.01", [0, 1]),
        ("optimizer.lr=0.1", [0]),
    ]
    assert grouping.shared == ["data.val_size=5000"]
    assert grouping.notes == []


def test_what_others_set_and_a_group_does_not():
    assert labels(run(), run("model=resnet18"), run("optimizer.lr=0.1", "model=resnet18")) == {
        "defaults": [0],
        "model=resnet18": [0],
        "model=resnet18 optimizer.lr=0.1": [0],
    }
    assert labels(run("model=resnet18"), run("model=resnet18", seed=1)) == {"all runs": [0, 1]}


@pytest.mark.parametrize(
    "key",
    ["trainer.accelerator", "num_threads", "compile", "logger", "logger.save_dir", "name", "tta", "data.root"],
)
def test_where_and_how_a_run_ran_counts_only_where_seeds_would_stand_twice(key):
    assert labels(run(f"{key}=a", seed=0), run(f"{key}=b", seed=1)) == {"all runs": [0, 1]}
    assert labels(run(f"{key}=a", seed=0), run(f"{key}=b", seed=0), run(f"{key}=b", seed=1)) == {
        f"{key}=a": [0],
        f"{key}=b": [0, 1],
    }


def test_only_what_parts_the_doubles_counts():
    runs = [
        run("name=a", "compile=true", "num_threads=1", seed=0),
        run("name=a", "compile=false", "num_threads=1", seed=0),
        run("name=a", "compile=false", "num_threads=2", seed=1),
    ]
    assert labels(*runs) == {"compile=true": [0], "compile=false": [0, 1]}


def test_a_seed_that_stands_twice_is_named_and_the_first_counts():
    first, second = run(seed=0, place="a", **{"test/acc": 0.1}), run(seed=0, place="b", **{"test/acc": 0.9})
    grouping = group_runs([first, second, run(seed=1)])
    [group] = grouping.groups
    assert group.values("test/acc") == {0: 0.1, 1: 0.5}
    assert [group.counts(one) for one in (first, second)] == [True, False]
    assert grouping.notes == ["all runs: seed 0 stands 2 times, and the first counts: a, b"]


def test_a_failed_run_beside_one_that_finished_stands_for_itself():
    grouping = group_runs([run(status="failed"), run(), run(status="unfinished", seed=None)])
    [group] = grouping.groups
    assert [group.count(status) for status in ("finished", "failed", "unfinished", "running")] == [1, 1, 1, 0]
    assert grouping.notes == []


def test_other_test_images_are_another_group():
    images = [{"fingerprint.test": f"{number}" * 32} for number in (1, 2)]
    by_root = [run(f"data.root={number}", seed=number, **images[number]) for number in (0, 1)]
    assert labels(*by_root, run("data.root=1", seed=5, status="failed")) == {"data.root=0": [0], "data.root=1": [1, 5]}
    changed = [run("data.root=a", seed=number, **images[number]) for number in (0, 1)]
    assert labels(*changed) == {"test images=11111111": [0], "test images=22222222": [1]}


def test_other_training_images_within_a_group_are_named():
    runs = [run(seed=number, **{"fingerprint.train": f"{number % 2}"}) for number in range(3)]
    [group] = group_runs(runs).groups
    assert group_runs(runs).notes == [
        "all runs: its runs were trained on different images; by=fingerprint.train parts them"
    ]
    assert (len(group.counted), group_runs(runs[::2]).notes) == (3, [])
    assert labels(*runs, by=["fingerprint.train"]) == {"fingerprint.train=0": [0, 2], "fingerprint.train=1": [1]}


def test_what_else_makes_groups():
    runs = [
        run(seed=0, place="logs/a/0", commit="1", **{"versions.torch": "2.10"}),
        run(seed=0, place="logs/b/0", commit="2", **{"versions.torch": "2.11"}),
        run(seed=1, place="logs/b/1", commit="2", **{"versions.torch": "2.11"}),
    ]
    assert labels(*runs, by=["folder"]) == {"folder=logs/a": [0], "folder=logs/b": [0, 1]}
    assert labels(*runs, by=["commit"]) == {"commit=1": [0], "commit=2": [0, 1]}
    assert labels(*runs, by=["versions.torch"]) == {"versions.torch=2.10": [0], "versions.torch=2.11": [0, 1]}
    assert labels(*runs, by=["nothing"]) == {"all runs": [0, 0, 1]}


GROUPS = (run("model=a", "optimizer.lr=0.01"), run("model=a", "optimizer.lr=0.1"), run("model=b c", "optimizer.lr=0.1"))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("optimizer.lr=1e-2", "model=a optimizer.lr=0.01"),
        ("optimizer.lr=0.1 model=a", "model=a optimizer.lr=0.1"),
        ("model=b c optimizer.lr=0.1", "model=b c optimizer.lr=0.1"),
        ("'model=b c'", "model=b c optimizer.lr=0.1"),
    ],
)
def test_a_group_is_found_by_its_label_or_some_overrides(text, label):
    assert group_runs(GROUPS).find(text).label == label


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("optimizer.lr=0.1", "several groups have that; name one of: model=a optimizer.lr=0.1, model=b c"),
        ("optimizer.lr=7", "no group has that; name one of: model=a optimizer.lr=0.01, model=a"),
        ("best", "no group has that"),
        ("'", "no group has that"),
        ("", "no group has that"),
        ("\x1b[31m", "no group has that"),
    ],
)
def test_a_baseline_that_is_none(text, problem):
    with pytest.raises(UserError, match=rf"^baseline=.*: {re.escape(problem)}") as refusal:
        group_runs(GROUPS).find(text)
    assert str(refusal.value).isprintable()


def test_labels_hold_what_can_be_printed():
    assert list(labels(run("name=a\n\x1b[31m"), run("name=b"))) == [r"name=a\n\x1b[31m", "name=b"]
