"""seeds=5 for seed=0,1,2,3,4."""

import json

import pytest

from cifar_lightning.cli.seeds import with_seeds
from cifar_lightning.errors import UserError

FAST = (
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"),
    *("callbacks=none", "logger=none", "data.val_size=20"),
)


def test_seeds_become_those_from_0_in_their_place():
    typed = ["a=1", "seeds=5", "b=2"]
    assert with_seeds(typed, is_sweep=True) == ["a=1", "seed=0,1,2,3,4", "b=2"]
    assert with_seeds(["seeds=1"], is_sweep=True) == ["seed=0"]
    assert with_seeds(["seed=7"], is_sweep=False) == ["seed=7"]


@pytest.mark.parametrize("number", ["0", "-1", "abc", "", "1.5", "1e3", "[1,2]", "10001", "9" * 5000, "٣"])
def test_what_is_no_number_of_seeds(number):
    with pytest.raises(UserError, match=r"^seeds=.*: seeds must be a whole number in \[1, 10,000\]"):
        with_seeds([f"seeds={number}"], is_sweep=True)


@pytest.mark.parametrize("other", ["seed=3", "seed=0,1", "seeds=2"])
def test_seeds_given_twice(other):
    for typed in (["seeds=2", other], [other, "seeds=2"]):
        with pytest.raises(UserError, match=r"^seeds=2: the seeds are given twice; leave out all but one"):
            with_seeds(typed, is_sweep=True)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["seeds=5"], "seeds=5: several runs are a sweep; add -m, as in python train.py -m seeds=5"),
        ("train.py", ["-m", "seeds=0"], "seeds=0: seeds must be a whole number"),
        ("train.py", ["-m", "seeds=2", "seed=1"], "seeds=2: the seeds are given twice"),
        ("export.py", ["ckpt=x", "seeds=2"], "seeds=2: there is no key seeds"),
    ],
)
def test_refusals_are_one_line(command, script, arguments, message):
    assert command(script, *arguments).refusal.startswith(message)


def test_help_mentions_it(command):
    assert "seeds=5 with it: seed=0,1,2,3,4" in command("train.py", "--help").out
    assert "seeds" not in command("evaluate.py", "--help").out


def test_a_sweep_over_seeds_records_the_seed_and_ends_with_its_comparison(command, tmp_path):
    outcome = command("train.py", "-m", *FAST, "optimizer.lr=0.001,-1", "seeds=2", "output_dir=sweep", tiny=True)
    assert outcome.code == 1
    runs = [json.loads((tmp_path / "sweep" / job / "metrics.json").read_text()) for job in ("0", "1")]
    assert [run["seed"] for run in runs] == [0, 1]
    assert [[one for one in run["overrides"] if "seed" in one] for run in runs] == [["seed=0"], ["seed=1"]]
    listed = outcome.out.index("\njob 1  ")
    compared = outcome.out.index("\nComparison of tutorial: 4 runs, 2 groups\n")
    assert listed < compared < outcome.out.index("\npage      sweep/compare/compare.html\n")
    assert "2 failed" in outcome.out[compared:]
    mean = sum(run["test/acc"] for run in runs) / 2
    csv = (tmp_path / "sweep" / "compare" / "compare.csv").read_text().splitlines()
    assert csv[1].startswith("optimizer.lr=0.001,2,")
    assert f",2,{mean}," in csv[1]
    assert csv[2].split(",")[-3:] == ["2", "0", "0"]
