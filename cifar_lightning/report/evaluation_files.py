"""The pictures and the report of an evaluation, as files. They are only for show: one that fails is a warning."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.data import spread
from cifar_lightning.report.evaluation import Evaluated, Gather
from cifar_lightning.report.figures import confusion_matrix, only_for_show, prediction_grid, to_png
from cifar_lightning.report.tables import relative

log = logging.getLogger(__name__)

NUM_SAMPLES = 32
"""Images in the picture of sample predictions."""

REPORT = "report.html"


def draw_pictures(folder: Path, result: Evaluated, gather: Gather) -> None:
    """Draw the confusion matrix and sample predictions into a folder."""
    chosen = spread(result.plain.num_images, NUM_SAMPLES)
    pictures: dict[str, Callable[[], Any]] = {
        "confusion.png": lambda: confusion_matrix(result.plain.confusion, result.classes),
        "samples.png": lambda: prediction_grid(
            gather(chosen),
            result.targets[chosen],
            result.plain.preds[chosen],
            result.classes,
            confidence=result.shown.confidence[chosen],
        ),
    }
    for name, draw in pictures.items():
        with only_for_show(name):
            write_durably(folder / name, to_png(draw()))
            log.info("wrote     %s", relative(folder / name))


def draw_report(folder: Path, result: Evaluated, metrics: Mapping[str, Any], gather: Gather, **origin: Any) -> None:
    """Write report.html into a folder; see ``evaluation_page.evaluation_page``."""
    with only_for_show(REPORT):
        from cifar_lightning.report.evaluation_page import evaluation_page  # with matplotlib and jinja2

        page = evaluation_page(result, metrics, gather, **origin)
        write_durably(folder / REPORT, page.encode("utf-8", "backslashreplace"))
        log.info("wrote     %s", relative(folder / REPORT))
