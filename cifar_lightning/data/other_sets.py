"""Other test sets: images or labels that a classifier is evaluated on besides its data, to report and never to choose.

They are known sets whose files are in the folder of the data, and folders of images. Nothing is downloaded.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from cifar_lightning.data import layout
from cifar_lightning.data.arrays import Arrays, to_arrays
from cifar_lightning.data.datamodule import ImageDataModule
from cifar_lightning.data.folder import ClassFolders, ImageFolder
from cifar_lightning.data.human_labels import COUNTS, HUMAN, NOISY, PROBS, read_noisy_labels, read_shares
from cifar_lightning.data.npy import open_images, read_labels
from cifar_lightning.errors import listed, printable

log = logging.getLogger(__name__)

AUTO = "auto"
"""In ``other_sets``: the known sets whose files are in the folder of the data."""

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""CIFAR-10's, whose numbers the files of the known sets have."""

_IMAGE_SHAPE = (3, 32, 32)

COMMON = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions of CIFAR-10-C over which papers give the mean."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The other 4, which are meant for validation."""

NUM_SEVERITIES = 5


@dataclass(frozen=True, kw_only=True)
class OtherImages:
    """Images that are not those of the split, or are these, corrupted.

    Attributes:
        source: Name of the set, or the folder, as it is asked for.
        name: Of these images; of a set with several parts it begins with ``source``.
        arrays: The images, with targets in the classes of the data; with the first severity of all images first.
        num_severities: How many versions of each image there are.
        is_paired: Whether each version of all images is the test images, one by one.
        note: What a reader of the accuracy must know.
        fingerprint: A text that differs where the set does.
    """

    source: str
    name: str
    arrays: Arrays
    num_severities: int = 1
    is_paired: bool = False
    note: str = ""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class OtherLabels:
    """Other labels of the split's own images.

    Attributes:
        source: Name of the set, as it is asked for.
        name: Of these labels.
        targets: A label for each image of the split, in the classes of the data.
        shares: The share of people who gave each label, in the order of the classes; None where one is known alone.
        note: What a reader of the accuracy must know.
        fingerprint: A text that differs where the labels do.
    """

    source: str
    name: str
    targets: Int64[Tensor, " n"]
    shares: Float64[Tensor, "n k"] | None = None
    note: str = ""
    fingerprint: str


OtherSet = OtherImages | OtherLabels


def read_other_sets(asked: Sequence[str], data: ImageDataModule, split: str) -> list[OtherSet]:
    """The other sets that are asked for. Of images in .npy files only the headers are read yet.

    Args:
        asked: Names of known sets, whose files must be in ``data.root``; folders of images; ``auto`` stands for the
            known sets that are there and fit the data.
        data: The data of the evaluation, whose targets point into the checkpoint's classes.
        split: The split that is evaluated.

    Raises:
        ValueError: If one is not there, damaged, or does not fit the data.
        UserError: Likewise.
    """
    found: list[OtherSet] = []
    for name in dict.fromkeys(asked):
        if name == AUTO:
            found += [other for known in _present(data, split) if known not in asked for other in _read(known, data)]
        elif name in _KNOWN:
            if (reason := _why_not(name, data, split)) is not None:
                raise ValueError(f"{name} cannot be evaluated here: it {reason}")
            found += _read(name, data)
        else:
            found.append(_read_folder(name, data))
    return found


class _Known(NamedTuple):
    split: str
    """Which images it is for."""
    files: tuple[str, ...]
    """Below ``data.root``. It is there if one of them is."""
    read: Callable[[Path, ImageDataModule], Sequence[OtherSet]]


def _present(data: ImageDataModule, split: str) -> list[str]:
    """The known sets in ``data.root`` that fit the data; the log names those that do not."""
    names = []
    for name, known in _KNOWN.items():
        if data.root is None or not any(Path(data.root, file).exists() for file in known.files):
            continue
        if (reason := _why_not(name, data, split)) is None:
            names.append(name)
        else:
            log.info("unused    %s in %s: it %s", name, printable(str(data.root)), reason)
    return names


