"""Which overrides are one recipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.recipe import recipe, seed_of


def normal(*overrides):
    return {key: value.normal for key, value in recipe(overrides).items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optimizer.lr=0.01", "optimizer.lr=1e-2"),
        ("optimizer.lr=1", "optimizer.lr=1.0"),
        ("data.batch_size=1000", "data.batch_size=1_000"),
        ("compile=true", "compile=True"),
        ("augment=null", "augment=NULL"),
        ("model=resnet18", "model='resnet18'"),
        ("freeze=[[conv1,0.5]]", "freeze=[[conv1, 5e-1]]"),
        ("name=a", "name='a'"),
        ("name=a b, (c)", r"name=a\ b\,\ \(c\)"),  # as Hydra spells it for the jobs of a sweep
        ("trainer.limit_train_batches=0.5", "trainer.limit_train_batches=.5"),
        ("optimizer.lr=nan", "optimizer.lr=NaN"),
    ],
)
def test_two_spellings_of_a_value(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("trainer.limit_train_batches=1", "trainer.limit_train_batches=1.0"),  # one batch, or all of them
        ("compile=true", "compile=1"),
        ("name=1", "name=1.0"),  # text, whatever it looks like
        ("name=1", "name=01"),
        ("optimizer.lr=0.01", "optimizer.lr=0.0100001"),
        ("freeze=[]", "freeze=[[conv1,0.5]]"),
        ("augment=null", "augment=none"),
        ("init=a.ckpt", "init=b.ckpt"),
    ],
)
def test_two_values(one, other):
    assert normal(one) != normal(other)


def test_order_is_nothing_and_the_last_of_a_key_counts():
    assert normal("a=1", "b=2") == normal("b=2", "a=1") == normal("b=7", "a=1", "b=2")


def test_what_is_no_part_of_a_recipe():
    place = ("seed=1", "output_dir=x", "resume=auto", "hydra.sweeper.max_batch_size=2", "hydra/launcher=basic")
    assert normal(*place, "+hydra.job.env_set.A=1", "~hydra.x") == {}


def test_the_seed_of_overrides():
    assert seed_of(["seed=1", "a=2", "seed=3"]) == 3
    assert seed_of(["a=2"]) is None
    assert seed_of(["seed=one"]) is None


@pytest.mark.parametrize(
    "value", ["[" * 500, "{", "'", "${oc.env:HOME}", "a" * 10_000, "[" + "1," * 5_000, "a=b", "\x1b[31m"]
)
def test_what_hydra_cannot_read_is_text(value):
    assert normal(f"model={value}")["model"] == value
    assert recipe([f"model={value}"])["model"].spelled == value


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab '\",\\", max_size=5),
    lambda values: st.lists(values, max_size=3),
    max_leaves=6,
)


@given(plain, plain)
def test_values_are_one_recipe_if_they_are_equal(one, other):
    def same(a, b):
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b and isinstance(a, bool) == isinstance(b, bool)

    found, expected = normal(f"x={quoted(one)}"), normal(f"x={quoted(other)}")
    assert (found == expected) == same(one, other)
    assert hash(found["x"]) is not None
