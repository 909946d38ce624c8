"""Several ranks, as real processes over gloo: exact, ended and resumed together. Each takes seconds to import."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import differences, last
from omegaconf import DictConfig

from cifar_lightning import ranks
from cifar_lightning.commands.evaluate import evaluate
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.engine.launch import launch
from cifar_lightning.errors import RunError, UserError
from cifar_lightning.runs.signals import Stopped, signals

# 51 training images in batches of 10: the last one has a single image, so that ranks are left without one.
SIZES = ("data.dataset._target_=odd_data.Odd", "data.batch_size=10", "data.val_size=10", "data.eval_batch_size=4")
RECIPE = ("augment=crop_flip", "optimizer=nesterov", "optimizer.lr=0.02", "label_smoothing=0.1", "tta=1")
QUIET = ("callbacks=none", "logger=none", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu")


def composed(folder: Path, *overrides: str, num_devices: int) -> DictConfig:
    devices = f"trainer.devices={num_devices}"
    return schema.compose(*SIZES, *RECIPE, *QUIET, devices, f"output_dir={folder}", *overrides)


def with_mishap(kind: str, folder: Path, *, step: int, rank: int = 1) -> tuple[str, ...]:
    values = {"_target_": "mishaps.Mishap", "kind": kind, "rank": rank, "step": step, "marker": folder / "marker"}
    return tuple(f"+callbacks.mishap.{key}={value}" for key, value in values.items())


def assert_same_weights(folder: Path, other: Path) -> None:
    one, two = last(folder), last(other)
    assert one["global_step"] == two["global_step"]
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][name], rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder and metrics of a run on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, train(composed(folder, "class_weights=balanced", num_devices=1))


@pytest.mark.parametrize("num_devices", [pytest.param(2, marks=pytest.mark.processes), 3])
def test_a_run_is_that_of_one_device_and_so_is_its_evaluation(num_devices, alone, tmp_path):
    folder, metrics = alone
    together = train(composed(tmp_path / "run", "class_weights=balanced", num_devices=num_devices))
    assert_same_weights(tmp_path / "run", folder)
    assert {name for name in metrics if name.startswith("test/")} >= {"test/acc", "test/acc_tta", "test/ece"}
    assert together["num_devices"] == num_devices
    for name, value in metrics.items():
        if "/" in name or (name.startswith("num_") and "images" in name):
            assert together[name] == pytest.approx(value, abs=1e-6), name
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test/acc"] == metrics["test/acc"]

    if num_devices == 3:
        return
    texts = []
    for devices in (1, 2):
        ckpt, out = f"ckpt={folder}/checkpoints/last.ckpt", f"output_dir={tmp_path / str(devices)}"
        chosen = (SIZES[0], SIZES[3], "trainer.accelerator=cpu", f"trainer.devices={devices}", "tta=2")
        evaluate(schema.compose(ckpt, out, *chosen, config_name="evaluate"))
        texts.append((tmp_path / str(devices) / "predictions.csv").read_bytes())
    assert texts[0] == texts[1]
    assert texts[0].count(b"\n") == 1 + 23


@pytest.mark.processes
def test_a_killed_rank_ends_the_run_which_is_resumed_on_other_devices(tmp_path, capfd):
    mishap = with_mishap("killed", tmp_path, step=9)
    with pytest.raises(
        RunError, match=r"^rank 1 was killed by SIGKILL, .*; resume with: python train.py resume=.*/run$"
    ):
        train(composed(tmp_path / "run", *mishap, num_devices=2))
    assert time.time() - (tmp_path / "marker").stat().st_mtime < 60
    assert capfd.readouterr().err == ""
    assert last(tmp_path / "run")["global_step"] == 6
    train(composed(tmp_path / "run", *mishap, "resume=auto", num_devices=1))
    train(composed(tmp_path / "whole", *mishap, num_devices=1))
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.processes
def test_a_signal_stops_all_ranks_at_one_step(tmp_path, capfd):
    mishap = with_mishap("'all signalled'", tmp_path, step=2)  # as Slurm does it
    with signals, pytest.raises(Stopped, match="stopped by SIGUSR2") as stopped:
        train(composed(tmp_path / "run", *mishap, "trainer.max_epochs=200", num_devices=2))
    assert stopped.value.advice == f"; resume with: python train.py resume={tmp_path / 'run'}"
    assert capfd.readouterr().err == ""
    saved = last(tmp_path / "run")
    assert 2 <= saved["global_step"] < 1200
    assert len(saved["progress"]["other_ranks"]) == 1
    epochs = f"trainer.max_epochs={saved['epoch'] + 2}"
    train(composed(tmp_path / "run", *mishap, "resume=auto", epochs, num_devices=2))
    train(composed(tmp_path / "whole", *mishap, epochs, num_devices=1))
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "whole")]
    assert metrics[0]["train/acc"] == metrics[1]["train/acc"], "sums of an epoch that was saved within it"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        pytest.param("refused", UserError, r"^rank 1: data\.batch_size: no such thing$", marks=pytest.mark.processes),
        pytest.param("broken", RunError, "^rank 1: ValueError: no such thing at all\n", marks=pytest.mark.slow),
        pytest.param("diverged", RunError, r"^rank [01]: the loss of step 3 .* is not finite", marks=pytest.mark.slow),
    ],
)
def test_what_a_rank_raises_is_told_with_its_number(kind, error, message, tmp_path, capfd):
    with pytest.raises(error, match=message):
        train(composed(tmp_path / "run", *with_mishap(kind, tmp_path, step=3), num_devices=2))
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.glob("run/checkpoints/.*")), "nothing half written"


def talk(raises: bool) -> dict[str, object]:
    """What ranks tell each other; called in each."""
    rank = ranks.rank()
    told = {
        "gathered": ranks.gathered({"rank": rank}),
        "summed": ranks.summed([rank, 0.5]),
        "largest": ranks.largest([rank, -rank]),
        "first": ranks.from_first(lambda: f"of {ranks.rank()}"),
    }
    talks = ranks.Talks(0.0)
    told["talks"] = [talks.largest([step * rank]) for step in range(3) if talks.is_due()]
    module = torch.nn.BatchNorm1d(2)
    module.running_mean.fill_(rank + 1)
    ranks.align_buffers(module)
    told["buffers"] = module.running_mean.tolist()

    def refuse() -> None:
        raise UserError("none of them")

    if raises:
        ranks.from_first(refuse)
    return told


def train_in_group(folder: str, *overrides: str) -> dict[str, object]:
    """Train as one of the ranks there are; called in each."""
    return train(schema.compose(*SIZES, *RECIPE, *QUIET, *overrides, f"output_dir={folder}"))


@pytest.mark.slow
def test_a_group_of_one_is_a_process_by_itself(tmp_path, alone):
    launch(train_in_group, str(tmp_path / "run"), "class_weights=balanced", num=1)
    assert_same_weights(tmp_path / "run", alone[0])


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["tutorial", "resnet18"])
def test_gpus_average_gradients_by_nccl(network, tmp_path):
    num, gpu = torch.cuda.device_count(), ("trainer.accelerator=gpu", "trainer.precision=32-true", f"model={network}")
    syncs = f"trainer.sync_batchnorm={str(num > 1 and network == 'resnet18').lower()}"
    values = (*gpu, "data.batch_size=17", "optimizer.lr=0.001")  # three batches of 17 images
    launch(train_in_group, str(tmp_path / "run"), *values, syncs, f"trainer.devices={num}", num=num)
    train(schema.compose(*SIZES, *RECIPE, *QUIET, *values, f"output_dir={tmp_path / 'alone'}"))
    one, other = last(tmp_path / "run"), last(tmp_path / "alone")
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(value, other["state_dict"][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.processes
def test_what_ranks_tell_each_other():
    told = launch(talk, False, num=2)
    assert told == {
        "gathered": [{"rank": 0}, {"rank": 1}],
        "summed": [1.0, 1.0],
        "largest": [1.0, 0.0],
        "first": "of 0",
        "talks": [[0.0], [1.0], [2.0]],
        "buffers": [1.0, 1.0],
    }
    assert talk(False)["gathered"] == [{"rank": 0}], "and a process by itself, to itself"


@pytest.mark.slow
def test_what_all_ranks_refuse_names_none():
    with pytest.raises(UserError, match=r"^none of them$"):
        launch(talk, True, num=2)


@pytest.mark.slow
def test_ranks_without_a_parent_save_and_end(tmp_path):
    mishap = with_mishap("orphaned", tmp_path, step=2)
    child = os.fork() if hasattr(os, "fork") else pytest.skip("no fork here")
    if child == 0:
        try:
            train(composed(tmp_path / "run", *mishap, "trainer.max_epochs=10000", num_devices=2))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    until = time.monotonic() + 60
    while time.monotonic() < until and _is_held(tmp_path / "run" / ".cifar-lightning.lock"):
        time.sleep(0.5)
    assert not _is_held(tmp_path / "run" / ".cifar-lightning.lock")
    assert path.exists()


@pytest.mark.slow
def test_dropout_differs_by_rank_and_resumes_bit_for_bit(tmp_path):
    network = ("model=torchvision", "model.arch=squeezenet1_1", "trainer.gradient_clip_val=1", "freeze_trunk=0.3")
    mishap = with_mishap("stopped", tmp_path, step=2)
    with signals, pytest.raises(Stopped, match="stopped by SIGTERM"):
        train(composed(tmp_path / "run", *network, *mishap, "trainer.max_epochs=40", num_devices=2))
    assert 2 <= last(tmp_path / "run")["global_step"] < 240
    states = last(tmp_path / "run")["progress"]
    assert not torch.equal(states["random_states"]["cpu"], states["other_ranks"][0]["random_states"]["cpu"])
    train(composed(tmp_path / "run", *network, *mishap, "trainer.max_epochs=40", "resume=auto", num_devices=2))
    train(composed(tmp_path / "whole", *network, *mishap, "trainer.max_epochs=40", num_devices=2))
    assert differences(last(tmp_path / "run"), last(tmp_path / "whole")) == []


@pytest.mark.slow
def test_a_speedrun_with_whitening_lookahead_and_freezing(tmp_path, capfd):
    small = ("experiment=speedrun", "model.widths=[8,16,16]", "trainer.precision=32-true", "trainer.max_epochs=3")
    chosen = ("callbacks=lookahead", "logger=csv", "freeze=[[patches.bias,0.4]]", "trainer.accumulate_grad_batches=2")
    compared = "+callbacks.compared._target_=mishaps.Compared"
    devices = ("trainer.devices=2", "trainer.accelerator=cpu", f"output_dir={tmp_path / 'run'}")
    metrics = train(schema.compose(*small, *chosen, *SIZES[:3], "data.eval_batch_size=4", compared, *devices))
    assert metrics["steps"] == 9
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out.count("batch norm takes the statistics of each device's shard") == 1
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") > 3
    weights = last(tmp_path / "run")["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


def _is_held(path: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
