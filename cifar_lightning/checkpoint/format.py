"""What a checkpoint is: Lightning's own, which also describes itself. And the one way to read one.

Besides Lightning's keys it holds ``format_version`` and ``settings``: the settings of the run as plain strings,
numbers, lists and dictionaries. The network is rebuilt by looking its name up in the table of ``models``. Of a class
the settings keep the name alone. So nothing in a file names code to run, and a class that moves orphans no checkpoint.
``temperature`` is what logits are to be divided by for calibrated probabilities. It is absent or null where no
validation has looked at these very weights.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cifar_lightning import __version__
from cifar_lightning.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from cifar_lightning.checkpoint.trust import check_archive, check_values, refuse_too_long
from cifar_lightning.config.resolve import Settings, as_plain
from cifar_lightning.device import MAX_THREADS
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.typehints import fits, words

if TYPE_CHECKING:
    from cifar_lightning.classifier import ImageClassifier

FORMAT_VERSION = 4

_UNRELEASED = "a state of cifar-lightning 0.2 before its release"
READ_BY = {1: "cifar-lightning 0.1", 2: _UNRELEASED, 3: _UNRELEASED}
"""Older formats, and what reads them."""


def description(settings: Settings) -> dict[str, Any]:
    """What a checkpoint of a run has besides Lightning's own keys.

    Raises:
        UserError: If ``read`` would refuse it, so that this is said before training.
    """
    plain = described(settings)
    try:
        _check_settings(plain)
        refuse_too_long(plain)
    except ValueError as error:
        raise UserError(f"{error}; no checkpoint can hold that") from error
    return {"format_version": FORMAT_VERSION, "settings": plain, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of this project and of the libraries that decide what a run computes."""
    return {"cifar-lightning": __version__, **{name: version(name) for name in ("torch", "torchvision", "lightning")}}


def described(settings: Settings) -> dict[str, Any]:
    """Settings as plain values, in which a class or function is its name alone."""
    return _without_modules(as_plain(settings))


def _without_modules(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: part.rpartition(".")[2] if key == "_target_" and isinstance(part, str) else _without_modules(part)
            for key, part in value.items()
        }
    return [_without_modules(part) for part in value] if isinstance(value, list) else value


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this project, checked before anything in it is used.

    Raises:
        UserError: If the file is not there, not a regular local file, damaged, not from this project, or from
            another version of it.
    """
    refuse_address(path)
    path = Path(path)
    try:
        check_archive(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or damaged: {one_line(error)}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a file holds; it is checked below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds objects beyond tensors and plain values, and was not loaded") from error
    except Exception as error:  # a pickle made by hand raises anything
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    check_values(path, checkpoint)
    _check_contents(path, checkpoint)
    return checkpoint


def refuse_address(path: str | Path) -> None:
    """Raise UserError if a path is an address on the web."""
    if "://" in str(path):
        raise UserError(f"{path} is an address: download the file first and give its path")


def _check_contents(path: Path, checkpoint: Any) -> None:
    check_description(path, checkpoint, also=("state_dict",))
    for name, value in checkpoint["state_dict"].items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise UserError(
                f"{path} is not a checkpoint of this project: state_dict holds {name!r}, which is no tensor"
            )
    if (name := first_not_finite(checkpoint["state_dict"])) is not None:
        raise UserError(f"{path}: {name} holds numbers that are not finite, which no run writes: take another file")


def check_description(path: Path, found: Any, *, also: tuple[str, ...] = ()) -> None:
    """Refuse what does not describe itself as checkpoints of this version do; see ``description``.

    Args:
        path: Of the file, for messages.
        found: What was read from it.
        also: Names of other dictionaries that must be there.

    Raises:
        UserError: With what is missing or wrong.
    """
    foreign = f"{path} is not a checkpoint of this project"
    if not isinstance(found, dict):
        raise UserError(f"{foreign}: it holds a {type(found).__name__}, not a dictionary")
    _check_version(path, found.get("format_version"))
    for key in ("settings", *also):
        if not isinstance(found.get(key), dict):
            raise UserError(f"{foreign}: {key} is missing" if key not in found else f"{foreign}: {key} is no dict")
    try:
        _check_settings(found["settings"])
    except ValueError as error:
        raise UserError(f"{foreign}: settings.{error}") from error
    temperature = found.get("temperature")
    is_number = isinstance(temperature, float)
    if temperature is not None and not (is_number and MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE):
        got = repr(temperature) if is_number else f"a {type(temperature).__name__}"  # which may be long
        raise UserError(f"{foreign}: temperature must be in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}], got {got}")


def first_not_finite(weights: dict[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite, if there is one; waits for the device once."""
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    if not floats:
        return None
    are_finite = torch.stack([value.isfinite().all() for value in floats.values()]).tolist()
    return next((name for name, is_finite in zip(floats, are_finite, strict=True) if not is_finite), None)


