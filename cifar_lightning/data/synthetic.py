"""Ten generated shapes and patterns: a data set in CIFAR-10's form that needs no download."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Shape = Callable[[Floats, Floats], Floats]
"""``(x, y) -> distance``: signed distance to the shape's edge, negative inside, in units of the shape's radius."""

_SIZE = 32
_PERIOD = 0.8
"""Period of the patterns, in radii."""


def _wave(coordinate: Floats) -> Floats:
    return np.sin(coordinate * (2 * np.pi / _PERIOD)) * (_PERIOD / (2 * np.pi))


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85


SHAPES: dict[str, Shape] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) - 0.2,
    "square": _square,
    "triangle": lambda x, y: np.maximum(0.87 * np.abs(x) - 0.5 * y - 0.5, y - 0.7),
    "cross": lambda x, y: np.maximum(_square(x, y), np.minimum(np.abs(x), np.abs(y)) - 0.25),
    "horizontal stripes": lambda x, y: np.maximum(_wave(y), _square(x, y) - 0.3),
    "vertical stripes": lambda x, y: np.maximum(_wave(x), _square(x, y) - 0.3),
    "diagonal stripes": lambda x, y: np.maximum(_wave((x + y) * np.float32(np.sqrt(0.5))), _square(x, y) - 0.3),
    "checkerboard": lambda x, y: np.maximum(_wave(x) * _wave(y) * 8, _square(x, y) - 0.3),
    "frame": lambda x, y: np.abs(_square(x, y) + 0.15) - 0.15,
}
"""The classes. Position, size, rotation, colours and noise vary from image to image, independently of the class."""


class Synthetic:
    """Images of ``SHAPES``: 10,000 training and 2,000 test images, the same at every call.

    It has torchvision's form: ``data`` uint8 (N, 32, 32, 3), ``targets`` and ``classes``.

    Args:
        root: Not used. It is there because all data sets are called in the same way.
        train: Whether to draw the training images or the test images, from different random streams.
        download: Not used.
    """

    def __init__(self, root: str | None = None, train: bool = True, download: bool = False) -> None:
        rng = np.random.default_rng([20090408, int(train)])
        num_images = 10_000 if train else 2_000
        targets = rng.permutation(np.arange(num_images) % len(SHAPES))
        self.classes = list(SHAPES)
        self.targets: list[int] = targets.tolist()
        self.data = np.empty((num_images, _SIZE, _SIZE, 3), np.uint8)
        for target, shape in enumerate(SHAPES.values()):
            members = targets == target
            self.data[members] = _draw(shape, int(members.sum()), rng)


def _draw(shape: Shape, num_images: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Images (N, 32, 32, 3) of one shape that is brighter than its background, with soft edges and noise."""

    def draw(low: float, high: float, *size: int) -> Floats:
        return rng.uniform(low, high, (num_images, *size)).astype(np.float32)

    radius = draw(7, 13, 1, 1)
    pixels = np.arange(_SIZE, dtype=np.float32) - (_SIZE - 1) / 2
    x = pixels[None, None, :] - draw(-4, 4, 1, 1)
    y = pixels[None, :, None] - draw(-4, 4, 1, 1)
    angle = draw(-0.3, 0.3, 1, 1)  # in radians
    rotated_x, rotated_y = (x * np.cos(angle) - y * np.sin(angle)), (x * np.sin(angle) + y * np.cos(angle))
    distance = shape(rotated_x / radius, rotated_y / radius) * radius  # in pixels
    inside = np.clip(0.5 - distance, 0, 1)[..., None]

    background = draw(20, 120, 1, 1, 3)
    foreground = background + draw(50, 125, 1, 1, 3)
    noise = rng.normal(0, 18, (num_images, _SIZE, _SIZE, 3)).astype(np.float32)
    return np.clip(background + (foreground - background) * inside + noise, 0, 255).astype(np.uint8)
