"""What ``ckpt=`` puts before the command line: the data, precision and threads of the checkpoint."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from cifar_lightning.checkpoint.format import read
from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import UserError


def checkpoint_prelude(typed: list[str]) -> list[str]:
    """The checkpoint's own data, precision and threads, then what is typed.

    Raises:
        UserError: If ``ckpt=`` is missing, or names no checkpoint of this project.
    """
    given = dict(override.partition("=")[::2] for override in typed)
    if "ckpt" not in given:
        raise UserError(
            "ckpt=PATH is missing: the checkpoint to evaluate, such as logs/<name>/<time>/checkpoints/last.ckpt"
        )
    own = overrides_from(given["ckpt"].strip("'\""))
    if "data" in given and f"data={given['data']}" not in own:  # the values of the checkpoint's own do not fit another
        own = [override for override in own if not override.startswith("data.")]
    return [*(override for override in own if override.partition("=")[0] not in given), *typed]


def overrides_from(path: str) -> list[str]:
    """Overrides that give evaluate.py a checkpoint's data, precision, kernels, threads and test-time augmentation.

    The data group's file in conf/ is looked up by name; the checkpoint's plain values go on top of it. A class is never
    taken from a file: one given on the command line in training is given again.

    Raises:
        UserError: If the checkpoint is refused, or names a data group that is not in conf/data.
    """
    config = read(path)["settings"]
    name = config["data"].get("name")
    file = CONF / "data" / f"{name}.yaml"
    if name not in {known.stem for known in file.parent.glob("*.yaml")}:
        raise UserError(f"{path} was trained on data={name}, which is not in {file.parent}; choose with data=")
    known = _keys(file)
    # Nor are addresses to fetch from. Which keys are the data set's options is said in the group's file.
    taken = {key for key in known - {"urls", "options"} if not key.startswith("_")}
    values = {f"data.{key}": value for key, value in config["data"].items() if key in taken}
    values |= {"trainer.precision": config["trainer"].get("precision"), "compile": config.get("compile", False)}
    values["tta"] = config.get("tta", 0)
    available = torch.get_num_threads()  # more would wait for each other
    values["num_threads"] = min(config.get("num_threads") or available, available)
    if config["trainer"].get("accelerator") == "cpu":  # which every machine has; others are chosen anew
        values["trainer.accelerator"] = "cpu"
    return [f"data={name}", *(f"{key}={quoted(value)}" for key, value in values.items() if not isinstance(value, dict))]


def _keys(file: Path) -> set[str]:
    """Keys of a file of conf/, those of the files beside it that it builds upon among them."""
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    parents = [parent for parent in node.pop("defaults", []) if parent != "_self_"]
    return {*map(str, node), *(key for parent in parents for key in _keys(file.with_name(f"{parent}.yaml")))}
