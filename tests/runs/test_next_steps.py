"""What a run says when it has ended: each command can be typed."""

import logging
import re
import shlex
from dataclasses import replace

import pytest
from conftest import BARE, FAST, TINY
from generated import finished

from cifar_lightning.commands.train import train
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.resolve import resolve
from cifar_lightning.runs.next_steps import next_steps

TYPED = Invocation(hydra_yaml=lambda: "")
METRICS = {"epochs": 2, "test/acc": 0.5}


@pytest.fixture
def said(compose, caplog, tmp_path, monkeypatch):
    """What a run in a folder says, by its first word; ``parts`` of its settings and its metrics are others."""
    monkeypatch.chdir(tmp_path)
    settings = resolve(compose("name=a run"))

    def lines(folder="logs/a run/1", invocation=TYPED, metrics=METRICS, num_classes=10, **parts):
        (tmp_path / folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "checkpoints" / "last.ckpt").touch()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            parts["output_dir"] = str(tmp_path / folder)
            next_steps(replace(settings, **parts), metrics, invocation, num_classes=num_classes)
        return dict(re.split("  +", message, maxsplit=1) for message in caplog.messages)

    return lines


def test_the_next_commands_are_printed(said):
    ckpt = """'ckpt="logs/a run/1/checkpoints/last.ckpt"'"""
    assert said() == {
        "evaluate": f"python evaluate.py {ckpt}",
        "predict": f"python predict.py {ckpt} images=PICTURES",
        "resume": """python train.py 'resume="logs/a run/1"' trainer.max_epochs=4""",
        "compare": "python train.py -m seeds=5",
        "watch": "tensorboard --logdir logs",
    }


def test_a_network_that_has_hardly_learnt_is_told_what_helps(said):
    metrics = {**METRICS, "steps": 210, "train/acc": 0.54}
    assert said(metrics=metrics, num_classes=2)["note"] == (
        "54.00 % of training images are right, and chance is 50.00 %: the network has hardly learnt in 210 steps. More "
        "epochs help (trainer.max_epochs=20), another optimizer.lr"
    )
    assert "note" not in said(metrics={**metrics, "train/acc": 0.56}, num_classes=2)
    assert "note" not in said(metrics=metrics)
    assert "note" not in said(metrics=METRICS, num_classes=2)


def test_a_network_that_knows_its_training_images_by_heart_is_told_what_helps(said):
    metrics = {**METRICS, "steps": 210, "train/acc": 0.967, "test/acc": 0.55}
    known = (
        "96.70 % of training images are right and 55.00 % of test images: it knows the former by heart. More images "
        "help"
    )
    assert said(metrics=metrics)["note"] == f"{known}, varied ones (augment=photo)"
    assert "note" not in said(metrics={**metrics, "test/acc": 0.8})
    folder = {"name": "folder", "root": "my pets"}
    ending = """, or a network that knows ImageNet (experiment=finetune 'data.root="my pets"')"""
    assert said(metrics=metrics, data=folder)["note"] == f"{known}, varied ones (augment=photo){ending}"
    assert said(metrics=metrics, data=folder, init="a.ckpt")["note"] == f"{known}, varied ones (augment=photo)"


def test_a_trial_of_some_batches_is_told_nothing(said):
    metrics = {**METRICS, "steps": 2, "train/acc": 0.1}
    assert "note" in said(metrics=metrics)
    trainer = {"max_epochs": 2, "num_nodes": 1, "limit_train_batches": 10}
    assert "note" not in said(metrics=metrics, trainer=trainer)


def test_a_run_of_a_planned_length_or_a_stopped_one_is_not_said_to_resume(said):
    assert "resume" in said()
    assert "resume" not in said(freeze_trunk=0.3)
    assert "resume" not in said(metrics={**METRICS, "epochs": 1})


