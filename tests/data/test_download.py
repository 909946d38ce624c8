"""Downloads from a server on the loopback interface, which shows every fault that a server can have."""

import hashlib
import io
import json
import logging
import os
import pickle
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torchvision
from conftest import ROOT, TinyCIFAR10
from file_sizes import no_file_above
from filelock import FileLock

from cifar_lightning.data import cifar
from cifar_lightning.data.download import DownloadError, Patience, RemoteFile, download, one_at_a_time


def described(name: str, content: bytes) -> RemoteFile:
    return RemoteFile(name, len(content), hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest())


CONTENT = random.Random(0).randbytes(300_000)
FILE = described("cargo.tar.gz", CONTENT)
PATIENT = Patience(
    connect_seconds=5, stall_seconds=5, window_seconds=5, min_bytes_per_second=1000, backoff_seconds=0.01
)
HASTY = Patience(connect_seconds=1, stall_seconds=0.3, window_seconds=0.3, backoff_seconds=0.01)


class Handler(BaseHTTPRequestHandler):
    """Shows the fault that the path names. Records each request as (path, first byte requested)."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        name = self.path.strip("/").partition("?")[0]
        with self.server.lock:
            self.server.requests.append((name, begin))
            turn = sum(earlier == name for earlier, _ in self.server.requests)
        with suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, name)(begin, turn)
        self.close_connection = True

    def _send(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _part(self, begin: int, end: int | None = None) -> None:
        """Send the content from ``begin``. The headers announce all of it, but the transfer ends at ``end``."""
        content = self.server.content
        status = {"status": 206, "Content_Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        self._send(content[begin:end], length=len(content) - begin, **status)

    def good(self, begin: int, turn: int) -> None:
        self._part(begin)

    def without_ranges(self, begin: int, turn: int) -> None:
        self._send(self.server.content)

    def truncating(self, begin: int, turn: int) -> None:
        self._part(begin, begin + 100_000)

    def stuck_at_100000(self, begin: int, turn: int) -> None:
        self._part(begin, 100_000)

    def stalling(self, begin: int, turn: int) -> None:
        self._part(begin, begin + 1000)
        self.server.stopped.wait(5)

    def trickling(self, begin: int, turn: int) -> None:
        self._part(begin, begin)
        for at in range(begin, len(self.server.content), 500):
            self.wfile.write(self.server.content[at : at + 500])
            if self.server.stopped.wait(0.01):
                return

    def missing(self, begin: int, turn: int) -> None:
        self._send(b"nothing here", 404)

    def busy(self, begin: int, turn: int) -> None:
        self._send(b"later", 503)

    def busy_once(self, begin: int, turn: int) -> None:
        self._send(b"later", 503) if turn == 1 else self._part(begin)

    def portal(self, begin: int, turn: int) -> None:
        self._send(b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")

    def other_file(self, begin: int, turn: int) -> None:
        self._send(b"something else")

    def wrong_bytes(self, begin: int, turn: int) -> None:
        content = bytearray(self.server.content)
        content[-1] ^= 1
        self._send(bytes(content[begin:]), 206 if begin else 200, Content_Range=f"bytes {begin}-/{len(content)}")

    def wrong_range(self, begin: int, turn: int) -> None:
        self._send(self.server.content[begin:], 206, Content_Range=f"bytes 0-/{len(self.server.content)}")

    def encoded(self, begin: int, turn: int) -> None:
        self._send(self.server.content, Content_Encoding="gzip")  # some servers declare a .tar.gz so

    def to_plain_http(self, begin: int, turn: int) -> None:
        self._send(b"", 302, Location=f"http://localhost:{self.server.server_port}/good")

    def to_good(self, begin: int, turn: int) -> None:
        """Redirect, then close the connection on the next request over it."""
        self._send(b"", 302, Location="/good")
        self.rfile.read(1)

    def slowly(self, begin: int, turn: int) -> None:
        """Send the whole content in about two seconds."""
        self._part(begin, begin)
        step = len(self.server.content) // 100
        for at in range(begin, len(self.server.content), step):
            self.wfile.write(self.server.content[at : at + step])
            if self.server.stopped.wait(0.02):
                return

    def to_nowhere(self, begin: int, turn: int) -> None:
        self._send(b"", 302, Location="https://[::1")

    def to_a_long_name(self, begin: int, turn: int) -> None:
        self._send(b"", 302, Location=f"http://127.0.0.1:{'9' * 5000}/good")

    def _with_length(self, length: str) -> None:
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1"))
        self.wfile.write(self.server.content)

    def length_in_other_digits(self, begin: int, turn: int) -> None:
        self._with_length("\xb3")

    def length_of_5000_digits(self, begin: int, turn: int) -> None:
        self._with_length("3" * 5000)

    def dripping(self, begin: int, turn: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.server.stopped.wait(0.05):
            self.wfile.write(b"x")
            self.wfile.flush()

    def slow_then_busy(self, begin: int, turn: int) -> None:
        self.slowly(begin, turn) if turn == 1 else self.busy(begin, turn)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    content: bytes = CONTENT

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, int]] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that have disconnected."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("cifar_lightning.data.download.ALLOWED_PREFIXES", ("https://", "http://127.0.0.1:"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.stopped.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def fetched(*names: str, patience: Patience = HASTY) -> Path:
        return download(FILE, [server.url(name) for name in names], tmp_path, patience=patience)

    return fetched


def arrived(folder: Path) -> bool:
    """Whether the folder holds the right file and nothing else."""
    return [path.name for path in folder.iterdir()] == [FILE.name] and (folder / FILE.name).read_bytes() == CONTENT


# Faults of a server


@pytest.mark.parametrize("name", ["good", "to_good", "encoded", "good?download=1"])
def test_a_file_is_downloaded(name, fetch, tmp_path):
    assert fetch(name) == tmp_path / FILE.name
    assert arrived(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason", "num_requests"),
    [
        ("missing", "the server answers 404 Not Found", 1),
        ("busy", "the server answers 503 Service Unavailable", 3),
        ("portal", "a web page came instead of the file, perhaps the network's login page", 1),
        ("other_file", "it has another file: 14 bytes instead of 300,000", 1),
        ("wrong_bytes", "sends other bytes: MD5 [0-9a-f]{32} instead of " + FILE.md5, 1),
        ("stalling", r"nothing arrived for 0\.3 s", 3),
        ("stuck_at_100000", "the connection ended after 100,000 of 300,000 bytes", 4),
        ("to_plain_http", "only https is allowed", 1),
    ],
)
def test_each_fault_has_its_reason_and_the_next_address_is_used(name, reason, num_requests, fetch, server, tmp_path):
    with pytest.raises(DownloadError, match=rf"^{server.url(name)}: {reason}"):
        fetch(name)
    assert not (tmp_path / FILE.name).exists()
    assert [asked for asked, _ in server.requests if asked == name] == [name] * num_requests
    fetch(name, "good")
    assert arrived(tmp_path)


@pytest.mark.parametrize("name", ["to_nowhere", "to_a_long_name"])
def test_an_odd_answer_costs_its_address_alone(name, fetch, server, tmp_path):
    with pytest.raises(DownloadError, match=rf"^{server.url(name)}: .*(Invalid|Exceeds)"):
        fetch(name)
    fetch(name, "good")
    assert arrived(tmp_path)


@pytest.mark.parametrize("name", ["length_in_other_digits", "length_of_5000_digits"])
def test_a_length_that_is_none_is_not_believed(name, fetch, tmp_path):
    fetch(name)
    assert arrived(tmp_path)


def test_headers_that_drip_are_a_stall(fetch, server, tmp_path):
    patience = replace(HASTY, connect_seconds=0.1, attempts=1)
    with pytest.raises(DownloadError, match=rf"^{server.url('dripping')}: no answer within 0\.4 s$"):
        fetch("dripping", patience=patience)
    fetch("dripping", "good", patience=patience)
    assert arrived(tmp_path)


def test_a_busy_server_gets_a_second_attempt(fetch, server, tmp_path):
    fetch("busy_once")
    assert arrived(tmp_path)
    assert server.requests == [("busy_once", 0)] * 2


def test_a_transfer_that_ends_early_is_continued(fetch, server, tmp_path):
    fetch("truncating")
    assert arrived(tmp_path)
    assert server.requests == [("truncating", begin) for begin in (0, 100_000, 200_000)]


def test_the_part_of_an_earlier_process_is_continued(fetch, server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:123_456])
    fetch("good")
    assert arrived(tmp_path)
    assert server.requests == [("good", 123_456)]


def test_a_complete_part_is_not_downloaded_again(fetch, server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT)
    fetch("good")
    assert arrived(tmp_path)
    assert server.requests == []


def test_a_server_without_ranges_sends_the_whole_file(fetch, server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(b"x" * 123_456)
    fetch("without_ranges")
    assert arrived(tmp_path)
    assert server.requests == [("without_ranges", 123_456), ("without_ranges", 0)]


def test_a_server_with_ranges_is_preferred_to_one_without(fetch, server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:123_456])
    fetch("without_ranges", "good")
    assert arrived(tmp_path)
    assert server.requests == [("without_ranges", 123_456), ("good", 123_456)]


def test_a_server_that_sends_another_range_fails(fetch, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match=r"it sends another part than requested: bytes 0-/300000"):
        fetch("wrong_range")
    fetch("wrong_range", "good")
    assert arrived(tmp_path)


@pytest.mark.parametrize("size", [1000, 300_000, 400_000])
def test_a_wrong_part_is_downloaded_again(size, fetch, server, tmp_path):
    (tmp_path / f"{FILE.name}.part").write_bytes(b"x" * size)
    fetch("good")
    assert arrived(tmp_path)
    assert server.requests[-1] == ("good", 0)


def test_a_faster_address_continues_after_a_slow_one(fetch, server, tmp_path):
    fetch("trickling", "good")
    assert arrived(tmp_path)
    (_, first), (name, begin) = server.requests
    assert (first, name) == (0, "good")
    assert begin > 0, "what the slow address sent was discarded"


def test_a_slow_address_is_used_where_no_other_works(fetch, server, tmp_path, caplog):
    caplog.set_level("INFO")
    patience = replace(HASTY, min_bytes_per_second=1e9)
    fetch("slowly", "missing", patience=patience)
    assert arrived(tmp_path)
    assert [name for name, _ in server.requests] == ["slowly", "missing", "slowly"]
    assert "minutes to go" in caplog.text
    assert "although it is slow" in caplog.text


def test_slow_addresses_are_tried_again_the_fastest_first(fetch, server, tmp_path):
    patience = replace(HASTY, min_bytes_per_second=1e9)
    fetch("slow_then_busy", "slowly", patience=patience)
    assert arrived(tmp_path)
    assert [name for name, _ in server.requests][:2] == ["slow_then_busy", "slowly"]
    assert server.requests[-1][0] == "slowly"


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1:80", "127.0.0.1:1@localhost"])
def test_plain_http_is_refused(host, tmp_path):
    with pytest.raises(DownloadError, match=rf"^http://{host}/x: only https is allowed"):
        download(FILE, [f"http://{host}/x"], tmp_path, patience=HASTY)


def test_an_unknown_certificate_is_refused(tmp_path, server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = tmp_path / "certificate.pem"
    _write_certificate(certificate)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    (tmp_path / "data").mkdir()
    with pytest.raises(DownloadError, match=r"its certificate cannot be trusted .*self-signed certificate"):
        download(FILE, [f"https://127.0.0.1:{server.server_port}/good"], tmp_path / "data", patience=HASTY)
    assert list((tmp_path / "data").iterdir()) == []


def test_without_a_network_each_address_has_a_reason_within_half_a_minute(tmp_path, server):
    with Server() as closed:
        refused = closed.url("good")
    urls = [refused, "https://no-such-host.invalid/x", *(f"{refused}{i}" for i in range(3))]
    started = time.monotonic()
    with pytest.raises(DownloadError, match="Connection refused") as error:
        download(FILE, urls, tmp_path)  # with the default patience
    assert time.monotonic() - started < 30
    reasons = str(error.value).split("; ")
    assert len(reasons) == 6  # one reason contains a semicolon
    assert reasons[0] == f"{refused}: Connection refused"
    assert "no-such-host.invalid/x: its host name cannot be resolved; is there a network?" in str(error.value)


def test_a_reason_that_all_addresses_have_is_said_once(fetch):
    with pytest.raises(DownloadError, match=r"^none of 2 addresses gives it: the server answers 404 Not Found$"):
        fetch("missing", "missing?download=1")


def test_reasons_that_the_log_shows_are_not_said_again(fetch, server, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(DownloadError) as error:
        fetch("missing", "portal")
    assert str(error.value) == "none of 2 addresses gives it, for the reasons above"
    assert [message.strip().partition(",")[0] for message in caplog.messages] == [
        *(f"fetching  {server.url('missing')}", "the server answers 404 Not Found"),
        *(f"fetching  {server.url('portal')}", "a web page came instead of the file"),
    ]


def test_the_reason_of_a_second_attempt_is_logged(fetch, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(DownloadError):
        fetch("slow_then_busy", patience=replace(HASTY, min_bytes_per_second=1e9))
    assert caplog.messages[-1].strip() == "the server answers 503 Service Unavailable"


def test_a_full_disk_ends_the_download_at_once(fetch, server):
    with no_file_above(100_000), pytest.raises(OSError, match="File too large"):
        fetch("good", "good")
    assert len(server.requests) == 1


def _write_certificate(path: Path) -> None:
    command = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run(
            ["openssl", *command.split(), "-keyout", str(path), "-out", f"{path}.crt"], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate, is not installed")
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())


# CIFAR-10 and CIFAR-100


def packed(root: Path, filler: bytes = b"") -> bytes:
    """The tiny data set's archive. A filler makes it take longer to unpack."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
        if filler:
            member = tarfile.TarInfo(f"{TinyCIFAR10.base_folder}/filler")
            member.size = len(filler)
            archive.addfile(member, io.BytesIO(filler))
        archive.add(root / TinyCIFAR10.base_folder, TinyCIFAR10.base_folder)
    return content.getvalue()


