"""What the README says can be typed."""

import re
import shlex

import hydra
import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from cifar_lightning.commands.train import train
from cifar_lightning.config.schema import CONF

README = (ROOT / "README.md").read_text().replace("<time>", "2026-11-24_12-00-00")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_two_commands_set_up_a_fresh_machine():
    set_up = [command for command in COMMANDS if "venv" in command]
    assert [command[command.index("python") :] for command in set_up] == [
        ["python", "train.py", "data=synthetic"],
        ["python", "-m", "pytest", "-n", "auto"],
    ]


@pytest.mark.parametrize("arguments", [c[c.index("train.py") + 1 :] for c in COMMANDS if "train.py" in c], ids=str)
def test_commands_compose(arguments):
    first_values = [argument.partition(",")[0] for argument in arguments if not argument.startswith("-")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", first_values)
    for key, _, value in (argument.partition("=") for argument in first_values):
        if not (CONF / key).is_dir():  # a value, no choice of a file
            assert str(OmegaConf.select(cfg, key)) == value


def test_every_choice_is_listed():
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))
    for group in (
        "experiment",
        "data",
        "model",
        "normalize",
        "augment",
        "optimizer",
        "schedule",
        "callbacks",
        "logger",
    ):
        choices = {file.stem for file in (CONF / group).glob("*.yaml")}
        assert set(re.findall(r"`(\w+)`", table[group])) == choices


PIECES = [
    line.split("|")[3].strip().strip("`").removesuffix("` turns it on")
    for line in re.search(r"\| piece \| where .*?\n\n", README, re.DOTALL)[0].splitlines()[2:]
    if line
]


@pytest.mark.parametrize("line", PIECES)
def test_each_piece_of_a_speedrun_can_be_turned_off_by_its_line(compose, tiny_root, line):
    data = (f"data.root={tiny_root}", "data.dataset._target_=conftest.TinyCIFAR10", "data.batch_size=60")
    small = ("model.widths=[8,8,8]", "trainer.max_epochs=2", "callbacks=none", "logger=none")
    metrics = train(compose("experiment=speedrun", *data, *small, *line.split()))
    assert metrics["steps"] == 2
