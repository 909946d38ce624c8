"""``serve(cfg)``: the function behind serve.py. A checkpoint is all it needs."""

import logging

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from cifar_lightning.calibration import in_words
from cifar_lightning.config.inference import resolve_serving
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.schema import ServeSettings
from cifar_lightning.device import device_name, sensible_threads, threads
from cifar_lightning.errors import RunError, UserError, needs_extra
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
        predictor = _load(settings)
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


def _load(settings: ServeSettings) -> Predictor:
    """The checkpoint, on its device, if it can classify files."""
    try:
        predictor = Predictor(settings.ckpt, accelerator=settings.accelerator, precision=settings.precision)
        predictor.side  # noqa: B018 - raises where its images are no squares
    except ValueError as error:
        raise UserError(str(error)) from error
    own = predictor.settings
    log.info("model     %s, seed %s, from %s", own["model"]["name"], own["seed"], settings.ckpt)
    log.info("device    %s, precision %s", device_name(predictor.device), predictor.precision)
    log.info("note      probabilities are %s", in_words(predictor.temperature))
    return predictor


def num_threads(predictor: Predictor) -> int:
    """CPU threads that suit single pictures, those of training suit its batches; also a warm-up of the network."""
    height, width = predictor.image_size
    blank = torch.zeros(1, predictor.num_channels, height, width, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        predictor.probs(blank, tta=0)
    return sensible_threads(counter.get_total_flops())
