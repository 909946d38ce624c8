"""A limit on the size of files, which makes writing fail as on a full disk."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """Writing a file beyond a size raises OSError, with the reason "File too large"."""
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
