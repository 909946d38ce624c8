"""Download a file from a list of addresses: verified, continued after an interruption, by one process at a time."""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urlparse

import requests
import urllib3
from requests.adapters import HTTPAdapter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifar_lightning.files import own
from cifar_lightning.locks import held

log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**18

ALLOWED_PREFIXES = ("https://",)
"""Addresses that are used begin with one of these."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its size in bytes, its checksums in hexadecimal.

    Of the SHA-256 the first digits may be given alone, as the names of torchvision's weights have them, and no MD5.
    """

    name: str
    size: int
    md5: str | None
    sha256: str

    def fault(self, path: Path) -> str | None:
        """What is wrong with a file on disk, in words; None if it is the expected file."""
        if (size := path.stat().st_size) != self.size:
            return f"{size:,} bytes instead of {self.size:,}"
        sums: dict[str, tuple[Any, str]] = {}
        if self.md5 is not None:
            sums["MD5"] = hashlib.md5(usedforsecurity=False), self.md5
        sums["SHA-256"] = hashlib.sha256(), self.sha256
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                for digest, _ in sums.values():
                    digest.update(chunk)
        for name, (digest, expected) in sums.items():
            if not (found := digest.hexdigest()).startswith(expected):
                return f"{name} {found} instead of {expected}"
        return None


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server before the next address is tried.

    Attributes:
        connect_seconds: Longest wait for a connection.
        stall_seconds: Longest wait for the next byte.
        window_seconds: Time over which the throughput is measured.
        min_bytes_per_second: Lowest throughput that is accepted. The official server gave 50 to 85 kB/s in 2026.
        attempts: Number of failed attempts in a row after which an address is left. An attempt that reaches the lowest
            throughput before it fails does not count.
        backoff_seconds: Pause after the first failed attempt. It doubles with each further one.
    """

    connect_seconds: float = 10
    stall_seconds: float = 20
    window_seconds: float = 20
    min_bytes_per_second: float = 150_000
    attempts: int = 3
    backoff_seconds: float = 0.5


class DownloadError(OSError):
    """The file cannot be downloaded. The message says why, and what to do."""


class _UrlFailed(Exception):
    """This address does not give the file, and a second attempt does not help."""


class _TransferFailed(Exception):
    """The transfer failed, and a second attempt may help."""


class _TooSlow(Exception):
    """The transfer works, but slowly."""

    def __init__(self, bytes_per_second: float, bytes_left: int) -> None:
        super().__init__(f"{bytes_per_second / 1000:.0f} kB/s, {bytes_left / bytes_per_second / 60:.0f} minutes to go")
        self.bytes_per_second = bytes_per_second


class _RangeUnsupported(Exception):
    """The server can only send the whole file, which discards what is on disk already."""


def download(file: RemoteFile, urls: Sequence[str], folder: Path, *, patience: Patience = Patience()) -> Path:
    """Download a file from the first address that gives it.

    What has arrived is kept as ``<name>.part``. The next address, or the next process, continues it. The file gets its
    own name only when its size and checksums are right. If every address fails, the slow ones are tried again without
    a lowest throughput, the fastest first. After them come those that can only send the whole file.

    Args:
        file: The file to download.
        urls: Addresses, tried in this order. They must be https.
        folder: An existing folder for the file. The caller holds ``one_at_a_time`` there.
        patience: When to leave an address for the next.

    Returns:
        Path of the file.

    Raises:
        DownloadError: If no address gives the file.
        OSError: If the file cannot be written.
    """
    reasons: dict[str, str] = {}
    rates: dict[str, float] = {}  # of the slow addresses
    whole: list[str] = []  # addresses that can only send the whole file
    with _session() as session:
        for url in urls:
            log.info("fetching  %s", url)
            try:
                return _fetch(session, url, file, folder, patience)
            except _TooSlow as error:
                rates[url] = error.bytes_per_second
                reasons[url] = str(error)
            except _RangeUnsupported as error:
                whole.append(url)
                reasons[url] = str(error)
            except (_UrlFailed, _TransferFailed) as error:
                reasons[url] = str(error)
            log.info("          %s", reasons[url])
        patience = replace(patience, min_bytes_per_second=0)
        for url in [*sorted(rates, key=rates.__getitem__, reverse=True), *whole]:
            log.info("fetching  %s, %s", url, "from the start" if url in whole else "although it is slow")
            if url in whole:
                (folder / f"{file.name}.part").unlink(missing_ok=True)
            try:
                return _fetch(session, url, file, folder, patience)
            except (_UrlFailed, _TransferFailed, _RangeUnsupported) as error:
                reasons[url] = str(error)
            log.info("          %s", reasons[url])
    raise DownloadError(_in_all(reasons))


def _in_all(reasons: Mapping[str, str]) -> str:
    """Why no address gives the file: each reason once, and none again that the log has shown beside its address."""
    if not reasons:
        return "no address was given"
    none = f"none of {len(reasons)} addresses gives it"
    if len(reasons) > 1 and len(set(reasons.values())) == 1:
        return f"{none}: {next(iter(reasons.values()))}"
    if len(reasons) > 1 and log.isEnabledFor(logging.INFO) and log.hasHandlers():
        return f"{none}, for the reasons above"
    return "; ".join(f"{url}: {reason}" for url, reason in reasons.items())


def announced(url: str, *, sha256: str, patience: Patience = Patience()) -> RemoteFile:
    """The file at an address, with the size that its server says.

    Args:
        url: The address, https.
        sha256: Its SHA-256 in hexadecimal, or the first digits of it.
        patience: How long to wait for the server.

    Raises:
        DownloadError: If the server does not say it.
    """
    name = Path(urlparse(url).path).name
    try:
        with _session() as session, _answer(partial(session.head, url, allow_redirects=True), patience) as response:
            size = _length(response)
            if response.status_code != 200 or size is None:
                raise DownloadError(f"{url}: the server answers {response.status_code} {response.reason} and no size")
            return RemoteFile(name, size, None, sha256)
    except (_UrlFailed, _TransferFailed) as error:
        raise DownloadError(f"{url}: {error}") from error


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file; see ``locks.held``. If another process holds it, log that and wait."""

    def waits(owner: str) -> None:
        log.info("waiting   %s is downloading the data into %s", owner, path.parent)

    with held(path, waits=waits):
        yield


