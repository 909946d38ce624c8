"""A folder of pictures of two classes, in the layout that data=folder reads."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(root: Path, *, train: int, test: int) -> Path:
    """Write so many pictures of noise, 32 by 32 pixels, for each of the classes a and b."""
    rng = np.random.default_rng(0)
    for split, num in (("train", train), ("test", test)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root
