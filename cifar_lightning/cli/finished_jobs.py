"""Jobs of a sweep that an earlier command has finished: found by their keys, neither composed nor launched."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from cifar_lightning.report.console import say
from cifar_lightning.runs.jobkeys import JobKeys, common_key, job_key
from cifar_lightning.runs.metrics_file import finished_metrics


class FinishedJobs(Launcher):
    """Finds the finished jobs of a sweep, and has the sweeper's own launcher launch the rest.

    Args:
        returned: Name of the metric that a job returns.
        note: Called with number, overrides and result of each job that is not launched.
    """

    def __init__(self, returned: str, note: Callable[[int, Sequence[str], float | None], None]) -> None:
        self._returned, self._note = returned, note
        self._common: str | None = None
        self._found: dict[int, tuple[Path, float | None]] = {}

    def prepare(self, sweeper: Sweeper) -> None:
        """Read the keys in a sweep's folder, and take the place of the sweeper's launcher."""
        assert sweeper.config is not None
        assert sweeper.launcher is not None
        self._common = common_key(sweeper.config.hydra)
        self._keys = JobKeys(Path(os.path.abspath(sweeper.config.hydra.sweep.dir)))
        self._launcher, sweeper.launcher = sweeper.launcher, self

    def find(self, overrides: Sequence[str], number: int) -> bool:
        """Whether a job is known to be finished; where that is not known, it is composed."""
        key = job_key(self._common, overrides)
        folder = None if key is None else self._keys.folder_of(key, str(number))
        metrics = None if folder is None else finished_metrics(folder)
        if folder is not None and metrics is not None:
            result = metrics.get(self._returned)
            if isinstance(result, float | None):  # of what else may be there a running job complains
                self._found[number] = folder, result
        return number in self._found

    def results_of(self, jobs: Mapping[int, Sequence[str]]) -> dict[int, float | None]:
        """Results of those jobs, by number, that are known to be finished by now."""
        self._keys = JobKeys(self._keys.folder)
        return {number: self._found[number][1] for number, overrides in jobs.items() if self.find(overrides, number)}

    def setup(self, **options: Any) -> None:
        raise NotImplementedError  # the sweeper has set up its own

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch a batch from the first job to the last that is not finished: at once, as some run side by side."""
        jobs = dict(enumerate(job_overrides, initial_job_idx))
        rest = [number for number in jobs if number not in self._found]
        launched = range(rest[0], rest[-1] + 1) if rest else range(0)
        returned = {number: self._leave_out(number, jobs[number]) for number in jobs if number not in launched}
        if rest:
            batch = [jobs[number] for number in launched]
            returned |= zip(launched, self._launcher.launch(batch, initial_job_idx=rest[0]), strict=True)
        return [returned[number] for number in jobs]

    def _leave_out(self, number: int, overrides: Sequence[str]) -> JobReturn:
        folder, result = self._found[number]
        say(f"{folder} is done already")
        self._note(number, overrides, result)
        job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        job.return_value = result
        return job
