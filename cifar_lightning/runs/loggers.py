"""TensorBoard, with an HPARAMS tab that compares all runs under ``logs/``; and metrics.csv."""

import csv
import inspect
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cifar_lightning.checkpoint.write import cannot_write, write_durably
from cifar_lightning.config.resolve import Settings, as_plain
from cifar_lightning.errors import RunError, one_line, printable
from cifar_lightning.patches import appending_writer, silent_event_writer

log = logging.getLogger(__name__)

FIRST_COLUMNS = {"test/acc": "hp/test_acc", "test/acc_tta": "hp/test_acc_tta", "val/acc": "hp/val_acc"}
"""Metrics that TensorBoard gets a second time, by names that come first in the alphabet."""


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger, writing into the run folder itself.

    TensorBoard takes the columns of its HPARAMS tab from the first experiment summary it finds, so that a run with
    other hyper-parameters or metrics would lack its columns. Without such a summary it makes them the union over all
    runs; so a session's start and end are written, and no summary. The metrics are the run's scalars.

    Args:
        save_dir: The run folder.
    """

    def __init__(self, *, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        self._session_end: Any = None
        self._purge_step: int | None = None
        self._writer: SummaryWriter | None = None

    @property
    def experiment(self) -> SummaryWriter:
        if self._writer is None:
            with silent_event_writer(), self._written():
                self._writer = SummaryWriter(self.log_dir, purge_step=self._purge_step)
        return self._writer

    def _written(self) -> AbstractContextManager[None]:
        return _written(Path(self.log_dir, "events.out.tfevents.*"))

    def resume(self, *, after_step: int) -> None:
        """Continue the curves of an earlier process; what it wrote after a step is not shown any more.

        TensorBoard reads a run's files in the order of their names, which begin with the time: where the clock is not
        past that of an earlier file, that file gets a name that stands before the next one's.

        Args:
            after_step: That step; -1 for a run that starts over.
        """
        self._purge_step = after_step + 1
        prefix = "events.out.tfevents."
        now = f"{prefix}{int(time.time()):010d}."
        with self._written():
            for path in Path(self.log_dir).glob(f"{prefix}*"):
                if path.name >= now and path.is_file():
                    path.rename(path.with_name(f"{now}-{path.name.removeprefix(prefix)}"))

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Start the session with hyper-parameters: a flat dictionary of str, int, float, bool; None is left out."""
        as_text = {key: str(value) if isinstance(value, bool) else value for key, value in params.items()}
        _, session_start, self._session_end = hparams(as_text, {})
        if not self._purge_step:
            with self._written():
                self.experiment.file_writer.add_summary(session_start)  # type: ignore[attr-defined]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch: a curve that says nothing, and the first column of the HPARAMS tab.
        first = {FIRST_COLUMNS[name]: value for name, value in metrics.items() if name in FIRST_COLUMNS}
        with self._written():
            super().log_metrics({k: value for k, value in {**metrics, **first}.items() if k != "epoch"}, step)

    def end_session(self) -> None:
        """Mark the session as finished and close the file."""
        with self._written():
            if self._session_end is not None:
                self.experiment.file_writer.add_summary(self._session_end)  # type: ignore[attr-defined]
            self.experiment.close()

    def save(self) -> None:
        with self._written():
            self.experiment.flush()  # without Lightning's hparams.yaml: .hydra/ has the whole config

    def finalize(self, status: str) -> None:
        self.save()  # without closing: fit and test of a run share one file


class CSV(CSVLogger):
    """Lightning's CSV logger, writing metrics.csv into the run folder itself; a resumed run appends to it.

    Args:
        save_dir: The run folder.
    """

    def __init__(self, *, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    def resume(self, *, after_step: int) -> None:
        """Continue the file of an earlier process, without what it wrote after that step."""
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if not path.exists():
            return
        try:
            text = path.read_bytes().decode()
            whole = text[: text.rfind("\n") + 1]  # a kill may have torn the last line
            reader = csv.DictReader(StringIO(whole, newline=""))
            rows = [row for row in reader if (row["step"] or "").isdigit() and int(row["step"]) <= after_step]
            _write_rows(path, reader.fieldnames or [], rows)
        except (ValueError, KeyError, csv.Error) as error:
            aside = path.with_suffix(".damaged.csv")
            path.replace(aside)
            log.warning("%s cannot be continued (%s): it is now %s", path, one_line(error), aside.name)

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = appending_writer(self.log_dir, _write_rows)
        return self._experiment

    def save(self) -> None:
        with _written(Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE):
            super().save()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Around what writes curves: a full disk, or a folder that is gone, is told with the file's name.

    Raises:
        RunError: If the system refuses.
    """
    try:
        yield
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error


def _write_rows(path: Path, fieldnames: Sequence[str], rows: list[dict[str, str]]) -> None:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames)
    writer.writeheader()
    writer.writerows(rows)
    write_durably(path, text.getvalue().encode())


def hyper_parameters(settings: Settings) -> dict[str, Any]:
    """What the HPARAMS tab compares: the plain values; of the Trainer's those that are not Lightning's own."""
    config = as_plain(settings)
    defaults = inspect.signature(L.Trainer.__init__).parameters
    differs = {
        key: value for key, value in config["trainer"].items() if key in defaults and value != defaults[key].default
    }
    return _flattened({**config, "trainer": differs})


_NO_HYPER_PARAMETERS = (
    "classes",
    "fingerprint",
    "logger",
    "callbacks",
    "checkpoint",
    "output_dir",
    "data.root",
    "data.urls",
    "data.dataset",
    "data.options",
)


def _flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values; of a class only its name is shown, in place of its ``_target_``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if prefix + key in _NO_HYPER_PARAMETERS or value is None:
            continue
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{key}.")
        elif key == "_target_":
            flat[prefix.removesuffix(".")] = value.rpartition(".")[2]
        elif not key.startswith("_"):
            flat[prefix + key] = value if isinstance(value, int | float) else printable(str(value))
    return flat