@pytest.fixture
def tiny(tiny_root: Path, server: Server) -> type[cifar.CIFAR10]:
    """The project's class for the tiny data set, whose archive the server sends."""
    server.content = packed(tiny_root)

    class Tiny(cifar.CIFAR10):
        archive: ClassVar[RemoteFile] = described(cifar.CIFAR10.archive.name, server.content)
        unpacked_bytes: ClassVar[int] = 400_000
        patience: ClassVar[Patience] = PATIENT
        train_list = TinyCIFAR10.train_list
        test_list = TinyCIFAR10.test_list
        meta: ClassVar[dict[str, str]] = TinyCIFAR10.meta

    return Tiny


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_absent_data_are_downloaded_and_read(tiny, server, tmp_path):
    data = tiny(tmp_path / "new" / "data", train=True, download=True, urls=[server.url("missing"), server.url("good")])
    assert data.data.shape == (60, 32, 32, 3)
    assert files(tmp_path / "new" / "data") == {tiny.base_folder, tiny.archive.name}
    assert [name for name, _ in server.requests] == ["missing", "good"]
    assert len(tiny(tmp_path / "new" / "data", train=False)) == 20
    tiny(tmp_path / "new" / "data", download=True, urls=[server.url("good")])
    assert len(server.requests) == 2, "data on disk were downloaded again"


