"""The recipe for small sets of one's own images."""

import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import BARE
from PIL import Image

from cifar_lightning.commands.train import train


@pytest.fixture
def pets(tmp_path) -> Path:
    """12 cats and 6 dogs to train on, 2 and 1 to test on."""
    rng = np.random.default_rng(0)
    for split, name, num in (("train", "cat", 12), ("train", "dog", 6), ("test", "cat", 2), ("test", "dog", 1)):
        folder = tmp_path / "pets" / split / name
        folder.mkdir(parents=True)
        for i in range(num):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pets"


def test_the_head_is_trained_first_then_the_whole_network(compose, pets, caplog):
    small = ("data.image_size=32", "model.pretrained=false", "model.arch=mobilenet_v3_small", "trainer.max_epochs=3")
    with caplog.at_level(logging.INFO, "cifar_lightning"):
        metrics = train(compose("experiment=finetune", f"data.root={pets}", "data.batch_size=5", *small, *BARE))
    assert (metrics["steps"], metrics["num_val_images"], metrics["num_test_images"]) == (9, 3, 3)
    said = [record.getMessage() for record in caplog.records]
    assert "note      freeze_trunk: the trunk is new; model.pretrained=true or init=CKPT gives it weights" in said
    assert "frozen    all but the head, for the first 3 of 9 steps" in said
    assert "thawed    the whole network is trained from step 4 on" in said
