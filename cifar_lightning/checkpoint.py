"""Checkpoints that describe themselves, and the one gate through which every checkpoint is loaded.

A checkpoint is Lightning's, with ``format_version``, ``config`` (the resolved config) and ``classes`` (their names)
besides. Config and names are plain strings, numbers, lists and dictionaries; the network is rebuilt by looking its name
up in the table of ``models``. Nothing in a file names code to run.
"""

import pickle
import zipfile
import zlib
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cifar_lightning import models
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config import UserError, one_line
from cifar_lightning.hints import fits, words

FORMAT_VERSION = 1


def describe(config: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint of this run has besides Lightning's own keys."""
    return {"format_version": FORMAT_VERSION, "config": config, "classes": list(classes)}


def callbacks(folder: Path, *, has_val: bool) -> list[ModelCheckpoint]:
    """Keep ``last.ckpt`` of every epoch, and with a validation split ``best.ckpt`` by ``val/acc``.

    Two callbacks: ``save_last`` beside a monitored metric writes last.ckpt only when the metric improves.
    """
    keep = partial(_Checkpoint, dirpath=folder, save_top_k=1, enable_version_counter=False)
    last = keep(filename="last", save_on_train_epoch_end=True)
    best = keep(filename="best", monitor="val/acc", mode="max")
    return [last, best] if has_val else [last]


class _Checkpoint(ModelCheckpoint):
    # Lightning reads it at each of its hooks, several times a step, and ModelCheckpoint formats it anew each time.
    state_key = cached_property(ModelCheckpoint.state_key.fget)  # type: ignore[attr-defined]


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this project, checked before anything in it is used.

    Raises:
        UserError: If the file is not there, not a regular local file, damaged, not from this project, or from a newer
            version of it.
    """
    if "://" in str(path):
        raise UserError(f"ckpt={path} is an address: download the file first and give its path")
    path = Path(path)
    try:
        _check_file(path)
    except OSError as error:
        raise UserError(f"ckpt={path} cannot be read: {one_line(error)}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or damaged: {one_line(error)}") from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds objects beyond tensors and plain values, and was not loaded") from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    _check_contents(path, checkpoint)
    return checkpoint


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(str(found) for found in path.rglob("*.ckpt"))[:5]
        raise UserError(
            f"ckpt={path} is a folder{'; it holds ' + ', '.join(inside) if inside else ' without checkpoints'}"
        )
    if not path.is_file():
        near = sorted(found.name for found in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise UserError(f"there is no file {path}{'; beside it: ' + ', '.join(near) if near else ''}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): was a copy interrupted?")
    with path.open("rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if not starts_as_zip:
        raise UserError(f"{path} is not a checkpoint of this project: not written by torch.save")
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load itself does not look at the checksums
    if damaged:
        raise UserError(f"{path} is damaged: wrong checksum in {damaged}")


def _check_contents(path: Path, checkpoint: Any) -> None:
    expected = {"format_version": int, "config": dict, "classes": list, "state_dict": dict}
    foreign = f"{path} is not a checkpoint of this project"
    if not isinstance(checkpoint, dict):
        raise UserError(f"{foreign}: it holds a {type(checkpoint).__name__}, not a dictionary")
    for key, kind in expected.items():
        if not isinstance(checkpoint.get(key), kind):
            raise UserError(
                f"{foreign}: {key} is missing" if key not in checkpoint else f"{foreign}: {key} is no {kind.__name__}"
            )
    if checkpoint["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path} has format {checkpoint['format_version']}, and this version of the project reads formats "
            f"up to {FORMAT_VERSION}: update the project"
        )
    config = checkpoint["config"]
    for key in ("model", "normalize", "data", "trainer"):
        if not isinstance(config.get(key), dict):
            raise UserError(f"{foreign}: config.{key} is missing")
    for key, hint in {"tta": int, "num_threads": int | None}.items():  # which the oldest files lack
        if key in config and not fits(config[key], hint):
            raise UserError(f"{foreign}: config.{key} must be {words(hint)}, got {config[key]!r}")
    if not all(isinstance(name, str) for name in checkpoint["classes"]):
        raise UserError(f"{foreign}: classes must be names")
    _check_plain(path, config, "config")


def _check_plain(path: Path, value: Any, key: str) -> None:
    """Refuse what is not plain, and interpolations: omegaconf would resolve them, and some of them run code."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(path, part, f"{key}.{name}")
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{path} is not a checkpoint of this project: {key} is a {type(value).__name__}")
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{path} was not loaded: {key} holds an interpolation, {value!r}")


def load_classifier(path: str | Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The classifier of a checkpoint, ready to judge images, and the checkpoint.

    Raises:
        UserError: If the file is refused by ``read``, or what it describes cannot be built.
    """
    checkpoint = read(path)
    config = checkpoint["config"]
    try:
        net = models.build(**config["model"])
        classifier = ImageClassifier(net, mean=config["normalize"]["mean"], std=config["normalize"]["std"])
        classifier.load_state_dict(checkpoint["state_dict"], assign=True)  # in the precision they were trained in
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: the network it describes cannot be built: {one_line(error)}") from error
    if len(checkpoint["classes"]) != config["model"].get("num_classes"):
        raise UserError(
            f"{path}: {len(checkpoint['classes'])} class names for {config['model']['num_classes']} outputs"
        )
    return classifier.eval(), checkpoint
