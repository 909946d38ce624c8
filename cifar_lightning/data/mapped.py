"""Images that do not fit into memory stay in a mapped file; a thread reads batches from it, ahead of their use."""

import mmap
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.device import free_memory

Gigabytes = float | Literal["auto"]
"""Billions of bytes that the pixels of a data set may take in memory; auto is ``AUTO_SHARE`` of what is free."""

AUTO_SHARE = 0.4
"""While pixels are brought into the form of ``Arrays`` they take twice their size."""

_BYTES_PER_COPY = 2**20
"""So many bytes fit into the cache of a core, where their channels are put first."""

_READS_AHEAD = 2


def gigabytes(memory: Gigabytes) -> float:
    """How many gigabytes the pixels may take.

    Raises:
        ValueError: If that is negative.
    """
    if memory == "auto":
        return AUTO_SHARE * free_memory() / 1e9
    if not memory >= 0:
        raise ValueError(f"memory must be at least 0 (GB) or auto, got {memory}")
    return memory


class MappedImages:
    """Images in a mapped file, which need no memory but for those that are being read.

    Args:
        pixels: (N, H, W, C) or (N, H, W), an array that ``is_mapped``.
    """

    def __init__(self, pixels: UInt8[np.ndarray, "n h w *c"]) -> None:
        self._pixels = pixels[..., None] if pixels.ndim == 3 else pixels

    def read(self, index: Int64[Tensor, " b"], *, pinned: bool = False) -> UInt8[Tensor, "b c h w"]:
        """Copy images from the file into memory.

        Args:
            index: Indices of the images, on the CPU.
            pinned: Whether the memory is page-locked, from which a GPU copies beside its work.
        """
        height, width, channels = self._pixels.shape[1:]
        images = torch.empty(len(index), channels, height, width, dtype=torch.uint8, pin_memory=pinned)
        rows, size = index.numpy(), max(1, _BYTES_PER_COPY // (height * width * channels))
        for start in range(0, len(rows), size):
            chosen = self._pixels[rows[start : start + size]]
            np.copyto(images.numpy()[start : start + size], chosen.transpose(0, 3, 1, 2))
            release(self._pixels)  # so often, as the system may show 2 MB of the file around each image
        return images


def is_mapped(pixels: Any) -> bool:
    """Whether an array lies in a file that ``np.memmap`` has mapped; changes to it are not kept from that file."""
    return _mapping(pixels) is not None


def release(pixels: UInt8[np.ndarray, "..."]) -> None:
    """Give back the memory of this process that shows a mapped file, if an array lies in one; the system's cache stays.

    Where the system cannot be told, it takes that memory itself when there is need of it.
    """
    mapping = _mapping(pixels)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(pixels: Any) -> mmap.mmap | None:
    """What an array shows a part of; None if that is no file, or one whose changes are kept in memory alone."""
    if not isinstance(pixels, np.memmap) or pixels.mode == "c":
        return None
    base: Any = pixels.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def read_ahead(read: Callable[[Tensor], Tensor], parts: Iterable[Tensor]) -> Generator[Tensor, None, None]:
    """``map(read, parts)`` by a thread that is up to two parts ahead. It ends with the iteration, however that ends."""
    pending: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        try:
            for part in parts:
                pending.append(thread.submit(read, part))
                if len(pending) > _READS_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
