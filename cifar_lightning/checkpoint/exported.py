"""Exported files, ONNX and .pt2, read as checkpoints are: each describes itself, and none can run code."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cifar_lightning.calibration import uncalibrated
from cifar_lightning.checkpoint.format import check_description
from cifar_lightning.checkpoint.onnx_file import read_onnx
from cifar_lightning.checkpoint.pt2_file import read_pt2
from cifar_lightning.checkpoint.trust import check_file, check_values
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.errors import UserError, one_line

DESCRIPTION = "cifar_lightning.json"
"""Name, in an exported file, of the text that has what a checkpoint says of itself."""

SUFFIXES = (".onnx", ".pt2")

_MAX_BYTES = 2**31
"""Protocol buffers, which ONNX files are, end there."""

_MAX_DESCRIPTION_BYTES = 20_000_000
"""More than the settings of a run take as JSON: 2.5 MB of names of classes, each letter an escape of six."""


class ExportedClassifier(ImageClassifier):
    """A classifier whose network is an exported program, with normalisation inside.

    Args:
        program: ``images (N, C, H, W) uint8 -> logits (N, K)``, divided by the temperature where there is one.
        mean: As in ``ImageClassifier``; the program has its own.
        std: Likewise.
        image_shape: Shape (C, H, W) of the images, which a program is made for.
        is_onnx: Whether onnxruntime computes it, on the CPU.
    """

    def __init__(
        self, program: nn.Module, *, mean: Any, std: Any, image_shape: tuple[int, int, int], is_onnx: bool
    ) -> None:
        super().__init__(program, mean=mean, std=std)
        self.image_shape = image_shape
        self.is_onnx = is_onnx

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of raw uint8 images, in float32, as the checkpoint has them: without the temperature."""
        return uncalibrated(self.net(images), self.temperature)

    def check_use(self, *, precision: Any, compile: bool | str, device_type: str) -> None:
        """Refuse to compute otherwise than exported programs do.

        Raises:
            UserError: If ``precision`` is not float32, the program is to be compiled, or an ONNX file is to be computed
                elsewhere than on the CPU.
        """
        if str(precision or "32-true") not in ("32-true", "32"):
            raise UserError(f"an exported file computes in float32, precision 32-true, got {precision}")
        if compile:
            raise UserError(f"an exported file is not compiled: compile must be false, got {compile}")
        if self.is_onnx and device_type != "cpu":
            raise UserError(f"an .onnx file is computed on the CPU, got {device_type}: a .pt2 file uses it")

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Refuse images of another shape than the program is made for.

        Raises:
            UserError: If ``shape`` (C, H, W) is another.
        """
        if tuple(shape) != self.image_shape:
            sizes = ["x".join(map(str, size)) for size in (self.image_shape, shape)]
            raise UserError(f"the exported file takes images of {sizes[0]}, got {sizes[1]}: evaluate its checkpoint")


def read_exported(path: Path) -> tuple[ExportedClassifier, dict[str, Any]]:
    """The classifier of an exported file, and what it says of itself, as ``checkpoint.format.description`` has it.

    Its settings say what is true of the file: it computes in float32, uncompiled, and ONNX on the CPU.

    Raises:
        UserError: If the file is not there, damaged, or anything but what export.py writes.
    """
    check_file(path)
    is_onnx = path.suffix == ".onnx"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
        content = path.read_bytes()
        text, program = read_onnx(content, DESCRIPTION) if is_onnx else read_pt2(content, DESCRIPTION)
        if len(text) > _MAX_DESCRIPTION_BYTES:
            raise ValueError(f"{DESCRIPTION} is larger than {_MAX_DESCRIPTION_BYTES:,} bytes")
        description = json.loads(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no file that export.py wrote: {one_line(error)}") from error
    check_values(path, description)
    check_description(path, description)
    settings = description["settings"]
    settings["trainer"] |= {"precision": "32-true"} | ({"accelerator": "cpu"} if is_onnx else {})
    settings["compile"] = False
    return _classifier(path, program, description, is_onnx=is_onnx), description


def _classifier(path: Path, program: nn.Module, description: dict[str, Any], *, is_onnx: bool) -> ExportedClassifier:
    """A program as a classifier, once it has classified two blank images."""
    settings = description["settings"]
    height, width = settings["image_size"]
    try:
        shape = (settings["model"]["in_channels"], height, width)
        normalize = {key: settings["normalize"][key] for key in ("mean", "std")}
        classifier = ExportedClassifier(program, image_shape=shape, is_onnx=is_onnx, **normalize).eval()
        classifier.temperature = description.get("temperature")
        with torch.inference_mode():
            logits = classifier(torch.zeros(2, *shape, dtype=torch.uint8))
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise UserError(f"{path}: the program in it cannot be run: {one_line(error)}") from error
    expected = (2, len(settings["classes"]))
    if tuple(logits.shape) != expected or logits.dtype is not torch.float32:
        raise UserError(f"{path}: {expected[1]} class names for logits of {tuple(logits.shape)}, {logits.dtype}")
    return classifier