def test_without_download_nothing_is_downloaded(tiny, server, tmp_path):
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        tiny(tmp_path, urls=[server.url("good")])
    assert server.requests == []


def test_an_archive_in_the_folder_is_used(tiny, server, tmp_path):
    (tmp_path / tiny.archive.name).write_bytes(server.content)
    assert len(tiny(tmp_path, download=True, urls=[server.url("good")])) == 60
    assert server.requests == []


def test_a_damaged_archive_is_named_and_downloaded_again(tiny, server, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / tiny.archive.name).write_bytes(server.content[:-1] + b"x")
    assert len(tiny(tmp_path, download=True, urls=[server.url("good")])) == 60
    assert f"damaged   {tmp_path / tiny.archive.name} has MD5" in caplog.text


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_damaged_file_is_named_and_unpacked_again(name, tiny, server, tmp_path, caplog):
    caplog.set_level("INFO")
    urls = [server.url("good")]
    tiny(tmp_path, download=True, urls=urls)
    path = tmp_path / tiny.base_folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        tiny(tmp_path)
    tiny(tmp_path, download=True, urls=urls)
    assert path.read_bytes() == whole
    assert f"damaged   {path}, unpacked again" in caplog.text
    assert len(server.requests) == 1


@pytest.mark.parametrize("place", ["parent", "itself", "itself, by another name"])
def test_the_folder_may_be_named_in_several_ways(place, tiny, tiny_root, tmp_path):
    folder = tmp_path / (tiny.base_folder if place != "itself, by another name" else "my cifar")
    folder.symlink_to(tiny_root / tiny.base_folder)
    assert len(tiny(folder if place != "parent" else tmp_path)) == 60


