"""A desk over a small checkpoint, and requests to it, for tests of the server."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

import cifar_lightning
from cifar_lightning import models
from cifar_lightning.checkpoint.format import FORMAT_VERSION
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.optim.builders import sgd
from cifar_lightning.predictor import Predictor
from cifar_lightning.serve.app import make_app
from cifar_lightning.serve.desk import Desk, Limits
from cifar_lightning.serve.server import LOOPBACK, address_of, listen, served

CLASSES = list("abcdefghij")
NO_IMAGE = b"<!doctype html><p>no image"
LONG_MS = 60_000
"""A wait that a test which fails would sit through."""


def saved(path, *, classes: Sequence[str] = CLASSES, channels: int = 3, temperature: float | None = None):
    torch.manual_seed(0)
    settings = {"name": "test", "seed": 0, "tta": 0, "num_threads": None, "compile": False, "classes": list(classes)}
    settings |= {"image_size": [32, 32], "fingerprint": {}, "data": {}, "trainer": {"precision": "32-true"}}
    settings |= {"model": {"name": "tutorial", "num_classes": 10, "in_channels": channels}}
    settings |= {"normalize": {"mean": [0.5], "std": [0.5]}}
    net = models.build("tutorial", num_classes=10, in_channels=channels)
    classifier = ImageClassifier(net, mean=[0.5], std=[0.5], optimizer=lambda net: sgd(net, lr=0.01))
    contents = {"format_version": FORMAT_VERSION, "settings": settings, "state_dict": classifier.state_dict()}
    torch.save(contents | {"temperature": temperature}, path)
    return path


def picture(seed: int = 0, size: tuple[int, int] = (32, 32), kind: str = "PNG", **options: Any) -> bytes:
    """Bytes of an image file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def expected(predictor: Predictor, content: bytes, topk: int = 5) -> Any:
    return predictor.predict([Image.open(BytesIO(content))], topk=topk)[0]


@contextmanager
def opened(predictor: Predictor, *, wait_ms: float = 2, hosts: Sequence[str] | None = LOOPBACK, **limits: int):
    """An application and its desk."""
    given = {"max_bytes": 1_000_000, "max_files": 8, "max_pixels": 2_000_000, "max_waiting": 64} | limits
    with Desk(predictor, Limits(**given), tta=None, wait_ms=wait_ms) as desk:
        yield make_app(desk, topk=5, hosts=hosts), desk


@contextmanager
def running(predictor: Predictor, **options: Any) -> Iterator[tuple[str, Desk]]:
    """A server on a free port: its address and its desk."""
    listener = listen("127.0.0.1", 0)
    with opened(predictor, **options) as (app, desk), served(app, listener):
        yield address_of(listener), desk


def asked(app: Any, ask: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """What an application answers, without a server."""

    async def run() -> Any:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await ask(client)

    return asyncio.run(run())


def posted(app: Any, *files: tuple[str, bytes], path: str = "/predict", **options: Any) -> httpx.Response:
    given = {"files": [("any", file) for file in files]} if files else {}
    return asked(app, lambda client: client.post(path, **given, **options))


class Held:
    """Holds a predictor's answers back until they are let go, and counts the images of each call."""

    def __init__(self, predictor: Predictor, monkeypatch: Any) -> None:
        self.sizes: list[int] = []
        self.called, self.let_go = threading.Event(), threading.Event()
        probs = predictor.probs

        def held(images, **options):
            self.sizes.append(len(images))
            self.called.set()
            assert self.let_go.wait(60)
            return probs(images, **options)

        monkeypatch.setattr(predictor, "probs", held)


def loaded(folder, **options: Any) -> Predictor:
    return cifar_lightning.load(saved(folder / "last.ckpt", **options), accelerator="cpu")
