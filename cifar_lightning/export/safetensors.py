"""A folder for the Hugging Face hub, in the form that timm reads: weights, config.json and a README."""

import json
from pathlib import Path
from typing import Any

from cifar_lightning import models
from cifar_lightning.checkpoint.exported import DESCRIPTION
from cifar_lightning.errors import needs_extra
from cifar_lightning.export.check import Classify
from cifar_lightning.export.model_card import model_card
from cifar_lightning.export.source import Source
from cifar_lightning.export.state_dict import loading, rebuilt

WEIGHTS = "model.safetensors"


def files(source: Source, name: str) -> dict[str, bytes]:
    """The files of the folder, of the given name.

    Raises:
        UserError: If a library is not installed.
    """
    with needs_extra("export"):
        from safetensors.torch import save
    config = json.dumps(_config(source), indent=2) + "\n"
    card = model_card(source, usage(source, Path(WEIGHTS)))
    return {
        f"{name}/{WEIGHTS}": save(source.weights, metadata={"format": "pt", DESCRIPTION: source.description}),
        f"{name}/config.json": config.encode(),
        f"{name}/README.md": card.encode(),
    }


def _config(source: Source) -> dict[str, Any]:
    """What timm reads of a model. The networks are this project's own, so timm knows none of them by its name."""
    weights, head = source.weights, models.head_of(**source.settings["model"])
    num_features = next(weights[name].shape[1] for name in head if weights[name].ndim > 1)
    return {
        "architecture": f"cifar_lightning_{source.settings['model']['name']}",
        "num_classes": len(source.settings["classes"]),
        "num_features": num_features,
        "label_names": source.settings["classes"],
        "pretrained_cfg": {
            "input_size": list(source.image_shape),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": source.mean,
            "std": source.std,
            "num_classes": len(source.settings["classes"]),
        },
    }


def opened(path: Path, source: Source) -> Classify:
    """What the network computes with the weights of the folder."""
    from safetensors.torch import load_file

    return rebuilt(source, load_file(path / WEIGHTS))


def usage(source: Source, path: Path) -> str:
    """Lines of Python that load the folder's weights and use them."""
    file = path if path.name == WEIGHTS else path / WEIGHTS
    return "from safetensors.torch import load_file\n" + loading(source, f"load_file({str(file)!r})")
