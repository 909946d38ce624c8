"""train(cfg) end to end, on the tiny data set."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import BARE, FAST, TinyCIFAR10, of_checkpoint
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from lightning.pytorch.strategies import Strategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from cifar_lightning import models
from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.checkpoint.format import read
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.commands import train as training
from cifar_lightning.commands.train import train
from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.resolve import resolve
from cifar_lightning.data import ImageDataModule, channel_statistics
from cifar_lightning.data.arrays import to_arrays
from cifar_lightning.device import forward_flops, threads
from cifar_lightning.engine import assembly
from cifar_lightning.engine.trainer import build_trainer
from cifar_lightning.errors import UserError
from cifar_lightning.models.speedrun import whitening_filters
from cifar_lightning.runs.metrics_file import write_metrics


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def test_a_run_leaves_its_numbers_its_curves_and_its_checkpoints(run):
    metrics, folder = run("data.val_size=20", "seed=3")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert (metrics["num_val_images"], metrics["num_test_images"]) == (20, 20)
    assert (metrics["seed"], metrics["epochs"], metrics["steps"], metrics["data"]) == (3, 2, 20, "cifar10")
    assert metrics["test/acc"] * 20 == pytest.approx(round(metrics["test/acc"] * 20))
    assert {"torch", "lightning", "hydra-core"} <= set(metrics["versions"])

    logged = events(folder)
    assert len(list(folder.glob("events*"))) == 1
    tags = logged.Tags()
    evaluated = {f"{split}/{name}" for split in ("val", "test") for name in ("acc", "balanced_acc", "loss", "ece")}
    evaluated |= {"hp/test_acc", "hp/val_acc"}  # for the HPARAMS tab
    assert set(tags["scalars"]) == {"train/loss", "train/acc", "lr", "images_per_second"} | evaluated
    assert [point.step for point in logged.Scalars("train/loss")] == [5, 10, 15, 20]
    assert [point.step for point in logged.Scalars("val/acc")][-1] == 20  # after all its steps
    assert set(tags["images"]) == {"train/images", "test/predictions", "test/confusion"}
    assert logged.Scalars("test/acc")[-1].value == pytest.approx(metrics["test/acc"])


def test_hparams_have_session_start_and_end_and_no_experiment_summary(run):
    _, folder = run("optimizer.lr=0.02", "callbacks=none")
    content = events(folder).PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    started = content["_hparams_/session_start_info"]
    assert b"optimizer.lr" in started
    assert b"trainer.max_epochs" in started
    assert b"trainer.min_epochs" not in started  # null, as Lightning has it


def test_train_metrics_of_the_epoch_are_means_over_its_images(run, monkeypatch):
    seen = []
    original = F.cross_entropy

    def spy(logits, targets, weight=None, **options):
        loss = original(logits, targets, weight, **options)
        if logits.requires_grad:
            seen.append((loss.item(), int((logits.argmax(1) == targets).sum()), len(targets)))
        return loss

    monkeypatch.setattr(F, "cross_entropy", spy)
    metrics, _ = run("data.batch_size=7", *BARE)
    last_epoch = seen[len(seen) // 2 :]
    assert [size for *_, size in last_epoch] == [7] * 8 + [4]
    assert metrics["train/loss"] == pytest.approx(sum(loss * size for loss, _, size in last_epoch) / 60)
    assert metrics["train/acc"] == sum(correct for _, correct, _ in last_epoch) / 60


def test_without_a_validation_split_all_images_are_trained_on_and_last_counts(run):
    metrics, folder = run(*BARE)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert metrics["steps"] == 2 * 60 // 4
    assert "val/acc" not in metrics


def test_two_runs_of_a_seed_are_bitwise_equal_and_seed_zero_is_a_seed(run):
    weights = []
    for seed in (0, 0, 1):
        torch.rand(len(weights))  # whatever was drawn before
        _, folder = run(f"seed={seed}", "augment=crop_flip", *BARE)
        weights.append(read(folder / "checkpoints" / "last.ckpt")["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["net.fc3.weight"], weights[2]["net.fc3.weight"])


def test_pictures_and_loggers_do_not_change_the_training(run):
    with_all = run()[0]
    without = run(*BARE, "trainer.enable_progress_bar=false")[0]
    names = ("train/loss", "train/acc", "test/loss", "test/acc")
    assert [with_all[name] for name in names] == [without[name] for name in names]


def test_csv_logger(run):
    metrics, folder = run("logger=csv", "callbacks=none", "data.val_size=20")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["5", "10", "15", "20"]
    assert float(next(row["test/acc"] for row in rows if row["test/acc"])) == pytest.approx(metrics["test/acc"])


def test_a_step_limit_inside_an_epoch_still_validates_the_last_weights(run):
    metrics, _ = run("data.val_size=20", *BARE, "trainer.max_epochs=-1", "trainer.max_steps=13")
    assert metrics["steps"] == 13
    assert metrics["num_val_images"] == 20


@pytest.mark.parametrize(
    "override",
    [
        "trainer.fast_dev_run=true",
        "trainer.limit_train_batches=0.5",
        "trainer.overfit_batches=2",
        "trainer.accumulate_grad_batches=3",
        "trainer.gradient_clip_val=1.0",
        "trainer.deterministic=true",
        "trainer.detect_anomaly=true",
        "trainer.max_time={minutes: 1}",
        "trainer.precision=bf16-mixed",
        "trainer.precision=64-true",
        "trainer.profiler=simple",
        "trainer.enable_model_summary=true",
        "trainer.log_every_n_steps=0",
        "trainer.num_sanity_val_steps=0",
        "trainer.check_val_every_n_epoch=2",
        "trainer.limit_test_batches=0",
    ],
)
@pytest.mark.filterwarnings("ignore")  # Lightning's advice about each
def test_trainer_arguments_pass_through(run, override):
    metrics, _ = run("data.val_size=20", *BARE, override)
    assert metrics["steps"] > 0
    assert (metrics["warm_seconds"] is None) == ("limit_test_batches" in override)


def test_fused_optimizers_clip_in_mixed_precision(run):
    one_step = ("trainer.max_steps=1", "trainer.precision=bf16-mixed")
    biases = []
    for lr, clip in (("0.0", "0.0"), ("1.0", "1e-8"), ("1.0", "0.0")):
        _, folder = run(*BARE, *one_step, f"optimizer.lr={lr}", f"trainer.gradient_clip_val={clip}")
        biases.append(read(folder / "checkpoints" / "last.ckpt")["state_dict"]["net.fc3.bias"])
    assert torch.allclose(biases[1], biases[0], atol=1e-7)
    assert (biases[2] - biases[0]).abs().max() > 1e-3


def test_overfitting_repeats_the_same_images(run, monkeypatch):
    seen = []
    monkeypatch.setattr(ImageClassifier, "on_train_batch_start", lambda self, batch, i: seen.append(batch[1].tolist()))
    with pytest.warns(UserWarning, match="You requested to overfit"):
        run(*BARE, "trainer.overfit_batches=2")
    assert len(seen) == 4
    assert seen[:2] == seen[2:]


def test_whitening_is_set_from_normalised_training_images_before_the_first_step(run, monkeypatch):
    seen = []
    original = models.NETWORKS["speedrun"].init_from_data
    monkeypatch.setattr(
        models.NETWORKS["speedrun"],
        "init_from_data",
        lambda self, images: seen.append(images) or original(self, images),
    )
    small = ("model=speedrun", "model.widths=[8,8,8]", "normalize=cifar10", "trainer.max_epochs=1", "data.val_size=20")
    _, folder = run(*BARE, *small)
    assert [tuple(images.shape) for images in seen] == [(40, 3, 32, 32)]  # without the validation images
    assert seen[0].mean().abs() < 0.5
    expected = whitening_filters(seen[0])
    loaded, _ = load_classifier(folder / "checkpoints" / "last.ckpt")
    assert len(seen) == 1  # a checkpoint is rebuilt without data
    assert torch.equal(loaded.net.patches.weight, torch.cat([expected, -expected]))


def test_whitening_sees_images_from_all_over_the_training_split(run, monkeypatch, tiny_root):
    seen = []
    monkeypatch.setattr(training, "NUM_INIT_IMAGES", 4)
    monkeypatch.setattr(models.NETWORKS["speedrun"], "init_from_data", lambda self, images: seen.append(images))
    _, folder = run(*BARE, "model=speedrun", "model.widths=[8,8,8]", "trainer.max_epochs=1")
    loaded, _ = load_classifier(folder / "checkpoints" / "last.ckpt")
    chosen = to_arrays(TinyCIFAR10(root=tiny_root)).images[[0, 15, 30, 45]]  # of a folder the first are of one class
    assert torch.equal(seen[0], loaded.normalized(chosen))


def test_balanced_weights_of_the_training_split_reach_the_loss(run, monkeypatch):
    seen, built = [], []
    weights = [float(index) for index in range(10)]
    make = assembly.ImageClassifier
    monkeypatch.setattr(assembly, "balanced_weights", lambda *arguments: seen.append(arguments) or weights)
    monkeypatch.setattr(
        assembly, "ImageClassifier", lambda net, **options: built.append(options) or make(net, **options)
    )
    run(*BARE, "class_weights=balanced", "data.val_size=20", "trainer.max_epochs=1")
    [(targets, num)] = seen
    assert (len(targets), num) == (40, 10)
    assert built[0]["class_weights"] == weights


def test_imagenet_weights_are_fetched_for_training_alone(run, monkeypatch):
    fetched = []
    monkeypatch.setattr(assembly, "load_pretrained", fetched.append)
    small = ("model=torchvision", "model.pretrained=true", "trainer.max_steps=1", "trainer.limit_test_batches=1")
    _, folder = run(*BARE, *small)
    assert len(fetched) == 1
    loaded, checkpoint = load_classifier(folder / "checkpoints" / "last.ckpt")
    run(*BARE, "model=torchvision", *small[2:])
    assert len(fetched) == 1
    assert checkpoint["settings"]["normalize"]["mean"] == [0.485, 0.456, 0.406]
    assert checkpoint["settings"]["model"] == {
        **{"name": "torchvision", "arch": "resnet18", "pretrained": True, "image_size": None, "stem": "imagenet"},
        **{"num_classes": 10, "in_channels": 3},
    }
    assert torch.equal(loaded.net.net.conv1.weight, fetched[0].net.conv1.weight)


def test_metrics_that_are_not_finite_are_null(tmp_path):
    path = write_metrics(tmp_path, {"loss": float("nan"), "class_acc": {"a": float("inf"), "b": 0.5}, "n": 3})
    assert json.loads(path.read_text()) == {"loss": None, "class_acc": {"a": None, "b": 0.5}, "n": 3}


def test_precision_auto_is_resolved_and_stored(run, monkeypatch):
    monkeypatch.setattr("cifar_lightning.engine.trainer.fast_precision", lambda accelerator: "bf16-mixed")
    metrics, folder = run("trainer.precision=auto", *BARE)
    assert metrics["precision"] == "bf16-mixed"
    assert read(folder / "checkpoints" / "last.ckpt")["settings"]["trainer"]["precision"] == "bf16-mixed"


def test_small_steps_run_on_one_thread_and_the_process_gets_its_threads_back(run, monkeypatch):
    before = torch.get_num_threads()
    used = []
    original = ImageClassifier.training_step
    spy = lambda self, *args: used.append(torch.get_num_threads()) or original(self, *args)  # noqa: E731
    monkeypatch.setattr(ImageClassifier, "training_step", spy)
    with threads(3):
        for overrides, expected in (((), 1), (("data.batch_size=8",), 3), (("num_threads=2",), 2)):
            used.clear()
            metrics, folder = run("trainer.max_steps=1", *overrides, *BARE)
            assert used == [expected]
            assert read(folder / "checkpoints" / "last.ckpt")["settings"]["num_threads"] == expected
            assert metrics["device"].endswith(f"({expected} thread{'s' * (expected > 1)})")
            assert torch.get_num_threads() == 3
            assert f"num_threads={expected}" in of_checkpoint(folder)
    assert torch.get_num_threads() == before
    with threads(1):  # evaluate.py, where there are fewer
        assert "num_threads=1" in of_checkpoint(folder)


def test_flops_are_counted_without_a_trace(run):
    net = models.build("resnet18", num_classes=10, in_channels=3)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert forward_flops(net, torch.randn(1, 3, 32, 32)) == 1_110_845_440
    assert net.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    metrics, _ = run("trainer.max_steps=1", *BARE)
    convolutions = 28 * 28 * 6 * 3 * 25 + 10 * 10 * 16 * 6 * 25
    assert metrics["flops_per_image"] == 2 * (convolutions + 400 * 120 + 120 * 84 + 84 * 10)


def test_compiled_network_is_asked_for_in_place(run, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(type(self).__name__))
    run("compile=true", *BARE)
    assert compiled == ["TutorialCNN"]


@pytest.mark.parametrize(("name", "kind"), [("null", PassThroughProfiler), ("simple", SimpleProfiler)])
def test_no_profiler_runs_unless_asked_for(compose, name, kind, tmp_path):
    trainer = build_trainer(resolve(compose(f"trainer.profiler={name}")).trainer, output_dir=str(tmp_path))
    assert type(trainer.profiler) is kind
    with trainer.profiler.profile("outer"), trainer.profiler.profile("inner"):
        trainer.profiler.describe()


def test_output_goes_to_lines_where_there_is_no_terminal(command, caplog):
    outcome = command("train.py", *FAST, *BARE, "experiment=smoke", "trainer.limit_train_batches=20")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    head = next(line for line in lines if line.startswith("epoch"))
    first, second = (next(line for line in lines if line.startswith(f"{epoch}/2 ")) for epoch in (1, 2))
    assert head.split() == ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "images/s", "time", "left"]
    for column in ("train/loss", "train/acc", "val/loss", "val/acc", "images/s"):  # each number ends below its heading
        end = head.index(column) + len(column)
        assert first[end - 1].strip()
        assert second[end - 1].strip()
        assert first[end] == second[end] == " "
    assert lines[0].startswith("data      synthetic (generated images, not CIFAR-10): 9,500 train, 500 val, 2,000 test")
    assert "\x1b[" not in outcome.out


def test_checkpoints_are_plain_and_describe_themselves(run):
    _, folder = run("model=resnet18", "trainer.max_steps=1", *BARE)
    checkpoint = read(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["settings"]["model"] == {"name": "resnet18", "num_classes": 10, "in_channels": 3}
    assert checkpoint["settings"]["classes"][3] == "cat"

    def assert_plain(value: object) -> None:
        assert type(value) in (str, int, float, bool, list, dict, type(None)), value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            assert_plain(part)

    assert_plain({key: checkpoint[key] for key in ("settings", "format_version")})


def test_a_folder_that_holds_a_run_is_refused(compose):
    train(compose(*FAST, *BARE))
    with pytest.raises(UserError, match="holds a run already: resume it with resume="):
        train(compose(*FAST, *BARE))


@pytest.mark.parametrize(
    "value", ["", "a b", "it's", "C:\\data\\", "\\'", "'", "a\\\\b", "x,y=[1]", None, True, -3, 0.5, 1e-9, [1, "a'"]]
)
def test_values_survive_the_override_grammar(value):
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


def test_algorithms_chosen_by_their_time_are_not_deterministic(command):
    outcome = command("train.py", "experiment=speedrun", "trainer.deterministic=true", tiny=True)
    assert outcome.code == 2
    assert outcome.err.startswith("error: trainer.benchmark must be false where trainer.deterministic is set, got true")


def test_the_network_stays_on_its_device_between_training_and_test(run, monkeypatch):
    calls = []
    original = Strategy.teardown
    monkeypatch.setattr(Strategy, "teardown", lambda self: calls.append("teardown") or original(self))
    for hook in ("on_train_end", "on_test_start"):
        monkeypatch.setattr(TrainingCurves, hook, lambda *args, hook=hook: calls.append(hook))
    # The latter is validated after training.
    for overrides in ([], ["data.val_size=20", "trainer.check_val_every_n_epoch=3"]):
        run(*BARE, *overrides)
        assert calls == ["on_train_end", "on_test_start", "teardown"]
        calls.clear()
    monkeypatch.setattr(TrainingCurves, "on_train_end", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run(*BARE)
    assert calls == ["teardown"]


def test_clocks(run, monkeypatch):
    monkeypatch.setattr("cifar_lightning.callbacks.clock.MILESTONES", (0.0, 2.0))
    metrics, _ = run("data.val_size=20", *BARE)
    assert 0 < metrics["train_seconds"] < metrics["warm_seconds"] < metrics["seconds"] < metrics["process_seconds"]
    reached = metrics["seconds_to_val_acc"]
    assert set(reached) == {"0.00", "2.00"}
    assert 0 < reached["0.00"] < metrics["train_seconds"]  # at the end of the first of two epochs
    assert reached["2.00"] is None
    metrics, _ = run("data.val_size=20", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", *BARE)
    assert metrics["seconds_to_val_acc"]["0.00"] < metrics["train_seconds"]
    metrics, _ = run("data.val_size=20", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3", *BARE)
    assert metrics["seconds_to_val_acc"]["0.00"] == pytest.approx(metrics["train_seconds"])
    metrics, _ = run(*BARE)
    assert "seconds_to_val_acc" not in metrics


def test_images_too_small_for_the_network_are_refused_before_training(run):
    with pytest.raises(UserError, match=r"^augment: model=speedrun cannot take the images of 3x4x4 that it makes in"):
        run("model=speedrun", "augment=alternating_flip", "augment.early_sizes=[32,4]", *BARE)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("[[conv9,0.5]]", "freeze: conv9 must name a part of the network that is trained: conv1, conv2, "),
        ("[[conv1,1]]", "freeze: conv1 must be in (0, 1), got 1"),
    ],
)
def test_parts_to_freeze_are_checked_before_training(run, freeze, message):
    with pytest.raises(UserError, match="^" + re.escape(message)):
        run(f"freeze={freeze}", *BARE)


def test_frozen_parts_are_in_the_checkpoint_and_stay_as_they_were(run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        ImageClassifier,
        "on_train_batch_start",
        lambda self, batch, i: seen.append(self.net.conv1.weight.detach().clone()),
    )
    _, folder = run("freeze=[[conv1,0.5],[fc1.weight,0.25]]", *BARE)
    checkpoint = read(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["settings"]["freeze"] == [["conv1", 0.5], ["fc1.weight", 0.25]]
    half = len(seen) // 2
    assert not torch.equal(seen[half - 1], seen[half])
    assert torch.equal(seen[half], checkpoint["state_dict"]["net.conv1.weight"])


@pytest.mark.parametrize("max_epochs", [-1, 10**9])
def test_a_run_without_a_planned_end_starts_at_once(run, max_epochs):
    metrics, _ = run("augment=crop_flip", f"trainer.max_epochs={max_epochs}", "trainer.max_steps=1", *BARE)
    assert metrics["steps"] == 1


def test_normalisation_is_measured_on_the_training_split_and_stored(run, tiny_root):
    augment = ("augment=alternating_flip", "augment.cutout_size=8")
    _, folder = run("normalize=auto", "data.val_size=20", *augment, *BARE)
    config = read(folder / "checkpoints" / "last.ckpt")["settings"]
    data = ImageDataModule(name="tiny", dataset=TinyCIFAR10, root=str(tiny_root), val_size=20)
    data.setup()
    mean, std = channel_statistics([data.arrays("train").images[data.index["train"]]])
    assert config["normalize"] == {"mean": mean, "std": std}
    assert config["augment"]["mean"] == mean
    assert mean != channel_statistics([data.arrays("train").images])[0], "validation images have a say"

    classifier, _ = load_classifier(folder / "checkpoints" / "last.ckpt")
    pixels = classifier.normalized(data.arrays("train").images[data.index["train"]]).double()
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_run_whose_normalisation_was_measured_goes_on(run, compose):
    given = ("normalize=auto", "augment=alternating_flip", "augment.cutout_size=8", *BARE)
    _, whole = run(*given, "trainer.max_epochs=3")
    _, folder = run(*given)
    overrides = (f"output_dir={folder}", f"resume={folder}", "trainer.max_epochs=3")
    train(compose("trainer.log_every_n_steps=5", *given, *overrides))
    states = [load_classifier(path / "checkpoints" / "last.ckpt")[0].state_dict() for path in (whole, folder)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_validation_images_of_the_data_set_itself_are_evaluated(run):
    metrics, folder = run("data.dataset._target_=conftest.WithVal", "data.val_size=null", *BARE)
    assert metrics["num_val_images"] == 12
    assert (folder / "checkpoints" / "best.ckpt").exists()
