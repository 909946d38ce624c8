"""Random overrides: the answer is a run or one line, never a traceback."""

import os

import lightning as L
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cifar_lightning.config.schema import CONF

VALUES = (
    *("-1", "0", "1", "2", "3", "0.5", "1e-3", "-0.1", "1e30", "1000000000000", "nan", "inf", "-inf", "08", "0x10"),
    *("", "null", "true", "false", "abc", "none", "'a b'", "é", "a,b", "a=b", "'", '"', "\\", "$HOME", "~", "???", "*"),
    *("[]", "[1]", "[a,b]", "[[conv1,0.5]]", "[[x,2]]", "{}", "{a:1}", "{_target_:os.mkdir}", "${name}", "${nowhere}"),
    *("${oc.env:NOWHERE}", "cpu", "gpu", "16-mixed", "ddp", "tutorial", "speedrun", "adamw", "linear", "synthetic"),
)
GROUPS = [folder.name for folder in CONF.iterdir() if folder.is_dir()]


def keys(node: dict, prefix: str = "") -> list[str]:
    found = []
    for key in node:
        child = node[key]
        found += [f"{prefix}{key}", *(keys(child, f"{prefix}{key}.") if isinstance(child, dict) else [])]
    return found


class Reached(Exception):
    """The run would begin now."""


@pytest.fixture
def attempt(command, monkeypatch):
    """Run train.py up to its first step; gives the outcome."""

    def reached(*args: object, **kwargs: object) -> None:
        raise Reached

    monkeypatch.setattr(L.Trainer, "fit", reached)
    yield lambda *overrides: command("train.py", *overrides, tiny=True)
    torch.use_deterministic_algorithms(False)


BASES = ((), ("experiment=speedrun96", "data.batch_size=10", "model.widths=[8,8,8]", "logger=both"))


@pytest.fixture
def known(compose):
    """Keys of the config, by what it begins with."""
    own = ("data.root", "data.dataset._target_")  # which the fixture has set
    return {base: [key for key in keys(OmegaConf.to_container(compose(*base))) if key not in own] for base in BASES}


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_overrides(data, attempt, known):
    base = data.draw(st.sampled_from(BASES))
    key = st.one_of(
        st.sampled_from(known[base]),
        st.sampled_from(GROUPS),
        st.sampled_from(known[base]).map(lambda key: key[:-1]),
        st.text("abcdefgh._+~@/-", min_size=1, max_size=12),
    )
    override = st.tuples(key, st.sampled_from(VALUES)).map("=".join)
    overrides = data.draw(st.lists(st.one_of(override, st.sampled_from(VALUES)), min_size=1, max_size=3))
    outcome = attempt(*base, *overrides)
    if outcome.code == 1:
        assert outcome.err.startswith("error: Reached"), (overrides, outcome.err)
    else:
        assert outcome.code in (0, 2), (overrides, outcome.err)
        assert outcome.code == 0 or len(outcome.err.splitlines()) == 1, (overrides, outcome.err)
    assert "Traceback" not in outcome.err