def test_more_seeds_have_the_overrides_of_the_run(said):
    overrides = ("experiment=smoke", "name='1e3'", "seed=3", "output_dir=x", "resume=auto", "freeze=[[conv1,0.5]]")
    line = said(invocation=replace(TYPED, overrides=overrides, flags=("--config-dir=/my conf",)))["compare"]
    assert shlex.split(line)[2:] == [
        *("-m", "seeds=5", "experiment=smoke", "name='1e3'", "freeze=[[conv1,0.5]]", "--config-dir=/my conf"),
    ]


def test_a_key_that_was_given_again_is_named_once_with_its_last_value(said):
    overrides = ("trainer.max_epochs=2", "data=synthetic", "trainer.max_epochs=3", "resume=x", "trainer.max_epochs=3")
    line = said(invocation=replace(TYPED, overrides=overrides))["compare"]
    assert line == "python train.py -m seeds=5 trainer.max_epochs=3 data=synthetic"


def test_folders_with_choices_of_ones_own_are_named_again(said):
    lines = said(invocation=replace(TYPED, flags=("--config-dir=/my conf",)))
    for step in ("evaluate", "resume", "compare"):
        assert shlex.split(lines[step])[-1] == "--config-dir=/my conf"


@pytest.mark.parametrize("other", ["2", "sweep/0"])
def test_a_run_is_compared_with_others_of_its_name(said, tmp_path, other):
    (tmp_path / "logs" / "a run" / "1" / "evaluate").mkdir(parents=True)
    for own in ("metrics.json", "evaluate/metrics.json"):
        (tmp_path / "logs" / "a run" / "1" / own).touch()
    assert "seeds=5" in said()["compare"]
    finished(tmp_path / "logs" / "a run" / other)
    assert said()["compare"] == """python compare.py 'runs="logs/a run"'"""
    assert "seeds=5" in said("elsewhere/1")["compare"]  # beside which there may be anything


def test_nothing_is_compared_that_cannot_be(said, tmp_path):
    assert "compare" not in said(metrics={"epochs": 2})
    assert "compare" not in said(invocation=Invocation())  # from Python, where nobody has typed anything
    assert "compare" not in said(trainer={"num_nodes": 2, "max_epochs": 2})  # which torchrun starts
    finished(tmp_path / "logs" / "a run" / "2")
    assert "compare" in said(invocation=Invocation())


@pytest.fixture
def typed(command, tmp_path, monkeypatch):
    """Types what a run has said, with what the tiny data set wants; gives what that prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(outcome, step, *more):
        line = dict(re.findall(r"^(\w+) {2,}(.*)$", outcome.out, re.MULTILINE))[step]
        python, entry, *arguments = shlex.split(line)
        assert python == "python"
        ran = command(entry, *(argument.replace("seeds=5", "seeds=2") for argument in arguments), *more)
        assert ran.code == 0, ran.err
        return ran

    return run


def test_what_a_run_says_can_be_typed(command, typed, tmp_path):
    conf = tmp_path / "my conf" / "augment"
    conf.mkdir(parents=True)
    (conf / "own.yaml").write_text("_target_: cifar_lightning.augment.CropFlip\npadding: 2\n")
    own = ("augment=own", f"--config-dir={conf.parent}")
    first = command("train.py", *FAST, *BARE, "name=a b", *own, tiny=True)
    assert first.code == 0, first.err
    typed(first, "evaluate", TINY)
    resumed = typed(first, "resume", TINY)
    assert "4/4" in resumed.out
    swept = typed(resumed, "compare")
    assert "2 runs, 1 group\n" in swept.out
    second = command("train.py", *FAST, *BARE, "name=a b", "optimizer.lr=0.01", *own, tiny=True)
    assert "4 runs, 2 groups\n" in typed(second, "compare").out


def test_a_run_from_python_says_so_too(compose, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        train(compose(*FAST, *BARE, "trainer.limit_train_batches=2"))
    said = [message.split()[0] for message in caplog.messages]
    assert said[-3:] == ["predict", "resume", "watch"]
