"""train() and evaluate() as a notebook or a script calls them: nothing is set up by hand, and all is put back."""

import gc
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import ROOT, SMALL, TINY
from omegaconf import OmegaConf

from cifar_lightning.commands.evaluate import evaluate
from cifar_lightning.commands.train import train
from cifar_lightning.config.schema import compose as compose_by_hand

NOTEBOOK = """
from cifar_lightning.commands.evaluate import evaluate
from cifar_lightning.commands.train import train
from cifar_lightning.config.schema import compose

overrides = ["experiment=smoke", "trainer.accelerator=cpu", "trainer.limit_train_batches=5", "callbacks=none"]
metrics = train(compose(*overrides))
ckpt = f"ckpt={metrics['output_dir']}/checkpoints/last.ckpt"
evaluated = evaluate(compose(ckpt, "data=synthetic", "trainer.accelerator=cpu", config_name="evaluate"))
assert evaluated["test/acc"] == metrics["test/acc"]
record = open(f"{metrics['output_dir']}/.hydra/config.yaml").read()
assert f"output_dir: {metrics['output_dir']}" in record
"""


def test_a_script_shows_epochs_and_tables_and_nothing_else(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning"}
    command = [sys.executable, "-c", NOTEBOOK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    starts = [line.split()[0] for line in done.stdout.splitlines() if line and line[0].isalpha()]
    assert starts[:5] == ["data", "model", "recipe", "device", "folder"]
    assert starts.count("epoch") == 1
    assert starts.count("smoke") == 2  # the titles of two tables
    assert done.stdout.count("test/acc") == 2
    assert [folder.name for folder in (tmp_path / "logs").iterdir()] == ["smoke"]


@pytest.fixture
def state():
    """What of a process a run could change for those after it."""

    def look():
        return {
            "threads": torch.get_num_threads(),
            "benchmark": torch.backends.cudnn.benchmark,
            "garbage": gc.isenabled(),
            "levels": [logging.getLogger(name).level for name in ("", "cifar_lightning", "lightning.pytorch")],
            "handlers": [logging.getLogger(name).handlers[:] for name in ("", "cifar_lightning", "lightning.pytorch")],
            "filters": len(warnings.filters),
            "recompiles": torch._dynamo.config.recompile_limit,
        }

    return look


def test_all_is_put_back_and_the_config_is_as_it_was(compose, state, tiny_root, tmp_path):
    cfg = compose(*SMALL, "data.val_size=20", "num_threads=1", "trainer.benchmark=true")
    text, before = OmegaConf.to_yaml(cfg), state()
    train(cfg)
    assert state() == before
    assert OmegaConf.to_yaml(cfg) == text
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    tiny = (f"data.root={tiny_root}", TINY, "num_threads=1", "trainer.accelerator=cpu")
    cfg = compose_by_hand(ckpt, *tiny, config_name="evaluate")
    text = OmegaConf.to_yaml(cfg)
    evaluate(cfg)
    assert state() == before
    assert OmegaConf.to_yaml(cfg) == text


def test_lines_are_shown_once_where_logging_is_set_up(compose, capsys, caplog):
    with caplog.at_level(logging.INFO):
        train(compose(*SMALL))
    assert capsys.readouterr().out == ""
    assert sum(record.getMessage().startswith("data ") for record in caplog.records) == 1
