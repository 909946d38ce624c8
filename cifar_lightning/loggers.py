"""TensorBoard, with an HPARAMS tab that compares all runs under ``logs/``."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams


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

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Start the session with hyper-parameters: a flat dictionary of str, int, float, bool; None is left out."""
        as_text = {key: str(value) if isinstance(value, bool) else value for key, value in params.items()}
        _, session_start, self._session_end = hparams(as_text, {})
        self.experiment._get_file_writer().add_summary(session_start)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch: a curve that says nothing, and the first column of the HPARAMS tab.
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def end_session(self) -> None:
        """Mark the session as finished and close the file."""
        if self._session_end is not None:
            self.experiment._get_file_writer().add_summary(self._session_end)
        self.experiment.close()

    def save(self) -> None:
        self.experiment.flush()  # without Lightning's hparams.yaml: .hydra/ has the whole config

    def finalize(self, status: str) -> None:
        self.save()  # without closing: fit and test of a run share one file
