"""``predict(cfg)``: the function behind predict.py. A checkpoint and pictures are all it needs."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.cells import cell_len

from cifar_lightning.calibration import in_words
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.inference import resolve_prediction
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.schema import PredictSettings
from cifar_lightning.data.decode_pool import delayed_progress
from cifar_lightning.data.named_files import named_files
from cifar_lightning.data.scan import Problems
from cifar_lightning.device import device_name, keeping_freed_memory
from cifar_lightning.errors import RunError, UserError, counted, printable, shortened
from cifar_lightning.predictor import Prediction, Predictor
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.figures import MAX_GRID, image_grid, only_for_show, to_png
from cifar_lightning.report.predictions import writing
from cifar_lightning.report.tables import Justify, log_table, relative
from cifar_lightning.runs.evaluations import record_settings
from cifar_lightning.runs.folder import claimed, refuse_used, results_folder
from cifar_lightning.runs.metrics_file import provenance

log = logging.getLogger(__name__)

NUM_SHOWN = 20
"""Pictures in the table on the console."""

_MAX_PATH = 40
"""Most columns of a path in the table; names differ at the end."""

_MAX_FILES = 2_000
_MAX_BYTES = 256_000_000
"""Files, and bytes of their pixels, that are in memory at once, at most."""

_SIDE_SHOWN = 128
"""Least height and width of a picture on the sheet, in pixels: larger than what most networks see."""


def predict(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> dict[str, Any]:
    """Classify pictures by a checkpoint.

    Writes predictions.csv and predictions.json into ``output_dir``, shows the first predictions in a table and, where
    ``show`` is set, draws a sheet of the first pictures.

    Args:
        cfg: As ``config.schema.compose(..., config_name="predict")`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Returns:
        The folder and the numbers of pictures: ``output_dir``, ``num_images``.

    Raises:
        UserError: If the checkpoint cannot be used, or nothing is there under a name.
        RunError: If files cannot be read as images, after all others have been predicted and written.
    """
    settings = resolve_prediction(cfg)
    with on_screen():
        return _predict(settings, invocation)


def _predict(settings: PredictSettings, invocation: Invocation) -> dict[str, Any]:
    try:
        files, problems = named_files(settings.images)
        predictor = Predictor(settings.ckpt, accelerator=settings.accelerator, precision=settings.precision)
        side = predictor.side
    except ValueError as error:
        raise UserError(str(error)) from error
    folder = Path(settings.output_dir or results_folder(settings.ckpt, "predict"))
    refuse_used(folder, is_for_run=False)
    tta = predictor.tta if settings.tta is None else settings.tta
    asked = {
        "ckpt": str(Path(settings.ckpt).absolute()),
        "images": list(map(os.path.abspath, settings.images)),
        "tta": tta,
    }
    asked["precision"] = predictor.precision
    about = {
        "name": predictor.settings["name"],
        "ckpt": settings.ckpt,
        "classes": list(predictor.classes),
        "tta": tta,
        "device": device_name(predictor.device),
        "precision": predictor.precision,
        "calibrated": predictor.temperature is not None,
        "temperature": predictor.temperature,
        **provenance(invocation),
    }
    topk = min(settings.topk, len(predictor.classes))
    first: list[tuple[str, Prediction | None]] = []
    with claimed(folder), keeping_freed_memory(predictor.device):
        record_settings(folder, asked, result="predictions.json")
        own = predictor.settings
        log.info("model     %s, seed %s, from %s", own["model"]["name"], own["seed"], settings.ckpt)
        log.info("pictures  %s, read at %dx%d", counted(len(files), "file"), side, side)
        log.info("device    %s, precision %s", about["device"], predictor.precision)
        log.info("note      probabilities are %s", in_words(predictor.temperature))
        options = {"classes": predictor.classes, "topk": topk, "save_probs": settings.save_probs}
        with writing(folder, about, **options) as written:
            for file, prediction in _predictions(predictor, files, problems, topk=topk, tta=tta):
                if prediction is None:
                    written.add_problem(file, problems[file])
                else:
                    written.add(file, prediction)
                if len(first) < MAX_GRID:
                    first.append((file, prediction))
        _report(folder, first, problems, num_files=len(files), topk=topk)
        readable = [(file, prediction) for file, prediction in first if prediction is not None]
        if settings.show and readable:
            _draw(folder, predictor, readable)
    if problems:
        raise RunError(_unreadable(files, problems, folder))
    return {"output_dir": str(folder), "num_images": len(files)}


def _predictions(
    predictor: Predictor, files: Sequence[str], problems: Problems, *, topk: int, tta: int
) -> Iterator[tuple[str, Prediction | None]]:
    """Each file with its prediction; None for one that is no image, which is added to ``problems``."""
    bytes_per_file = 3 * predictor.side**2
    num = max(1, min(_MAX_FILES, _MAX_BYTES // bytes_per_file))
    with delayed_progress("predicting", len(files)) as show:
        for start in range(0, len(files), num):
            block = files[start : start + num]
            readable = [file for file in block if file not in problems]
            pixels, faults = predictor.read(readable, show=partial(_shown, show, start))
            problems |= {readable[index]: reason for index, reason in faults.items()}
            predictions = predictor.top(predictor.probs(pixels, tta=tta), topk=topk)
            by_file = dict(zip(readable, predictions, strict=True))
            for file in block:
                yield file, None if file in problems else by_file[file]
            show(start + len(block))


def _shown(show: Callable[[int], None], before: int, done: int) -> None:
    show(before + done)


def _report(
    folder: Path, first: Sequence[tuple[str, Prediction | None]], problems: Problems, *, num_files: int, topk: int
) -> None:
    """Show the first predictions, and say where all are."""
    rows = []
    for file, prediction in first[:NUM_SHOWN]:
        if prediction is None:
            rows.append([_end(printable(file)), "not an image", "", problems[file]])
        else:
            others = ", ".join(f"{label} {_percent(prob)}" for label, prob in prediction.top[1:])
            rows.append([_end(printable(file)), prediction.label, _percent(prediction.prob), others])
    columns: dict[str, Justify] = {"file": "left", "class": "left", "probability": "right"}
    if any(row[3] for row in rows):
        is_any_broken = any(prediction is None for _, prediction in first[:NUM_SHOWN])
        others = "runners-up, or the problem" if is_any_broken else "runners-up"
        columns[others if topk > 1 else "problem"] = "left"
    title = counted(num_files, "picture")
    if num_files > NUM_SHOWN:
        title = f"The first {NUM_SHOWN} of {title}"
    log_table(title, [row[: len(columns)] for row in rows], columns=columns, whole=["file"])
    for name in ("predictions.csv", "predictions.json"):
        log.info("wrote     %s", relative(folder / name))


def _end(path: str) -> str:
    """The end of a path, where the name of the file is, in as many columns as a table has for it."""
    if cell_len(path) <= _MAX_PATH:
        return path
    end = path[1 - _MAX_PATH :]
    while cell_len(end) >= _MAX_PATH:  # some letters take two columns
        end = end[1:]
    return f"…{end}"


def _percent(prob: float) -> str:
    return f"{100 * prob:.1f} %"


def _draw(folder: Path, predictor: Predictor, shown: Sequence[tuple[str, Prediction]]) -> None:
    """Draw the first pictures under their classes."""
    with only_for_show("predictions.png"):
        pixels, _ = predictor.read([file for file, _ in shown], side=max(_SIDE_SHOWN, predictor.side))
        titles = [f"{prediction.label} {prediction.prob:.0%}\n{Path(file).name}" for file, prediction in shown]
        write_durably(folder / "predictions.png", to_png(image_grid(pixels, titles)))
        log.info("wrote     %s", relative(folder / "predictions.png"))


def _unreadable(files: Sequence[str], problems: Problems, folder: Path) -> str:
    names = [file for file in files if file in problems]
    rest = "all others are predicted" if len(names) < len(files) else "nothing is left to predict"
    reasons = "; ".join(shortened(printable(f"{file}: {problems[file]}"), 200) for file in names[:3])
    return (
        f"{len(names):,} of {len(files):,} files cannot be read as images, {rest}: {reasons}"
        f"{' ...' * (len(names) > 3)} ({relative(folder / 'predictions.csv')} names each)"
    )
