"""torch.export: a program for PyTorch without this project, with normalisation inside and a batch of any size."""

import io
import warnings
from pathlib import Path

import torch

from cifar_lightning.calibration import in_words
from cifar_lightning.checkpoint.exported import DESCRIPTION
from cifar_lightning.export.check import Classify
from cifar_lightning.export.source import Source


def files(source: Source, name: str) -> dict[str, bytes]:
    """The file, of the given name."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(source.classifier, (source.example,), dynamic_shapes={"images": {0: batch}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and lines on the machine that exports
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The weights are on the CPU, and each is all of its storage; torch asks for rows in order too.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, content, extra_files={DESCRIPTION: source.description})
    return {name: content.getvalue()}


def opened(path: Path, source: Source) -> Classify:
    """The logits that torch computes by the file, which this process has written, without the temperature."""
    program = torch.export.load(path).module()
    return lambda images: source.logits_of_program(program(images))


def usage(source: Source, path: Path) -> str:
    """Lines of Python that use the file."""
    return f"""import torch
net = torch.export.load({str(path)!r}).module()  # as all pickles: only a file whose origin you trust
logits = net(images)  # uint8 (N, C, H, W)
# probabilities, softmax(logits), are {in_words(source.temperature)}"""
