"""ONNX files that this project has exported: what they may hold, and how onnxruntime computes them."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cifar_lightning.errors import needs_extra, one_line

OPERATORS = frozenset(
    {
        *("Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv"),
        *("Div", "Einsum", "Equal", "Erf", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm"),
        *(
            "GlobalAveragePool",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LayerNormalization",
            "MatMul",
            "MaxPool",
            "Mul",
        ),
        *("Not", "Pad", "Range", "ReduceL2", "ReduceMax", "ReduceMean", "Relu", "Reshape", "Resize", "ScatterND"),
        *("Shape", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
    }
)
"""The operators that the project's networks export to, and similar ones. None reads a file, loops or branches."""

_MAX_NODES = 10_000
"""More than an exported network of this project has."""


class OnnxProgram(nn.Module):
    """Raw uint8 images (N, C, H, W) -> logits (N, K), computed by onnxruntime on the CPU, whatever device asks.

    Args:
        content: The whole file, as ``read_onnx`` has seen it.

    Raises:
        UserError: If onnxruntime is not installed.
        ValueError: If onnxruntime refuses the file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        with needs_extra("export"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised too
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each kind, which are not public
            raise ValueError(f"onnxruntime refuses it: {one_line(error):.300}") from error

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of raw uint8 images, on their device.

        Raises:
            ValueError: If onnxruntime fails.
        """
        try:
            (logits,) = self._session.run(["logits"], {"images": images.cpu().numpy()})
        except Exception as error:  # see above
            raise ValueError(f"onnxruntime fails: {one_line(error):.300}") from error
        return torch.from_numpy(np.asarray(logits)).to(images.device)


def read_onnx(content: bytes, key: str) -> tuple[str, OnnxProgram]:
    """A text among an ONNX file's metadata, and its program.

    Args:
        content: The whole file.
        key: Of the text.

    Raises:
        UserError: If a library is not installed.
        ValueError: If the file is anything but what this project exports; says why.
    """
    with needs_extra("export"):
        import onnx
    try:
        model = onnx.load_model_from_string(content)  # opens no other file
    except Exception as error:  # protobuf's own class
        raise ValueError(f"truncated or damaged: {one_line(error):.200}") from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if key not in texts:
        raise ValueError(f"{key} is missing in its metadata")
    _check(model)
    return texts[key], OnnxProgram(content)


def _check(model: Any) -> None:
    """Raise ValueError where a model is more than known operators over numbers in the file itself."""
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise ValueError("it holds functions or other parts that no export of this project does")
    if len(graph.node) > _MAX_NODES:
        raise ValueError(f"it has more than {_MAX_NODES:,} operations")
    if [value.name for value in graph.input] != ["images"] or [value.name for value in graph.output] != ["logits"]:
        raise ValueError("it does not map images to logits")
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            name = ".".join(filter(None, (node.domain, node.op_type)))
            raise ValueError(f"it uses {name!r:.100}, which no network of this project does")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ValueError(f"{node.op_type} holds a graph of its own")
            tensors += [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors
    for tensor in tensors:
        if tensor.data_location or tensor.external_data:
            raise ValueError(f"its weight {tensor.name!r:.100} is in another file, which is not opened")
