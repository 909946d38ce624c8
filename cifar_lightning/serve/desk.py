"""Where pictures are taken in: decoded in threads, classified in batches, or refused because too many wait."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from cifar_lightning.cores import num_cores
from cifar_lightning.data.decode import UNKNOWN_FORMAT, decode_content, formats_of, limited_to
from cifar_lightning.data.formats import START_BYTES, why_not_by_start
from cifar_lightning.predictor import Predictor
from cifar_lightning.serve.batching import Answer, Batcher

SMALL_PIXELS = 1_000_000
"""Pictures of fewer pixels do not count among those that are decoded at one moment: they are done at once."""


class Unreadable(Exception):
    """A file cannot be read as an image; says why."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of a moment, may ask for.

    Attributes:
        max_bytes: Of the body of a request.
        max_files: Of a request.
        max_pixels: Of a picture, and of all that are decoded at one moment: each takes 4 to 16 bytes.
        max_waiting: Pictures that are taken in and not answered yet.
    """

    max_bytes: int
    max_files: int
    max_pixels: int
    max_waiting: int


class Desk:
    """Context that answers about pictures, for many requests at once.

    Pillow's limits, which it sets, are those of the whole process, so there is one desk in a process at a time.

    Args:
        predictor: Answers.
        limits: What it takes in.
        tta: Level of test-time augmentation; None for the checkpoint's own.
        wait_ms: Longest wait of a picture for others to be classified with, in milliseconds.

    Attributes:
        num_waiting: Pictures that are taken in and not answered yet.
    """

    def __init__(self, predictor: Predictor, limits: Limits, *, tta: int | None, wait_ms: float) -> None:
        self.predictor = predictor
        self.limits = limits
        self.num_waiting = 0
        self._gate = _Gate(limits.max_pixels)
        self._batcher = Batcher(
            lambda images: predictor.probs(images, tta=tta), batch_size=predictor.batch_size, wait_ms=wait_ms
        )
        self._context = ExitStack()

    def __enter__(self) -> "Desk":
        Image.init()  # here, and not in several threads at once
        self._context.enter_context(limited_to(self.limits.max_pixels))
        self._context.enter_context(self._batcher)
        self._threads = self._context.enter_context(ThreadPoolExecutor(num_cores(), "decode"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._context.close()

    def has_room(self, num_files: int) -> bool:
        """Whether so many further pictures are taken in."""
        return self.num_waiting + num_files <= self.limits.max_waiting

    @contextmanager
    def asked(self, files: Sequence[bytes]) -> Iterator[list[Answer]]:
        """Take in files; leaving the context cancels what is not answered by then. To be called in one thread.

        Yields:
            The answers, in the order of the files: probabilities, or ``Unreadable``.
        """
        assert self.has_room(len(files))
        self.num_waiting += len(files)
        self._batcher.expect(len(files))
        answers: list[Answer] = [Future() for _ in files]
        held = dict(enumerate(files))  # the threads' queue has the numbers alone, so what is cancelled takes no memory
        try:
            for number, answer in enumerate(answers):
                self._threads.submit(self._take_in, held, number, answer)
            yield answers
        finally:
            for answer in answers:
                answer.cancel()
            held.clear()
            self.num_waiting -= len(files)

    def _take_in(self, held: dict[int, bytes], number: int, answer: Answer) -> None:
        """Decode a file and hand it to the batcher."""
        try:
            content = held.pop(number, None)
            image = None if content is None or answer.cancelled() else self._decoded(content)
        except Exception as error:
            self._batcher.give_up()
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
            return
        if image is None:
            self._batcher.give_up()
        else:
            self._batcher.submit(image, answer)

    def _decoded(self, content: bytes) -> UInt8[Tensor, "c h w"]:
        side = self.predictor.side
        try:
            with self._gate.passed(self._num_pixels(content)):
                pixels = bytearray(decode_content(content, side, self.predictor.background))
        except ValueError as error:
            is_unknown = str(error) == UNKNOWN_FORMAT
            raise Unreadable(why_not_by_start(content[:START_BYTES]) if is_unknown else str(error)) from error
        return self.predictor.from_rgb(np.frombuffer(pixels, np.uint8).reshape(1, side, side, 3))[0]

    def _num_pixels(self, content: bytes) -> int:
        """Pixels of a picture by its header; as many as are allowed where that cannot be read, but may be decoded.

        Raises:
            Unreadable: If they are too many.
        """
        try:
            with Image.open(BytesIO(content), formats=formats_of(content)) as image:
                return image.width * image.height
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise Unreadable(f"more than {self.limits.max_pixels:,} pixels: save it smaller") from error
        except Exception:  # Pillow's decoders raise many kinds
            return self.limits.max_pixels


class _Gate:
    """Lets threads decode so many pixels at one moment, first come, first served; small pictures pass at once."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._num_pixels = 0
        self._turn = threading.Lock()
        self._freed = threading.Condition()

    @contextmanager
    def passed(self, num_pixels: int) -> Iterator[None]:
        if num_pixels < SMALL_PIXELS:
            yield
            return
        with self._turn, self._freed:
            while self._num_pixels and self._num_pixels + num_pixels > self._max_pixels:
                self._freed.wait()
            self._num_pixels += num_pixels
        try:
            yield
        finally:
            with self._freed:
                self._num_pixels -= num_pixels
                self._freed.notify()
