"""Pictures classified by a checkpoint: ``cifar_lightning.load("last.ckpt").predict(["cat.jpg"])``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor

from cifar_lightning.calibration import calibrated
from cifar_lightning.checkpoint.exported import ExportedClassifier
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.data.decode import MAX_PIXELS, UNKNOWN_FORMAT, Colour, Problems, limited_to, pixels_of
from cifar_lightning.data.decode_pool import decode_many
from cifar_lightning.data.formats import why_not_by_content
from cifar_lightning.data.pixels import colour
from cifar_lightning.device import multiplies_bf16
from cifar_lightning.errors import RunError, UserError, listed, one_line
from cifar_lightning.tta import augmented_logits

_MAX_BATCH = 500
_PIXELS_PER_BATCH = 2_000_000
"""Images are classified in batches of at most so many images and pixels, as activations take memory."""


@dataclass(frozen=True)
class Prediction:
    """What a checkpoint says about a picture.

    Attributes:
        label: Name of the most probable class.
        prob: Its probability, in [0, 1].
        top: The most probable classes with their probabilities, best first; as many as were asked for.
        probs: The probability of each class, in the order of the checkpoint's classes.
    """

    label: str
    prob: float
    top: tuple[tuple[str, float], ...]
    probs: Float[Tensor, " k"]


class Predictor:
    """Classifies pictures by a checkpoint, on a device. ``load`` makes one.

    Attributes:
        classes: Names of the classes.
        image_size: Height and width, in pixels, to which pictures are brought.
        num_channels: 3 for colour, 1 for grey.
        settings: The checkpoint's settings, as plain values.
        background: Colour that stands behind transparent pixels; None for what a file has there.
        tta: Level of test-time augmentation that the checkpoint was evaluated with.
        temperature: What logits are divided by for the probabilities; fitted on validation images. None where the
            checkpoint has none: then the probabilities are uncalibrated.
        device: Where the network is.
        precision: Lightning's name of the precision that it computes in.
    """

    def __init__(self, ckpt: str | Path, *, accelerator: str = "auto", precision: str | None = None) -> None:
        self._classifier, checkpoint = load_classifier(ckpt)
        self.settings: dict[str, Any] = checkpoint["settings"]
        self.classes: tuple[str, ...] = tuple(self.settings["classes"])
        height, width = self.settings["image_size"]
        self.image_size: tuple[int, int] = (height, width)
        self.num_channels: int = self.settings["model"]["in_channels"]
        self.background = _background(self.settings["data"].get("background"))
        self.tta: int = self.settings["tta"]
        self.temperature = self._classifier.temperature
        exported = self._classifier if isinstance(self._classifier, ExportedClassifier) else None
        if exported is not None and exported.is_onnx and accelerator == "auto":
            accelerator = "cpu"
        fabric = _fabric(accelerator, precision, own=self.settings["trainer"].get("precision"))
        self.device, self.precision = fabric.device, str(fabric.strategy.precision.precision)
        if exported is not None:
            exported.check_use(precision=self.precision, compile=False, device_type=self.device.type)
        self._classify = fabric.setup_module(self._classifier, move_to_device=True)

    @property
    def batch_size(self) -> int:
        """Number of images that are classified at once."""
        height, width = self.image_size
        return max(1, min(_MAX_BATCH, _PIXELS_PER_BATCH // (height * width)))

    def predict(self, pictures: Sequence[Any] | Tensor, *, topk: int = 1, tta: int | None = None) -> list[Prediction]:
        """Classify pictures.

        Files and images of Pillow are read as ``data=folder`` reads them: turned as their EXIF says, cropped to the
        largest centred square, resized with antialiasing.

        Args:
            pictures: Any mixture of paths, images of Pillow and uint8 tensors (C, H, W) of the checkpoint's image size.
                A uint8 tensor (N, C, H, W) is a sequence of the latter.
            topk: Number of classes in ``Prediction.top``; of fewer classes all are in it.
            tta: Level of test-time augmentation, see ``tta.augmented_logits``; None for the checkpoint's own.

        Raises:
            ValueError: If a picture cannot be read, or has another shape or type; if ``topk`` or ``tta`` is out of its
                range.
        """
        if isinstance(pictures, str | Path):
            raise ValueError(f"pictures must be a list, got one path: write [{str(pictures)!r}]")
        return self.top(self.probs(self.pixels(pictures), tta=tta), topk=topk)

    def pixels(self, pictures: Sequence[Any] | Tensor) -> UInt8[Tensor, "n c h w"]:
        """Pictures as the network gets them; see ``predict``.

        Raises:
            ValueError: If a picture cannot be read, or has another shape or type.
        """
        paths = [str(picture) for picture in pictures if isinstance(picture, str | Path)]
        if len(paths) == len(pictures) > 0:
            return self._pixels_of_files(paths)
        found = [self._pixels_of(picture) for picture in pictures]
        return torch.stack(found) if found else torch.empty((0, *self._shape), dtype=torch.uint8)

    def _pixels_of(self, picture: Any) -> UInt8[Tensor, "c h w"]:
        if isinstance(picture, str | Path):
            return self._pixels_of_files([str(picture)])[0]
        if isinstance(picture, Image.Image):
            with limited_to(MAX_PIXELS):
                pixels = bytearray(pixels_of(picture, self.side, self.background))
            return self.from_rgb(np.frombuffer(pixels, np.uint8).reshape(1, self.side, self.side, 3))[0]
        if not isinstance(picture, Tensor):
            raise ValueError(
                f"a picture must be a path, an image of Pillow or a uint8 tensor, got a {type(picture).__name__}"
            )
        if picture.dtype != torch.uint8 or picture.shape != self._shape:
            raise ValueError(
                f"a tensor must be uint8 of shape {self._shape}, got {picture.dtype} of {tuple(picture.shape)}"
            )
        return picture

    def _pixels_of_files(self, paths: Sequence[str]) -> UInt8[Tensor, "n c h w"]:
        pixels, problems = self.read(paths)
        if problems:
            names = [f"{paths[index]}: {reason}" for index, reason in problems.items()]
            raise ValueError(f"{len(names)} of {len(paths)} files cannot be read: {listed(names)}")
        return pixels

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.num_channels, *self.image_size)

    def read(
        self, paths: Sequence[str], *, side: int | None = None, show: Callable[[int], None] | None = None
    ) -> tuple[UInt8[Tensor, "n c h w"], Problems]:
        """Pixels of image files, black where a file cannot be decoded, and what is wrong with such files, by index.

        Args:
            paths: The files.
            side: Height and width of the images, in pixels; None for those that the network gets.
            show: Called now and then with the number of files that are decoded; None shows a progress bar.
        """
        side = side or self.side
        buffer = np.empty((len(paths), side, side, 3), np.uint8)
        _, problems = decode_many(
            paths, buffer.reshape(-1).data, image_size=side, background=self.background, show=show
        )
        for index, reason in problems.items():
            problems[index] = why_not_by_content(paths[index]) if reason == UNKNOWN_FORMAT else reason
        return self.from_rgb(buffer), problems

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels.

        Raises:
            ValueError: If files cannot be brought to the shape of the checkpoint's images.
        """
        height, width = self.image_size
        if height != width or self.num_channels not in (1, 3):
            raise ValueError(
                "files and images of Pillow are read as squares of 1 or 3 channels, the checkpoint's images are "
                f"{self.num_channels}x{height}x{width}: give uint8 tensors of that shape"
            )
        return height

    def from_rgb(self, pixels: UInt8[np.ndarray, "n s s 3"]) -> UInt8[Tensor, "n c h w"]:
        """RGB pixels as the images that the network gets: in colour, or grey as Pillow makes it."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if self.num_channels == 3:
            return images.contiguous()
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).reshape(1, 3, 1, 1)
        return ((images.int() * weights).sum(1, keepdim=True) + 0x8000 >> 16).byte()

    @torch.inference_mode()
    def probs(self, images: UInt8[Tensor, "n c h w"], *, tta: int | None = None) -> Float[Tensor, "n k"]:
        """Probabilities of the classes of images, on the CPU; calibrated where there is a temperature.

        Args:
            images: Raw pixels of the checkpoint's image size.
            tta: Level of test-time augmentation; None for the checkpoint's own.

        Raises:
            ValueError: If ``tta`` is out of its range.
            RunError: If the network's outputs are not finite.
        """
        level = self.tta if tta is None else tta
        found = [torch.empty(0, len(self.classes))]
        for batch in images.split(self.batch_size):
            _, logits = augmented_logits(self._classify, batch.to(self.device), level=level)
            if not logits.isfinite().all():
                raise RunError(f"the network's outputs are not finite in precision {self.precision}: try 32-true")
            found.append(calibrated(logits, self.temperature).softmax(1).cpu())
        return torch.cat(found)

    def top(self, probs: Float[Tensor, "n k"], *, topk: int = 1) -> list[Prediction]:
        """Predictions from probabilities.

        Raises:
            ValueError: If ``topk`` is below 1.
        """
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        best = probs.topk(min(topk, len(self.classes)), dim=1)
        predictions = []
        for row, values, indices in zip(probs, best.values.tolist(), best.indices.tolist(), strict=True):
            top = tuple((self.classes[index], value) for index, value in zip(indices, values, strict=True))
            predictions.append(Prediction(label=top[0][0], prob=top[0][1], top=top, probs=row))
        return predictions


def load(ckpt: str | Path, *, accelerator: str = "auto", precision: str | None = None) -> Predictor:
    """A checkpoint, ready to classify pictures.

    Args:
        ckpt: Path of a checkpoint of this project, or of an .onnx or .pt2 file that export.py wrote.
        accelerator: Lightning's own words, such as ``cpu``, ``gpu`` or ``mps``; ``auto`` takes the best that this
            machine has, ``gpu:1`` a certain one.
        precision: Lightning's name of the precision to compute in. None takes the one that the checkpoint was trained
            in where the device computes in it natively, else float32.

    Raises:
        UserError: If the file is no checkpoint of this project, or this machine has no such device or precision.
    """
    return Predictor(ckpt, accelerator=accelerator, precision=precision)


def _background(name: Any) -> Colour | None:
    """The colour that the checkpoint's data were read with."""
    try:
        return colour(name if isinstance(name, str) else None)
    except ValueError as error:
        raise UserError(f"the checkpoint's data.{error}") from error


def _fabric(accelerator: str, precision: str | None, *, own: str | None) -> Fabric:
    """Lightning's placement of a network on a device, in a precision."""
    kind, _, number = accelerator.partition(":")
    try:
        place: dict[str, Any] = {"accelerator": kind, "devices": [int(number)] if number else 1}
        fabric = Fabric(**place)
        if precision is None and own is not None and _computes_in(own, fabric.device.type):
            precision = own
        if precision is not None:
            fabric = Fabric(**place | {"precision": precision})
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"accelerator={accelerator} precision={precision or 'null'}: {one_line(error)} (accelerator=auto takes "
            "what this machine has)"
        ) from error
    return fabric


def _computes_in(precision: str, device_type: str) -> bool:
    """Whether a kind of device computes in a precision without emulating it."""
    if precision.startswith("bf16"):
        return multiplies_bf16(device_type)
    return device_type == "cuda" or precision in ("32-true", "32", "64-true", "64")
