"""Requests per second of serve.py, beside the bare loop of ``predictor.predict`` over the same files in one process.

    python benchmarks/serve_load.py                   # a fresh tutorial network, PNG files of 32x32 pixels
    python benchmarks/serve_load.py --ckpt logs/tutorial/<time>/checkpoints/last.ckpt --pictures holiday

Each request has one picture; a client sends the next one when it has its answer. The server and the clients have a
process each, as has the bare loop, which reads, decodes and classifies one file after the other. The three take turns,
and a ratio compares two figures of one round. The clients are all in one process, which does as little as it can.
"""

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import torch
from harness import ROOT, in_process, quick_checkpoint, smooth_images, spread
from PIL import Image
from rich.console import Console
from rich.table import Table

from cifar_lightning import load as load_checkpoint
from cifar_lightning.commands.serve import num_threads
from cifar_lightning.device import device_name

NUM_CLIENTS = (1, 16)
BARE = "predictor.predict, one by one"


def write_pictures(folder: Path, num_pictures: int = 100) -> None:
    """Write small PNG files of a few soft blots with some noise."""
    folder.mkdir()
    for number, pixels in enumerate(smooth_images(num_pictures)):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


@contextmanager
def served(ckpt: Path) -> Iterator[int]:
    """serve.py on a free port, with its own defaults otherwise."""
    command = [sys.executable, str(ROOT / "serve.py"), f"ckpt={ckpt}", "port=0", "accelerator=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(line.split()[1] for line in server.stdout if line.startswith("serving"))
        try:
            yield urlsplit(address).port or 80
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def requests_for(files: Sequence[Path], port: int) -> list[bytes]:
    """The bytes of a request for each file."""
    requests = []
    for file in files:
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n' % file.name.encode()
        body = start + file.read_bytes() + b"\r\n--b--\r\n"
        head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n" % (port, len(body))
        requests.append(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + body)
    return requests


class Client:
    """A connection that has one request under way at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        self._received, self._started = b"", time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Take what has come; once the answer is complete, give its seconds."""
        self._received += self.socket.recv(65_536)
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not length or len(body) < int(length):
            return None
        assert head.startswith(b"HTTP/1.1 200"), self._received
        return time.perf_counter() - self._started


def load(port: int, files: Sequence[Path], num_clients: int, num_requests: int) -> dict[str, float]:
    """Requests per second, and the seconds in which half and 99 % of them are answered."""
    requests = requests_for(files, port)
    selector = selectors.DefaultSelector()
    clients = [Client(port) for _ in range(num_clients)]
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
    seconds: list[float] = []
    started, num_sent = time.perf_counter(), 0
    for client in clients:
        client.send(requests[num_sent % len(requests)])
        num_sent += 1
    while len(seconds) < num_requests:
        for key, _ in selector.select():
            took = key.data.receive()
            if took is not None:
                seconds.append(took)
                if num_sent < num_requests:
                    key.data.send(requests[num_sent % len(requests)])
                    num_sent += 1
    whole = time.perf_counter() - started
    for client in clients:
        client.socket.close()
    return {"per_second": num_requests / whole, "p50": median(seconds), "p99": quantiles(seconds, n=100)[98]}


def bare_loop(ckpt: Path, files: Sequence[Path], num_requests: int) -> dict[str, float]:
    """The same figures of the bare loop, after it has seen each file once, with the threads that serve.py has."""
    predictor = load_checkpoint(ckpt, accelerator="cpu")
    torch.set_num_threads(num_threads(predictor))
    for file in files:
        predictor.predict([file], topk=5)
    seconds = []
    started = time.perf_counter()
    for number in range(num_requests):
        before = time.perf_counter()
        predictor.predict([files[number % len(files)]], topk=5)
        seconds.append(time.perf_counter() - before)
    whole = time.perf_counter() - started
    return {"per_second": num_requests / whole, "p50": median(seconds), "p99": quantiles(seconds, n=100)[98]}


def figures_of(contender: str, ckpt: Path, pictures: Path, num_requests: int, port: int) -> dict[str, float]:
    """Figures of a contender, from a process of its own."""
    options = ["--contender", contender, "--ckpt", str(ckpt), "--pictures", str(pictures), "--port", str(port)]
    figures: dict[str, float] = in_process(__file__, *options, "--requests", str(num_requests))
    return figures


def measured(ckpt: Path, pictures: Path, options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """Figures of all contenders, by round."""
    rounds = []
    with served(ckpt) as port:
        for num_clients in NUM_CLIENTS:
            figures_of(str(num_clients), ckpt, pictures, 200, port)  # to warm up
        for _ in range(options.rounds):
            round_: dict[str, dict[str, float]] = {}
            for contender in (BARE, *map(str, NUM_CLIENTS)):
                round_[contender] = figures_of(contender, ckpt, pictures, options.requests, port)
            rounds.append(round_)
            print(json.dumps(round_), flush=True)
    return rounds


def table(rounds: list[dict[str, dict[str, float]]]) -> Table:
    """Medians over the rounds, and the ratios' smallest and largest."""
    device = device_name(torch.device("cpu"))
    shown = Table(title=f"single pictures, {os.cpu_count()} cores of {device}, n = {len(rounds)}")
    shown.add_column("contender")
    for name in ("per second", "p50 ms", "p99 ms", "this / bare loop", "from ... to"):
        shown.add_column(name, justify="right")
    for contender in (BARE, *map(str, NUM_CLIENTS)):
        runs = [round_[contender] for round_ in rounds]
        ratios = [round_[contender]["per_second"] / round_[BARE]["per_second"] for round_ in rounds]
        figures = [f"{median(run['per_second'] for run in runs):.0f}"]
        figures += [f"{1000 * median(run[key] for run in runs):.2f}" for key in ("p50", "p99")]
        name = contender if contender == BARE else f"serve.py, {contender} clients"
        shown.add_row(name, *figures, *spread(ratios))
    return shown


def contend(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one contender, in this process."""
    files = sorted(path for path in options.pictures.iterdir() if path.is_file())
    if options.contender == BARE:
        return bare_loop(options.ckpt, files, options.requests)
    return load(options.port, files, int(options.contender), options.requests)


def main() -> None:
    """Serve, run the contenders in turn and print their table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--ckpt", type=Path, help="checkpoint; by default the tutorial's network is made")
    parser.add_argument("--pictures", type=Path, help="folder of image files; by default small ones are made")
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(contend(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.pictures is None:
            write_pictures(Path(folder, "pictures"))
        ckpt = options.ckpt.resolve() if options.ckpt else quick_checkpoint(Path(folder))
        pictures = options.pictures.resolve() if options.pictures else Path(folder, "pictures")
        rounds = measured(ckpt, pictures, options)
    Console(width=120).print(table(rounds))


if __name__ == "__main__":
    main()
