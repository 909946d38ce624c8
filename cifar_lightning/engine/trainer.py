"""Lightning's Trainer from a config, and what it would refuse too late or in too many words."""

import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from cifar_lightning import ranks
from cifar_lightning.checkpoint.durable_io import DurableIO
from cifar_lightning.config.build import blame, build_partial
from cifar_lightning.config.resolve import AUTO, Section, as_plain
from cifar_lightning.data import ImageDataModule
from cifar_lightning.device import fast_precision, refuse_several_processes
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.files import own, own_folder
from cifar_lightning.patches import end_epochs_once, no_sigterm_broadcasts
from cifar_lightning.report.tables import relative

log = logging.getLogger(__name__)

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
"""What ``trainer.profiler`` takes besides null."""

_WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "strategy": (("auto",), "several devices train by data parallelism (DDP), which trainer.devices chooses"),
    "use_distributed_sampler": ((True,), "the data are sharded by the project, each image once"),
    "limit_predict_batches": ((None,), "nothing is predicted"),
    "enable_autolog_hparams": ((True,), "the project itself logs the hyper-parameters; logger=none logs nothing"),
}
"""Arguments of the Trainer that would do nothing: the values that say so, and why others are refused."""

_MINIMA = {"min_epochs": 0, "min_steps": 0, "num_sanity_val_steps": -1, "log_every_n_steps": 0, "gradient_clip_val": 0}
"""Arguments that Lightning takes any number for."""


def build_trainer(section: Section, *, output_dir: str, freezes: bool = False, **objects: Any) -> L.Trainer:
    """The Trainer of a config's ``trainer`` section, in a process by itself or in one of several ranks.

    Args:
        section: Lightning's own arguments; a ``precision`` of auto is the one that is fast on the device.
        output_dir: Folder of the run.
        freezes: Whether parameters are frozen while training.
        objects: Further arguments that no config can hold, such as callbacks.

    Raises:
        UserError: If Lightning refuses an argument, or there are not as many ranks as devices are asked for.
    """
    if not ranks.are_joined():
        with blame("trainer"):
            refuse_several_processes(os.environ)
    section = {**section, "precision": precision_of(section)}
    factory = build_partial(section, "trainer")
    _check_arguments(section)
    if not isinstance(section["profiler"], Mapping):  # else it is built as it is described
        objects["profiler"] = _profiler(section["profiler"], output_dir) if ranks.is_first() else None
    if ranks.are_joined():
        objects |= _of_ranks(freezes=freezes)
    try:
        with refusals(), blame("trainer", section), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "GPU available but not used")  # as the config says
            trainer = factory(default_root_dir=output_dir, plugins=_plugins(), **objects)
    except (UserError, RuntimeError) as error:
        if not re.search("accelerator|device|cuda|gpu", str(error), re.IGNORECASE):
            raise
        raise refused_devices(section, error) from error
    if trainer.world_size != ranks.world_size():
        raise UserError(
            f"trainer.devices: {trainer.world_size} devices need as many processes, and there is {ranks.world_size()}: "
            "train.py and evaluate.py start them, other commands use 1 device"
        )
    if ranks.are_joined():
        no_sigterm_broadcasts(trainer)
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_device(trainer.strategy.root_device)  # which NCCL goes by
    end_epochs_once(trainer)
    return trainer


def _of_ranks(*, freezes: bool) -> dict[str, Any]:
    """Arguments of the Trainer in one of several ranks."""
    # A parameter that is frozen gets no gradient, which the others' average would wait for. Buffers are aligned where
    # they count, not at each step; the name of that option is another one from torch 2.15 on.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False, "find_unused_parameters": freezes}
    strategy = DDPStrategy(**options)
    arguments: dict[str, Any] = {"strategy": strategy, "use_distributed_sampler": False}
    return arguments if ranks.is_first() else {**arguments, "enable_progress_bar": False}


def _profiler(name: str | None, output_dir: str) -> Profiler | None:
    """A profiler that writes into the run's folder; Lightning's choice tells its logger only, which is not shown."""
    if name is None:
        return None
    if name not in PROFILERS:
        raise UserError(f"trainer.profiler must be one of {', '.join(PROFILERS)} or null, got {name!r}")
    folder = Path(output_dir, "profile")
    with blame("trainer.profiler"):  # Lightning writes into files that are there
        own_folder(folder)
        for path in folder.glob("*"):
            own(path)
    log.info("profile   %s, into %s", name, relative(folder))
    return PROFILERS[name](dirpath=folder, filename=name)


