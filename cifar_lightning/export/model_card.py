"""README.md of a model on the Hugging Face hub: what is known of its accuracy, data and recipe."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cifar_lightning.calibration import in_words
from cifar_lightning.errors import printable
from cifar_lightning.export.source import RESIZE, Source
from cifar_lightning.runs.folder import LAST
from cifar_lightning.runs.metrics_file import finished_metrics

_LOCAL = ("output_dir", "resume", "num_threads")
"""Settings that say where and on what machine a run was, which nobody else needs."""


def model_card(source: Source, usage: str) -> str:
    """The text: front matter, then what a reader needs; names of classes and data may hold anything.

    Args:
        source: The checkpoint.
        usage: Lines of Python that load the weights.
    """
    settings, metrics = source.settings, known_metrics(source.path)
    channels, height, width = source.image_shape
    head = yaml.safe_dump(_front_matter(settings, metrics), sort_keys=False, allow_unicode=False, width=1_000_000)
    return f"""---
{head}---

# {_inline(settings["name"])}

The network `{settings["model"]["name"]}` of cifar-lightning, trained on
{_inline(data_name(settings))} with seed {settings["seed"]}. {_accuracy(metrics)}
Its probabilities are {in_words(source.temperature)}.

It takes images of {channels} x {height} x {width}: {RESIZE}. It needs them normalised, as below.

## Use

timm reads config.json, but cannot build this network by its name. The project that trained it can:

```python
{usage}
```

## Classes

```json
{json.dumps(settings["classes"], indent=1)}
```

## Recipe

```json
{json.dumps(_recipe(settings), indent=1)}
```
"""


def _front_matter(settings: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "cifar-lightning",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", "cifar-lightning"],
    }
    if "test/acc" in metrics:
        data = {"name": printable(data_name(settings)), "type": _slug(data_name(settings)), "split": "test"}
        values = [{"type": "accuracy", "value": metrics["test/acc"]}]
        result = {"task": {"type": "image-classification"}, "dataset": data, "metrics": values}
        front["model-index"] = [{"name": printable(settings["name"]), "results": [result]}]
    return front


def _recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that another run would need to come to the same weights; no paths of this machine."""
    recipe = {key: value for key, value in settings.items() if key not in (*_LOCAL, "classes", "fingerprint")}
    recipe["data"] = {key: value for key, value in settings["data"].items() if key != "root"}
    return {
        key: {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value
        for key, value in recipe.items()
    }


def known_metrics(path: Path) -> dict[str, Any]:
    """What is known of a checkpoint's accuracy: of a run's last.ckpt from the run, of any from an evaluation of it."""
    if path.parent.name != LAST.parent.name:
        return {}
    run = path.absolute().parent.parent
    places = [*([run] if path.name == LAST.name else []), run / "evaluate" / path.stem]
    for metrics in map(finished_metrics, places):
        if metrics is not None and isinstance(metrics.get("test/acc"), float):
            return metrics
    return {}


def _accuracy(metrics: dict[str, Any]) -> str:
    if not metrics:
        return "Its accuracy was not recorded beside the checkpoint."
    num = metrics.get("num_test_images")
    images = f"the {num:,} test images" if isinstance(num, int) else "the test images"
    tta = metrics.get("test/acc_tta")
    augmented = f" ({tta:.2%} with test-time augmentation)" if isinstance(tta, float) else ""
    return f"Accuracy on {images}: {metrics['test/acc']:.2%}{augmented}."


def data_name(settings: dict[str, Any]) -> str:
    """What the data are called."""
    return str(settings["data"].get("name", "data of one's own"))


def _slug(name: str) -> str:
    """A name in the form of the hub's data sets."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "own"


def _inline(text: str) -> str:
    """Text as it is in Markdown: no mark in it has a meaning, and nothing begins a line."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$&:-])", r"\\\1", printable(text)) or "model"