def test_nothing_is_written_where_the_data_are_present(tiny, tiny_root):
    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [tiny_root, *tiny_root.rglob("*")])

    before = listing()
    assert len(tiny(tiny_root, train=False, download=True)) == 20
    assert listing() == before


def test_one_line_says_how_to_download_by_hand(tiny, server, tmp_path):
    with pytest.raises(DownloadError, match="cannot be downloaded") as error:
        tiny(tmp_path, download=True, urls=[server.url("missing"), server.url("portal")])
    text = str(error.value)
    for part in (
        *(f"in {tmp_path / tiny.base_folder}", "/missing: the server answers 404", "/portal: a web page came"),
        *(f"get {tiny.archive.name} (0 MB) from {tiny.url} and put it into {tmp_path}",),
        *(f"name the folder that holds {tiny.base_folder}/data_batch_1 with data.root=", "data=synthetic"),
    ):
        assert part in text
    assert "\n" not in text


def test_too_little_disk_space_is_noticed_before_the_download(tiny, server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"has 0 MB free, and 1 MB are needed: make room, or name another folder"):
        tiny(tmp_path, download=True, urls=[server.url("good")])
    assert server.requests == []


def test_an_archive_is_not_unpacked_through_a_link(tiny, server, tmp_path):
    folder, outside = tmp_path / "data", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / f".{tiny.archive.name}.unpacking").symlink_to(outside)
    with pytest.raises(OSError, match="unpacking is a link: there must be a plain folder or none"):
        tiny(folder, download=True, urls=[server.url("good")])
    assert list(outside.iterdir()) == []