def _session() -> requests.Session:
    """A session without an adapter for http, so that not even a redirect leads to an unencrypted address."""
    session = requests.Session()
    session.adapters.clear()
    for prefix in ALLOWED_PREFIXES:
        session.mount(prefix, HTTPAdapter())
    session.headers["Accept-Encoding"] = "identity"  # uncompressed, as only then the number of bytes is known
    session.hooks["response"].append(_close_redirect)
    return session


def _close_redirect(response: requests.Response, **_: object) -> None:
    """Make a redirect open a new connection, as some servers close the old one."""
    if response.is_redirect:
        response.raw.close()


@contextmanager
def _progress(file: RemoteFile, done: int) -> Iterator[Callable[[int], None]]:
    """Progress bar with throughput and time left, on a terminal only. Yields the function that sets the bytes done."""
    console = Console(stderr=True)
    figures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *figures)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(file.name, total=file.size, completed=done)
        yield lambda num_bytes: progress.update(task, completed=num_bytes)


def _fetch(session: requests.Session, url: str, file: RemoteFile, folder: Path, patience: Patience) -> Path:
    """Download the file from one address, in several attempts if need be; see ``Patience``."""
    part = folder / f"{file.name}.part"
    own(part)
    part_is_foreign = part.exists()  # begun at another address or by another process
    failures = 0
    while True:
        before, started = _size(part), time.monotonic()
        try:
            if before < file.size:
                _receive(session, url, file, part, patience)
        except _TransferFailed:
            gained, seconds = _size(part) - before, time.monotonic() - started
            was_fast = gained > 0 and gained >= patience.min_bytes_per_second * seconds
            failures = 0 if was_fast else failures + 1
            if failures >= patience.attempts:
                raise
            time.sleep(patience.backoff_seconds * 2 ** max(0, failures - 1))
            continue
        fault = file.fault(part)
        if fault is None:
            break
        part.unlink()
        if not part_is_foreign:
            raise _UrlFailed(f"sends other bytes: {fault}")
        part_is_foreign = False  # the wrong bytes may come from elsewhere, so this address gets a second attempt
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, folder / file.name)
    return folder / file.name


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(session: requests.Session, url: str, file: RemoteFile, part: Path, patience: Patience) -> None:
    """Append what is missing to the part. Raise if the transfer fails or is too slow."""
    begin = _size(part)
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    with _answer(partial(session.get, url, headers=headers, stream=True), patience) as response:
        _check_headers(response, begin, file)
        with part.open("r+b" if begin else "wb") as written, _progress(file, begin) as show:
            written.truncate(begin)
            written.seek(begin)
            _copy(response, written, begin, file, patience, show)


