"""What ``ckpt=`` puts before the command line: the data, precision and threads of the checkpoint, and a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cifar_lightning.checkpoint.format import read
from cifar_lightning.config.overrides import argument, quoted
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import UserError
from cifar_lightning.runs.answers import asked_otherwise, evaluation_folder


def checkpoint_prelude(typed: list[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """The checkpoint's own data, precision and threads, and the folder of the answer; then what is typed.

    Args:
        typed: Overrides of the command line.
        config_dirs: Folders with choices of one's own, beside conf/.

    Raises:
        UserError: If ``ckpt=`` is missing, or names no checkpoint of this project.
    """
    given = dict(override.partition("=")[::2] for override in typed)
    if "ckpt" not in given:
        raise UserError(
            "ckpt=PATH is missing: the checkpoint to evaluate, such as logs/<name>/<time>/checkpoints/last.ckpt"
        )
    ckpt = given["ckpt"].strip("'\"")
    if not Path(ckpt).exists() and "," in ckpt and all(Path(part).exists() for part in ckpt.split(",")):
        raise UserError(f"ckpt={ckpt} names several checkpoints: add -m to evaluate each of them")
    own = read(ckpt)["settings"]
    files = data_files(config_dirs)
    if "output_dir" not in given:
        asked = _values(typed)
        if asked.get("data") == _group_of(own["data"], files):
            asked.pop("data", None)
        folder = evaluation_folder(ckpt, asked.get("split", "test"), asked_otherwise(asked, own))
        typed = [f"output_dir={quoted(folder)}", *typed]
    return [*overrides_from(ckpt, own, given, files), *typed]


def overrides_from(
    path: str, settings: Mapping[str, Any], given: Mapping[str, str], files: Mapping[str, Path]
) -> list[str]:
    """Overrides that give evaluate.py a checkpoint's data, precision, kernels, threads and test-time augmentation.

    The data group's file is looked up by name; the checkpoint's plain values go on top of it. A class is never taken
    from a file: one given on the command line in training is given again. What is typed wins.

    Args:
        path: Of the checkpoint, for messages.
        settings: The settings in it.
        given: The typed overrides: value by key.
        files: The choices of data; see ``data_files``.

    Raises:
        UserError: If the checkpoint names data that no file is for, and none are typed.
    """
    data = settings["data"]
    own = _group_of(data, files)
    group = given.get("data", own)
    if group is None:
        raise UserError(
            f"{path} was trained on data={data.get('name')}, which is none of {', '.join(sorted(files))}: name its "
            f"choice, such as data=folder, or the folder that holds {data.get('name')}.yaml in data/, as in "
            f"{argument('--config-dir', Path('FOLDER'))}"
        )
    values: dict[str, Any] = {}
    if group in files and (group == own or own is None):  # values of other data do not fit these
        # Addresses to fetch from are not taken from a file. Which keys are the data set's options is said in conf/.
        taken = {key for key in _keys(files[group]) - {"urls", "options"} if not key.startswith("_")}
        values = {f"data.{key}": value for key, value in data.items() if key in taken}
    values |= {"trainer.precision": settings["trainer"].get("precision"), "compile": settings.get("compile", False)}
    values["tta"] = settings.get("tta", 0)
    available = torch.get_num_threads()  # more would wait for each other
    values["num_threads"] = min(settings.get("num_threads") or available, available)
    if settings["trainer"].get("accelerator") == "cpu":  # which every machine has; others are chosen anew
        values["trainer.accelerator"] = "cpu"
    chosen = [] if "data" in given else [f"data={group}"]
    plain = {key: value for key, value in values.items() if key not in given and not isinstance(value, dict)}
    return [*chosen, *(f"{key}={quoted(value)}" for key, value in plain.items())]


def data_files(config_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """The files of the choices of data by name: those of conf/, and those of folders of one's own."""
    return {file.stem: file for folder in (CONF, *config_dirs) for file in sorted((folder / "data").glob("*.yaml"))}


def _group_of(data: Mapping[str, Any], files: Mapping[str, Path]) -> str | None:
    """The choice that data were configured by: the file of their name, else the one for the class of the data set."""
    if (name := data.get("name")) in files:
        return str(name)
    dataset = data.get("dataset")
    recorded = dataset.get("_target_") if isinstance(dataset, dict) else None
    for choice, file in files.items():
        target = OmegaConf.select(OmegaConf.load(file), "dataset._target_")
        if target is not None and target.rpartition(".")[2] == recorded:
            return choice
    return None


def _values(typed: list[str]) -> dict[str, Any]:
    """Plain values of the typed overrides by key; Hydra tells later of those that cannot be read."""
    found: dict[str, Any] = {}
    for text in typed:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue
        value = override.value()
        found[override.key_or_group] = value.text if isinstance(value, QuotedString) else value
    return found


def _keys(file: Path) -> set[str]:
    """Keys of a choice's file, those of the files that it builds upon among them."""
    node = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(node, dict):
        return set()
    parents = [parent for parent in node.pop("defaults", []) if parent != "_self_"]
    found = set(map(str, node))
    for parent in parents:
        beside = [folder / f"{parent}.yaml" for folder in (file.parent, CONF / "data")]
        found |= next((_keys(path) for path in beside if path.exists()), set())
    return found