SETTINGS = {
    "name": str,
    "seed": int,
    "tta": int,
    "num_threads": int | None,
    "compile": bool | str,
    "classes": list[str],
    "image_size": tuple[int, int],
    "fingerprint": dict[str, Any],
    "model": dict[str, Any],
    "normalize": dict[str, Any],
    "data": dict[str, Any],
    "trainer": dict[str, Any],
}
"""Settings that resuming, evaluating and predicting rely on, and their types."""

MAX_IMAGE_SIZE = 4096
"""Largest height and width, in pixels: memory for images is allocated by what a file says."""


def _check_version(path: Path, version: Any) -> None:
    if not isinstance(version, int):
        raise UserError(
            f"{path} is not a checkpoint of this project: format_version is "
            f"{'missing' if version is None else 'no whole number'}"
        )
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format {version}, and this version of the project reads format {FORMAT_VERSION}: update the "
            "project"
        )
    if version < FORMAT_VERSION:
        raise UserError(
            f"{path} has format {version}, which {READ_BY.get(version, 'no version')} reads; this version reads format "
            f"{FORMAT_VERSION}: evaluate it with that version, or train anew"
        )


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError where settings are not what resuming and evaluating rely on."""
    for key, hint in SETTINGS.items():
        if not fits(settings.get(key), hint):
            raise ValueError(f"{key} must be {words(hint)}, got {settings.get(key)!r:.100}")
    if not 1 <= (settings["num_threads"] or 1) <= MAX_THREADS:
        raise ValueError(f"num_threads must be in [1, {MAX_THREADS}], got {settings['num_threads']}")
    if not all(1 <= size <= MAX_IMAGE_SIZE for size in settings["image_size"]):
        raise ValueError(f"image_size must be numbers in [1, {MAX_IMAGE_SIZE}], got {settings['image_size']}")
    for key, value in settings.items():
        if key != "classes":  # any text may be the name of a class
            _check_plain(value, str(key))


def _check_plain(value: Any, key: str) -> None:
    """Refuse what is not plain, and interpolations: omegaconf would resolve them, and some of them run code."""
    if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} has keys that are no names")
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(part, f"{key}.{name}")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{key} is a {type(value).__name__}")
    elif isinstance(value, str) and "${" in value:
        raise ValueError(f"{key} holds an interpolation, {value!r:.100}")


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint that training can be resumed from.

    Raises:
        UserError: If the file is refused by ``read``, or holds weights alone. It names best.ckpt, if that is there: a
            run resumes from it as well.
    """
    best = path.with_name("best.ckpt")
    try:
        checkpoint = read(path)
    except UserError as error:
        if path == best or not best.is_file():
            raise
        raise UserError(
            f"{error}; to resume from the best validation, rename {best.name} beside it to {path.name}"
        ) from error
    expected = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "progress": dict}
    expected |= {"optimizer_states": list, "lr_schedulers": list, "pytorch-lightning_version": str}
    for key, kind in expected.items():
        if not isinstance(checkpoint.get(key), kind):
            raise UserError(f"{path} cannot be resumed from: it holds no {key}, only weights for evaluate.py")
    if not _all_counts(checkpoint["loops"]):
        raise UserError(f"{path} cannot be resumed from: its loops hold something else than counts")
    return checkpoint


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Around what restores a run from a checkpoint: whatever the file makes fail is a fault of the file.

    Raises:
        UserError: If something in the file does not fit.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be resumed from: {one_line(error)}") from error


def _all_counts(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_all_counts, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int)


def check_state(
    path: Path, checkpoint: dict[str, Any], classifier: ImageClassifier, optimizer: torch.optim.Optimizer
) -> None:
    """Hold a checkpoint's weights and optimizer state against a classifier that is to be trained on from them.

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
    if len(checkpoint["lr_schedulers"]) != int(classifier.schedule is not None):
        raise UserError(f"{path} cannot be resumed from: its schedule is not this one")
    if not _is_state_of(checkpoint["optimizer_states"], optimizer):
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
