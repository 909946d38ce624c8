"""Files from a list of addresses, in spite of the network: verified, continued where they broke off, one at a time."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)

_CHUNK_BYTES = 2**18

_SPOKEN = ("https://",)


@dataclass(frozen=True)
class RemoteFile:
    """A file as it must arrive; sizes in bytes, checksums in hexadecimal."""

    name: str
    size: int
    md5: str
    sha256: str

    def fault(self, path: Path) -> str | None:
        """What is wrong with a file on disk, in words; None where every byte is right."""
        if (size := path.stat().st_size) != self.size:
            return f"{size:,} bytes instead of {self.size:,}"
        sums = {"MD5": (hashlib.md5(usedforsecurity=False), self.md5), "SHA-256": (hashlib.sha256(), self.sha256)}
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                for digest, _ in sums.values():
                    digest.update(chunk)
        for name, (digest, expected) in sums.items():
            if (found := digest.hexdigest()) != expected:
                return f"{name} {found} instead of {expected}"
        return None


@dataclass(frozen=True)
class Patience:
    """How long a server may keep us waiting before the next address is tried.

    Attributes:
        connect_seconds: For a connection.
        stall_seconds: With no byte arriving.
        window_seconds: Over which the throughput is measured.
        min_bytes_per_second: Throughput that is worth staying for; the official server gave 50 to 85 kB/s in 2026.
        attempts: At one address, in a row, that broke off without having brought as much.
        backoff_seconds: Pause after the first of them, doubled after each further one.
    """

    connect_seconds: float = 10
    stall_seconds: float = 20
    window_seconds: float = 20
    min_bytes_per_second: float = 150_000
    attempts: int = 3
    backoff_seconds: float = 0.5


class DownloadError(OSError):
    """The file is not to be had; the message says why, for each address, and what to do about it."""


class _Refused(Exception):
    """This address will not do, now or at a second try."""


class _Interrupted(Exception):
    """The transfer broke off, and may go on at a second try."""


class _TooSlow(Exception):
    """The transfer goes on, but slowly."""

    def __init__(self, bytes_per_second: float, bytes_left: int) -> None:
        super().__init__(f"{bytes_per_second / 1000:.0f} kB/s, {bytes_left / bytes_per_second / 60:.0f} minutes to go")
        self.bytes_per_second = bytes_per_second


class _StartsOver(Exception):
    """The server would send the file from its first byte, and what has arrived would be lost."""


def download(file: RemoteFile, urls: Sequence[str], folder: Path, *, patience: Patience = Patience()) -> Path:
    """Fetch a file from the first address that gives it, byte for byte.

    What has arrived is kept as ``<name>.part`` and continued, at the next address or by the next process; the file's
    own name appears only once its size and checksums are right. Where every address fails, those that were only slow
    are taken at their own speed, the fastest first, and then those that can only start over.

    Args:
        file: What must arrive.
        urls: Addresses, tried in this order; only https is spoken.
        folder: Where the file goes; it must exist. Hold ``one_at_a_time`` there.
        patience: When to give an address up.

    Raises:
        DownloadError: If no address gave the file.
        OSError: If it cannot be written.
    """
    reasons: dict[str, str] = {}
    rates: dict[str, float] = {}  # of those that are slow
    whole: list[str] = []  # those that would start over
    with _session() as session:
        for url in urls:
            log.info("fetching  %s", url)
            try:
                return _fetch(session, url, file, folder, patience)
            except _TooSlow as error:
                rates[url] = error.bytes_per_second
                reasons[url] = str(error)
            except _StartsOver as error:
                whole.append(url)
                reasons[url] = str(error)
            except (_Refused, _Interrupted) as error:
                reasons[url] = str(error)
            log.info("          %s", reasons[url])
        patience = replace(patience, min_bytes_per_second=0)
        for url in [*sorted(rates, key=rates.__getitem__, reverse=True), *whole]:
            log.info("fetching  %s, %s", url, "from the start" if url in whole else "slow as it is")
            if url in whole:
                (folder / f"{file.name}.part").unlink(missing_ok=True)
            try:
                return _fetch(session, url, file, folder, patience)
            except (_Refused, _Interrupted, _StartsOver) as error:
                reasons[url] = str(error)
    raise DownloadError("; ".join(f"{url}: {reason}" for url, reason in reasons.items()) or "no address was given")


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock file; where another process holds it, say so and wait. The system lets go of it with the process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting   another process is fetching the data into %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _session() -> requests.Session:
    """A session that cannot be led to plain http, not even by a redirect: it has no adapter for that."""
    session = requests.Session()
    session.adapters.clear()
    for prefix in _SPOKEN:
        session.mount(prefix, HTTPAdapter())
    session.headers["Accept-Encoding"] = "identity"  # the bytes themselves, whose number is known
    session.hooks["response"].append(_close_redirect)
    return session


def _close_redirect(response: requests.Response, **_: object) -> None:
    """Follow a redirect over a new connection: a server may be closing the one that brought it."""
    if response.is_redirect:
        response.raw.close()


@contextmanager
def _progress(file: RemoteFile, done: int) -> Iterator[Callable[[int], None]]:
    """A bar with throughput and time left, where there is a terminal; gives the function to tell the bytes done."""
    console = Console(stderr=True)
    figures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *figures)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(file.name, total=file.size, completed=done)
        yield lambda num_bytes: progress.update(task, completed=num_bytes)


def _fetch(session: requests.Session, url: str, file: RemoteFile, folder: Path, patience: Patience) -> Path:
    """The file from one address, with as many attempts as are worth it, and a few that are not."""
    part = folder / f"{file.name}.part"
    begun_elsewhere = part.exists()
    failures = 0
    while True:
        before, started = _size(part), time.monotonic()
        try:
            if before < file.size:
                _receive(session, url, file, part, patience)
        except _Interrupted:
            gained, seconds = _size(part) - before, time.monotonic() - started
            was_worth_it = gained > 0 and gained >= patience.min_bytes_per_second * seconds
            failures = 0 if was_worth_it else failures + 1
            if failures >= patience.attempts:
                raise
            time.sleep(patience.backoff_seconds * 2 ** max(0, failures - 1))
            continue
        fault = file.fault(part)
        if fault is None:
            break
        part.unlink()
        if not begun_elsewhere:
            raise _Refused(f"sends other bytes: {fault}")
        begun_elsewhere = False  # whose bytes were wrong is not known: once more, from the start
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, folder / file.name)
    return folder / file.name


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(session: requests.Session, url: str, file: RemoteFile, part: Path, patience: Patience) -> None:
    """Append to the part what is missing; raise where it breaks off, and where it goes too slowly."""
    begin = _size(part)
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    timeout = (patience.connect_seconds, patience.stall_seconds)
    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout)
    except _NETWORK_ERRORS as error:
        raise _judged(error, patience) from error
    with response:
        _check(response, begin, file)
        with part.open("r+b" if begin else "wb") as written, _progress(file, begin) as show:
            written.truncate(begin)
            written.seek(begin)
            _copy(response, written, begin, file, patience, show)


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
            # Whatever has come, not as much as was asked for: a trickle must be seen as one.
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=False)
        except urllib3.exceptions.ProtocolError:
            chunk = b""
        except _NETWORK_ERRORS as error:
            raise _judged(error, patience) from error
        if not chunk:
            raise _Interrupted(f"the connection ended after {done:,} of {file.size:,} bytes")
        written.write(chunk[: file.size - done])
        done += len(chunk)
        window_bytes += len(chunk)
        show(min(done, file.size))
        if (seconds := time.monotonic() - window_start) >= patience.window_seconds:
            if window_bytes < patience.min_bytes_per_second * seconds and done < file.size:
                raise _TooSlow(window_bytes / seconds, file.size - done)
            window_bytes, window_start = 0, time.monotonic()


def _check(response: requests.Response, begin: int, file: RemoteFile) -> None:
    """Whether an answer brings the file's bytes from ``begin`` on, as far as its headers tell."""
    status = response.status_code
    if status >= 500 or status in (408, 429):
        raise _Interrupted(f"the server answers {status} {response.reason}")
    if status not in (200, 206):
        raise _Refused(f"the server answers {status} {response.reason}")
    if "html" in response.headers.get("Content-Type", ""):
        raise _Refused("a web page came instead of the file, perhaps the network's own login page")
    if status == 200:
        if begin:
            raise _StartsOver(f"it cannot go on after the {begin:,} bytes that are there")
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
        raise _Refused(f"another part came than was asked for: {response.headers.get('Content-Range')}")
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) != file.size - begin:
        raise _Refused(f"another file is there: {begin + int(length):,} bytes instead of {file.size:,}")


def _judged(error: Exception, patience: Patience) -> Exception:
    """A network error in a few words, and whether a second try is worth it."""
    cause: BaseException | object = error
    while isinstance(cause, requests.RequestException | urllib3.exceptions.MaxRetryError):
        inner = getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    if isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.MissingSchema):
        return _Refused("only https is spoken here, and this address, or where it leads, is not")
    if isinstance(error, requests.exceptions.SSLError):
        return _Refused(f"its certificate cannot be trusted ({cause})")
    if isinstance(error, requests.exceptions.TooManyRedirects | ValueError):
        return _Refused(" ".join(str(error).split()))
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return _Interrupted("its name is not known here; is there a network?")
    if type(cause) is urllib3.exceptions.ConnectTimeoutError:  # one of whose subclasses is a refused connection
        return _Interrupted(f"no connection within {patience.connect_seconds:g} s")
    if isinstance(cause, urllib3.exceptions.ReadTimeoutError | TimeoutError):
        return _Interrupted(f"nothing came for {patience.stall_seconds:g} s")
    source = cause.__cause__ if isinstance(cause, BaseException) and cause.__cause__ else cause
    return _Interrupted(getattr(source, "strerror", None) or " ".join(str(source).split()))
