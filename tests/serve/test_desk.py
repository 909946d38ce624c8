"""Pictures on their way to the network: what is held of them, and how many pixels are decoded at one moment."""

import struct
import sys
import threading
import zlib
from io import BytesIO

import pytest
import torch
from PIL import Image

from cifar_lightning.predictor import Predictor
from cifar_lightning.serve import desk as desks
from cifar_lightning.serve.desk import Desk, Limits

LIMITS = Limits(max_bytes=10**6, max_files=64, max_pixels=10_000, max_waiting=64)


class AllAlike(Predictor):
    """Finds all pictures alike."""

    batch_size, side, background, num_channels = 10, 8, None, 3

    def __init__(self):
        pass

    def probs(self, images, *, tta=None):
        return torch.full((len(images), 2), 0.5)


@pytest.fixture
def desk(monkeypatch):
    """One that decodes in a single thread."""
    monkeypatch.setattr(desks, "num_cores", lambda: 1)
    with Desk(AllAlike(), LIMITS, tta=None, wait_ms=0) as desk:
        yield desk


def png(side: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (side, side), (200, 40, 40)).save(content, "PNG")
    return content.getvalue()


def test_nothing_is_held_of_what_is_cancelled_before_its_turn(desk, monkeypatch):
    reached, go_on, decode = threading.Event(), threading.Event(), desks.decode_content

    def wait(*arguments):
        reached.set()
        assert go_on.wait(10)
        return decode(*arguments)

    monkeypatch.setattr(desks, "decode_content", wait)
    waiting = png(8) + bytes(1_000)
    before = sys.getrefcount(waiting)
    with desk.asked([png(8)]) as [first]:
        assert reached.wait(10)
        with desk.asked([waiting]) as [second]:
            assert sys.getrefcount(waiting) > before
        assert second.cancelled()
        assert sys.getrefcount(waiting) == before
        go_on.set()
        assert first.result(10).tolist() == [0.5, 0.5]
    assert desk.num_waiting == 0


def test_a_picture_whose_header_is_not_read_counts_as_a_large_one(desk, monkeypatch):
    content = png(8)
    text = b"zTXt" + b"x\0\0" + zlib.compress(bytes(2_000_000))  # more than Pillow allows; the pixels are whole
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    odd = content[:33] + chunk + content[33:]
    passed, gate = [], desk._gate.passed
    monkeypatch.setattr(desk._gate, "passed", lambda num_pixels: passed.append(num_pixels) or gate(num_pixels))
    with desk.asked([content, odd]) as answers:
        assert [answer.result(10).tolist() for answer in answers] == [[0.5, 0.5]] * 2
    assert passed == [64, LIMITS.max_pixels]
