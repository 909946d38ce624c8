"""The console: who shows what the project logs, and what is kept off it."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Console(logging.StreamHandler[TextIO]):
    """Standard output, until its reader is gone, as with ``| head``: the run continues, and its log file holds all."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # or Python would fail at its end, with what it still holds
        os.close(nowhere)


@contextmanager
def on_screen() -> Iterator[None]:
    """Show what the project logs, also where nobody has set logging up, as in a notebook; all is put back at the end.

    Lightning's own lines of the same facts are left out, and warnings that no user could act on.
    """
    project, lightning = logging.getLogger("cifar_lightning"), logging.getLogger("lightning.pytorch")
    levels = project.level, lightning.level
    handler = None
    if not project.hasHandlers():
        handler = Console(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        project.addHandler(handler)
    if not project.isEnabledFor(logging.INFO):
        project.setLevel(logging.INFO)
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Of Lightning 2.6 over torch 2.14 and later.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
            # True of Lightning's own logging; TrainingCurves has a point at the end of each epoch too.
            warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
            yield
    finally:
        project.setLevel(levels[0])
        lightning.setLevel(levels[1])
        if handler is not None:
            project.removeHandler(handler)
