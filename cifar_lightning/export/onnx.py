"""ONNX: one file for onnxruntime and many other runtimes, with normalisation inside and a batch of any size."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.calibration import in_words
from cifar_lightning.checkpoint.exported import DESCRIPTION
from cifar_lightning.errors import needs_extra
from cifar_lightning.export.check import Classify
from cifar_lightning.export.source import Source

OPSET = 20
"""Version of ONNX's operators: the first with GELU."""


def files(source: Source, name: str) -> dict[str, bytes]:
    """The file, of the given name.

    Raises:
        UserError: If a library is not installed.
    """
    with needs_extra("export"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with _quiet():
        program = torch.onnx.export(
            source.classifier,
            (source.example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch"}},
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_sources(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, source.description
    return {name: model.SerializeToString()}


def _forget_sources(model: Any) -> None:
    """Remove what tells of paths and lines on the machine that exports."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of libraries on their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def opened(path: Path, source: Source) -> Classify:
    """The logits that onnxruntime computes by the file, without the temperature."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def classify(images: torch.Tensor) -> torch.Tensor:
        return source.logits_of_program(torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]))

    return classify


def usage(source: Source, path: Path) -> str:
    """Lines of Python that use the file."""
    return f"""import onnxruntime
session = onnxruntime.InferenceSession({str(path)!r})
(logits,) = session.run(["logits"], {{"images": images}})  # uint8 (N, C, H, W)
# probabilities, softmax(logits), are {in_words(source.temperature)}"""
