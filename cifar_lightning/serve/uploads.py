"""The files of a multipart request, read within limits of bytes, number and time."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

IDLE_SECONDS = 20.0
"""A client that sends nothing for so long is given up."""

BODY_SECONDS = 300.0
"""A body must have come by then."""

DRAIN_SECONDS = 5.0
DRAIN_BYTES = 50_000_000
"""How much of a body is still read, and dropped, once it is refused: a client that sends sees no answer."""

_MULTIPART = b"multipart/form-data"


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: HTTP's number.
        words: Why, and what to do.
        retry: Whether the same request may pass a little later.
    """

    def __init__(self, status: int, words: str, *, retry: bool = False) -> None:
        super().__init__(words)
        self.status = status
        self.retry = retry


@dataclass
class Upload:
    """A file of a request, with its name as given."""

    name: str
    content: bytes


@dataclass
class Store:
    """The bytes of all bodies that are held at one moment.

    Attributes:
        max_bytes: Most bytes that are held.
        num_bytes: Bytes that are held.
    """

    max_bytes: int
    num_bytes: int = 0

    @contextmanager
    def part(self) -> Iterator["Part"]:
        """What one request holds, until the context is left."""
        part = Part(self)
        try:
            yield part
        finally:
            part.drop()


@dataclass
class Part:
    """The bytes that one request holds."""

    store: Store
    num_bytes: int = 0

    def hold(self, num_bytes: int) -> None:
        """Hold further bytes.

        Raises:
            Refused: If all requests together hold too many.
        """
        if self.store.num_bytes + num_bytes > self.store.max_bytes:
            raise Refused(503, "too much is being sent at this moment: try again", retry=True)
        self.store.num_bytes += num_bytes
        self.num_bytes += num_bytes

    def drop(self) -> None:
        """Hold nothing any more."""
        self.store.num_bytes -= self.num_bytes
        self.num_bytes = 0


async def read_uploads(request: Request, part: Part, *, max_bytes: int, max_files: int) -> list[Upload]:
    """The files of a request, in their order; other fields of the form are dropped.

    Args:
        request: Its body is read here.
        part: Holds the bytes.
        max_bytes: Most bytes of the body.
        max_files: Most files.

    Raises:
        Refused: If the request is no such form, is too large or too slow, or has no or too many files.
        ClientDisconnect: If the client has gone.
    """
    form = _Form(request.headers.get("content-type", ""), max_files)
    too_large = Refused(413, f"the request has more than {max_bytes / 1e6:g} MB: send fewer or smaller files")
    if _length(request) > max_bytes:
        raise too_large
    loop = asyncio.get_running_loop()
    end, num_bytes = loop.time() + BODY_SECONDS, 0
    try:
        async with asyncio.timeout(IDLE_SECONDS) as timeout:
            async for chunk in request.stream():
                timeout.reschedule(min(loop.time() + IDLE_SECONDS, end))
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise too_large
                part.hold(len(chunk))
                form.write(chunk)
    except TimeoutError as error:
        raise Refused(408, "the request came too slowly: try again") from error
    return form.uploads()


def _length(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0


async def drain(request: Request) -> None:
    """Read on for a while and keep nothing, so that the client of a refused request comes to reading why."""
    if request.headers.get("expect", "").lower() == "100-continue":  # it waits for an answer
        return
    num_bytes = 0
    with suppress(TimeoutError, RuntimeError):  # RuntimeError: all has been read
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > DRAIN_BYTES:
                    return


_MAX_OTHER_FIELDS = 100


@dataclass
class _File:
    name: str
    content: bytearray = field(default_factory=bytearray)  # not a list: a piece may be of four bytes


class _Form:
    """Takes a multipart body in pieces.

    Args:
        content_type: Of the request.
        max_files: Most files.

    Raises:
        Refused: If it is not the type of such a body.
    """

    def __init__(self, content_type: str, max_files: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != _MULTIPART or not options.get(b"boundary"):
            raise Refused(415, "send the pictures as multipart/form-data, as with curl -F file=@cat.jpg")
        self._max_files = max_files
        self._files: list[_File] = []
        self._file: _File | None = None
        self._num_others = 0
        self._header, self._value = b"", b""
        self._disposition = b""
        self._is_over = False
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        callbacks = {f"on_{name}": getattr(self, f"_on_{name}") for name in names}
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise _broken() from error

    def write(self, chunk: bytes) -> None:
        """Take a piece.

        Raises:
            Refused: If it is no such body, or has too many files.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken() from error

    def uploads(self) -> list[Upload]:
        """The files, once all has come.

        Raises:
            Refused: If the body is not complete, or there are no files.
        """
        if not self._is_over:
            raise _broken()
        if not self._files:
            raise Refused(422, "no files: send the pictures as files of the form, as with curl -F file=@cat.jpg")
        uploads = []
        while self._files:  # one after the other, so that the body is not held twice
            file = self._files.pop(0)
            uploads.append(Upload(file.name, bytes(file.content)))
        return uploads

    def _on_part_begin(self) -> None:
        self._file = None
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            self._num_others += 1
            if self._num_others > _MAX_OTHER_FIELDS:
                raise Refused(413, f"more than {_MAX_OTHER_FIELDS} fields that are no files: leave them out")
            return
        if len(self._files) == self._max_files:
            raise Refused(413, f"more than {self._max_files} files: send fewer at a time")
        self._file = _File(_text(name))
        self._files.append(self._file)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.content += data[start:end]

    def _on_end(self) -> None:
        self._is_over = True


def _broken() -> Refused:
    return Refused(400, "the form is not whole: its parts do not fit the boundary of its Content-Type")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")
