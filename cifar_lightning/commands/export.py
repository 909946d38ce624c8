"""``export(cfg)``: the function behind export.py. A checkpoint is all it needs."""

import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_lightning.checkpoint.load import is_exported, load_classifier
from cifar_lightning.checkpoint.pt2_file import UnknownOperator
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import durable_files, write_durably
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.inference import resolve_export
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.schema import ExportSettings
from cifar_lightning.errors import RunError, UserError, nearest, one_line
from cifar_lightning.export import FORMATS, Format
from cifar_lightning.export.check import Comparison, compare
from cifar_lightning.export.source import Source, load_source
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.tables import relative
from cifar_lightning.runs.folder import EXPORT, claimed, results_folder
from cifar_lightning.runs.metrics_file import provenance

log = logging.getLogger(__name__)

RECORD = "export.json"
"""File beside the exported ones: how each was made and checked, by its name."""


def export(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> dict[str, Any]:
    """Write a checkpoint in a format for others, and return what export.json says of it.

    The file is opened again by its own runtime and compared with the checkpoint before it takes its name.

    Args:
        cfg: As ``config.schema.compose(..., config_name="export")`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Raises:
        UserError: If the checkpoint cannot be used, the format is unknown or its libraries are not installed.
        RunError: If the file cannot be written, or does not compute what the checkpoint does; it is then removed.
    """
    settings = resolve_export(cfg)
    if settings.format not in FORMATS:
        raise UserError(f"format={settings.format} is unknown{nearest(settings.format, FORMATS)}")
    if is_exported(settings.ckpt):
        raise UserError(f"ckpt={settings.ckpt} is exported already: give the checkpoint that it was made from")
    with on_screen():
        return _export(settings, FORMATS[settings.format], invocation)


def _export(settings: ExportSettings, how: Format, invocation: Invocation) -> dict[str, Any]:
    source = load_source(settings.ckpt)
    folder = Path(settings.output_dir or results_folder(settings.ckpt, EXPORT, is_timed=False))
    name = f"{source.path.stem}{how.ending}"
    with claimed(folder):
        _announce(source)
        files = _made(source, how, name, settings.format)
        with durable_files(folder) as unchecked:
            for path, content in files.items():
                (unchecked / path).parent.mkdir(exist_ok=True)
                (unchecked / path).write_bytes(content)
            comparison = _checked(source, how, unchecked / name)
        record = _record(settings, source, how, comparison, invocation)
        records = {**_records(folder), name: record}
        write_durably(folder / RECORD, (json.dumps(records, indent=2) + "\n").encode())  # once the files are there
    log.info("check     %s", comparison)
    for path, content in files.items():
        log.info("wrote     %s, %s bytes", relative(folder / path), f"{len(content):,}")
    log.info("use       in Python:")
    for line in how.usage(source, folder / name).splitlines():
        log.info("%s", line)
    return {"output_dir": str(folder), "name": name, **record}


def _announce(source: Source) -> None:
    model, seed = source.settings["model"]["name"], source.settings["seed"]
    log.info("model     %s, seed %s, from %s", model, seed, source.path)
    if source.weights_type != "float32":
        log.info("note      the checkpoint's weights are %s; the export has them in float32", source.weights_type)


def _made(source: Source, how: Format, name: str, format: str) -> dict[str, bytes]:
    """The content of the files.

    Raises:
        UserError: If a library is not installed.
        RunError: If the format's own exporter fails.
    """
    try:
        return how.files(source, name)
    except (UserError, RunError, MemoryError):
        raise
    except Exception as error:  # exporters raise whatever their insides do
        raise RunError(f"format={format} cannot express this network: {one_line(error):.300}") from error


def _checked(source: Source, how: Format, path: Path) -> Comparison:
    """Open what was written, and compare it with the checkpoint.

    Raises:
        UserError: If a library is not installed.
        RunError: If it cannot be opened, or computes something else.
    """
    try:
        opened = [how.opened(path, source)]
        if how.is_read_again and (again := _read_again(path)) is not None:
            opened.append(again)
    except (UserError, RunError, MemoryError):
        raise
    except Exception as error:  # runtimes raise whatever their insides do
        raise RunError(f"the exported file cannot be opened again, and is removed: {one_line(error):.300}") from error
    comparisons = [compare(source, classify) for classify in opened]
    worst = max(comparisons, key=lambda comparison: (not comparison.is_good, comparison.max_difference))
    if not worst.is_good:
        raise RunError(f"the exported file does not compute what {source.path} does, and is removed: {worst}")
    return worst


def _read_again(path: Path) -> ImageClassifier | None:
    """The classifier as evaluate.py and predict.py read it; None for a network that only others can read."""
    try:
        return load_classifier(path)[0]
    except UserError as error:
        if not isinstance(error.__cause__, UnknownOperator):
            raise
        log.info("note      evaluate.py and predict.py do not read it: %s. Format onnx is read", error.__cause__)
        return None


def _record(
    settings: ExportSettings, source: Source, how: Format, comparison: Comparison, invocation: Invocation
) -> dict[str, Any]:
    made = provenance(invocation)
    made["versions"] |= {package: version(package) for package in how.packages}
    return {
        "format": settings.format,
        "ckpt": settings.ckpt,
        "name": source.settings["name"],
        "seed": source.settings["seed"],
        "weights_type": source.weights_type,
        "temperature": source.temperature,
        "check": asdict(comparison),
        **made,
    }


def _records(folder: Path) -> dict[str, Any]:
    """What export.json says of the files beside it; empty where there is none that can be read."""
    try:
        records = json.loads(read_text(folder / RECORD))
    except (OSError, ValueError, RecursionError):
        return {}
    return records if isinstance(records, dict) else {}