def _why_not(name: str, data: ImageDataModule, split: str) -> str | None:
    """Why a known set does not fit the data."""
    if set(data.classes) != set(CLASSES):
        return f"has the classes of CIFAR-10, the data have {listed(data.classes)}"
    if tuple(data.image_shape) != _IMAGE_SHAPE:
        return f"has images of 3x32x32, the data have images of {'x'.join(map(str, data.image_shape))}"
    return None if split == (own := _KNOWN[name].split) else f"is for split={own}"


def _read(name: str, data: ImageDataModule) -> Sequence[OtherSet]:
    if data.root is None or not any(Path(data.root, file).exists() for file in _KNOWN[name].files):
        files = " or ".join(_KNOWN[name].files)
        raise ValueError(f"{name} is not in data.root={printable(str(data.root))}: there is no {files}")
    return _KNOWN[name].read(Path(data.root), data)


_NEW = {f"cifar10.1_{version}": version for version in ("v4", "v6")}


def _read_new(root: Path, data: ImageDataModule) -> list[OtherSet]:
    """CIFAR-10.1: new images, collected as those of CIFAR-10 were.

    Source: Recht et al. 2018 (arXiv:1806.00451).
    """
    found: list[OtherSet] = []
    for stem, version in _NEW.items():
        paths = [root / f"{stem}_{part}.npy" for part in ("data", "labels")]
        if not any(path.exists() for path in paths):
            continue
        images = _open(paths[0])
        labels = read_labels(paths[1], num_images=len(images), num_classes=len(CLASSES))
        arrays = _arrays(images, labels, data)
        name, fingerprint = f"CIFAR-10.1 {version}", arrays.fingerprint()
        found.append(OtherImages(source="CIFAR-10.1", name=name, arrays=arrays, fingerprint=fingerprint))
    return found


_CORRUPTED = "CIFAR-10-C"


