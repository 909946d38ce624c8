"""How a run gets its ranks: started here by torchrun's engine, or joined where torchrun or srun has started them."""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities import rank_zero_only

from cifar_lightning import ranks
from cifar_lightning.config.resolve import Section, as_plain
from cifar_lightning.engine.trainer import environment_of_ranks, refusals, refused_devices
from cifar_lightning.errors import RunError, UserError, in_words, one_line
from cifar_lightning.report.console import Lines, LogFile
from cifar_lightning.runs.signals import OF_GROUPS, Stopped, blocked_for_children, signals

_SECONDS_TO_BE_ENDED = 20
"""How long a rank that is not the cause waits to be ended by the launcher, before it ends by itself."""

_LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "Timed out", "Socket")
"""Words in an error of a rank whose cause is another one that has gone."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the other ranks, where torchrun or srun has started this process as one of several; leave them at the end.

    Raises:
        UserError: If they cannot be reached.
    """
    place = ranks.place_in(os.environ)
    if place is None or ranks.are_joined():
        yield
        return
    with _member_of(place):
        yield


@contextmanager
def _member_of(place: ranks.Place) -> Iterator[None]:
    environment = environment_of_ranks()
    assert environment is not None
    try:
        ranks.join(environment.main_address, environment.main_port, place)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{place.launcher} has started {place.world_size} processes: {one_line(error)}") from error
    rank_zero_only.rank = place.rank  # type: ignore[attr-defined] # Lightning has read it when it was imported
    disabled = logging.root.manager.disable
    if place.rank:  # the first one says it all
        logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            if place.rank:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        ranks.leave()


def ranks_to_start(section: Section) -> int:
    """How many ranks this process has to start for a ``trainer`` section; 1 if it is to do the work itself.

    Raises:
        UserError: If the devices cannot be had, or there are other ranks than are asked for.
    """
    num_nodes, devices = section["num_nodes"], section["devices"]
    if not isinstance(num_nodes, int) or num_nodes < 1:
        raise UserError(f"trainer.num_nodes must be at least 1, got {num_nodes!r}")
    if not ranks.are_joined() and num_nodes == 1 and devices in (1, "1", (0,)):
        num, is_cpu = 1, False
    else:
        num, is_cpu = _devices(section)
    if section["sync_batchnorm"] and (is_cpu or num * num_nodes == 1):
        reason = "torch's SyncBatchNorm is for GPUs" if is_cpu else "on 1 device batch norm sees whole batches"
        raise UserError(f"trainer.sync_batchnorm must be false, got true: {reason}")
    if ranks.are_joined():
        if num * num_nodes != ranks.world_size():
            raise UserError(
                f"trainer.devices={as_plain(devices)} trainer.num_nodes={num_nodes}: there are {ranks.world_size()} "
                f"processes, one for each device; set trainer.devices={ranks.local_world_size()}"
            )
        return 1
    if num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={num_nodes}: on several machines torchrun or srun starts the processes, as in "
            f"torchrun --nnodes={num_nodes} --nproc-per-node={num} --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 "
            "train.py ..."
        )
    return num


def _devices(section: Section) -> tuple[int, bool]:
    """How many devices a section names, as Lightning counts them without starting CUDA; and whether they are CPUs."""
    asked, lightning = as_plain(section["devices"]), logging.getLogger("lightning.pytorch")
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with refusals(), warnings.catch_warnings(), _without_place():
            warnings.simplefilter("ignore")
            trainer = L.Trainer(accelerator=section["accelerator"], devices=asked, enable_model_summary=False, **off)
    except (UserError, RuntimeError, ValueError, TypeError) as error:
        raise refused_devices(section, error) from error
    finally:
        lightning.setLevel(level)
    return trainer.num_devices, isinstance(trainer.accelerator, CPUAccelerator)


_PLACES = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")
"""Variables by which Lightning knows a launcher."""


