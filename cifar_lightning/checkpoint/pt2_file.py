"""Programs in files of ``torch.export.save``, read and run without torch's own loader.

``torch.export.load`` trusts its file. It unpickles what the file asks for, evaluates texts of it as expressions, and
looks up any name below ``torch``. So a foreign file could run code. Here a file is data: its graph is read as JSON, its
operators are looked up in ``OPERATORS``, its weights are bytes, and all else in it is refused or left alone.
"""

import io
import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

_aten = torch.ops.aten

OPERATORS: dict[str, Callable[..., Tensor]] = {
    f"torch.ops.{operator}": operator
    for operator in (
        *(_aten.conv2d.default, _aten.linear.default, _aten.batch_norm.default, _aten.pad.default),
        *(_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default, _aten.amax.default),
        *(_aten.relu.default, _aten.relu_.default, _aten.gelu.default, _aten.flatten.using_ints),
        *(_aten.add.Tensor, _aten.add_.Tensor, _aten.mul.Tensor, _aten.addcmul.default, _aten.to.dtype),
        _aten.div.Tensor,
        *(_aten._upsample_bilinear2d_aa.vec, _aten.expand.default, _aten.permute.default, _aten.cat.default),
        *(_aten.layer_norm.default, _aten.mean.dim, _aten.sigmoid.default, _aten.silu.default, _aten.silu_.default),
        *(_aten.hardswish_.default, _aten.hardsigmoid.default, _aten.hardtanh_.default),
        *(_aten.dropout.default, _aten.dropout_.default),
    )
}
"""The operators that the project's networks export to, and torchvision's of convolutions.

A network with another one, such as a vision transformer, is exported but not read again.
"""


class UnknownOperator(ValueError):
    """A program uses an operator that is not among those that are run here."""


_CHECKS = (f"torch.ops.{_aten.name}._assert_tensor_metadata.default",)
"""Operators without a result, which hold a program to the device that it was exported on."""

_TYPES = {7: torch.float32, 5: torch.int64}
"""Types of numbers of weights and results, as torch.export.save numbers them."""

