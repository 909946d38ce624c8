"""What may change when a run is resumed."""

import logging
from pathlib import Path
from typing import Any

from cifar_lightning.checkpoint.format import read_state
from cifar_lightning.config.overrides import argument
from cifar_lightning.errors import UserError
from cifar_lightning.report.tables import relative
from cifar_lightning.runs.folder import LAST, refuse_used
from cifar_lightning.runs.records import finished_metrics

log = logging.getLogger(__name__)

MAY_CHANGE = (
    *("output_dir", "resume", "num_threads", "compile", "tta", "logger", "callbacks.pictures", "checkpoint"),
    *("data.root", "data.urls", "data.options", "data.eval_batch_size"),
    *(
        f"trainer.{name}"
        for name in (
            *(
                "accelerator",
                "devices",
                "benchmark",
                "profiler",
                "detect_anomaly",
                "inference_mode",
                "log_every_n_steps",
            ),
            *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "limit_test_batches"),
        )
    ),
)
"""Keys that may differ when a run goes on: where and how it runs and what it shows, not what it computes."""


def refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run whose config says something else than it did.

    Args:
        folder: The run's folder.
        before: Config in its checkpoint.
        now: Config it is to go on with.

    Raises:
        UserError: If a value differs that decides what is computed.
    """
    old, new = flattened(before), flattened(now)
    for key in ("model.num_classes", "model.in_channels"):  # which the data decide
        old.pop(key, None), new.pop(key, None)
    plain_end = not (now["schedule"] or now["freeze"] or "lookahead" in (now["callbacks"] or {}))
    may_change = (*MAY_CHANGE, "trainer.max_epochs") if plain_end else MAY_CHANGE
    changed = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and (key in old or new[key] is not False)  # an option that the checkpoint does not know yet may be off
        and not key.startswith(tuple(f"{name}." for name in may_change))
        and key not in may_change
    ]
    if changed:
        raise UserError(
            f"resume={folder}: the run would not be the same; {'; '.join(changed)}. Leave that as it was, or start "
            "a run of its own"
        )


def flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values of nested dictionaries."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _checkpoint_to_resume(folder: Path, resume: str | None) -> dict[str, Any] | None:
    """The checkpoint that a run goes on from; None for a run that starts.

    Raises:
        UserError: If the folder holds a run that is not to be resumed, or none where one is, or a damaged checkpoint.
    """
    if resume is None:
        refuse_used(folder)
        return None
    if (folder / LAST).exists():
        checkpoint = read_state(folder / LAST)
        log.info("resume    %s, after step %d", relative(folder), checkpoint["global_step"])
        return checkpoint
    if resume != "auto":
        raise UserError(
            f"resume={folder}: there is no {folder / LAST} to go on from; start over there with resume=auto "
            f"{argument('output_dir', folder)}"
        )
    log.info("resume    nothing in %s to go on from: starting", folder)
    return None


def _finished(folder: Path, checkpoint: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a run that has nothing left to do, after saying so; None for one that has."""
    metrics = finished_metrics(folder)
    if metrics is None or metrics.get("steps") != checkpoint["global_step"]:
        return None
    if (config["trainer"]["max_epochs"] or 0) > (checkpoint["config"]["trainer"]["max_epochs"] or 0):
        return None
    if config["tta"] != checkpoint["config"].get("tta"):
        ckpt = argument("ckpt", folder / LAST)
        raise UserError(
            f"tta={config['tta']}: the run is finished; python evaluate.py {ckpt} tta={config['tta']} judges it"
        )
    done = f"{metrics.get('epochs')} epochs, {metrics['steps']} steps"
    log.info("resume    already finished: %s; a larger trainer.max_epochs trains on", done)
    return metrics
