"""Run folders: who holds one, and the record of what was asked for in it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cifar_lightning import ranks
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import sweep_temporary, write_durably
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.overrides import argument
from cifar_lightning.config.schema import run_folder
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.files import own, own_folder, regular
from cifar_lightning.locks import InUse, held

CONFIG = Path(".hydra", "config.yaml")
OVERRIDES = Path(".hydra", "overrides.yaml")
HYDRA = Path(".hydra", "hydra.yaml")
LAST = Path("checkpoints", "last.ckpt")
METRICS = "metrics.json"
LOCK = ".cifar-lightning.lock"
"""Held by the run in a folder; its name says whose it is, as folders may be shared with other programs."""

CONTINUED = ("metrics.csv", "train.log", "evaluate.log", "predict.log", "export.log", "compare.log")
"""Files of a run that are written into where they are; all others are written beside their place, then renamed."""

WRITTEN = (
    *(CONFIG, OVERRIDES, HYDRA, METRICS, "metrics.csv"),
    *("predictions.csv", "predictions.json", "settings.json", "export.json"),
    *("compare.md", "compare.html", "compare.csv", "pairs.csv", "runs.csv", "disagreements.csv"),
)
"""Files of a run that have names which other programs use too."""


EXPORT = "export"
"""Folder of a run's exported files, beside that of its checkpoints."""


def run_of(ckpt: str | Path) -> Path | None:
    """The folder of the run that a checkpoint, or a file exported from it, stands in; None elsewhere."""
    folder = Path(ckpt).parent
    run = folder.parent if folder.name else folder / ".."  # the latter where it is typed in the folder of checkpoints
    name = folder.absolute().name
    # Other programs may call a folder export, too.
    is_in_run = name == LAST.parent.name or (name == EXPORT and (run / LAST.parent).is_dir())
    return run if is_in_run else None


def results_folder(ckpt: str | Path, verb: str, *, is_timed: bool = True) -> str:
    """A folder for results of a checkpoint: in the run's folder, if it stands in one, else a new one under logs/.

    Args:
        ckpt: Path of the checkpoint.
        verb: Such as ``predict``.
        is_timed: Whether each time has a folder of its own in that of the run.
    """
    new, run = Path(run_folder(verb)), run_of(ckpt)
    if run is None:
        return str(new)
    return below(run, verb, new.name) if is_timed else below(run, verb)


def below(run: Path, *names: str) -> str:
    """A folder for results within that of a run.

    Raises:
        UserError: If a link leads from there to elsewhere, or a file is in the way.
    """
    folder = run
    for name in names:
        folder /= name
        try:
            own_folder(folder)
        except OSError as error:
            raise UserError(f"{error}; or choose another place with output_dir=") from error
    return str(folder)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone; see ``locks.held``.

    Where an error comes before anything is written, the lock file is removed, so that the folder is as it was.

    Raises:
        UserError: If another process holds it, it cannot be made, or it holds files of others under a run's names.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
            _refuse_links(folder)  # and what else is in the way, before a long run
            if (blocked := next((name for name in (*WRITTEN, LAST) if (folder / name).is_dir()), None)) is not None:
                raise IsADirectoryError(f"a run writes {blocked}, and that is a folder there")
            stack.enter_context(held(folder / LOCK))
            for name in CONTINUED:
                own(folder / name)
        except InUse as owner:
            raise UserError(
                f"output_dir={folder} is in use by {owner}: wait until it has ended, or name another folder"
            ) from owner
        except (OSError, ValueError) as error:  # the latter of a path that no system takes
            raise UserError(f"output_dir={folder} cannot be used: {one_line(error)}") from error
        for place in (folder, folder / CONFIG.parent, folder / LAST.parent):
            sweep_temporary(place)
        try:
            yield
        except Exception:
            if names_in(folder) == [LOCK]:
                with suppress(OSError):  # where a file that is open cannot be removed
                    (folder / LOCK).unlink()
            raise


@contextmanager
def held_by_first(folder: Path) -> Iterator[None]:
    """Have the first of several ranks hold a run's folder, for all; see ``claimed``."""
    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(claimed(folder)))
        yield


def _refuse_foreign(folder: Path) -> None:
    """Raise UserError if files of a run's names are there that no run of this project has written."""
    if (folder / LOCK).exists() or (folder / LAST).exists():
        return
    found = next((folder / name for name in WRITTEN if (folder / name).exists()), None)
    if found is not None:
        raise UserError(_foreign(folder, found))


def _foreign(folder: Path, path: Path) -> str:
    return (
        f"output_dir={folder} holds {path.relative_to(folder)}, which would be written over and no run of this project "
        "has written: name another folder"
    )


def refuse_foreign_sweep(folder: Path) -> None:
    """Raise UserError if the folder of a sweep holds a multirun.yaml that no sweep of this project has written.

    Hydra writes it before any job has a folder. This project's names its own classes; or it is empty, if Hydra was
    stopped.
    """
    path = folder / "multirun.yaml"
    if not os.path.lexists(path):
        return
    try:
        own(path)
    except OSError as error:  # a link, whatever it leads to
        raise UserError(_foreign(folder, path)) from error
    try:
        text = read_text(path)
    except (OSError, ValueError):
        text = "?"
    is_ours = not text or "cifar_lightning." in text
    if not is_ours and not any((folder / name / LOCK).exists() for name in names_in(folder)):
        raise UserError(_foreign(folder, path))


def names_in(folder: Path) -> list[str]:
    """What a folder holds, in order; nothing if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _refuse_links(folder: Path) -> None:
    """Raise OSError if what a run writes in its folder would go elsewhere: the folder may have come from anyone."""
    for place in (CONFIG.parent, LAST.parent):
        own_folder(folder / place)
    for name in CONTINUED:
        regular(folder / name)


def refuse_used(folder: Path, *, is_for_run: bool = True) -> None:
    """Raise UserError if a folder holds a run already that could be lost, or links out of it.

    Args:
        folder: The folder.
        is_for_run: Whether a run is to be there, which may take the place of one that has saved nothing.
    """
    try:
        _refuse_links(folder)
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be used: {one_line(error)}") from error
    if any((folder / "checkpoints").glob("*.ckpt")) or ((folder / CONFIG).exists() and (folder / METRICS).exists()):
        raise UserError(
            f"output_dir={folder} holds a run already: resume it with {argument('resume', folder)}, or name another "
            "folder, so that neither is lost"
        )
    if not is_for_run and (folder / CONFIG).exists():
        raise UserError(f"output_dir={folder} holds a run that has begun: name another folder")


def record(folder: Path, cfg: DictConfig, invocation: Invocation) -> None:
    """Write into a run's ``.hydra`` what was asked for: the config, and on the command line the overrides too."""
    texts = {CONFIG: OmegaConf.to_yaml(cfg)}
    if invocation.hydra_yaml is not None:
        overrides = OmegaConf.to_yaml(list(invocation.overrides))
        texts |= {OVERRIDES: overrides, HYDRA: invocation.hydra_yaml()}
    for name, text in texts.items():
        write_durably(folder / name, text.encode())
