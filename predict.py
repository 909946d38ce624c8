"""Classify pictures by a checkpoint.

Examples:
    python predict.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt images=cat.jpg
    python predict.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt 'images=holiday/*.jpg' topk=3 show=true
    python predict.py ckpt=logs/tutorial/<time>/export/last.onnx 'images=[a.jpg,b.jpg]' save_probs=true
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The command line, with the folder for the predictions before it."""
    from cifar_lightning.cli.overrides_from_checkpoint import folder_prelude  # late, so that --help answers at once

    return folder_prelude(overrides, verb="predict")


def main(cfg: DictConfig, invocation: Invocation) -> None:
    """Predict as configured."""
    from cifar_lightning.commands.predict import predict

    predict(cfg, invocation)


if __name__ == "__main__":
    run(main, config_name="predict", prelude=prelude)
