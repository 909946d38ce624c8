"""What every entry has in common: Hydra runs its task, and each error becomes one line and an exit code.

0 done, 1 failed while running, 2 bad configuration or input, 130 stopped by Ctrl-C, 143 by another signal.
``HYDRA_FULL_ERROR=1`` shows the traceback as well.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.cli.command_line import CommandLine, read_command_line, refuse_surroundings
from cifar_lightning.cli.did_you_mean import explained
from cifar_lightning.cli.help import help_page
from cifar_lightning.cli.launching import LauncherLost, runs_here, take_own_launchers
from cifar_lightning.cli.remote_job import in_own_process
from cifar_lightning.cli.seeds import with_seeds
from cifar_lightning.cli.sweeping import (
    AfterSweep,
    CheckJob,
    Job,
    Sweep,
    checked_jobs,
    current_job,
    end_sweep,
    error_line,
    optimises,
)
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.overrides import values
from cifar_lightning.config.schema import CONF, keys_of
from cifar_lightning.errors import SweepError, UserError
from cifar_lightning.report.console import say, screens
from cifar_lightning.runs.signals import Stopped, signals

log = logging.getLogger(__name__)


Task = Callable[[DictConfig, Invocation], float | None]
"""Takes the composed config and what is known of the command line; returns what a sweeper may optimise."""

Prelude = Callable[[list[str], list[Path]], list[str]]
"""Takes the typed overrides and the folders of ``--config-dir``; gives them with others before them."""


def run(
    task: Task,
    *,
    config_name: str,
    prelude: Prelude,
    check_job: CheckJob | None = None,
    returned: str | None = None,
    after_sweep: AfterSweep | None = None,
    sweeps: bool = True,
    ranks_of: str | None = None,
) -> NoReturn:
    """Run a task as configured by conf/ and the command line, then exit.

    Args:
        task: Called with the composed config, whose ``output_dir`` is the run's folder, and the invocation; what it
            returns goes to Hydra's sweeper.
        config_name: Name of the primary config in conf/.
        prelude: May put overrides before those of the command line; see ``cli.overrides_from_run``. In a sweep it does
            so for each job.
        check_job: Called for each job of a sweep, before the first one runs, with its config and the folder that is for
            it; may refuse the sweep by raising ``SweepError``. A sweeper that optimises chooses its jobs on the
            way.
        returned: Name of the metric that the task returns. With it, jobs of a sweep that are known to be finished are
            neither composed nor checked nor run; see ``runs.jobkeys``.
        after_sweep: Called in this process once the jobs of a sweep have run and are listed, wherever they ran. The
            sweep is done then: an error in it is a warning.
        sweeps: Whether several jobs may be asked for.
        ranks_of: Name of the run's folder, without its time, where torchrun or srun has started several processes for
            one run; None where they may not.
    """
    with screens():
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(help_page(str(sys.modules[task.__module__].__doc__), config_name, sweeps=sweeps))
            sys.exit(0)
        command = _Command(config_name, prelude, Sweep(check_job, returned, after_sweep) if sweeps else None, ranks_of)
        sys.exit(command.run(task))


class _Command:
    """A command line: what is typed, and what has become of its jobs."""

    def __init__(self, config_name: str, prelude: Prelude, sweep: Sweep | None, ranks_of: str | None) -> None:
        self._config_name, self._prelude, self._sweep, self._ranks_of = config_name, prelude, sweep, ranks_of
        self._overrides: list[str] = []
        self._config_dirs: list[Path] = []
        self._jobs: list[Job] = []

    def run(self, task: Task) -> int:
        """Run the task as the command line says; gives the exit code."""
        wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions on, instead of printing them over several lines
        has_run = False  # whether nobody has stopped it
        try:
            with signals, ExitStack() as group:
                self._launch(task, group, wants_traceback=wants_traceback)
            status, has_run = 0, True
        except SystemExit as ended:  # report() has said why
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Stopped as stopped:
            if _speaks():
                say(f"{stopped}{stopped.advice}", "stderr")
            status = stopped.exit_code
        except Exception as error:
            if wants_traceback:
                raise
            has_run = True  # the jobs of some launchers are in other processes
            status = 1
            if isinstance(error, LauncherLost) or not any(entry.failed for entry in self._jobs):
                sweeps = self._sweep is not None
                told = explained(error, self._overrides, self._config_name, self._config_dirs, sweeps=sweeps)
                status = report(told)
        for entry in sorted(self._jobs, key=lambda job: job.number):
            say(f"job {entry.number}  {entry.overrides}  {entry.outcome}", "stderr" if entry.failed else "stdout")
        if self._sweep is not None and has_run:
            end_sweep(self._sweep)
        return status

    def _launch(self, task: Task, group: ExitStack, *, wants_traceback: bool) -> None:
        """Have Hydra run the task, once or for each job; ``group`` is left when the processes of a run part."""
        is_rank = refuse_surroundings(may_be_rank=self._ranks_of is not None)
        typed = read_command_line(sys.argv[1:], self._config_name)
        self._config_dirs[:] = typed.config_dirs
        placing = self._read(typed, group, is_rank=is_rank)
        sys.argv[1:] = [
            *self._overrides,
            *placing,
            *typed.flags,
        ]  # --info would take an override after it for its value
        job = _Job(
            task=task,
            prelude=self._prelude,
            config_dirs=self._config_dirs,
            jobs=self._jobs,
            wants_traceback=wants_traceback,
            typed=list(sys.argv),
            makes_folder=not typed.is_sweep and _is_new_folder(self._overrides),
        )
        take_own_launchers()
        with nullcontext() if self._sweep is None or not typed.is_sweep else checked_jobs(self._sweep, self._jobs):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=self._config_name)(job.run)()

    def _read(self, typed: CommandLine, group: ExitStack, *, is_rank: bool) -> list[str]:
        """Make the overrides out of what is typed; gives flags by which the processes of one run share its folder."""
        self._overrides = typed.overrides
        if "seed" in keys_of(self._config_name):
            self._overrides = with_seeds(self._overrides, is_sweep=typed.is_sweep)
        if typed.is_sweep and self._sweep is None:
            raise UserError(f"-m: {self._config_name}.py does one thing at a time; leave out -m, or start several")
        if is_rank and self._ranks_of is not None:
            if typed.is_sweep:
                raise UserError(
                    "-m: torchrun and srun start the processes of one run; start the sweep without them, as "
                    "trainer.devices=N starts the processes of each job"
                )
            shared = _as_rank(self._overrides, self._config_dirs, self._prelude, self._ranks_of)
            self._overrides, placing = group.enter_context(shared)
            return placing
        if typed.runs and not typed.is_sweep:
            self._overrides = self._prelude(self._overrides, self._config_dirs)
        return []


@contextmanager
def _as_rank(
    overrides: list[str], config_dirs: list[Path], prelude: Prelude, folder: str
) -> Iterator[tuple[list[str], list[str]]]:
    """Be one of the processes of a run: gives the overrides of the first one, and flags by which all share its folder.

    Its log file is that of all.
    """
    from cifar_lightning import ranks  # late, as they import torch
    from cifar_lightning.config.schema import run_folder
    from cifar_lightning.engine.launch import joined

    def make() -> tuple[list[str], list[str]]:
        made = prelude(overrides, config_dirs)
        is_placed = {"output_dir", "hydra.run.dir"} & values(made).keys()
        return made, [] if is_placed else [f"hydra.run.dir={run_folder(folder)}"]

    with joined():
        shared, placing = ranks.from_first(make)
        silent = [] if ranks.is_first() else ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        yield shared, [*placing, *silent]


def _speaks(error: BaseException | None = None) -> bool:
    """Whether this process says why it ends: of the processes of a run the first, or one with an error of its own."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"} & os.environ.keys():
        return True
    from cifar_lightning.ranks import place_in  # late, as it imports torch

    place = place_in(os.environ)
    return place is None or place.rank == 0 or not (error is None or isinstance(error, UserError))