def _answer(request: Callable[..., requests.Response], patience: Patience) -> requests.Response:
    """A server's answer up to its headers, redirects followed; any failure is this address's alone.

    A thread asks: headers may come byte by byte, and each byte renews the limit on a wait.
    """
    answers: SimpleQueue[requests.Response | Exception] = SimpleQueue()
    timeout = (patience.connect_seconds, patience.stall_seconds)

    def ask() -> None:
        try:
            answers.put(request(timeout=timeout))
        except Exception as error:  # a server's answer makes the libraries raise anything
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=sum(timeout))
    except Empty as error:
        raise _TransferFailed(f"no answer within {sum(timeout):g} s") from error
    if isinstance(answer, Exception):
        raise _translated(answer, patience) from answer
    return answer


def _copy(
    response: requests.Response,
    written: BinaryIO,
    begin: int,
    file: RemoteFile,
    patience: Patience,
    show: Callable[[int], None],
) -> None:
    done, window_bytes, window_start = begin, 0, time.monotonic()
    while done < file.size:
        try:
            # read1 returns what has arrived, without waiting for a whole chunk: a slow transfer is noticed in time.
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=False)
        except urllib3.exceptions.ProtocolError:
            chunk = b""
        except Exception as error:  # as above
            raise _translated(error, patience) from error
        if not chunk:
            raise _TransferFailed(f"the connection ended after {done:,} of {file.size:,} bytes")
        written.write(chunk[: file.size - done])
        done += len(chunk)
        window_bytes += len(chunk)
        show(min(done, file.size))
        if (seconds := time.monotonic() - window_start) >= patience.window_seconds:
            if window_bytes < patience.min_bytes_per_second * seconds and done < file.size:
                raise _TooSlow(window_bytes / seconds, file.size - done)
            window_bytes, window_start = 0, time.monotonic()


def _check_headers(response: requests.Response, begin: int, file: RemoteFile) -> None:
    """Raise if the headers of an answer show that it does not bring the file's bytes from ``begin`` on."""
    status = response.status_code
    if status >= 500 or status in (408, 429):
        raise _TransferFailed(f"the server answers {status} {response.reason}")
    if status not in (200, 206):
        raise _UrlFailed(f"the server answers {status} {response.reason}")
    if "html" in response.headers.get("Content-Type", ""):
        raise _UrlFailed("a web page came instead of the file, perhaps the network's login page")
    if status == 200:
        if begin:
            raise _RangeUnsupported(f"it cannot continue after the {begin:,} bytes that are on disk")
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
        raise _UrlFailed(f"it sends another part than requested: {response.headers.get('Content-Range')}")
    length = _length(response)
    if length is not None and length != file.size - begin:
        raise _UrlFailed(f"it has another file: {begin + length:,} bytes instead of {file.size:,}")


def _length(response: requests.Response) -> int | None:
    """How many bytes an answer says that it has; None where it says none, or no number."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _translated(error: Exception, patience: Patience) -> Exception:
    """A network error as one of this module's exceptions, with a short reason."""
    cause: BaseException | object = error
    while isinstance(cause, requests.RequestException | urllib3.exceptions.MaxRetryError):
        inner = getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    if isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.MissingSchema):
        return _UrlFailed("only https is allowed, and this address, or one it redirects to, is not https")
    if isinstance(error, requests.exceptions.SSLError):
        return _UrlFailed(f"its certificate cannot be trusted ({cause})")
    if isinstance(error, requests.exceptions.TooManyRedirects | ValueError):
        return _UrlFailed(" ".join(str(error).split()))
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return _TransferFailed("its host name cannot be resolved; is there a network?")
    if type(cause) is urllib3.exceptions.ConnectTimeoutError:  # a refused connection is a subclass
        return _TransferFailed(f"no connection within {patience.connect_seconds:g} s")
    if isinstance(cause, urllib3.exceptions.ReadTimeoutError | TimeoutError):
        return _TransferFailed(f"nothing arrived for {patience.stall_seconds:g} s")
    source = cause.__cause__ if isinstance(cause, BaseException) and cause.__cause__ else cause
    return _TransferFailed(getattr(source, "strerror", None) or " ".join(str(source).split()))
