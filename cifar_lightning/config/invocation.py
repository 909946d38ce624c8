"""What the library knows of the command line that called it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """How a command was called; by default from Python, with no command line.

    Attributes:
        overrides: The overrides as Hydra got them, those that a prelude put before the typed ones among them.
        hydra_yaml: Gives Hydra's own config as YAML, for the run's folder; None outside Hydra.
        is_sweep: Whether the command is one job of a sweep.
        job_key: Of a job of a sweep, a hash of what it is composed from; None where that does not tell all.
        is_placed: Whether such a job's folder is chosen already, and ``resume`` says whether it has been there.
        report: Called after each validation of a training with the number of epochs done and the accuracy; what it
            raises ends the run.
        flags: What was typed to have Hydra look for choices in other folders too, besides the overrides.
        sweeper_optimises: Whether a sweeper chooses the next jobs by what the command returns.
    """

    overrides: tuple[str, ...] = ()
    hydra_yaml: Callable[[], str] | None = None
    is_sweep: bool = False
    job_key: str | None = None
    is_placed: bool = False
    report: Callable[[int, float], None] | None = None
    flags: tuple[str, ...] = ()
    sweeper_optimises: bool = False

    def plain(self) -> dict[str, Any]:
        """These values for another process; ``of_plain`` is the reverse."""
        return {**vars(self), "hydra_yaml": self.hydra_yaml and self.hydra_yaml()}

    @classmethod
    def of_plain(cls, values: dict[str, Any]) -> "Invocation":
        """The invocation that another process has told."""
        text = values["hydra_yaml"]
        return cls(**{**values, "hydra_yaml": None if text is None else lambda: text})


FROM_PYTHON = Invocation()
"""A call from a notebook, a script or a test."""