def _is_new_folder(overrides: list[str]) -> bool:
    """Whether the run's folder is not there yet; one that refuses to run is then removed again, if it is empty."""
    given = values(overrides)
    return "hydra.run.dir" not in given and not os.path.lexists(str(given.get("output_dir", given.get("study", ""))))


@dataclass(kw_only=True)
class _Job:
    """The task as Hydra calls it, here or in a process that a launcher has started, into which this is pickled.

    Attributes:
        task: See ``run``.
        prelude: See ``run``.
        config_dirs: Folders of ``--config-dir``.
        jobs: Those of a sweep that have ended in this process.
        wants_traceback: Whether errors are raised as they are.
        typed: The command line, as other processes need it.
        makes_folder: Whether Hydra makes the run's folder.
    """

    task: Task
    prelude: Prelude
    config_dirs: list[Path]
    jobs: list[Job]
    wants_traceback: bool
    typed: list[str]
    makes_folder: bool

    def run(self, cfg: DictConfig) -> float | None:
        """Run the task in the folder that Hydra chose."""
        try:
            if runs_here(HydraConfig.get()):
                return self._run(cfg)
            result = in_own_process(lambda: self._run(cfg), shows_traceback=self.wants_traceback)
            current_job(self.typed, result).tell_end()
            return result
        except SystemExit:
            folder = HydraConfig.get().runtime.output_dir
            if self.makes_folder and folder != os.getcwd():  # which it is for serve.py, which writes nothing
                with suppress(OSError):  # of a folder that holds something
                    os.rmdir(folder)
            raise

    def _run(self, cfg: DictConfig) -> float | None:
        """Run the task; in a sweep, note how it went."""
        invocation = _invocation()
        try:
            result = self.task(self._placed(cfg, invocation), invocation)
        except Exception as error:
            if self.wants_traceback:
                raise
            if not isinstance(error, UserError):
                _log_traceback(error)
            if isinstance(error, SweepError) or not invocation.is_sweep:
                # Not handed to Hydra, which would write a line of its own first.
                raise SystemExit(report(error)) from error
            self.jobs.append(job := current_job(self.typed, error))
            job.tell_end()
            raise  # to the sweeper, which runs the other jobs all the same
        if invocation.is_sweep:
            self.jobs.append(current_job(self.typed, result))
        return result

    def _placed(self, cfg: DictConfig, invocation: Invocation) -> DictConfig:
        """The config of a job with its folder: Hydra's, unless the prelude, which a sweep puts off, chooses one."""
        config = HydraConfig.get()
        folder = config.runtime.output_dir
        typed = list(invocation.overrides)
        if invocation.is_sweep and (overrides := self.prelude(typed, self.config_dirs)) != typed:
            own = {override.partition("=")[0] for override in overrides if override not in typed}
            try:
                cfg = hydra.compose(config.job.config_name, overrides)
            except Exception as error:
                raise explained(error, overrides, str(config.job.config_name)) from error
            folder = cfg.output_dir if "output_dir" in own else folder
        if "output_dir" in cfg:  # serve.py has no folder
            cfg.output_dir = folder  # in the copy for this job alone
        return cfg


def _invocation() -> Invocation:
    """What the library may know of the command line, read off Hydra while a job runs."""
    from cifar_lightning.runs.jobkeys import common_key, job_key  # late, as it imports torch

    config = HydraConfig.get()
    is_sweep = config.mode == RunMode.MULTIRUN
    sources = config.runtime.config_sources
    flags = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    flags += [override for override in config.overrides.hydra if override.startswith("hydra.searchpath=")]
    return Invocation(
        overrides=tuple(config.overrides.task),
        hydra_yaml=_hydra_yaml,
        is_sweep=is_sweep,
        job_key=job_key(common_key(config), config.overrides.task) if is_sweep else None,
        flags=tuple(flags),
        sweeper_optimises=is_sweep and optimises(config),
    )


def _hydra_yaml() -> str:
    return OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.get()}))


def report(error: BaseException) -> int:
    """Write an error as one line; return the exit code."""
    if _speaks(error):
        say(f"error: {error_line(error)}", "stderr")
    return 2 if isinstance(error, UserError) else 1


def _log_traceback(error: BaseException) -> None:
    """Keep the traceback in the run's log file, off the console."""
    text = "".join(traceback.format_exception(error))
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)