def _read_corrupted(root: Path, data: ImageDataModule) -> list[OtherSet]:
    """CIFAR-10-C: the test images with 19 kinds of corruptions, in 5 severities one after the other.

    Source: Hendrycks and Dietterich 2019 (arXiv:1903.12261).
    """
    folder = root / _CORRUPTED
    kinds = [kind for kind in (*COMMON, *EXTRA) if (folder / f"{kind}.npy").exists()]
    if not kinds:
        raise ValueError(f"{printable(str(folder))} must hold files such as {COMMON[0]}.npy, and labels.npy")
    by_kind = {kind: _open(folder / f"{kind}.npy") for kind in kinds}
    sizes = {len(images) for images in by_kind.values()}
    if len(sizes) > 1 or min(sizes) % NUM_SEVERITIES:
        raise ValueError(
            f"{printable(str(folder))} must hold {NUM_SEVERITIES} times as many images as there are test images in "
            f"each file, got {', '.join(map(str, sorted(sizes)))}"
        )
    path, num_images = folder / "labels.npy", min(sizes)
    labels = read_labels(path, num_images=num_images, num_classes=len(CLASSES))
    by_severity = labels.reshape(NUM_SEVERITIES, -1)
    if not (by_severity == by_severity[0]).all():
        raise ValueError(f"{printable(str(path))} must hold the labels of the test images {NUM_SEVERITIES} times over")
    found: list[OtherSet] = []
    note = f"accuracy and loss are means over {NUM_SEVERITIES} severities"
    if len(kinds) < (num_all := len(COMMON) + len(EXTRA)):
        note += f"; {len(kinds)} of its {num_all} corruptions are there"
    for kind, images in by_kind.items():
        arrays = _arrays(images, labels, data)
        is_paired = torch.equal(arrays.targets[: num_images // NUM_SEVERITIES], data.targets("test"))
        unpaired = "" if is_paired else "; not paired: its labels are not those of these test images, in this order"
        found.append(
            OtherImages(
                source=_CORRUPTED,
                name=f"{_CORRUPTED} {kind}",
                arrays=arrays,
                num_severities=NUM_SEVERITIES,
                is_paired=is_paired,
                note=note + unpaired,
                fingerprint=_digest(labels),  # the pixels are too many to read them all for this
            )
        )
    return found


def _read_human(root: Path, data: ImageDataModule) -> list[OtherSet]:
    """CIFAR-10H: what some 50 people each called the test images."""
    targets, num_classes = data.targets("test"), len(CLASSES)
    shares = read_shares(root, num_images=len(targets), num_classes=num_classes)[:, _order(data)]
    majority = shares.argmax(1)
    agreement = (majority == targets).double().mean().item()
    if agreement < 0.9:
        raise ValueError(
            f"CIFAR-10H in {printable(str(root))}: most people agree with the label of {100 * agreement:.1f} % of the "
            "test images alone, so that it is for other images, or in another order"
        )
    people = shares.gather(1, targets[:, None]).mean().item()
    note = (
        "the majority of people in place of the data's labels; the loss is the cross entropy to the shares of people. "
        f"Of people's labels {100 * people:.2f} % are the data's, of their majorities {100 * agreement:.2f} %"
    )
    return [
        OtherLabels(
            source="CIFAR-10H",
            name="CIFAR-10H",
            targets=majority,
            shares=shares,
            note=note,
            fingerprint=_digest(shares),
        )
    ]


def _read_noisy(root: Path, data: ImageDataModule) -> list[OtherSet]:
    """CIFAR-10N: what people called the training images, of which the validation images are some."""
    all_targets, order = data.arrays("val").targets, torch.tensor(_order(data))
    labels = read_noisy_labels(root / HUMAN, order[all_targets], num_classes=len(CLASSES))
    of_file = order.argsort()  # from the file's numbers to those of the data
    return [
        OtherLabels(
            source="CIFAR-10N",
            name=f"CIFAR-10N {name.removesuffix('_label').replace('_label', ' ')}",
            targets=of_file[found[data.index["val"]]],
            note=f"{NOISY[name]} in place of the data's",
            fingerprint=_digest(found),
        )
        for name, found in labels.items()
    ]


_KNOWN = {
    "CIFAR-10.1": _Known(
        "test", tuple(f"{stem}_{part}.npy" for stem in _NEW for part in ("data", "labels")), _read_new
    ),
    _CORRUPTED: _Known("test", (_CORRUPTED,), _read_corrupted),
    "CIFAR-10H": _Known("test", (COUNTS, PROBS), _read_human),
    "CIFAR-10N": _Known("val", (HUMAN,), _read_noisy),
}
"""The known sets, in the order in which they are evaluated."""


def _order(data: ImageDataModule) -> list[int]:
    """The number in the files of each class of the data."""
    return [CLASSES.index(name) for name in data.classes]


def _open(path: Path) -> UInt8[np.ndarray, "n 32 32 3"]:
    images = open_images(path)
    if images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{printable(str(path))} must hold images of (N, 32, 32, 3), got {images.shape}")
    return images


def _arrays(images: UInt8[np.ndarray, "n 32 32 3"], labels: Int64[Tensor, " n"], data: ImageDataModule) -> Arrays:
    dataset = SimpleNamespace(data=images, targets=labels.numpy(), classes=list(CLASSES))
    return to_arrays(dataset).with_classes(data.classes)


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().data).hexdigest()[:32]


def _read_folder(name: str, data: ImageDataModule) -> OtherImages:
    """A folder of images: a folder per class in it, or in its folder test/."""
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(f"{printable(name)} is neither a folder nor one of {', '.join((AUTO, *_KNOWN))}")
    channels, height, width = data.image_shape
    if channels != 3 or height != width:
        raise ValueError(
            f"{printable(name)}: a folder's images are read as squares of 3 channels, the data have images of "
            f"{channels}x{height}x{width}"
        )
    has_test = "test" in layout.folders(folder) and "test" not in data.classes
    how = {"background": data.options.get("background"), "memory": data.options.get("memory", "auto")}
    dataset = (
        ImageFolder(folder, train=False, image_size=height, **how)
        if has_test
        else ClassFolders(folder, image_size=height, **how)
    )
    if unknown := sorted(set(dataset.classes) - set(data.classes)):
        raise ValueError(
            f"{printable(name)} has the classes {listed(unknown)}, which are not among {listed(data.classes)}"
        )
    arrays = to_arrays(dataset).with_classes(data.classes)
    num, num_all = len(dataset.classes), len(data.classes)
    note = "" if num == num_all else f"{num} of {num_all} classes: {listed(dataset.classes)}"
    return OtherImages(source=name, name=name, arrays=arrays, note=note, fingerprint=arrays.fingerprint())