@contextmanager
def _without_place() -> Iterator[None]:
    """Have Lightning count devices without comparing them with a launcher's processes."""
    before = {name: os.environ.pop(name) for name in _PLACES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@dataclass(frozen=True)
class _Console:
    """Where the process that starts ranks logs, for the first of them to log there too.

    Attributes:
        files: Path, formatter and level of each log file.
        level: Of the root logger.
    """

    files: tuple[tuple[str, logging.Formatter | None, int], ...]
    level: int

    @classmethod
    def of_this_process(cls) -> "_Console":
        found = [handler for handler in logging.root.handlers if isinstance(handler, LogFile)]
        files = tuple((handler.baseFilename, handler.formatter, handler.level) for handler in found)
        return cls(files, logging.root.level)

    def open(self) -> None:
        """Log as that process does."""
        shown = logging.StreamHandler(sys.stdout)
        shown.setFormatter(Lines("%(message)s"))
        logging.root.addHandler(shown)
        for path, formatter, level in self.files:
            file = LogFile(path, mode="a", delay=True)
            file.setFormatter(formatter)
            file.setLevel(level)
            logging.root.addHandler(file)
        logging.root.setLevel(self.level)


class RankLost(RunError):
    """A rank has been killed."""


class _RankError(Exception):
    """What a rank failed of: kind, whether all ranks did, exit code or signal, message; a traceback as a note."""


def launch(function: Callable[..., Any], *arguments: Any, num: int) -> Any:
    """Call a function in each of several ranks, and return what it returns in the first.

    The ranks are processes of torchrun's own engine. A signal that asks this process to stop is told to them. When one
    of them fails, the others are ended.

    Args:
        function: One that can be imported by its name.
        arguments: Plain values.
        num: How many ranks, each with a device of this machine.

    Raises:
        UserError: If a rank has raised one, whose message then names the rank.
        RunError: Likewise, or if a rank has failed otherwise.
        RankLost: If a rank has been killed.
        Stopped: If the ranks have been stopped by a signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # late, as few runs need them
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    stop = get_context("spawn").RawValue("b", 0)  # an Event would wait for ranks that have been killed

    def tell() -> None:
        stop.value = 1

    with tempfile.TemporaryDirectory(prefix="cifar-lightning-") as folder, _around_ranks(tell):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGQUIT",  # the others are told to the ranks
        )
        call = elastic_launch(config, _run_rank)
        try:
            result = call(function, arguments, _Console.of_this_process(), stop, os.getpid())[0]
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if signals.requested is not None:
                raise Stopped(signals.requested) from None
            raise _told(rank, failure) from None
    signals.stop_if_requested()
    return result


def _told(rank: int, failure: Any) -> BaseException:
    """The failure of a rank, as this process raises it."""
    if failure.exitcode < 0:
        hint = ", as the system does where memory runs out" if failure.signal_name() == "SIGKILL" else ""
        return RankLost(f"rank {rank} was killed by {failure.signal_name()}{hint}; the others have been ended")
    kinds: Mapping[str, type[Exception]] = {"UserError": UserError, "RunError": RunError}
    message = failure.message["message"] if isinstance(failure.message, Mapping) else str(failure.message)
    name, _, rest = message.partition(": ")
    if name != _RankError.__name__:
        return RunError(f"rank {rank} has failed: {one_line(RuntimeError(message))}")
    kind, of_all, number, text = rest.split("\n", 3)
    if kind == "Stopped":
        return Stopped(int(number))
    text, _, trace = text.partition("\0")
    error = kinds.get(kind, RunError)(text if of_all == "True" else f"rank {rank}: {text}")
    error.add_note(trace)
    return error


_LOGGERS = ("torch.distributed", "torch.multiprocessing", "torchelastic")
"""Which say in many lines what this module says in one."""


@contextmanager
def _around_ranks(tell: Callable[[], None]) -> Iterator[None]:
    """What this process does while its ranks run: tell them of signals, and leave the console to them."""
    log_level, deferred, told = os.environ.get("TORCH_CPP_LOG_LEVEL"), signals.deferred, signals.told
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # one line says what has gone wrong, not each socket
    signals.deferred, signals.told = True, lambda signum: tell()
    try:
        if signals.requested is not None:  # before they were told on
            tell()
        with blocked_for_children():
            yield
    finally:
        signals.deferred, signals.told = deferred, told
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
        if log_level is None:
            del os.environ["TORCH_CPP_LOG_LEVEL"]


_STOP = getattr(signal, "SIGUSR1", signal.SIGTERM)
"""By which a rank tells itself that it is to stop."""


def _run_rank(
    function: Callable[..., Any], arguments: tuple[Any, ...], console: _Console, stop: Any, parent: int
) -> Any:
    """What a rank does: the function, in the group of all ranks; it fails in a way that the launcher can tell."""
    ended = threading.Event()
    for signum in OF_GROUPS:  # which have been blocked
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_GROUPS)
    signal.signal(_STOP, signal.SIG_DFL)  # what is ignored is not taken
    signals.taken = (_STOP, signal.SIGTERM)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a name of this machine may lead elsewhere
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        with signals:
            threading.Thread(target=_watch, args=(stop, parent, ended), daemon=True).start()
            if rank == 0:
                console.open()
            with _member_of(ranks.Place("torchrun", rank, size)):
                return function(*arguments)
    except BaseException as error:
        _let_others_speak(error, rank)
        raise _as_rank_error(error) from error
    finally:
        ended.set()


def _watch(stop: Any, parent: int, ended: threading.Event) -> None:
    """Take the parent's word for a signal to this process; stop without a parent."""
    is_told = False
    while True:
        time.sleep(0.1)
        asked = bool(stop.value)
        is_alone = os.getppid() != parent
        if (asked or is_alone) and not is_told:
            is_told = True
            os.kill(os.getpid(), _STOP)
        if is_alone and (asked or ended.is_set()):
            os._exit(1)


def _let_others_speak(error: BaseException, rank: int) -> None:
    """Wait to be ended by the launcher, where another rank is the one to say why."""
    is_follower = rank > 0 and (isinstance(error, Stopped) or getattr(error, "of_all", False))
    is_lost = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST_PEER)
    if (is_follower or is_lost) and signals.requested != signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_SECONDS_TO_BE_ENDED)


def _as_rank_error(error: BaseException) -> _RankError:
    is_known = isinstance(error, UserError | RunError)
    kind = next((cls.__name__ for cls in (UserError, RunError, Stopped) if isinstance(error, cls)), "RunError")
    trace = "" if is_known else "".join(traceback.format_exception(error))
    number = getattr(error, "signum", 0)
    return _RankError(f"{kind}\n{getattr(error, 'of_all', False)}\n{number}\n{in_words(error)}\0{trace}")
