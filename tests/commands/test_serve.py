"""serve.py: what it refuses, what it says, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from conftest import ROOT, make_classifier

from cifar_lightning.checkpoint.format import FORMAT_VERSION

torch = pytest.importorskip("torch")


@pytest.fixture
def ckpt(tmp_path):
    settings = {"name": "test", "seed": 0, "tta": 0, "num_threads": None, "compile": False, "classes": [*"abcdefghij"]}
    settings |= {"image_size": [32, 32], "fingerprint": {}, "data": {}, "trainer": {"precision": "32-true"}}
    settings |= {"model": {"name": "tutorial", "num_classes": 10, "in_channels": 3}}
    settings |= {"normalize": {"mean": [0.5], "std": [0.5]}}
    contents = {"format_version": FORMAT_VERSION, "settings": settings, "state_dict": make_classifier().state_dict()}
    torch.save(contents, tmp_path / "last.ckpt")
    return "ckpt=last.ckpt"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["port=65536"], "port must be in [0, 65,535], got 65536"),
        (["max_mb=0"], "max_mb must be in [0.001, 10,000], got 0"),
        (["max_mb=nan"], "max_mb must be in [0.001, 10,000], got nan"),
        (["max_files=0"], "max_files must be in [1, 10,000], got 0"),
        (["max_files=64", "max_waiting=63"], "max_waiting must be in [64, 1,000,000], not below max_files, got 63"),
        (["max_pixels=0"], "max_pixels must be in [1, 250,000,000], got 0"),
        (["wait_ms=-1"], "wait_ms must be in [0, 1,000], got -1.0"),
        (["topk=0"], "topk must be at least 1, got 0"),
        (["tta=3"], "tta must be 0 (none)"),
        (["host="], "host must not be empty"),
        (["host=nowhere"], "host=nowhere: no such name or address"),
        (["prot=80"], "did you mean port?"),
        (["accelerator=gpu", "port=0"], "accelerator=gpu"),
    ],
)
def test_what_is_refused_is_one_line(command, ckpt, overrides, words):
    assert words in command("serve.py", ckpt, *overrides).refusal


def test_a_checkpoint_is_needed(command, tmp_path):
    assert command("serve.py").refusal.startswith("ckpt=PATH is missing")
    assert "nowhere.ckpt" in command("serve.py", "ckpt=nowhere.ckpt", "port=0").refusal
    (tmp_path / "text.ckpt").write_text("text")
    assert "text.ckpt" in command("serve.py", "ckpt=text.ckpt", "port=0").refusal


def test_a_port_that_is_taken_is_one_line(command, ckpt):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port={port} on 127.0.0.1: " in command("serve.py", ckpt, f"port={port}").refusal


def test_the_extra_is_named_where_it_is_missing(command, ckpt, monkeypatch):
    monkeypatch.setitem(sys.modules, "cifar_lightning.serve.server", None)  # as if what it imports were missing
    assert command("serve.py", ckpt).refusal.endswith(" is not installed: pip install -e '.[serve]'")


def test_a_sweep_is_refused_and_leaves_nothing(command, ckpt, tmp_path):
    refusal = command("serve.py", "-m", ckpt, "port=0,0").refusal
    assert refusal == "-m: serve.py does one thing at a time; leave out -m, or start several"
    assert not (tmp_path / "multirun.yaml").exists()
    assert "key=value1,value2" not in command("serve.py", "--help").out


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def until(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def connection(port):
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=60)
    except ConnectionRefusedError:
        return None


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_once_what_runs_is_answered(command, ckpt, port, tmp_path, signum, code):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n\r\n--b--\r\n'
    answers = []

    def ask():
        with until(lambda: connection(port)) as request:
            request.sendall(head + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body))
            answers.append(request.recv(1_000))  # it runs: its body is waited for
            os.kill(os.getpid(), signum)
            until(lambda: (other := connection(port)) is None or other.close())
            request.sendall(body)
            answers.append(request.makefile("rb").read())

    client = threading.Thread(target=ask)
    client.start()
    outcome = command("serve.py", ckpt, f"port={port}")
    client.join()
    assert outcome.code == code
    assert outcome.err == f"stopped by {signum.name}\n"
    assert answers[0].startswith(b"HTTP/1.1 100")
    assert answers[1].startswith(b"HTTP/1.1 422")
    assert answers[1].endswith(b'{"file": "a", "index": 0, "error": "empty"}]}')
    lines = outcome.out.splitlines()
    assert lines[0] == "model     tutorial, seed 0, from last.ckpt"
    assert lines[2].startswith("note      probabilities are uncalibrated and may be ")
    assert lines[3:] == [f"serving   http://127.0.0.1:{port}  Ctrl-C ends it", "ending    what runs is answered first"]
    assert os.listdir(tmp_path) == ["last.ckpt"]  # nothing is written


@pytest.mark.slow
def test_the_printed_address_answers(ckpt, tmp_path):
    program = [sys.executable, str(ROOT / "serve.py"), ckpt, "port=0"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        address = next(line.split()[1] for line in server.stdout if line.startswith("serving"))
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        server.terminate()
        assert server.wait(60) == 143