def _check_arguments(section: Section) -> None:
    """Refuse what has no effect here, and what Lightning takes although it means nothing.

    Raises:
        UserError: If an argument is such a one.
    """
    for name, (values, reason) in _WITHOUT_EFFECT.items():
        if section[name] not in values:
            allowed = " or ".join("null" if value is None else str(value).lower() for value in values)
            raise UserError(f"trainer.{name} must be {allowed}, got {section[name]!r}: {reason}")
    for name, minimum in _MINIMA.items():
        if section[name] is not None and section[name] < minimum:
            raise UserError(f"trainer.{name} must be at least {minimum} or null, got {section[name]}")
    if section["val_check_interval"] == 0:
        raise UserError(
            "trainer.val_check_interval must be above 0, got 0; with trainer.limit_val_batches=0 none is done"
        )
    if section["gradient_clip_val"] is None and section["gradient_clip_algorithm"] is not None:
        raise UserError("trainer.gradient_clip_algorithm clips nothing by itself: set trainer.gradient_clip_val too")
    for unit in ("epochs", "steps"):
        least, most = section[f"min_{unit}"] or 0, section[f"max_{unit}"]
        if most is not None and 0 <= most < least:
            raise UserError(f"trainer.min_{unit} must be at most trainer.max_{unit}={most}, got {least}")
    for name in ("max_time", "val_check_interval"):
        if isinstance(section[name], Mapping) and not _is_time(section[name]):
            raise UserError(
                f"trainer.{name} must be a time above 0, as DD:HH:MM:SS or {{hours:1,minutes:30}}, got "
                f"{as_plain(section[name])}"
            )


def precision_of(section: Section) -> str | int | None:
    """The precision of a ``trainer`` section; in place of auto the one that is fast on the accelerator."""
    return fast_precision(section["accelerator"]) if section["precision"] == AUTO else section["precision"]


def _is_time(units: Mapping[str, Any]) -> bool:
    try:
        return timedelta(**units) > timedelta(0)
    except (TypeError, OverflowError):
        return False


def refuse_half_precision_on_cpu(section: Section) -> None:
    """Refuse to train in fp16 on a CPU: Lightning would take bfloat16 in place of it, after a warning.

    Raises:
        UserError: If a ``trainer`` section asks for that.
    """
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    is_on_cpu = section["accelerator"] == "cpu" or (section["accelerator"] == "auto" and not has_gpu)
    if is_on_cpu and str(section["precision"]) in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision={section['precision']} is for a GPU; on a CPU set bf16-mixed, 32-true or auto"
        )


def _plugins() -> list[Any]:
    """Durable checkpoints; and where this process is from."""
    environment = environment_of_ranks()
    return [DurableIO(), *([] if environment is None else [environment])]


def environment_of_ranks() -> ClusterEnvironment | None:
    """What a launcher tells this process, as Lightning has it; None where there is none.

    Under SLURM it does no requeueing of Lightning's, which would save in the middle of a step.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None


@contextmanager
def refusals() -> Iterator[None]:
    """Turn Lightning's word for arguments that do not fit together into a UserError."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error


def refused_devices(section: Section, error: Exception) -> UserError:
    """Lightning's refusal of the devices of a ``trainer`` section, with both keys that name them."""
    return UserError(
        f"trainer.accelerator={section['accelerator']} trainer.devices={as_plain(section['devices'])}: "
        f"{one_line(error).removeprefix('trainer: ')} (trainer.accelerator=auto takes what this machine has)"
    )


def check_length(trainer: L.Trainer, *, planned_by: str | None) -> None:
    """Refuse a run without a step, and one without an end where the key ``planned_by`` needs to know it."""
    if 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches):
        raise UserError("trainer: max_epochs, max_steps and limit_train_batches must leave a step to do")
    if planned_by and trainer.max_epochs == trainer.max_steps == -1:
        raise UserError(
            f"{planned_by}: it counts from the first step to the last; set trainer.max_epochs or trainer.max_steps, "
            "which trainer.max_time may end sooner"
        )


def check_limit(trainer: L.Trainer, split: str, num_batches: int, *, may_be_none: bool = False) -> None:
    """Refuse a limit that leaves none of a split's batches, unless it is 0 and that is allowed."""
    limit = getattr(trainer, f"limit_{split}_batches")
    if (limit == 0 and not may_be_none) or (
        isinstance(limit, float) and 0 < limit < 1 and int(num_batches * limit) == 0
    ):
        overfits = trainer.overfit_batches and split != "test"  # type: ignore[attr-defined]
        key = "overfit_batches" if overfits else f"limit_{split}_batches"
        raise UserError(f"trainer.{key}={limit} leaves none of the {num_batches} batches")


def check_limits(trainer: L.Trainer, data: ImageDataModule) -> None:
    """Refuse, before a long run, what Lightning refuses only when it comes to it."""
    num_batches = {"train": len(data.train_batches()), "val": len(data.eval_batches("val"))}
    num_batches["test"] = len(data.eval_batches("test"))
    for split, num in num_batches.items():
        check_limit(trainer, split, num, may_be_none=True)
    interval = getattr(trainer, "val_check_interval", None)  # which it has not where it counts time
    if isinstance(interval, int) and trainer.check_val_every_n_epoch and interval > num_batches["train"]:
        raise UserError(
            f"trainer.val_check_interval must be at most the {num_batches['train']} batches of an epoch, got "
            f"{interval}; trainer.check_val_every_n_epoch=null counts across epochs"
        )
