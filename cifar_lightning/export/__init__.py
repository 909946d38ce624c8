"""The formats that a checkpoint can be exported to, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cifar_lightning.export import onnx, safetensors, state_dict, torch_export
from cifar_lightning.export.check import Classify
from cifar_lightning.export.source import Source


@dataclass(frozen=True)
class Format:
    """One way to write a checkpoint for others.

    Attributes:
        ending: What follows the checkpoint's stem in the name of the file or folder.
        files: ``(source, name) -> content by path``, the paths being ``name`` or below it.
        opened: ``(path, source) -> what the file computes``, by its own runtime.
        usage: ``(source, path) -> lines of Python that load it``.
        packages: Distributions that wrote it, besides torch.
        is_read_again: Whether evaluate.py and predict.py take it.
    """

    ending: str
    files: Callable[[Source, str], dict[str, bytes]]
    opened: Callable[[Path, Source], Classify]
    usage: Callable[[Source, Path], str]
    packages: tuple[str, ...] = ()
    is_read_again: bool = False


FORMATS = {
    "onnx": Format(
        ".onnx", onnx.files, onnx.opened, onnx.usage, ("onnx", "onnxscript", "onnxruntime"), is_read_again=True
    ),
    "torch_export": Format(".pt2", torch_export.files, torch_export.opened, torch_export.usage, is_read_again=True),
    "safetensors": Format("-safetensors", safetensors.files, safetensors.opened, safetensors.usage, ("safetensors",)),
    "state_dict": Format(".pth", state_dict.files, state_dict.opened, state_dict.usage),
}
"""To add a format, write it in a file of this folder and add it here."""
