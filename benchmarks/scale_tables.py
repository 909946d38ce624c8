"""Tables of docs/scale.md: what 10,000 runs cost, by the seconds of published runs and by results/scale.json."""

import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from records import NAMES, RESULTS, Group, groups

NUM_RUNS = 10_000
SECONDS_PER_DAY = 86_400
RECIPES = ("tutorial", "resnet18", "speedrun", "speedrun_gpu", "speedrun95", "speedrun96")
VARIANTS = {"speedrun95-direct": "speedrun95 model.fourier=false"}
"""Further folders of records, and what is typed for them."""

NUM_CORES = 2
"""Of the machine of results/scale.json; a larger load is that of other work."""

SHARED = "\\*"
"""What marks seconds beside other work."""

Table = tuple[str, list[list[str]]]
"""A header with | between the columns, and rows."""


def recorded() -> dict[str, Any]:
    """The figures in results/scale.json, by their names; see many_runs.py."""
    return {name: row["figures"] for name, row in json.loads((RESULTS / "scale.json").read_text()).items()}


def costs(mark: str) -> Table:
    """Days that 10,000 runs train, and runs a day, on two CPU cores, on one H200 and on eight.

    Args:
        mark: What marks seconds whose runs left no records.
    """
    header = [
        "recipe",
        *("two CPU cores: training, s", "days", "runs a day"),
        *("one H200: training, s", "days", "runs a day", "eight H200: days"),
    ]
    rows = []
    for recipe, name in {**{recipe: recipe for recipe in RECIPES}, **VARIANTS}.items():
        on_cores, on_gpu = (_timed(recipe, is_gpu=is_gpu) for is_gpu in (False, True))
        eight = "" if on_gpu is None else days(on_gpu, 8)
        rows.append([f"`{name}`", *_cost(on_cores, mark), *_cost(on_gpu, mark), eight])
    return " | ".join(header), rows


def _timed(recipe: str, *, is_gpu: bool) -> Group | None:
    """The runs of a recipe whose seconds say most: those with nothing else running, then those of most seeds."""
    of_recipe = (group for group in groups() if group.recipe == recipe and group.seconds is not None)
    on_it = [group for group in of_recipe if NAMES["hardware"][group.folder].get("is_gpu", False) == is_gpu]
    return min(on_it, key=lambda group: (group.is_shared, -group.acc.num), default=None)


def _cost(group: Group | None, mark: str) -> list[str]:
    if group is None or group.seconds is None:
        return ["not measured", "", ""]
    low, high = group.seconds
    remarks = SHARED * group.is_shared + f" {mark}" * (not group.is_reproduced)
    at_once = _jobs_at_once(group)
    daily = [SECONDS_PER_DAY * at_once / seconds for seconds in (high, low)]
    place = "" if group.folder == "h200" else f", {NAMES['hardware'][group.folder]['short']}"
    return [f"{between(low, high)}{remarks}{place}", days(group), between(*daily)]


def _jobs_at_once(group: Group) -> int:
    """A run of one thread leaves the other core to another run."""
    return 2 if group.is_one_thread else 1


def days(group: Group, num_devices: int = 1) -> str:
    """Days that 10,000 runs train, such as ``60 to 70``."""
    assert group.seconds is not None
    at_once = num_devices * _jobs_at_once(group)
    return between(*(NUM_RUNS * seconds / SECONDS_PER_DAY / at_once for seconds in group.seconds))


def between(low: float, high: float) -> str:
    """Two numbers with two digits or more, such as ``0.21 to 0.22``; one where they read the same."""
    digits = 0 if low >= 10 else 1 if low >= 1 else 2 if low >= 0.1 else 3
    shown = [f"{value:,.{digits}f}" for value in (low, high)]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def many_runs() -> Table:
    """What takes how long over many runs."""
    rows: list[list[str]] = []
    counts = (100, 1_000, 10_000)

    def add(what: str, part: str, show: Callable[[list[dict[str, Any]]], str], overrides: Sequence[str] = ()) -> None:
        names = [" ".join([part, str(count), *overrides]) for count in counts]
        rows.append([what, *(show(figures[name]) if name in figures else "" for name in names)])

    figures = recorded()
    add("`python compare.py runs=logs/lr`", "compare", _seconds("seconds"))
    add("`python train.py -m ...` again, all jobs done", "restart", _seconds("seconds"))
    add("the same where a file of conf/ has changed since", "composed", _seconds("seconds"))
    for note, overrides in (("", ()), (", `callbacks=none`", ("callbacks=none",))):
        add(f"TensorBoard lists all runs{note}", "tensorboard", _seconds("seconds"), overrides)
        add(f"TensorBoard has all their curves{note}", "tensorboard", _seconds("all_curves_seconds"), overrides)
        add(f"TensorBoard's memory{note}", "tensorboard", lambda rounds: size(rounds[-1]["bytes"]), overrides)
    add("`find` of each metrics.json", "files", _seconds("find_seconds"))
    add("files and folders", "files", lambda rounds: f"{rounds[-1]['files'] + rounds[-1]['folders']:,}")
    return " | ".join(["what", *(f"{count:,} runs" for count in counts)]), rows


def minutes_to_compose() -> str:
    """Minutes that it takes to compose 10,000 finished jobs, by what 100 take more than with their keys."""
    figures = recorded()
    composed, known = (median(one["seconds"] for one in figures[f"{part} 100"]) for part in ("composed", "restart"))
    return f"{(composed - known) / 100 * NUM_RUNS / 60:.0f}"


def _seconds(key: str) -> Callable[[list[dict[str, Any]]], str]:
    def show(rounds: list[dict[str, Any]]) -> str:
        taken = [one[key] for one in rounds]
        if None in taken:
            return "not reached"
        low, high = min(taken), max(taken)
        digits = 1 if high >= 1 else 2
        spread = f" ({low:,.{digits}f} to {high:,.{digits}f})" if len(taken) > 1 else ""
        shared = SHARED * any(one["load"] > NUM_CORES for one in rounds)
        cpu = (
            f", CPU {median(one['cpu_seconds'] for one in rounds):,.{digits}f} s" if "cpu_seconds" in rounds[0] else ""
        )
        return f"{median(taken):,.{digits}f} s{spread}{shared}{cpu}"

    return show


def disk() -> Table:
    """Bytes of a run by kind of file, and of 10,000."""
    rows = []
    for name, row in recorded()["recipes"].items():
        kinds = [row[kind] for kind in ("checkpoints", "curves", "other")]
        total = sum(kinds)
        rows.append([f"`{name}`", *map(size, kinds), str(row["files"]), size(NUM_RUNS * total)])
    return "recipe | checkpoint | curves and pictures | the rest | files | 10,000 runs", rows


def size(num_bytes: float) -> str:
    """Bytes as people read them, such as ``15.8 MB``."""
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next((one for one in units if num_bytes >= one[0]), units[-1])
    value = num_bytes / unit
    return f"{value:,.{0 if value >= 100 else 1}f} {name}"
