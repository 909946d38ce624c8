"""Resuming a run: which checkpoint, what is taken over from it, and what may change."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_lightning.checkpoint.format import described, read_state, versions
from cifar_lightning.config.overrides import WHERE_AND_HOW, argument
from cifar_lightning.config.resolve import AUTO, Settings, as_plain, flattened, frozen, in_place_of_auto
from cifar_lightning.errors import UserError, counted, listed
from cifar_lightning.report.tables import relative
from cifar_lightning.runs.folder import LAST, refuse_used
from cifar_lightning.runs.metrics_file import finished_metrics

log = logging.getLogger(__name__)

_OF_A_COMMAND = ("init", "output_dir", "resume", "tta", "trainer.limit_test_batches", "trainer.sync_batchnorm")
MAY_CHANGE = (*WHERE_AND_HOW, *_OF_A_COMMAND)
"""Keys that may differ when a run is resumed."""

DECIDED_BY_DATA = ("model.num_classes", "model.in_channels", "classes", "image_size", "fingerprint")


def checkpoint_to_resume(folder: Path, resume: str | None) -> dict[str, Any] | None:
    """The checkpoint that a run is resumed from; None for a run that starts.

    Raises:
        UserError: If the folder holds a run that is not to be resumed, or none where one is, or a damaged checkpoint.
    """
    if resume is None:
        refuse_used(folder)
        return None
    if (folder / LAST).exists():
        checkpoint = read_state(folder / LAST)
        log.info("resume    %s, after step %d", relative(folder), checkpoint["global_step"])
        _name_other_versions(checkpoint.get("versions"))
        return checkpoint
    if resume != "auto":
        raise UserError(
            f"resume={folder}: there is no {folder / LAST} to resume from; start over there with resume=auto "
            f"{argument('output_dir', folder)}"
        )
    log.info("resume    nothing in %s to resume from: starting", folder)
    return None


def _name_other_versions(before: Any) -> None:
    """Say with which other versions a run was saved, if that is known."""
    known = before if isinstance(before, dict) else {}
    other = [f"{name} {known[name]} -> {now}" for name, now in versions().items() if known.get(name, now) != now]
    if other:
        log.warning("versions  %s: from here on the run may differ from one that was never stopped", listed(other))


def take_over(config: Settings, before: Mapping[str, Any]) -> Settings:
    """The settings of a run that is resumed: what it decided by itself when it started stays as it was.

    Args:
        config: What is asked for now.
        before: The settings in the checkpoint, as plain values.

    Raises:
        UserError: If a value differs that decides what is computed.
    """
    precision = config.trainer["precision"]
    resumed = dataclasses.replace(
        config,
        normalize=in_place_of_auto(config.normalize, before["normalize"]),
        augment=config.augment and in_place_of_auto(config.augment, before["normalize"]),
        num_threads=config.num_threads or (before["num_threads"] if _is_placed_alike(config, before) else None),
        trainer=frozen(
            {**config.trainer, "precision": before["trainer"].get("precision") if precision == AUTO else precision}
        ),
    )
    _refuse_changes(resumed, before)
    return resumed


def _is_placed_alike(config: Settings, before: Mapping[str, Any]) -> bool:
    """Whether a run is on as many devices as it was."""
    return all(as_plain(config.trainer[key]) == before["trainer"].get(key) for key in ("devices", "num_nodes"))


def has_planned_end(config: Settings) -> bool:
    """Whether a run's length is part of its recipe, so that it cannot be resumed with more epochs."""
    return bool(config.schedule or config.freeze or config.freeze_trunk or "lookahead" in (config.callbacks or {}))


def _refuse_changes(config: Settings, before: Mapping[str, Any]) -> None:
    old, new = flattened(before), flattened(described(config))
    may_change = (*MAY_CHANGE, *DECIDED_BY_DATA, *([] if has_planned_end(config) else ["trainer.max_epochs"]))
    changed = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and (key in old or new[key] not in (False, 0))  # an option that the checkpoint does not know yet may be off
        and not key.startswith(tuple(f"{name}." for name in may_change))
        and key not in may_change
    ]
    if changed:
        raise UserError(
            f"resume={config.output_dir}: the run would not be the same; {'; '.join(changed)}. Leave that as it was, "
            "or start a run of its own"
        )


def refuse_other_data(
    config: Settings, before: Mapping[str, Any], classes: Sequence[str], fingerprint: Mapping[str, str]
) -> None:
    """Refuse to resume a run on data other than those it started with.

    Args:
        config: What is asked for now.
        before: The settings in the checkpoint.
        classes: Names of the classes of the data.
        fingerprint: Of the data; see ``ImageDataModule.fingerprint``.

    Raises:
        UserError: If the names of the classes or their order differ, or an image, a target or a split does.
    """
    if before["classes"] != list(classes):
        raise UserError(
            f"resume={config.output_dir}: the run has the classes {listed(before['classes'])}, the data have "
            f"{listed(classes)}; a run is resumed with the classes it started with"
        )
    for split, words in (("train", "training"), ("test", "test"), ("val", "choice of validation")):
        if before["fingerprint"].get(split) != fingerprint[split]:
            raise UserError(
                f"resume={config.output_dir}: the {words} images are not those that the run started with; bring the "
                f"data back to what they were (data.root={config.data.get('root')}), or start a run of its own"
            )


def finished(config: Settings, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metrics of a run that has nothing left to do, after saying so; None for one that has.

    Raises:
        UserError: If other test-time augmentation is asked for than the finished run was tested with.
    """
    folder, before = Path(config.output_dir), checkpoint["settings"]
    metrics = finished_metrics(folder)
    if metrics is None or metrics.get("steps") != checkpoint["global_step"]:
        return None
    if (config.trainer["max_epochs"] or 0) > (before["trainer"]["max_epochs"] or 0):
        return None
    if config.tta != before["tta"]:
        ckpt = argument("ckpt", folder / LAST)
        raise UserError(
            f"tta={config.tta}: the run is finished; python evaluate.py {ckpt} tta={config.tta} evaluates it so"
        )
    done, epochs = counted(checkpoint["global_step"], "step"), metrics.get("epochs")
    if isinstance(epochs, int):
        done = f"{counted(epochs, 'epoch')}, {done}"
    log.info("resume    already finished: %s; a larger trainer.max_epochs trains on", done)
    return metrics
