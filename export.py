"""Export a checkpoint for other programs, and check the file by its own runtime.

Examples:
    python export.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt format=onnx
    python export.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt format=safetensors   # for the Hugging Face hub
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The command line, with the folder for the exported file before it."""
    from cifar_lightning.cli.overrides_from_checkpoint import folder_prelude  # late, so that --help answers at once

    return folder_prelude(overrides, verb="export", is_timed=False)


def main(cfg: DictConfig, invocation: Invocation) -> None:
    """Export as configured."""
    from cifar_lightning.commands.export import export

    export(cfg, invocation)


if __name__ == "__main__":
    run(main, config_name="export", prelude=prelude)
