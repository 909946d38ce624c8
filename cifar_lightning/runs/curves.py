"""The curves of a run, read again from its metrics.csv and its event files, which may be anyone's."""

import csv
import io
import logging
import math
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cifar_lightning.errors import one_line

log = logging.getLogger(__name__)

Curve = list[tuple[int, float]]
"""Optimizer steps done, in rising order, and a value at each."""

CURVES = ("train/loss", "train/acc", "val/loss", "val/acc")
"""Names of the curves that show how a training went."""

MAX_BYTES = 2**26
"""Of files with more nothing is read: a run of days writes less."""

_MAX_RECORD = 4096
"""Bytes of a record of an event file that may hold points of curves; longer ones hold pictures, and are skipped."""


def read_curves(folder: Path, names: Sequence[str]) -> dict[str, Curve]:
    """Curves of the run in a folder, such as ``train/loss``; without those that it has not.

    Files that cannot be read as far as they go are left out from where they are damaged.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for path in [*sorted(folder.glob("events.out.tfevents.*")), folder / "metrics.csv"]:
        try:
            content = _content(path)
            for name, step, value in (_rows if path.suffix == ".csv" else _points)(content):
                if name is None:  # a run that is resumed writes anew what comes after a step
                    found = {key: {at: y for at, y in curve.items() if at < step} for key, curve in found.items()}
                elif name in found and step >= 0 and math.isfinite(value):
                    found[name][step] = value
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever is in a file, it costs no more than its curves
            log.info("curves    %s is left out: %s", path, one_line(error))
    return {name: sorted(curve.items()) for name, curve in found.items() if curve}


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would have us wait for ever
        raise OSError("it is no regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    return path.read_bytes()


def _rows(content: bytes) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of each point of a metrics.csv."""
    for row in csv.DictReader(io.StringIO(content.decode(), newline="")):
        yield from ((name, int(row["step"]), float(value)) for name, value in row.items() if value and name != "step")


def _points(content: bytes) -> Iterator[tuple[str | None, int, float]]:
    """Name, step and value of each point of an event file; no name where what was written from that step on is void.

    TensorBoard's own reader computes the checksums of all records, those of pictures among them, which takes seconds.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    position = 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        start, position = position + 12, position + 12 + length + 4
        if length > _MAX_RECORD or position > len(content):
            continue
        event: Any = Event.FromString(content[start : start + length])
        if event.session_log.status == SessionLog.START:
            yield None, event.step, math.nan
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, event.step, value.simple_value
