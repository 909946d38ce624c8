"""``serve(cfg)``: the function behind serve.py. A checkpoint is all it needs."""

import logging

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from cifar_lightning.config.answers import resolve_serving
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.schema import ServeSettings
from cifar_lightning.device import device_name, sensible_threads, threads
from cifar_lightning.errors import RunError, SweepError, UserError, needs_extra
from cifar_lightning.predictor import Predictor
from cifar_lightning.report.console import on_screen
from cifar_lightning.runs.signals import signals

log = logging.getLogger(__name__)


def serve(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> None:
    """Serve a checkpoint until a signal comes, then finish what runs.

    Args:
        cfg: As ``config.schema.compose(..., config_name="serve")`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Raises:
        UserError: If the checkpoint or the address cannot be used, or the extra ``serve`` is not installed.
        Stopped: Once all is finished after a signal; so the exit code is 130 after Ctrl-C, else 143.
        RunError: If the server ends by itself.
    """
    if invocation.is_sweep:
        raise SweepError("-m: one server has one checkpoint; leave out -m, or start one server for each with port=0")
    settings = resolve_serving(cfg)
    with on_screen():
        _serve(settings)


def _serve(settings: ServeSettings) -> None:
    with needs_extra("serve"):
        from cifar_lightning.serve.app import make_app
        from cifar_lightning.serve.desk import Desk, Limits
        from cifar_lightning.serve.server import LOOPBACK, address_of, is_private, listen, served

    listener = listen(settings.host, settings.port)  # before the checkpoint is read, which takes longer
    with listener:
        predictor = _ready_predictor(settings)
        limits = Limits(
            max_bytes=round(1e6 * settings.max_mb),
            max_files=settings.max_files,
            max_pixels=settings.max_pixels,
            max_waiting=settings.max_waiting,
        )
        with (
            threads(num_threads(predictor)),
            Desk(predictor, limits, tta=settings.tta, wait_ms=settings.wait_ms) as desk,
        ):
            app = make_app(desk, topk=settings.topk, hosts=LOOPBACK if is_private(listener) else None)
            signals.deferred = True
            try:
                with served(app, listener) as thread:
                    log.info("serving   %s  Ctrl-C ends it", address_of(listener))
                    while thread.is_alive() and signals.requested is None:
                        thread.join(0.1)
                    log.info("ending    what runs is answered first")
            finally:
                signals.deferred = False
    signals.stop_if_requested()
    raise RunError("the server ended by itself: its lines above say why")


def _ready_predictor(settings: ServeSettings) -> Predictor:
    """The checkpoint, on its device, after a first answer: the first takes longer, and is nobody's."""
    try:
        predictor = Predictor(settings.ckpt, accelerator=settings.accelerator, precision=settings.precision)
        blank = torch.zeros(1, 3, predictor.side, predictor.side, dtype=torch.uint8)[:, : predictor.num_channels]
    except ValueError as error:
        raise UserError(str(error)) from error
    predictor.probs(blank, tta=settings.tta)
    own = predictor.settings
    log.info("model     %s, seed %s, from %s", own["name"], own["seed"], settings.ckpt)
    log.info("device    %s, precision %s", device_name(predictor.device), predictor.precision)
    return predictor


def num_threads(predictor: Predictor) -> int:
    """CPU threads that suit single pictures; those of training suit its batches."""
    height, width = predictor.image_size
    blank = torch.zeros(1, predictor.num_channels, height, width, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        predictor.probs(blank, tta=0)
    return sensible_threads(counter.get_total_flops())
