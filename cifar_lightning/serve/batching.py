"""Images of many requests, classified together."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from types import TracebackType

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Answer = Future[Float[Tensor, " k"]]
"""The probabilities of the classes of one image, once they are known."""


class Batcher:
    """Context with one thread that classifies images, as many at once as are there.

    Images that come while the network is busy are the next batch. An idle network waits for those that are on their
    way, which ``expect`` tells of, but no longer than ``wait_ms``; so an image that comes alone is classified at once.
    Leaving the context answers what was submitted, and refuses more.

    Args:
        classify: Gives the probabilities of images; called in the thread of the batcher alone.
        batch_size: Most images at once.
        wait_ms: Longest wait for further images, in milliseconds.
    """

    def __init__(
        self,
        classify: Callable[[UInt8[Tensor, "n c h w"]], Float[Tensor, "n k"]],
        *,
        batch_size: int,
        wait_ms: float,
    ) -> None:
        self._classify = classify
        self._batch_size = batch_size
        self._wait_seconds = wait_ms / 1000
        self._waiting: list[tuple[UInt8[Tensor, "c h w"], Answer]] = []
        self._num_expected = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def expect(self, num_images: int) -> None:
        """Tell of images that are on their way; of each, ``submit`` or ``give_up`` is to follow, from any thread."""
        with self._changed:
            self._num_expected += num_images

    def submit(self, image: UInt8[Tensor, "c h w"], answer: Answer) -> None:
        """Hand in an image that was told of.

        Args:
            image: Raw pixels.
            answer: Receives the probabilities, or the exception that came instead. An image whose answer has been
                cancelled meanwhile is not classified.

        Raises:
            RuntimeError: If the batcher has been closed.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher has been closed")
            self._waiting.append((image, answer))
            self._count_off()

    def give_up(self) -> None:
        """Tell that an image that was told of does not come."""
        with self._changed:
            self._count_off()

    def _count_off(self) -> None:
        self._num_expected -= 1
        if self._waiting and (len(self._waiting) == 1 or self._is_complete):
            self._changed.notify()

    @property
    def _is_complete(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._num_expected == 0 or len(self._waiting) >= self._batch_size or self._is_closed

    def _run(self) -> None:
        while batch := self._next():
            wanted = [(image, answer) for image, answer in batch if answer.set_running_or_notify_cancel()]
            if not wanted:
                continue
            try:
                probs = self._classify(torch.stack([image for image, _ in wanted]))
            except Exception as error:  # such as a device whose memory is full: the requests have it, others may pass
                for _, answer in wanted:
                    answer.set_exception(error)
            else:
                for row, (_, answer) in zip(probs, wanted, strict=True):
                    answer.set_result(row)

    def _next(self) -> list[tuple[UInt8[Tensor, "c h w"], Answer]]:
        """The next batch; empty once the batcher is closed and all is answered."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            deadline = monotonic() + self._wait_seconds
            while not self._is_complete and (left := deadline - monotonic()) > 0:
                self._changed.wait(left)
            batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        return batch
