"""Run folders: whose they are, and what was asked of the run in them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoint.write import sweep_temporary, write_durably
from cifar_lightning.config.overrides import argument
from cifar_lightning.errors import UserError

CONFIG = Path(".hydra", "config.yaml")

OVERRIDES = Path(".hydra", "overrides.yaml")

LAST = Path("checkpoints", "last.ckpt")

METRICS = "metrics.json"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, for this process alone; the system lets go of it when the process ends, however it ends.

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
            f"output_dir={folder} holds a run already: go on with it by {argument('resume', folder)}, or name another "
            "folder, so that neither is lost"
        )


def record(folder: Path, cfg: DictConfig) -> None:
    """Write into a run's ``.hydra`` what it was asked to do: the config, and under Hydra the overrides and its own."""
    texts = {CONFIG: OmegaConf.to_yaml(cfg)}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        texts |= {OVERRIDES: OmegaConf.to_yaml(hydra.overrides.task), CONFIG.with_name("hydra.yaml"): _hydra_yaml()}
    for name, text in texts.items():
        write_durably(folder / name, text.encode())


def _hydra_yaml() -> str:
    return OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.instance().cfg.hydra}))  # type: ignore[union-attr]
