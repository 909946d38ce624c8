"""Spaces in Hydra's grammar: what they hold, how values are typed, what is refused."""

import itertools

import pytest

pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_lightning.errors import UserError
from cifar_lightning.search.space import read_space


def only(text):
    [parameter] = read_space({}, [text]).parameters
    return parameter


@pytest.mark.parametrize(
    ("space", "distribution"),
    [
        ("choice(4,16,64)", CategoricalDistribution(("4", "16", "64"))),
        ("4,16", CategoricalDistribution(("4", "16"))),
        ("choice(sgd,muon,sgd)", CategoricalDistribution(("sgd", "muon"))),
        ("choice([1,2],{a:1},'x y')", CategoricalDistribution(("[1,2]", "{a:1}", "x\\ y"))),
        ("range(1,10)", IntDistribution(1, 9)),
        ("range(1,10,2)", IntDistribution(1, 9, step=2)),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("tag(log,range(1,65))", IntDistribution(1, 64, log=True)),
        ("interval(1,8)", FloatDistribution(1, 8)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("tag(int,interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int,interval(1,8))", IntDistribution(1, 8, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
    ],
)
def test_a_space_in_optunas_words(space, distribution):
    assert only(f"optimizer.lr={space}").distribution() == distribution


def test_values_of_an_interval_have_four_digits_and_stay_in_it():
    parameter = only("optimizer.lr=interval(0.00012345,0.1)")
    assert parameter.text(0.0123456789) == "0.01235"
    assert parameter.text(0.00012345) == "0.00012345"
    assert only("optimizer.lr=interval(0.999,1)").text(0.99912345678) == "0.9991235"


def test_values_of_a_range_are_typed_as_hydra_does():
    parameter = only("optimizer.lr=range(0.1,0.5,0.1)")
    assert parameter.text(0.30000000000000004) == "0.3"
    assert parameter.holds(0.30000000000000004)
    assert not parameter.holds(0.5)


def test_a_grid_has_each_point_once():
    space = read_space({}, ["b=choice(x,y)", "a=range(1,4)", "c=1"])
    assert space.num_points == 6
    points = [tuple(space.point(number).items()) for number in range(6)]
    assert points == [(("a", a), ("b", b)) for a, b in itertools.product("123", "xy")]
    assert space.overrides(space.point(5)) == ["c=1", "a=3", "b=y"]


def test_the_last_one_of_a_key_counts_and_what_is_typed_beats_a_file():
    named = {"optimizer.lr": "interval(1,2)", "data.batch_size": "choice(4,16)"}
    space = read_space(named, ["optimizer.lr=0.1", "label_smoothing=0", "label_smoothing=interval(0,0.2)"])
    assert [one.key for one in space.parameters] == ["data.batch_size", "label_smoothing"]
    assert space.fixed == ("optimizer.lr=0.1",)
    space = read_space({}, ["optimizer.lr=interval(1,2)", "++optimizer.lr=0.5", "label_smoothing=null,0.1"])
    assert [(one.key, one.texts) for one in space.parameters] == [("label_smoothing", ("null", "0.1"))]
    assert space.fixed == ("++optimizer.lr=0.5",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr=interval(1,1)", "two finite ends, the lower one first"),
        ("lr=interval(2,1)", "the lower one first"),
        ("lr=interval(-1e308,1e308)", "two finite ends"),
        ("lr=range(1,1.0000000000001,1e-14)", "the same to 12 digits; make the step larger"),
        ("lr=shuffle(choice(1,2,3))", "the order of values does not count in a search: leave shuffle out"),
        ("lr=shuffle(range(1,4))", "leave shuffle out"),
        (
            "num_threads=choice(null,1)",
            "a choice has no null; write the values without it, as in key=null,0.1; a space",
        ),
        ("lr=tag(log,interval(0,1))", "above 0"),
        ("lr=tag(int,interval(0.5,2))", "whole numbers"),
        ("lr=tag(exp,interval(1,2))", "a tag is log or int, got exp"),
        ("lr=tag(log,range(1,9,2))", "its step is 1"),
        ("lr=tag(log,choice(1,2))", "tags are for intervals and ranges"),
        ("lr=range(0,1000000)", "more than 10,000 values"),
        ("lr=intervall(0,1)", "Unknown function 'intervall'"),
        ("lr=choice(", "cannot read lr=choice"),
        ("lr=glob(*)", "a space is choice"),
        ("seed=choice(0,1)", "seeds=3 runs each trial"),
        ("data=choice(cifar10,cifar100)", "validated on the same images"),
        ("data.val_size=choice(10,20)", "validated on the same images"),
        ("++data.val_size=choice(10,20)", "validated on the same images"),
        ("++seed=choice(0,1)", "seeds=3 runs each trial"),
        ("++output_dir=logs/x", "each trial has its folder"),
        ("data.eval_batch_size=choice(10,20)", "validated on the same images"),
        ("trainer.limit_val_batches=interval(0,1)", "validated on the same images"),
        ("output_dir=logs/x", "each trial has its folder"),
        ("resume=auto", "the same command continues"),
        ("lr=0.1", "nothing is searched"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(text, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as refused:
        read_space({}, [text])
    assert "\n" not in str(refused.value)
