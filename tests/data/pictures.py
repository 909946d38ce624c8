"""Images in files, for tests of folders of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lightning.data import decode_pool

RNG = np.random.default_rng(0)


def noise(height: int = 32, width: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray | Image.Image | None = None, **arguments) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = noise() if image is None else image
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **arguments)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_pets(root: Path) -> Path:
    """Write two images of each of two classes to train on, one to test on."""
    for name in ("train/dog/1.png", "train/dog/0.png", "train/cat/1.png", "train/cat/0.png"):
        write(root / name)
    for name in ("test/dog/0.png", "test/cat/0.png"):
        write(root / name)
    return root


def write_for_workers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write 11 more training images, and let two workers decode all 15, in several chunks each."""
    for number in range(11):
        write(root / f"train/cat/more{number}.png")
    monkeypatch.setattr(decode_pool, "MIN_FILES_FOR_WORKERS", 15)
    monkeypatch.setattr(decode_pool, "MAX_FILES_PER_CHUNK", 2)
    monkeypatch.setattr(decode_pool, "num_cores", lambda: 2)
    return root


def cache_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / ".cifar-lightning").iterdir() if path.suffix != ".lock")
