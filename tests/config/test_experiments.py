"""Files of conf/experiment: each one shows its whole recipe and opens with its command, result and source."""

import pytest
from omegaconf import OmegaConf

from cifar_lightning.config.schema import CONF

EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_no_experiment_builds_on_another(file):
    defaults = OmegaConf.to_container(OmegaConf.load(file)).get("defaults", [])
    for entry in defaults:
        if entry == "_self_":
            continue
        assert isinstance(entry, dict), f"{entry} is a file of conf/experiment"
        for choice in entry:
            assert choice.startswith("override /"), choice
            assert not choice.startswith("override /experiment"), choice


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_opens_with_its_command_result_and_source(file):
    package, command, result, source = file.read_text().splitlines()[:4]
    assert package == "# @package _global_"
    assert command.startswith(f"#   python train.py experiment={file.stem}")
    assert "ccuracy" in result
    assert " % (n = " in result
    assert source.startswith("# Source: ")
