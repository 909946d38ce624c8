"""A study: trials in a journal, each claimed by one process, which holds a lock for as long as it lives."""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.errors import RunError, UserError, one_line
from cifar_lightning.files import own_folder
from cifar_lightning.locks import InUse, held
from cifar_lightning.runs.signals import signals
from cifar_lightning.search.journal import open_journal
from cifar_lightning.search.space import Space

NAME = "search"
"""Optuna's name of the study in its journal."""

_LOCK = ".cifar-lightning.study.lock"
_LOCKS = ".trials"
"""Folder of the locks of trials."""

_MAX_DEATHS = 3
"""A trial whose process is ended from outside so many times is given up."""

DEATHS, REASON, DATA = "deaths", "reason", "data"
"""Names of what is noted beside a trial's values."""


class Unwritable(RunError):
    """Nothing can be written into a study: not the fault of a trial, which goes on once that can be done again."""


def unwritable(folder: Path, error: Exception, cause: OSError) -> Unwritable:
    """What is raised where a study's folder cannot be written.

    Args:
        folder: Of the study.
        error: What has been raised.
        cause: The system's answer behind it, or the same.
    """
    fix = "make room" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
    why = one_line(error).removesuffix(". Make room first")
    return Unwritable(f"study={folder}: {why}; {fix}, then the same command continues")


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on.

    Attributes:
        number: Of the trial, from 0, and the name of its folder.
        texts: Its values as they are typed, by key.
        is_resumed: Whether another process has begun it.
    """

    number: int
    texts: Mapping[str, str]
    is_resumed: bool


class Study:
    """The trials of a search.

    Whatever counts trials and claims one is done under a lock of the study, so the number of trials is exact with any
    number of processes. A trial is running while a process holds its lock. The system frees that when the process ends,
    however it ends; then another one takes the trial over.

    Args:
        folder: Of the study.
        space: What is searched.
        sampler: ``tpe``, ``random`` or ``grid``.
        sampler_seed: Of the sampler.
        pruner: ``median``, ``halving`` or ``none``.

    Raises:
        UserError: If the folder's journal cannot be used.
        Unwritable: If it cannot be written, such as on a full disk; so do all methods that write.
    """

    def __init__(self, folder: Path, space: Space, *, sampler: str, sampler_seed: int, pruner: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder = folder
        self._space, self._sampler, self._sampler_seed = space, sampler, sampler_seed
        self._storage = open_journal(folder)
        with self._locked():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(pruner),
            )
            self._study_id = self._storage.get_study_id_from_name(NAME)

    @property
    def optuna(self) -> optuna.Study:
        """The study as Optuna has it."""
        return self._study

    def trials(self) -> list[FrozenTrial]:
        """All trials that have been started, in their order."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.WAITING]

    def claim(
        self, stack: ExitStack, n_trials: int, may_ask: Callable[[Sequence[FrozenTrial]], bool] = lambda trials: True
    ) -> Claim | None:
        """A trial to work on: one that its process has left, else a new one; None where there is none now.

        Args:
            stack: Gets the lock of the trial.
            n_trials: Most trials of the study.
            may_ask: Called with all trials before a new one is begun; whether that is to be. What it raises is raised.

        Raises:
            UserError: If a trial in the journal has values that are not those of the space.
        """
        with self._locked():
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and self._hold(stack, trial.number):
                    return Claim(trial.number, self._completed(trial), is_resumed=True)
            if len(trials) >= n_trials or not may_ask(trials):
                return None
            self._study.sampler = self._sampler_for(len(trials))
            asked = self._study.ask(self._distributions())
            self._hold(stack, asked.number)
            return Claim(asked.number, self._texts(asked.params, asked.number), is_resumed=False)

    def is_done(self, n_trials: int) -> bool:
        """Whether there are as many trials as wanted, and all have ended."""
        trials = self.trials()
        return len(trials) >= n_trials and all(trial.state != TrialState.RUNNING for trial in trials)

    def report(self, number: int, step: int, value: float) -> bool:
        """Note a value on the way.

        Args:
            number: Of the trial.
            step: How far it is.
            value: The accuracy there.

        Returns:
            Whether the trial should be ended, as it is not one of the best.
        """
        with self._written():
            trial_id = self._id(number)
            if step not in self._storage.get_trial(trial_id).intermediate_values:  # a resumed run may report it again
                self._storage.set_trial_intermediate_value(trial_id, step, value)
            return bool(self._study.pruner.prune(self._study, self._storage.get_trial(trial_id)))

    def finish(self, number: int, state: TrialState, *, value: float | None = None, reason: str | None = None) -> None:
        """Note how a trial has ended.

        Args:
            number: Of the trial.
            state: COMPLETE, PRUNED or FAIL.
            value: Its accuracy, where it is complete.
            reason: Why it is not.
        """
        with self._locked():
            if reason is not None:
                self._storage.set_trial_user_attr(self._id(number), REASON, reason)
            self._study.tell(number, value, state=state)

    @property
    def knows_data(self) -> bool:
        """Whether a trial has said on which images it was trained and validated."""
        return DATA in self._study.user_attrs

    def check_data(self, fingerprint: Mapping[str, str]) -> bool:
        """Whether a trial was trained and validated on the same images as those before it.

        Args:
            fingerprint: See ``ImageDataModule.fingerprint``.
        """
        with self._locked():
            own = [fingerprint.get("train"), fingerprint.get("val")]
            known = self._study.user_attrs.get(DATA)
            if known is None:
                self._study.set_user_attr(DATA, own)
            return known in (None, own)

    def note_death(self, pid: int, how: str) -> bool:
        """Note that a worker was ended from outside; whether it had a trial.

        A trial to which that happens again and again, as to one that needs too much memory, fails.

        Args:
            pid: Of the worker.
            how: What has ended it, in words.
        """
        with self._locked(), ExitStack() as stack:
            for trial in self.trials():
                is_own = trial.state == TrialState.RUNNING and self._signed(trial.number) == str(pid)
                if not is_own or not self._hold(stack, trial.number):
                    continue
                deaths = trial.user_attrs.get(DEATHS, 0) + 1
                self._storage.set_trial_user_attr(self._id(trial.number), DEATHS, deaths)
                if deaths >= _MAX_DEATHS:
                    reason = f"its process was ended by {how} {deaths} times; is the memory enough?"
                    self._storage.set_trial_user_attr(self._id(trial.number), REASON, reason)
                    self._study.tell(trial.number, state=TrialState.FAIL)
                return True
        return False

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._written(), held(self.folder / _LOCK, waits=lambda owner: None):
            yield

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Around what writes the journal or a lock."""
        try:
            with _undisturbed():
                yield
        except OSError as error:
            raise unwritable(self.folder, error, error) from error

    def _lock_of(self, number: int) -> Path:
        return self.folder / _LOCKS / f"{number}.lock"

    def _signed(self, number: int) -> str:
        try:
            return read_text(self._lock_of(number))
        except (OSError, ValueError):
            return ""

    def _hold(self, stack: ExitStack, number: int) -> bool:
        """Hold a trial's lock, if nobody else does."""
        own_folder(self.folder / _LOCKS)
        (self.folder / _LOCKS).mkdir(exist_ok=True)
        try:
            stack.enter_context(held(self._lock_of(number)))
        except InUse:
            return False
        return True

    def _distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.key: parameter.distribution() for parameter in self._space.parameters}

    def _completed(self, trial: FrozenTrial) -> dict[str, str]:
        """The values of a trial, with those that its process had not chosen yet when it was killed."""
        params, distributions = dict(trial.params), self._distributions()
        sampler = self._sampler_for(trial.number)
        for key, distribution in distributions.items():
            if key not in params:
                params[key] = sampler.sample_independent(self._study, trial, key, distribution)
                internal = distribution.to_internal_repr(params[key])
                self._storage.set_trial_param(self._id(trial.number), key, internal, distribution)
        return self._texts(params, trial.number)

    def _texts(self, params: Mapping[str, Any], number: int) -> dict[str, str]:
        if self._sampler == "grid":
            return self._space.point(number)
        for parameter in self._space.parameters:
            if not parameter.holds(params[parameter.key]):
                raise UserError(
                    f"study={self.folder}: trial {number} has {parameter.key}={params[parameter.key]!r}, which is not "
                    f"in {parameter.spelled}: search in another folder"
                )
        return {parameter.key: parameter.text(params[parameter.key]) for parameter in self._space.parameters}

    def _sampler_for(self, number: int) -> BaseSampler:
        """A sampler whose random numbers come from the trial's number: a search that was stopped proposes the same."""
        seed = (self._sampler_seed * 1_000_003 + number) % 2**32
        if self._sampler == "grid":
            return _Grid(self._space)
        return TPESampler(seed=seed) if self._sampler == "tpe" else RandomSampler(seed=seed)


class _Grid(BaseSampler):
    """The points of a grid in their order, each once; Optuna's own may try one twice where processes share a study."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        text = self._space.point(trial.number)[param_name]
        return next(one for one in self._space.parameters if one.key == param_name).value(text)


def _pruner(name: str) -> BasePruner:
    return {"median": MedianPruner, "halving": SuccessiveHalvingPruner, "none": NopPruner}[name]()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Have signals wait until the journal is written."""
    was_deferred, signals.deferred = signals.deferred, True
    try:
        yield
    finally:
        signals.deferred = was_deferred
    if not was_deferred:
        signals.stop_if_requested()
