"""Workers that decode many images, and their progress bar."""

import io
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import cache_files, noise, write, write_for_workers, write_pets

from cifar_lightning.data import decode, decode_pool
from cifar_lightning.data.folder import ImageFolder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_pets(tmp_path)


@pytest.fixture
def many(root, monkeypatch) -> Path:
    return write_for_workers(root, monkeypatch)


@pytest.fixture
def workers(monkeypatch) -> list[subprocess.Popen]:
    """The processes that are started."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


def test_workers_decode_the_same_pixels_as_one_process(many, workers, monkeypatch):
    write(many / "train/cat/turned \u00e9 \udcff\n.jpg", noise(50, 70))  # a name that is not UTF-8 and has two lines
    parallel = ImageFolder(many)
    assert [worker.returncode is not None for worker in workers] == [True, True]
    shutil.rmtree(many / ".cifar-lightning")
    monkeypatch.setattr(decode_pool, "MIN_FILES_FOR_WORKERS", 100)
    serial = ImageFolder(many)
    assert len(workers) == 2
    np.testing.assert_array_equal(parallel.data, serial.data)


def test_workers_report_damaged_files(many, workers):
    for number in (3, 8):
        (many / f"train/cat/more{number}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"2 paths .*cat/more3.png: not an image[^;]*; train/cat/more8.png: not an"):
        ImageFolder(many)
    assert len(workers) == 2


def test_workers_decode_a_few_large_files(root, workers, monkeypatch):
    monkeypatch.setattr(decode_pool, "MIN_BYTES_FOR_WORKERS", 1000)
    monkeypatch.setattr(decode_pool, "MAX_FILES_PER_CHUNK", 2)
    monkeypatch.setattr(decode_pool, "num_cores", lambda: 2)
    ImageFolder(root)
    assert len(workers) == 2


def test_a_killed_worker_is_an_error(many, monkeypatch):
    class Killed(subprocess.Popen):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.kill()

    monkeypatch.setattr(subprocess, "Popen", Killed)
    with pytest.raises(
        decode_pool.WorkerLost, match=r"a process .* ended with exit code -9; the memory may be too small"
    ):
        ImageFolder(many)
    assert cache_files(many) == []


PROGRAM = """
import os
import signal
import subprocess
import sys
import types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell turns it off in what it starts with &
for name, folder in {"cifar_lightning": "", "cifar_lightning.data": "data"}.items():
    sys.modules[name] = types.ModuleType(name)  # without the imports of the packages, which take seconds
    sys.modules[name].__path__ = [os.path.join(sys.argv[2], folder)]
from cifar_lightning.data import decode_pool
decode_pool.MIN_FILES_FOR_WORKERS, decode_pool.MAX_FILES_PER_CHUNK = 1, 1
decode_pool.num_cores = lambda: 2
class Printed(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        print(self.pid, flush=True)
subprocess.Popen = Printed
pixels = memoryview(bytearray(3072 * 20_000))
decode_pool.decode_many([sys.argv[1]] * 20_000, pixels, image_size=32)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("seconds", [0, 0.3], ids=["starting", "decoding"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_program_and_its_workers(signum, seconds, tmp_path):
    large = write(tmp_path / "x.png", noise(300, 300))
    command = [sys.executable, "-c", PROGRAM, str(large), str(Path(decode.__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        pids = [int(program.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, pids))
        time.sleep(seconds)
        program.send_signal(signum)
        assert program.wait(timeout=5) != 0
        deadline = time.monotonic() + 5
        while any(map(is_running, pids)):
            assert time.monotonic() < deadline, "a worker still runs"
            time.sleep(0.01)
        errors = program.stderr.read()
    assert errors.count("Traceback") == (signum == signal.SIGINT)  # and none of a worker


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "delay_seconds", "is_shown"), [(Terminal(), 0, True), (Terminal(), 60, False), (io.StringIO(), 0, False)]
)
def test_the_bar_appears_on_terminals_and_after_its_delay(stream, delay_seconds, is_shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with decode_pool.delayed_progress("reading images", 10, delay_seconds=delay_seconds) as show:
        time.sleep(0.001)
        show(5)
    assert ("reading images" in stream.getvalue()) == is_shown
