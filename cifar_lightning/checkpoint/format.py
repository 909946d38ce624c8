"""Checkpoints that describe themselves, and the one gate through which every checkpoint is loaded.

A checkpoint is Lightning's, with ``format_version``, ``config`` (the resolved config) and ``classes`` (their names)
besides. Config and names are plain strings, numbers, lists and dictionaries; the network is rebuilt by looking its name
up in the table of ``models``. Nothing in a file names code to run.
"""

import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from cifar_lightning import models
from cifar_lightning.checkpoint.trust import check_archive, check_values
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.typehints import fits, words

FORMAT_VERSION = 1


def describe(config: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint of this run has besides Lightning's own keys."""
    return {"format_version": FORMAT_VERSION, "config": config, "classes": list(classes)}


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
        check_archive(path)
    except OSError as error:
        raise UserError(f"ckpt={path} cannot be read: {one_line(error)}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or damaged: {one_line(error)}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a file holds; it is judged below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds objects beyond tensors and plain values, and was not loaded") from error
    except Exception as error:  # a pickle made by hand raises anything
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    check_values(path, checkpoint)
    _check_contents(path, checkpoint)
    return checkpoint


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
    for name, value in checkpoint["state_dict"].items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise UserError(f"{foreign}: state_dict holds {name!r}, which is no tensor")


def _check_plain(path: Path, value: Any, key: str) -> None:
    """Refuse what is not plain, and interpolations: omegaconf would resolve them, and some of them run code."""
    if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
        raise UserError(f"{path} is not a checkpoint of this project: {key} has keys that are no names")
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(path, part, f"{key}.{name}")
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{path} is not a checkpoint of this project: {key} is a {type(value).__name__}")
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{path} was not loaded: {key} holds an interpolation, {value!r}")


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from.

    Raises:
        UserError: If the file is refused by ``read``, or holds weights alone.
    """
    checkpoint = read(path)
    expected = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "training": dict}
    expected |= {"optimizer_states": list, "lr_schedulers": list, "pytorch-lightning_version": str}
    for key, kind in expected.items():
        if not isinstance(checkpoint.get(key), kind):
            raise UserError(f"{path} cannot be resumed from: it holds no {key}, only weights to judge by evaluate.py")
    if not _all_counts(checkpoint["loops"]):
        raise UserError(f"{path} cannot be resumed from: its loops hold something else than counts")
    return checkpoint


def _all_counts(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_all_counts, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int)


def check_state(path: Path, checkpoint: dict[str, Any], classifier: ImageClassifier) -> None:
    """Hold a checkpoint's weights and optimizer state against a classifier that is to go on from them.

    Raises:
        UserError: If a name or a shape differs.
    """
    shapes = {name: tuple(value.shape) for name, value in classifier.state_dict().items()}
    found = {name: _shape(value) for name, value in checkpoint["state_dict"].items()}
    for name in shapes.keys() | found.keys():
        if shapes.get(name) != found.get(name):
            raise UserError(
                f"{path} cannot be resumed from: {name} is {found.get(name, 'missing')} in it and "
                f"{shapes.get(name, 'missing')} in the network"
            )
    num_schedules = int(classifier.schedule is not None or bool(classifier.freeze_after))
    if len(checkpoint["lr_schedulers"]) != num_schedules:
        raise UserError(f"{path} cannot be resumed from: its schedule is not this one")
    if not _is_state_of(checkpoint["optimizer_states"], classifier.build_optimizer()):
        raise UserError(f"{path} cannot be resumed from: its optimizer state is not of this optimizer and network")


def _is_state_of(states: list[Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer may load a state: torch's fused kernels write as much as a parameter has, without a look."""
    if len(states) != 1 or not isinstance(states[0], dict):
        return False
    state, groups = states[0].get("state"), states[0].get("param_groups")
    own = optimizer.state_dict()["param_groups"]
    if not (isinstance(state, dict) and isinstance(groups, list) and len(groups) == len(own)):
        return False
    if not all(isinstance(group, dict) and _same_kinds(group, mine) for group, mine in zip(groups, own, strict=True)):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        if not (isinstance(index, int) and 0 <= index < len(parameters) and isinstance(values, dict)):
            return False
        for name, value in values.items():
            is_scalar = not isinstance(value, list | dict) and (
                _shape(value) == () or not isinstance(value, torch.Tensor)
            )
            if not ((name == "step" and is_scalar) or value is None or _shape(value) == tuple(parameters[index].shape)):
                return False
    return True


def _same_kinds(group: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether a parameter group has what an optimizer's own has: the same parameters, and values of the same kinds."""
    number = int | float
    return group.get("params") == own["params"] and all(
        type(group.get(key)) is type(value) or (isinstance(group.get(key), number) and isinstance(value, number))
        for key, value in own.items()
    )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def load_classifier(path: str | Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The classifier of a checkpoint, ready to judge images, and the checkpoint.

    Raises:
        UserError: If the file is refused by ``read``, or what it describes cannot be built.
    """
    checkpoint = read(path)
    config = checkpoint["config"]
    try:
        with torch.device("meta"):  # nothing is allocated: the file's own tensors become the weights
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
