"""What a run is made of, from its config: data, network, Trainer, and whether they fit one another."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.callbacks.progress import EpochProgress
from cifar_lightning.callbacks.saving import RunCheckpoints
from cifar_lightning.checkpoint.write import DurableIO
from cifar_lightning.config.build import blame, build, build_partial
from cifar_lightning.data import ImageDataModule
from cifar_lightning.device import keep_freed_memory
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.typehints import fits

_NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Stands in where ``trainer.profiler`` is null.

    Lightning's own stand-in runs a generator around each of some forty hooks a step, 2 to 3 % of a tutorial step.
    """

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


def build_trainer(config: dict[str, Any], **objects: Any) -> L.Trainer:
    """The Trainer of a config, on a CPU with the process's memory kept (see ``keep_freed_memory``).

    Raises:
        UserError: If Lightning refuses an argument, or more than one device is asked for.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its INFO lines repeat what is announced here
    node = config["trainer"]
    if node["profiler"] is None:
        objects["profiler"] = NoProfiler()
    factory = build_partial(node, "trainer")
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if node[key] is not None and node[key] < 1:
            raise UserError(f"trainer.{key} must be at least 1, got {node[key]}")
    if node["deterministic"] and node["benchmark"]:
        raise UserError(
            "trainer.benchmark must be false where trainer.deterministic is set, got true: cuDNN would choose its "
            "algorithms by their time"
        )
    try:
        with refusals(), blame("trainer", node), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "GPU available but not used")  # as the config says
            trainer = factory(default_root_dir=config["output_dir"], plugins=_plugins(), **objects)
    except (UserError, RuntimeError) as error:
        if not re.search("accelerator|device|cuda|gpu", str(error), re.IGNORECASE):
            raise
        raise UserError(
            f"trainer.accelerator={node['accelerator']} trainer.devices={node['devices']}: "
            f"{one_line(error).removeprefix('trainer: ')} (trainer.accelerator=auto takes what this machine has)"
        ) from error
    if trainer.world_size > 1:
        raise UserError(f"trainer.devices: a run uses 1 device so far, got {trainer.world_size}; set trainer.devices=1")
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    # Where max_steps is set, Lightning takes a checkpoint of an epoch's end for one from within the epoch, and ends it
    # a second time.
    trainer.fit_loop._iteration_based_training = lambda: False
    return trainer


def _plugins() -> list[Any]:
    """Durable checkpoints; and under SLURM no requeueing of Lightning's, which would save in the middle of a step."""
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [DurableIO(), *slurm]


@contextmanager
def refusals() -> Iterator[None]:
    """Turn Lightning's word for arguments that do not fit together into a UserError."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error


@contextmanager
def staying_on_device(trainer: L.Trainer) -> Iterator[None]:
    """Have Lightning leave the network on its device meanwhile, for the test that follows.

    At the end of fit it would go to the CPU and come back to another place in memory, where CUDA graphs are recorded
    anew.
    """
    strategy, teardown = trainer.strategy, trainer.strategy.teardown
    strategy.teardown = lambda: None  # type: ignore[method-assign]
    try:
        yield
    except BaseException:
        teardown()
        raise
    finally:
        del strategy.teardown


def check_length(trainer: L.Trainer, *, planned_by: str | None) -> None:
    """Refuse a run without a step, and one without an end where the key ``planned_by`` needs to know it."""
    if 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches):
        raise UserError("trainer: max_epochs, max_steps and limit_train_batches must leave a step to do")
    if planned_by and trainer.max_epochs == trainer.max_steps == -1:
        raise UserError(
            f"{planned_by}: it counts from the first step to the last; set trainer.max_epochs or trainer.max_steps, "
            "which trainer.max_time may end sooner"
        )


def check_limits(trainer: L.Trainer, data: ImageDataModule) -> None:
    """Refuse, before a long run, what Lightning refuses only when it comes to it."""
    num_batches = {"train": len(data.train_batches()), "val": len(data.eval_batches("val"))}
    num_batches["test"] = len(data.eval_batches("test"))
    for split, num in num_batches.items():
        limit = getattr(trainer, f"limit_{split}_batches")
        if isinstance(limit, float) and 0 < limit < 1 and int(num * limit) == 0:
            raise UserError(f"trainer.limit_{split}_batches={limit} leaves none of the {num} batches")
    interval = trainer.val_check_interval
    if isinstance(interval, int) and trainer.check_val_every_n_epoch and interval > num_batches["train"]:
        raise UserError(
            f"trainer.val_check_interval must be at most the {num_batches['train']} batches of an epoch, got "
            f"{interval}; trainer.check_val_every_n_epoch=null counts across epochs"
        )


def build_full_trainer(config: dict[str, Any], curves: TrainingCurves) -> L.Trainer:
    """The Trainer that trains, with its callbacks, checkpoints and loggers.

    Raises:
        UserError: If one of them refuses its arguments.
    """
    callbacks: list[Callback] = [curves]
    if config["trainer"]["enable_progress_bar"] is not False:
        callbacks.append(EpochProgress(curves))
    for name, node in (config["callbacks"] or {}).items():
        if node is not None:
            callbacks.append(build(node, f"callbacks.{name}"))
    callbacks.append(_build_checkpoints(config))
    loggers = [build(node, f"logger.{name}") for name, node in (config["logger"] or {}).items() if node is not None]
    return build_trainer(config, callbacks=callbacks, logger=loggers)


def _build_checkpoints(config: dict[str, Any]) -> RunCheckpoints:
    node: Any = config["checkpoint"] if isinstance(config["checkpoint"], dict) else {}
    if not fits(every_minutes := node.get("every_minutes"), float):
        raise UserError(f"checkpoint.every_minutes must be a finite number, got {every_minutes!r}")
    if not fits(every_epoch := node.get("every_epoch"), bool):
        raise UserError(f"checkpoint.every_epoch must be true or false, got {every_epoch!r}")
    with blame("checkpoint", config["checkpoint"]):
        folder = Path(config["output_dir"]) / "checkpoints"
        return RunCheckpoints(folder, every_minutes=every_minutes, every_epoch=every_epoch)
