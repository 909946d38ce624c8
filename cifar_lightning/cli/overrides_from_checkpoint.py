"""What ``ckpt=`` puts before the command line: the data, precision and threads of the checkpoint, and a folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoint.load import read_settings
from cifar_lightning.config.overrides import quoted, values
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import UserError
from cifar_lightning.runs.evaluations import changed, evaluation_folder
from cifar_lightning.runs.folder import results_folder


def checkpoint_prelude(typed: list[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """The checkpoint's own data, precision and threads, and the folder of the evaluation; then what is typed.

    Args:
        typed: Overrides of the command line.
        config_dirs: Folders with choices of one's own, beside conf/.

    Raises:
        UserError: If ``ckpt=`` is missing, or names no checkpoint of this project.
    """
    given, asked = _given(typed), values(typed)
    ckpt = typed_checkpoint(typed)
    own = read_settings(ckpt)
    files = data_files(config_dirs)
    if "output_dir" not in given:
        if asked.get("data") == _group_of(own["data"], files):
            asked.pop("data", None)
        folder = evaluation_folder(ckpt, asked.get("split", "test"), changed(asked, own))
        typed = [f"output_dir={quoted(folder)}", *typed]
    return [*overrides_from(ckpt, own, given, files), *typed]


def folder_prelude(typed: list[str], *, verb: str, is_timed: bool = True) -> list[str]:
    """The folder for results of a checkpoint; then what is typed.

    Args:
        typed: Overrides of the command line.
        verb: What is done with the checkpoint, such as ``predict``.
        is_timed: Whether each time has a folder of its own; see ``results_folder``.

    Raises:
        UserError: If ``ckpt=`` is missing, or names several files.
    """
    ckpt = typed_checkpoint(typed)
    images = _given(typed).get("images", "")
    if "," in images and images[0] not in "[\"'":
        raise UserError(f"images={images}: several are given as a list, images=[{images}]; add -m for a job for each")
    if "output_dir" in _given(typed):
        return typed
    return [f"output_dir={quoted(results_folder(ckpt, verb, is_timed=is_timed))}", *typed]


def typed_checkpoint(typed: Sequence[str]) -> str:
    """The path of the checkpoint that is typed.

    Raises:
        UserError: If there is none, or there are several.
    """
    given = _given(typed)
    if "ckpt" not in given:
        raise UserError("ckpt=PATH is missing: a checkpoint, such as ckpt=logs/<name>/<time>/checkpoints/last.ckpt")
    ckpt = values(typed).get("ckpt", given["ckpt"])  # Hydra tells later of one that it cannot read
    ckpt = ckpt if isinstance(ckpt, str) else given["ckpt"]
    if not os.path.exists(ckpt) and "," in ckpt and all(map(os.path.exists, ckpt.split(","))):
        raise UserError(f"ckpt={ckpt} names several checkpoints: add -m to take each of them")
    return ckpt


def _given(typed: Sequence[str]) -> dict[str, str]:
    return dict(override.partition("=")[::2] for override in typed)


def overrides_from(
    path: str, settings: Mapping[str, Any], given: Mapping[str, str], files: Mapping[str, Path]
) -> list[str]:
    """Overrides that give evaluate.py a checkpoint's data, precision, kernels, threads and test-time augmentation.

    The file of the data's choice is looked up; the checkpoint's plain values go on top of it. A class is never taken
    from a checkpoint: one given on the command line in training is given again. What is typed wins.

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
            "--config-dir=FOLDER"
        )
    kept: dict[str, Any] = {}
    typed_class = given.get("data.dataset._target_", "").rpartition(".")[2]
    is_same = group == own or (own is None and typed_class != "" and typed_class == _class_of(data))
    if group in files and is_same:  # values of other data do not fit these
        # Addresses to fetch from are not taken from a file. Which keys are the data set's options is said in conf/, and
        # the memory is that of the machine.
        keys = {key for key in _keys(files[group]) - {"urls", "options", "memory"} if not key.startswith("_")}
        kept = {f"data.{key}": value for key, value in data.items() if key in keys}
    kept |= {"trainer.precision": settings["trainer"].get("precision"), "compile": settings.get("compile", False)}
    kept["tta"] = settings.get("tta", 0)
    available = torch.get_num_threads()  # more would wait for each other
    kept["num_threads"] = min(settings.get("num_threads") or available, available)
    if settings["trainer"].get("accelerator") == "cpu":  # which every machine has; others are chosen anew
        kept["trainer.accelerator"] = "cpu"
    chosen = [] if "data" in given else [f"data={group}"]
    plain = {key: value for key, value in kept.items() if key not in given and not isinstance(value, dict)}
    return [*chosen, *(f"{key}={quoted(value)}" for key, value in plain.items())]


def data_files(config_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """The files of the choices of data by name: those of conf/, and those of folders of one's own."""
    return {file.stem: file for folder in (CONF, *config_dirs) for file in sorted((folder / "data").glob("*.yaml"))}


def _group_of(data: Mapping[str, Any], files: Mapping[str, Path]) -> str | None:
    """The choice that data were configured by: one for their class, by their name if there are several; else by name.

    A name alone may be typed: ``data=folder data.name=pets``.
    """
    name, own = data.get("name"), _class_of(data)
    choices = [choice for choice, file in files.items() if _target(file).rpartition(".")[2] == own]
    if choices and name not in choices:
        return choices[0]
    return str(name) if name in files else None


def _class_of(data: Mapping[str, Any]) -> str | None:
    """The class of a data set, of which a checkpoint has the name alone."""
    dataset = data.get("dataset")
    return dataset.get("_target_") if isinstance(dataset, dict) else None


def _target(file: Path) -> str:
    """The class that a choice's file, or one that it builds upon, names; empty where none does."""
    nodes = [OmegaConf.load(path) for path in _with_parents(file)]
    return next((target for node in nodes if (target := OmegaConf.select(node, "dataset._target_"))), "")


def _keys(file: Path) -> set[str]:
    """Keys of a choice's file, those of the files that it builds upon among them."""
    nodes = [OmegaConf.to_container(OmegaConf.load(path)) for path in _with_parents(file)]
    return {str(key) for node in nodes if isinstance(node, dict) for key in node} - {"defaults"}


def _with_parents(file: Path) -> list[Path]:
    """A choice's file, and those that it builds upon, which are beside it or in conf/."""
    found = [file]
    for path in found:  # which grows meanwhile
        node = OmegaConf.load(path)
        for parent in node.get("defaults", []) if isinstance(node, DictConfig) else []:
            beside = [folder / f"{parent}.yaml" for folder in (path.parent, CONF / "data")]
            found += [place for place in beside if place.exists() and place not in found][:1]
    return found