def test_the_half_unpacked_files_of_a_killed_process_are_removed(tiny, server, tmp_path):
    tiny(tmp_path, download=True, urls=[server.url("good")])
    beside = tmp_path / f".{tiny.archive.name}.unpacking" / tiny.base_folder
    beside.mkdir(parents=True)
    (beside / "data_batch_1").write_bytes(b"half")
    (tmp_path / tiny.base_folder / "data_batch_1").unlink()
    assert len(tiny(tmp_path, download=True)) == 60
    assert files(tmp_path) == {tiny.base_folder, tiny.archive.name}


def test_others_wait_for_the_first_download_and_use_it(tiny, server, tmp_path, caplog):
    caplog.set_level("INFO")
    data: list[cifar.CIFAR10] = []
    urls = [server.url("slowly")]
    threads = [threading.Thread(target=lambda: data.append(tiny(tmp_path, download=True, urls=urls))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(split) for split in data] == [60] * 3
    assert len(server.requests) == 1
    assert len(re.findall(rf"waiting   .*process.* is downloading the data into {tmp_path}", caplog.text)) == 2


def test_one_at_a_time_waits_for_the_lock(tmp_path):
    path = tmp_path / ".lock"
    held, entered = FileLock(path), threading.Event()

    def enter() -> None:
        with one_at_a_time(path):
            entered.set()

    with held:
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
    waiting.join()
    assert entered.is_set()


def test_cifar100_has_the_100_fine_classes(tmp_path):
    def write(name: str, content: object) -> list[str]:
        path = tmp_path / cifar.CIFAR100.base_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    pixels = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    labels = {"fine_labels": [99, 0, 5, 7], "coarse_labels": [1, 1, 1, 1]}
    names = {"fine_label_names": [f"class {k}" for k in range(100)], "coarse_label_names": ["x"] * 20}

    class Tiny(cifar.CIFAR100):
        train_list: ClassVar[list[list[str]]] = [write("train", {"data": pixels, **labels})]
        test_list: ClassVar[list[list[str]]] = [write("test", {"data": pixels[:2], **labels})]
        meta: ClassVar[dict[str, str]] = {"filename": "meta", "key": "fine_label_names", "md5": write("meta", names)[1]}

    data = Tiny(tmp_path)
    assert (data.targets, data.classes) == ([99, 0, 5, 7], names["fine_label_names"])
    np.testing.assert_array_equal(data.data.transpose(0, 3, 1, 2).reshape(4, 3072), pixels)


@pytest.mark.parametrize("own", [cifar.CIFAR10, cifar.CIFAR100])
def test_files_and_archive_are_those_of_torchvision(own):
    original = getattr(torchvision.datasets, own.__name__)
    for name in ("base_folder", "url", "filename", "tgz_md5", "train_list", "test_list", "meta"):
        assert getattr(own, name) == getattr(original, name)
    assert (own.archive.name, own.archive.md5) == (original.filename, original.tgz_md5)


# Kills


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from cifar_lightning.data import cifar
from cifar_lightning.data import download
from cifar_lightning.data.download import RemoteFile

download.ALLOWED_PREFIXES = ("http://127.0.0.1:",)

class Killed(cifar.CIFAR10):
    pass

for name, value in json.loads(sys.argv[3]).items():
    setattr(Killed, name, value)
Killed.archive = RemoteFile(**Killed.archive)
print("ready", flush=True)
Killed(sys.argv[2], download=True, urls=sys.argv[4:])
"""


@contextmanager
def child(tiny: type[cifar.CIFAR10], folder: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    names = ("archive", "train_list", "test_list", "meta", "unpacked_bytes")
    values = json.dumps({name: getattr(tiny, name) for name in names}, default=vars)
    command = [sys.executable, "-c", CHILD, str(ROOT), str(folder), values, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["download", "extraction"])
def test_ten_kills_lose_nothing(phase, tiny, tiny_root, server, tmp_path):
    chance = random.Random(phase)
    if phase == "download":
        url, longest = server.url("slowly"), 0.15
    else:
        content = packed(tiny_root, filler=bytes(300_000_000))
        tiny.archive = described(tiny.archive.name, content)
        (tmp_path / tiny.archive.name).write_bytes(content)
        url, longest = server.url("missing"), 0.5  # unpacking takes about a second
    sizes, half_unpacked = [], 0
    part = tmp_path / f"{tiny.archive.name}.part"
    for _ in range(10):
        with child(tiny, tmp_path, url) as process:
            time.sleep(chance.uniform(0, longest))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        sizes.append(part.stat().st_size if part.exists() else 0)
        half_unpacked += (tmp_path / f".{tiny.archive.name}.unpacking").exists()
        if phase == "extraction" and (tmp_path / tiny.base_folder).exists():  # it was complete: unpack again
            shutil.rmtree(tmp_path / tiny.base_folder)
    with child(tiny, tmp_path, url) as process:
        assert process.wait(60) == 0
    assert len(tiny(tmp_path)) == 60
    assert files(tmp_path) == {tiny.base_folder, tiny.archive.name}
    if phase == "download":
        assert sizes == sorted(sizes), "a process discarded what another had downloaded"
        assert sizes[-1] > 0
        assert all(begin in {0, *sizes} for _, begin in server.requests)
    else:
        assert half_unpacked, "no kill came while unpacking"


@pytest.mark.parametrize("name", ["cargo.tar.gz.part", ".lock"])
def test_a_download_is_written_through_no_link(name, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).symlink_to(outside)
    with pytest.raises(OSError, match="is a link: there must be a plain file or none"), one_at_a_time(folder / ".lock"):
        download(FILE, ["https://localhost:9/good"], folder, patience=HASTY)
    assert outside.read_text() == "mine"
