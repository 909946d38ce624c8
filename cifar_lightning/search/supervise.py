"""The worker processes of a search: each has its share of the machine; one that is killed is replaced."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cifar_lightning.errors import RunError
from cifar_lightning.runs.signals import Stopped, signals

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.1

MAX_STOPS = 20
"""So many workers that were asked from outside to stop are replaced: something may ask all of them."""

_STOPPED = {130: "SIGINT", 143: "SIGTERM", -signal.SIGINT: "SIGINT", -signal.SIGTERM: "SIGTERM"}
"""How a worker ends that was asked to: it has saved its run, or had not begun to work."""


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]


def supervise(
    code: str, message: bytes, environments: Sequence[Mapping[str, str]], note_death: Callable[[int, str], bool]
) -> int:
    """Start workers, and wait for the end of all.

    A worker that says why it ends (codes 1 and 2) ends the others. One that is killed is replaced, if it had a trial,
    and so is one that was asked to stop, though not by this process. A signal to this process is handed on, and all are
    waited for: each saves its run.

    Args:
        code: What a worker runs.
        message: What a worker reads.
        environments: Variables of each worker.
        note_death: Called with process and cause where a worker was killed; whether it had a trial.

    Returns:
        0, or the code of the worker that has said why it ended.

    Raises:
        RunError: If a worker was killed before it had a trial.
        Stopped: As the signal does; the workers have ended then.
    """
    workers: list[_Worker] = []
    failed = stops = 0
    try:
        for index, environment in enumerate(environments):
            workers.append(_started(index, code, message, environment))
        while workers:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for worker in [worker for worker in workers if worker.process.poll() is not None]:
                workers.remove(worker)
                _close(worker)
                returned = worker.process.returncode
                if returned in (1, 2):
                    failed = failed or returned
                    _hand_on(workers, signal.SIGTERM)
                elif returned != 0 and not failed:
                    stops += returned in _STOPPED
                    if stops > MAX_STOPS:
                        log.warning("worker    stopped by %s, as %d were before it", _STOPPED[returned], MAX_STOPS)
                        continue
                    _note_end(worker, note_death)
                    workers.append(_started(worker.index, code, message, environments[worker.index]))
    except BaseException as error:
        is_signal = isinstance(error, Stopped) and signals.requested is not None
        _hand_on(workers, signals.requested if is_signal and signals.requested else signal.SIGTERM)
        raise
    finally:
        for worker in workers:
            worker.process.wait()
            _close(worker)
    return failed


def _note_end(worker: _Worker, note_death: Callable[[int, str], bool]) -> None:
    """Say how a worker has ended, before another one is started; being asked to stop is nothing against its trial.

    Raises:
        RunError: If it was killed before it had a trial.
    """
    returned = worker.process.returncode
    if returned in _STOPPED:
        log.warning("worker    stopped by %s from outside; another one takes its trial over", _STOPPED[returned])
        return
    how = _words(returned)
    if not note_death(worker.process.pid, how):
        raise RunError(f"a worker was ended by {how} before it had a trial; is the memory enough?")
    log.warning("worker    ended by %s; another one takes its trial over", how)


def _close(worker: _Worker) -> None:
    assert worker.process.stdin is not None
    with suppress(BrokenPipeError):  # of what it has not read
        worker.process.stdin.close()


def _started(index: int, code: str, message: bytes, environment: Mapping[str, str]) -> _Worker:
    """A worker in a session of its own, so that Ctrl-C comes to it once: from here."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already, and its code is looked at
        process.stdin.write(message)
        process.stdin.flush()
    return _Worker(index, process)


def _hand_on(workers: Sequence[_Worker], signum: int) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signum)


def _words(returned: int) -> str:
    try:
        return signal.Signals(-returned).name if returned < 0 else f"exit code {returned}"
    except ValueError:
        return f"signal {-returned}"


def shares(num: int, *, cores: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Variables that give each of some workers its share: of the cores, and one of the GPUs in turn.

    Args:
        num: How many workers.
        cores: That this process may use.
        gpus: As ``CUDA_VISIBLE_DEVICES`` names them.
    """
    threads = {} if num == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // num))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus and num > 1 else {}) for i in range(num)]
