"""What a run says when it has ended: the commands that one may type next."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.overrides import argument
from cifar_lightning.config.recipe import NO_PART, is_below
from cifar_lightning.config.resolve import Settings
from cifar_lightning.config.schema import run_folder
from cifar_lightning.report.tables import relative
from cifar_lightning.runs.folder import LAST, METRICS
from cifar_lightning.runs.resume import has_planned_end

log = logging.getLogger(__name__)


def next_steps(settings: Settings, metrics: Mapping[str, Any], invocation: Invocation) -> None:
    """Print, after training, the commands that one may type next.

    Args:
        settings: Of the run.
        metrics: What its metrics.json holds.
        invocation: How it was started.
    """
    folder = Path(settings.output_dir)
    flags = "".join(f" {shlex.quote(flag)}" for flag in invocation.flags)
    last = relative(folder / LAST)
    if last.exists():
        ckpt = argument("ckpt", last)
        log.info("evaluate  python evaluate.py %s%s", ckpt, flags)
        log.info("predict   python predict.py %s images=PICTURES", ckpt)
        if not has_planned_end(settings) and metrics["epochs"] == settings.trainer["max_epochs"]:
            resumed = argument("resume", relative(folder))
            log.info("resume    python train.py %s trainer.max_epochs=%d%s", resumed, 2 * metrics["epochs"], flags)
    if (comparing := _comparing(settings, metrics, invocation)) is not None:
        log.info("compare   %s", comparing)
    runs = relative(folder.absolute())
    runs = Path(runs.parts[0]) if not runs.is_absolute() and len(runs.parts) > 1 else runs
    log.info("watch     tensorboard --logdir %s", shlex.quote(str(runs)))


def _comparing(settings: Settings, metrics: Mapping[str, Any], invocation: Invocation) -> str | None:
    """The command that compares the run with others of its name; without one that trains it with more seeds.

    A sweep over seeds ends with its comparison. None where the run has no accuracy, or what would have to be typed for
    it is not known.
    """
    if "test/acc" not in metrics:
        return None
    others, folder = Path(run_folder(settings.name)).parent, Path(settings.output_dir).absolute()
    if relative(folder).parent == others and _holds_more(others, folder):
        return f"python compare.py {argument('runs', others)}"
    if invocation.hydra_yaml is None or settings.trainer["num_nodes"] > 1:
        return None
    last = {override.partition("=")[0]: override for override in invocation.overrides}  # a resumption repeats keys
    kept = [override for key, override in last.items() if not is_below(key, NO_PART)]
    return shlex.join(["python", "train.py", "-m", "seeds=5", *kept, *invocation.flags])


def _holds_more(others: Path, folder: Path) -> bool:
    """Whether another run, or a job of a sweep, has ended below a folder."""
    ended = (path.parent.absolute() for pattern in ("*", "*/*") for path in others.glob(f"{pattern}/{METRICS}"))
    return any(folder not in (other, other.parent) for other in ended)
