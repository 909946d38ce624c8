"""A data set whose sizes nothing divides, and classes that are not alike, which processes can import by its name."""

from pathlib import Path

import numpy as np

CLASSES = ("ant", "bee", "cow", "doe", "eel")
NUM_TRAIN, NUM_TEST = 61, 23


class Odd:
    """61 training and 23 test images of noise, the brighter the higher their class; the third class is rare."""

    def __init__(self, root: Path | None = None, train: bool = True, download: bool = False) -> None:
        rng, num = np.random.default_rng(train), NUM_TRAIN if train else NUM_TEST
        self.targets = [number % 5 if number % 5 != 2 or number % 4 == 0 else 0 for number in range(num)]
        bright = 30 * np.array(self.targets, dtype=np.uint8)[:, None, None, None]
        self.data = rng.integers(0, 100, (num, 32, 32, 3), dtype=np.uint8) + bright
        self.classes = CLASSES
