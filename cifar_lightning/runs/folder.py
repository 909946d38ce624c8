"""Run folders: who holds one, and the record of what was asked for in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoint.write import sweep_temporary, write_durably
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.overrides import argument
from cifar_lightning.errors import UserError

CONFIG = Path(".hydra", "config.yaml")
OVERRIDES = Path(".hydra", "overrides.yaml")
LAST = Path("checkpoints", "last.ckpt")
METRICS = "metrics.json"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone. The system releases it when the process ends, however it ends.

    Raises:
        UserError: If another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"output_dir={folder} is in use by {_owner(path)}: wait until it has ended, or name another folder"
        ) from error
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be used: {error}") from error
    try:
        path.write_text(str(os.getpid()))
        for place in (folder, folder / CONFIG.parent, folder / LAST.parent):
            sweep_temporary(place)
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def refuse_used(folder: Path) -> None:
    """Raise UserError if a folder holds a run already that could be lost."""
    if any((folder / "checkpoints").glob("*.ckpt")) or ((folder / CONFIG).exists() and (folder / METRICS).exists()):
        raise UserError(
            f"output_dir={folder} holds a run already: resume it with {argument('resume', folder)}, or name another "
            "folder, so that neither is lost"
        )


def record(folder: Path, cfg: DictConfig, invocation: Invocation) -> None:
    """Write into a run's ``.hydra`` what was asked for: the config, and on the command line the overrides too."""
    texts = {CONFIG: OmegaConf.to_yaml(cfg)}
    if invocation.hydra_yaml is not None:
        overrides = OmegaConf.to_yaml(list(invocation.overrides))
        texts |= {OVERRIDES: overrides, CONFIG.with_name("hydra.yaml"): invocation.hydra_yaml}
    for name, text in texts.items():
        write_durably(folder / name, text.encode())
