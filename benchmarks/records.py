"""Records of published figures: metrics.json of each run, by recipe and hardware, in benchmarks/results/.

``results/<recipe>/<hardware>/seed<n>.json`` is what train.py wrote, without paths of the machine. ``published.json`` in
its place is a figure whose runs left no record: it says what was published.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_lightning.report.stats import Summary, summary
from cifar_lightning.runs.folder import METRICS
from cifar_lightning.runs.metrics_file import finished_metrics

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = json.loads((RESULTS / "names.json").read_text())
"""Recipes and kinds of hardware, in the order of the tables, with their words."""

_OF_THE_MACHINE = ("output_dir", "data.root", "ckpt", "init", "resume", "data.dataset._target_")
_NOT_THE_RECIPE = ("seed", "name")
_PATH = re.compile(r"""(^|[\s=\[,'"])(/|~|[A-Za-z]:\\)""")


def percent(accuracies: Summary, digits: int = 2) -> str:
    """Mean and sample standard deviation, such as ``54.54 ± 1.45 %``; of a single run without the latter."""
    spread = "" if math.isnan(accuracies.sd) else f" ± {100 * accuracies.sd:.{digits}f}"
    return f"{100 * accuracies.mean:.{digits}f}{spread} %"


@dataclass(frozen=True)
class Group:
    """The runs of one command on one kind of hardware.

    Attributes:
        recipe: Name of the recipe's folder: an experiment, or ``<experiment>-<variant>``.
        folder: Name of the hardware's folder.
        is_one_thread: Whether the runs had one thread, on a CPU with more cores.
        data: Name of the data set.
        acc: Test accuracy over seeds.
        acc_tta: Test accuracy with test-time augmentation; None where there is none.
        seconds: Seconds of training of the fastest and of the slowest run; None if not measured.
        is_shared: Whether other work ran on the same machine, so that the seconds measure no speed.
        is_reproduced: Whether the runs left their records.
    """

    recipe: str
    folder: str
    command: str
    is_one_thread: bool
    data: str
    precision: str
    commits: tuple[str, ...]
    acc: Summary
    acc_tta: Summary | None
    seconds: tuple[float, float] | None
    is_shared: bool
    is_reproduced: bool

    @property
    def best(self) -> Summary:
        """The figure that the recipe is known by."""
        return self.acc_tta or self.acc


def groups() -> list[Group]:
    """All groups: by recipe, those with records first, then by hardware.

    Raises:
        ValueError: If a folder has a name that names.json lacks, or its records do not belong together.
    """
    found = [_group(path) for path in sorted({record.parent for record in RESULTS.glob("*/*/*.json")})]
    order = [*NAMES["recipes"]], [*NAMES["hardware"]]
    return sorted(found, key=lambda g: (order[0].index(g.recipe), not g.is_reproduced, order[1].index(g.folder)))


def _group(folder: Path) -> Group:
    where = folder.relative_to(RESULTS)
    if folder.parent.name not in NAMES["recipes"] or folder.name not in NAMES["hardware"]:
        raise ValueError(f"{where}: results/names.json lists no such recipe, or no such hardware")
    records = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if "published.json" in records:
        if len(records) > 1:
            raise ValueError(f"{where}: delete published.json, as there are records")
        return _published(folder, records["published.json"])
    first = next(iter(records.values()))
    for name, record in records.items():
        if name != f"seed{record['seed']}.json":
            raise ValueError(f"{where}: {name} is of seed {record['seed']}")
        for key, of_record in (("command", command), ("precision", lambda r: r["precision"])):
            if of_record(record) != of_record(first):
                raise ValueError(f"{where}: {name} has another {key}: {of_record(record)}, not {of_record(first)}")
    seconds = [record["train_seconds"] for record in records.values()]
    return Group(
        folder.parent.name,
        folder.name,
        command(first),
        _is_one_thread(first),
        first["data"],
        first["precision"],
        tuple(dict.fromkeys(_commit(record) for record in records.values())),
        summary([record["test/acc"] for record in records.values()]),
        summary([record["test/acc_tta"] for record in records.values()]) if "test/acc_tta" in first else None,
        (min(seconds), max(seconds)),
        any(record.get("shared") for record in records.values()),
        is_reproduced=True,
    )


def _published(folder: Path, record: dict[str, Any]) -> Group:
    return Group(
        folder.parent.name,
        folder.name,
        record["command"],
        _is_one_thread(record),
        record["data"],
        record["precision"],
        tuple(record["commit"].split(", ")),
        _as_published(record, "test/acc"),
        _as_published(record, "test/acc_tta") if "test/acc_tta" in record else None,
        tuple(record["train_seconds"]) if record["train_seconds"] else None,
        record["shared"],
        is_reproduced=False,
    )


def _as_published(record: dict[str, Any], key: str) -> Summary:
    sd = record[key]["sd"]
    return Summary(record["num_seeds"], record[key]["mean"], math.nan if sd is None else sd, math.nan, math.nan)


def _is_one_thread(record: dict[str, Any]) -> bool:
    return str(record["device"]).endswith("(1 thread)")


def _commit(record: dict[str, Any]) -> str:
    return (record["commit"] or "unknown")[:7] + (", changed" if record["dirty"] else "")


def command(record: dict[str, Any]) -> str:
    """The command of a record, without its seed and what says where files are."""
    kept = [override for override in record["overrides"] if override.partition("=")[0] not in _NOT_THE_RECIPE]
    return " ".join(["python train.py", *kept])


def cleaned(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a run without paths of its machine.

    Raises:
        ValueError: If a path is left over.
    """
    kept = {key: value for key, value in metrics.items() if key != "output_dir"}
    kept["overrides"] = [o for o in kept["overrides"] if o.partition("=")[0] not in _OF_THE_MACHINE]
    for key, value in kept.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _PATH.search(text):
                raise ValueError(f"{key} holds a path of this machine: {text}")
    return kept


def runs(folders: Iterable[Path]) -> list[Path]:
    """The folders of runs among folders of runs and of sweeps; of a sweep those that have ended.

    Raises:
        ValueError: If a folder has no run that has ended.
    """
    found = []
    for folder in folders:
        inner = [folder] if (folder / METRICS).exists() else sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
        if not inner:
            raise ValueError(f"{folder}: there is no {METRICS} of a run that has ended")
        found += inner
    return found


def add(source: Path, *, hardware: str, recipe: str | None = None, is_shared: bool = False) -> Path:
    """Keep the metrics.json of a run as a record; a published figure in its place goes.

    Args:
        source: The run folder.
        hardware: A name from names.json.
        recipe: Its folder; None: the name of the run.
        is_shared: Whether other work ran beside it.

    Raises:
        ValueError: If the run has not ended, or names are unknown.
    """
    metrics = finished_metrics(source)
    if metrics is None:
        raise ValueError(f"{source / METRICS} is not of a run that has ended")
    recipe = recipe or metrics["name"]
    for kind, name in (("recipes", recipe), ("hardware", hardware)):
        if name not in NAMES[kind]:
            raise ValueError(f"{name}: results/names.json lists these {kind}: {', '.join(NAMES[kind])}")
    folder = RESULTS / recipe / hardware
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed{metrics['seed']}.json"
    path.write_text(json.dumps({**cleaned(metrics), "shared": is_shared}, indent=2) + "\n")
    (folder / "published.json").unlink(missing_ok=True)
    return path
