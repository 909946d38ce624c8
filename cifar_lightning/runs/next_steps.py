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
from cifar_lightning.errors import counted
from cifar_lightning.report.tables import relative, shown
from cifar_lightning.runs.folder import LAST, METRICS
from cifar_lightning.runs.resume import has_planned_end

log = logging.getLogger(__name__)


_CHANCE = 0.1
"""Share of the way from chance to all right below which a network is said to have hardly learnt."""

_BY_HEART = 0.2
"""How much more accurate on training than on test images a network is that is said to know the former by heart."""


def next_steps(settings: Settings, metrics: Mapping[str, Any], invocation: Invocation, *, num_classes: int) -> None:
    """Print, after training, what its accuracy calls for, and the commands that one may type next.

    Args:
        settings: Of the run.
        metrics: What its metrics.json holds.
        invocation: How it was started.
        num_classes: Of the data.
    """
    if (advice := _advice(settings, metrics, num_classes)) is not None:
        log.info("note      %s", advice)
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


def _advice(settings: Settings, metrics: Mapping[str, Any], num_classes: int) -> str | None:
    """What helps a network that has not learnt, or nothing but its training images; None where all is well.

    Of a run over some of its batches, which is a trial, nothing is said.
    """
    train, test = metrics.get("train/acc"), metrics.get("test/acc")
    if train is None or test is None or settings.trainer["limit_train_batches"] not in (None, 1.0):
        return None
    chance = 1 / num_classes
    other = ""
    if settings.data["name"] == "folder" and settings.init is None and not settings.model.get("pretrained"):
        root = argument("data.root", str(settings.data["root"]))
        other = f", or a network that knows ImageNet (experiment=finetune {root})"
    if train - chance < _CHANCE * (1 - chance):
        return (
            f"{shown('acc', train)} of training images are right, and chance is {shown('acc', chance)}: the network "
            f"has hardly learnt in {counted(metrics['steps'], 'step')}. More epochs help "
            f"(trainer.max_epochs={10 * max(1, metrics['epochs'])}), another optimizer.lr{other}"
        )
    if train - test > _BY_HEART:
        return (
            f"{shown('acc', train)} of training images are right and {shown('acc', test)} of test images: it knows the "
            f"former by heart. More images help, varied ones (augment=photo){other}"
        )
    return None


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
