"""What a run says of itself: at its start, in TensorBoard's HPARAMS, in metrics.json and in the table at its end."""

import inspect
import logging
import time
from pathlib import Path
from typing import Any

import lightning as L

from cifar_lightning import STARTED
from cifar_lightning.callbacks import TrainingCurves
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config import argument
from cifar_lightning.data import CIFAR10DataModule
from cifar_lightning.devices import device_name
from cifar_lightning.entry import is_sweep
from cifar_lightning.records import log_table, provenance, relative, shown

log = logging.getLogger(__name__)


def announce(
    config: dict[str, Any], data: CIFAR10DataModule, classifier: ImageClassifier, trainer: L.Trainer, flops: int
) -> None:
    """Say, before training, what is about to be trained, on what and where."""
    sizes = ", ".join(f"{len(index):,} {split}" for split, index in data.index.items() if len(index))
    shape = "x".join(str(size) for size in data.arrays("train").images.shape[1:])
    note = f" ({data.note})" if data.note else ""
    log.info("data      %s%s: %s images of %s, %d classes", data.name, note, sizes, shape, len(data.classes))
    num_parameters = sum(parameter.numel() for parameter in classifier.net.parameters())
    size = f"{num_parameters:,} parameters, {flops / 1e6:,.1f} MFLOP an image"
    log.info("model     %s: %s", config["model"]["name"], size)
    recipe = [_choice(config["optimizer"]), f"lr {config['optimizer']['lr']:g}", _choice(config["schedule"] or {})]
    log.info("recipe    %s, batch %d", " ".join(recipe), data.batch_size)
    device = device_name(trainer.strategy.root_device)
    log.info("device    %s: %s, precision %s", trainer.strategy.root_device.type, device, trainer.precision)
    log.info("folder    %s", relative(Path(config["output_dir"])))


def _choice(node: dict[str, Any]) -> str:
    return node.get("_target_", "constant").rpartition(".")[2]


def hyper_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """What the HPARAMS tab compares: the config's plain values; of the Trainer's those that are not Lightning's own."""
    defaults = inspect.signature(L.Trainer.__init__).parameters
    differs = {
        key: value for key, value in config["trainer"].items() if key in defaults and value != defaults[key].default
    }
    return _flattened({**config, "trainer": differs})


_NO_HYPER_PARAMETERS = ("logger", "callbacks", "checkpoint", "output_dir", "data.root", "data.urls", "data.dataset")


def _flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values; of a class only its name is shown, in place of its ``_target_``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if prefix + key in _NO_HYPER_PARAMETERS or value is None:
            continue
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{key}.")
        elif key == "_target_":
            flat[prefix.removesuffix(".")] = value.rpartition(".")[2]
        elif not key.startswith("_"):
            flat[prefix + key] = value if isinstance(value, str | int | float) else str(value)
    return flat


def final_metrics(
    config: dict[str, Any],
    data: CIFAR10DataModule,
    classifier: ImageClassifier,
    trainer: L.Trainer,
    curves: TrainingCurves,
) -> dict[str, Any]:
    """What metrics.json holds, but for the clocks: figures of the last epoch and of each split, and provenance."""
    metrics: dict[str, Any] = {name: value for name, value in curves.epoch.items() if name != "images_per_second"}
    for split, evaluation in classifier.evaluations.items():
        metrics |= classifier.scalars(split)
        metrics[f"num_{split}_images"] = evaluation.num_images
    if "val" in classifier.evaluations:
        metrics["seconds_to_val_acc"] = {f"{acc:.2f}": seconds for acc, seconds in curves.seconds_to.items()}
    return metrics | {
        "name": config["name"],
        "data": data.name,
        "data_note": data.note,
        "seed": config["seed"],
        "epochs": _epochs(trainer),
        "steps": trainer.global_step,
        "train_seconds": curves.seconds,
        "images_per_second": curves.num_images / curves.seconds,
        "device": device_name(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "output_dir": config["output_dir"],
        **provenance(),
    }


def _epochs(trainer: L.Trainer) -> int:
    """Epochs that have ended; ``current_epoch`` lags behind where there was nothing left to train after resuming."""
    return trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]


def clocks(
    curves: TrainingCurves, classifier: ImageClassifier, *, started: float, set_from_data: float
) -> dict[str, float | None]:
    """Seconds as the speedruns count them and as a user feels them.

    Args:
        curves: Which saw the first step.
        classifier: Which has been tested; the first clock is None where it has not.
        started: What ``time.perf_counter`` said when ``train`` was called.
        set_from_data: Seconds of setting the network from data.
    """
    now, known_at = time.perf_counter(), classifier.known_at.get("test")
    return {
        "warm_seconds": None if known_at is None else set_from_data + known_at - curves.began_at,
        "seconds": now - started,
        "process_seconds": None if is_sweep() else now - STARTED,  # the jobs of a sweep share a process
    }


def report(metrics: dict[str, Any], path: Path) -> None:
    """Print the final table, and where to look next.

    Args:
        metrics: What metrics.json holds.
        path: Where it is.
    """
    names = [name for name in metrics if "/" in name]
    rows = {name: shown(name, metrics[name]) for name in names}
    for acc, seconds in metrics.get("seconds_to_val_acc", {}).items():
        if seconds is not None:
            rows[f"to val/acc {shown('acc', float(acc))}"] = f"{seconds:.1f} s"
    rows["training"] = f"{metrics['train_seconds']:.1f} s, {metrics['images_per_second']:,.0f} images/s"
    note = f" ({metrics['data_note']})" if metrics["data_note"] else ""
    log_table(f"{metrics['name']} on {metrics['data']}{note}, seed {metrics['seed']}", rows)
    last = relative(path.parent / "checkpoints" / "last.ckpt")
    log.info("numbers   %s", relative(path))
    if last.exists():
        log.info("judge     python evaluate.py %s", argument("ckpt", last))
    log.info("watch     tensorboard --logdir logs")
