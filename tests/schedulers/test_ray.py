"""Sweeps under a real Ray on this machine, its GPUs faked: they have the results of serial ones, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, differences, last
from picture_folder import write_pictures
from witness import seen

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'"),
]

SWEEP = (
    *("data=folder", "data.root=pictures", "data.val_size=4", "data.batch_size=8", "trainer.max_epochs=3"),
    *("logger=none", "--config-dir=conf", "callbacks=witness"),
)
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same as an address of IPv6, and ::1."""
WITNESS = "witness: {_target_: witness.Witness, folder: seen, num: 1}"
TWO_CORES = ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.num_cpus=1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder but for one of pictures, which is the working directory."""
    write_pictures(tmp_path / "pictures", train=20, test=8)
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "callbacks" / "witness.yaml").write_text(WITNESS)
    (tmp_path / "seen").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forget(folder):
    for path in folder.glob("*.json"):
        path.unlink()


@pytest.fixture
def start():
    """Start a sweep of train.py that sees two GPUs by name, which are not there."""
    started = []

    def begin(*arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "CUDA_VISIBLE_DEVICES": "70,90",
            "HYDRA_FULL_ERROR": "0",
        }
        del environment["OMP_NUM_THREADS"]
        line = [sys.executable, str(ROOT / "train.py"), "-m", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(line, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()  # where the test has failed; Ray's processes end with it
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=400)
    end = time.monotonic() + 10  # Ray's processes end by themselves
    while (left := of_session(process)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    assert not [line for line in err.splitlines() if "Warning" in line or "Traceback" in line], err
    return process.returncode, out.splitlines(), err.splitlines()


def of_session(process):
    """The processes of a sweep that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of one that has just ended
            state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == process.pid and state != "Z":
                found.append(path)
    return found


def listens_to(process):
    """The addresses that the processes of a sweep can be connected to at, as the system writes them."""
    files = set()
    for path in of_session(process):
        with suppress(OSError):
            files |= {os.readlink(file) for file in (path / "fd").iterdir()}
    sockets = [
        line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return {fields[1].partition(":")[0] for fields in sockets if fields[3] == "0A" and f"socket:[{fields[9]}]" in files}


def wait_for(is_so, process):
    end = time.monotonic() + 200
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def metrics(folder):
    found = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in found.items() if "/" in key}


def test_jobs_are_those_of_a_serial_sweep_each_with_its_gpu(command, here, start):
    serial = command("train.py", "-m", *SWEEP, "output_dir=serial", "optimizer.lr=0.01,0.02", "trainer.accelerator=cpu")
    assert serial.code == 0, serial.err
    forget(here / "seen")
    swept = ("optimizer.lr=0.01,0.02,-1", "hydra.launcher.ray.init.num_gpus=2", *TWO_CORES)
    code, out, err = ended(start(*SWEEP, "callbacks.witness.num=2", "output_dir=ray", *swept))
    assert code == 1
    assert sorted(job["gpus"] for job in seen(here / "seen")) == ["70", "90"]
    assert {(job["threads"], job["niceness"]) for job in seen(here / "seen")} == {(1, os.nice(0))}
    for job in ("0", "1"):
        assert metrics(here / "serial" / job) == metrics(here / "ray" / job)
    done = [
        f"job {job}  optimizer.lr={lr}  done: {metrics(here / 'ray' / job)['val/acc']:.4f}"
        for job, lr in (("0", 0.01), ("1", 0.02))
    ]
    shown = [line for line in out[: out.index("Comparison of tutorial: 3 runs, 3 groups")] if line[:2] != "\t#"]
    assert shown[0] == "Ray Launcher is launching 3 jobs, sweep output dir: ray"
    assert sorted(shown[1:3]) == shown[3:] == done  # as they end, and at the end
    failure = "optimizer.lr must be a finite number of at least 0, got -1"
    assert err == [f"error: job 2 (optimizer.lr=-1): {failure}", f"job 2  optimizer.lr=-1  failed: {failure}"]


def test_a_sweep_that_is_killed_and_stopped_ends_as_if_it_had_not_been(command, here, start):
    swept = ("seed=0,1,2,3", *TWO_CORES)
    serial = command("train.py", "-m", *SWEEP, "output_dir=serial", "seed=0,1,2,3", "trainer.accelerator=cpu")
    assert serial.code == 0, serial.err
    forget(here / "seen")
    (here / "seen" / "hold").touch()

    process = start(*SWEEP, "output_dir=ray", *swept)
    wait_for(lambda: len(seen(here / "seen")) == 2, process)
    assert LOOPBACK >= listens_to(process) != set()
    assert {folder.stat().st_mode & 0o777 for folder in Path("/tmp").glob("ray-*")} == {0o700}
    os.kill(seen(here / "seen")[0]["pid"], signal.SIGKILL)
    wait_for(lambda: len(seen(here / "seen")) == 3, process)  # the next job has taken its place
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 143
    [killed] = [line for line in err if line.startswith("error: ")]
    number = int(killed.removeprefix("error: job ").split()[0])
    words = "its process was killed, as the system does where memory runs out, or has crashed"
    assert killed.startswith(f"error: job {number} (seed={number}): {words}; the same command")
    assert [line.partition(":")[0] for line in err[-2:]] == [
        "stopped by SIGTERM; resume with",
        f"job {number}  seed={number}  failed",
    ]
    saved = {path.parent.parent.name for path in (here / "ray").glob("*/checkpoints/last.ckpt")}
    assert saved == {"0", "1", "2"} - {str(number)}
    assert all(2 <= last(here / "ray" / job)["global_step"] < 15 for job in saved)

    (here / "seen" / "hold").unlink()
    code, out, err = ended(start(*SWEEP, "output_dir=ray", *swept))
    assert (code, [line for line in err if "job" in line]) == (0, [])
    for job in "0123":
        assert metrics(here / "serial" / job) == metrics(here / "ray" / job)
        assert not [
            key for key in differences(last(here / "serial" / job), last(here / "ray" / job)) if "state_dict" in key
        ]
    assert all(f"resume    ray/{job}, after step" in (here / "ray" / job / "train.log").read_text() for job in saved)

    code, out, err = ended(start(*SWEEP, "output_dir=ray", *swept))
    assert (code, [line for line in out if "done already" in line]) == (
        0,
        [f"{here}/ray/{job} is done already" for job in "0123"],
    )
    assert "Ray Launcher" not in "".join(out)