_MEMBERS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_GRAPH, _WEIGHTS = "models/model.json", "data/weights/"
_WEIGHTS_CONFIG, _CONSTANTS_CONFIG = (
    f"{_WEIGHTS}model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_SAMPLES, _EXTRA = "data/sample_inputs/model.pt", "extra/"

_MAX_MEMBERS, _MAX_JSON_BYTES, _MAX_NUMBER = 10_000, 20_000_000, 65_536
"""More members, bytes of JSON and larger whole numbers than an exported network of this project has."""


@dataclass(frozen=True)
class _Value:
    """Stands for a tensor of the program among the arguments of a step."""

    name: str


@dataclass(frozen=True)
class _Step:
    """One operation: the names of its result, and of the values that no later step needs."""

    operator: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    result: str
    last_used: tuple[str, ...]


class Pt2Program(nn.Module):
    """Raw uint8 images (N, C, H, W) -> logits (N, K), as the graph of a .pt2 file says.

    Args:
        graph: The parsed graph, ``graph_module`` of the file's JSON.
        weights: Tensors by name.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: If the graph holds anything but ``OPERATORS`` over the
            images and the weights.
    """

    def __init__(self, graph: dict[str, Any], weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._weights: dict[str, str] = {}  # attribute by the graph's name: no name of a file becomes an attribute
        images = []
        for spec in graph["signature"]["input_specs"]:
            (kind, content), *more = spec.items()
            if more or kind not in ("parameter", "buffer", "user_input"):
                raise ValueError(f"it takes an input of the kind {kind!r:.50}")
            if kind == "user_input":
                images.append(content["arg"]["as_tensor"]["name"])
            else:
                attribute = f"weight_{len(self._weights)}"
                self.register_buffer(attribute, weights[content[f"{kind}_name"]])
                self._weights[content["arg"]["name"]] = attribute
        (self._images,) = images
        (output,) = graph["graph"]["outputs"]
        self._logits = output["as_tensor"]["name"]
        self._steps = _steps(graph["graph"]["nodes"], {self._images, *self._weights}, self._logits)

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        values = {name: getattr(self, attribute) for name, attribute in self._weights.items()}
        values[self._images] = images

        def filled(argument: Any) -> Any:
            if isinstance(argument, tuple):
                return list(map(filled, argument))
            return values[argument.name] if isinstance(argument, _Value) else argument

        for step in self._steps:
            keywords = {name: filled(argument) for name, argument in step.keywords.items()}
            values[step.result] = step.operator(*map(filled, step.arguments), **keywords)
            for name in step.last_used:
                del values[name]
        return values[self._logits]


def _steps(nodes: list[dict[str, Any]], inputs: set[str], logits: str) -> tuple[_Step, ...]:
    """The operations of a graph, each of which uses inputs and results of earlier ones."""
    known, found = set(inputs), []
    for node in nodes:
        target = node["target"]
        if target in _CHECKS and not node["outputs"]:
            continue
        if target not in OPERATORS:
            raise UnknownOperator(f"it uses {target!r:.100}, which is not among the operators that are read")
        arguments = [_argument(entry["arg"], known) for entry in node["inputs"] if entry["kind"] == 1]
        keywords = {entry["name"]: _argument(entry["arg"], known) for entry in node["inputs"] if entry["kind"] == 2}
        if target.rpartition(".")[0].endswith("_") and arguments[0].name in inputs:
            raise ValueError("it writes into its inputs or weights")
        (output,) = node["outputs"]
        result = output["as_tensor"]["name"]
        if not isinstance(result, str) or result in known:
            raise ValueError(f"two values have the name {result!r:.50}")
        known.add(result)
        used = {name for part in (*arguments, *keywords.values()) for name in _names(part)} - inputs
        found.append((OPERATORS[target], tuple(arguments), keywords, result, used))
    if logits not in known:
        raise ValueError("its result is not computed")
    steps, needed = [], {logits}
    for operator, values, keywords, result, used in reversed(found):
        last = tuple(sorted((used | {result}) - needed))
        needed |= used
        steps.append(_Step(operator, values, keywords, result, last))
    return tuple(reversed(steps))


def _names(argument: Any) -> list[str]:
    """Names of the tensors in an argument."""
    parts = argument if isinstance(argument, tuple) else (argument,)
    return [part.name for part in parts if isinstance(part, _Value)]


def _argument(argument: dict[str, Any], known: set[str]) -> Any:
    """A plain value, a ``_Value`` or a tuple of them from its form in the graph, such as ``{"as_int": 1}``."""
    (kind, value), *more = argument.items()
    if more:
        raise ValueError("an argument has two values")
    if kind == "as_tensor":
        if value["name"] not in known:
            raise ValueError(f"it uses {value['name']!r:.50} before it is computed")
        return _Value(value["name"])
    if kind == "as_tensors":
        return tuple(_argument({"as_tensor": part}, known) for part in value)
    if kind == "as_none":
        return None
    if kind == "as_scalar_type":
        return _TYPES[value]
    numbers = value if kind in ("as_ints", "as_floats") else [value]
    expected = {"as_int": int, "as_ints": int, "as_float": float, "as_floats": float, "as_bool": bool}.get(kind)
    if expected is None and kind == "as_string" and value in ("none", "tanh", "constant"):
        return value
    if expected is None or len(numbers) > 8 or not all(type(number) is expected for number in numbers):
        raise ValueError(f"an argument is {kind!r:.50}")
    if not all(math.isfinite(number) and abs(number) <= _MAX_NUMBER for number in numbers):
        raise ValueError(f"an argument is {value!r:.50}")
    return value


def read_pt2(content: bytes, extra: str) -> tuple[bytes, Pt2Program]:
    """A member that this project put beside the program, and the program.

    Args:
        content: The whole file.
        extra: Name of the member, as ``extra_files`` of ``torch.export.save`` has it.

    Raises:
        ValueError: If the file is anything but what this project exports; says why.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _members(archive, len(content))
            if f"{_EXTRA}{extra}" not in members:
                raise ValueError(f"{_EXTRA}{extra} is missing")
            described = archive.read(members[f"{_EXTRA}{extra}"])
            if json.loads(archive.read(members[_CONSTANTS_CONFIG])) != {"config": {}}:
                raise ValueError("it holds objects beside its weights")
            weights = _weights(archive, members)
            graph = json.loads(archive.read(members[_GRAPH]))
        return described, Pt2Program(graph["graph_module"], weights).eval()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"truncated or damaged: {error}") from error
    except KeyError as error:
        raise ValueError(f"{error} is missing or unknown") from error
    except (LookupError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"its program is not of the expected form: {error!r:.200}") from error


def _members(archive: zipfile.ZipFile, num_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by their names without its root folder."""
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ValueError("it is compressed or has too many members, as torch.export.save's have not")
    if sum(info.file_size for info in infos) > num_bytes:
        raise ValueError("its members overlap")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        root, _, name = info.filename.partition("/")
        is_text = not name.startswith(_WEIGHTS) or name == _WEIGHTS_CONFIG
        is_known = name in (*_MEMBERS, _GRAPH, _CONSTANTS_CONFIG, _SAMPLES) or name.startswith((_WEIGHTS, _EXTRA))
        if not is_known or name in members or root != infos[0].filename.partition("/")[0]:
            raise ValueError(f"it holds {info.filename!r:.100}, which no export of this project does")
        if is_text and info.file_size > _MAX_JSON_BYTES:
            raise ValueError(f"{info.filename!r:.100} is larger than {_MAX_JSON_BYTES:,} bytes")
        members[name] = info
    if archive.read(members["byteorder"]).decode("ascii", "replace") != sys.byteorder:
        raise ValueError(f"its numbers are not in the byte order of this machine, {sys.byteorder}")
    if (damaged := archive.testzip()) is not None:
        raise ValueError(f"wrong checksum in {damaged!r:.100}")
    return members


def _weights(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Tensor]:
    """The weights of a program by name: bytes with a shape, as JSON beside them says."""
    weights: dict[str, Tensor] = {}
    for name, entry in json.loads(archive.read(members[_WEIGHTS_CONFIG]))["config"].items():
        if entry["use_pickle"] is not False:
            raise ValueError(f"{name!r:.100} is pickled, and was not loaded")
        meta = entry["tensor_meta"]
        sizes, strides = ([number["as_int"] for number in meta[key]] for key in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        if not all(type(number) is int and number >= 0 for number in (*sizes, *strides, offset)) or 0 in sizes:
            raise ValueError(f"{name!r:.100} has an impossible shape")
        content = bytearray(archive.read(members[f"{_WEIGHTS}{entry['path_name']}"]))
        flat = torch.frombuffer(content, dtype=_TYPES[meta["dtype"]])
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if last >= len(flat) or math.prod(sizes) > len(flat):
            raise ValueError(f"{name!r:.100} is larger than what the file holds of it")
        weights[name] = flat.as_strided(sizes, strides, offset)
    return weights
