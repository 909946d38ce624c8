"""Serve a checkpoint as a web page: drop pictures on http://127.0.0.1:8000, or post them with curl.

Examples:
    python serve.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt
    python serve.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt host=0.0.0.0 port=8080
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The command line, if it names a checkpoint."""
    from cifar_lightning.cli.overrides_from_checkpoint import typed_checkpoint  # late, so that --help answers at once

    typed_checkpoint(overrides)
    return overrides


def main(cfg: DictConfig, invocation: Invocation) -> None:
    """Serve as configured, until a signal ends it."""
    from cifar_lightning.commands.serve import serve

    serve(cfg, invocation)


if __name__ == "__main__":
    run(main, config_name="serve", sweeps=False, prelude=prelude)
