"""Groups of runs: those that differ in nothing but the seed."""

import shlex
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_lightning.config.recipe import IF_DOUBLED, Value, is_below, recipe
from cifar_lightning.errors import UserError, listed, printable, shortened
from cifar_lightning.report.comparison import Group, Run

DEFAULTS = "defaults"
"""Label of the group that sets nothing of what others set."""

ONLY = "all runs"
"""Label of a group that is the only one."""

FOLDER, _IMAGES = "folder", "test images"
"""Keys of a group that are no overrides: where its runs are, and which images they were tested on."""

_Keys = dict[str, Value]


@dataclass(frozen=True)
class Grouping:
    """Groups, and what is to be said of them.

    Attributes:
        groups: In the order of their first runs.
        shared: What all groups were asked for.
        notes: What a reader must know, such as seeds that stand twice.
    """

    groups: Sequence[Group]
    shared: Sequence[str]
    notes: Sequence[str]
    _keys: Sequence[_Keys]

    def find(self, text: str) -> Group:
        """The group that some text means: its label, or overrides that it alone has.

        Raises:
            UserError: If there is none, or there are several.
        """
        named = [group for group in self.groups if group.label == text]
        if not named:
            try:
                asked = recipe(shlex.split(text))
            except ValueError:  # of a quote that is left open
                asked = {}
            named = [
                group
                for group, keys in zip(self.groups, self._keys, strict=True)
                if asked and all(key in keys and keys[key].normal == value.normal for key, value in asked.items())
            ]
        if len(named) != 1:
            labels = listed([group.label for group in named or self.groups])
            problem = "several groups have that" if named else "no group has that"
            raise UserError(f"baseline={shortened(printable(text), 80)}: {problem}; name one of: {labels}")
        return named[0]


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> Grouping:
    """Group runs by all overrides but the seed, in any order and spelling.

    Where and how a run ran makes groups only where a seed would otherwise stand twice; see ``recipe.IF_DOUBLED``.

    Args:
        runs: The runs.
        by: What else makes groups: keys of metrics.json, and ``folder``.
    """
    parted: dict[Hashable, list[Run]] = {}
    for run in runs:
        own = [(key, value.normal) for key, value in run.overrides.items() if not is_below(key, IF_DOUBLED)]
        parted.setdefault((*own, *(_further(run, key).normal for key in by)), []).append(run)
    keyed: list[tuple[_Keys, list[Run]]] = []
    for members in parted.values():
        keyed += _without_doubles(members, by)
    shared = _shared([keys for keys, _ in keyed])
    labels = [_label(keys, shared) for keys, _ in keyed] if len(keyed) > 1 else [ONLY] * len(keyed)
    notes: list[str] = []
    groups = [_group(label, members, notes) for label, (_, members) in zip(labels, keyed, strict=True)]
    return Grouping(groups, [_typed(key, value) for key, value in shared.items()], notes, [keys for keys, _ in keyed])


def _further(run: Run, key: str) -> Value:
    value: Any = run.place.rpartition("/")[0] if key == FOLDER else run.record.get(key)
    return Value(repr(value), "?" if value is None else str(value))


def _without_doubles(runs: list[Run], by: Sequence[str]) -> list[tuple[_Keys, list[Run]]]:
    """Runs of one recipe, parted by where and how they ran as far as that has each seed stand once."""
    common = {key: value for key, value in runs[0].overrides.items() if not is_below(key, IF_DOUBLED)}
    common |= {key: _further(runs[0], key) for key in by}
    kept = dict.fromkeys(key for run in runs for key in run.overrides if is_below(key, IF_DOUBLED))
    parting = [key for key in kept if _parts_doubles(runs, key)]
    parts = _parted(runs, parting)
    for more in ("data.root", _IMAGES):  # accuracies on different images are not to be averaged over
        if any(len({run.record.get("fingerprint.test") for run in part} - {None}) > 1 for part in parts):
            parting.append(more)
            parts = _parted(runs, parting)
    found = []
    for members in parts:
        own = {key: _value(members[0], key) for key in parting}
        found.append((common | {key: value for key, value in own.items() if value is not None}, members))
    return found


def _parted(runs: Sequence[Run], keys: Sequence[str]) -> list[list[Run]]:
    parts: dict[Hashable, list[Run]] = {}
    for run in runs:
        parts.setdefault(tuple(_normal(run, key) for key in keys), []).append(run)
    return list(parts.values())


def _value(run: Run, key: str) -> Value | None:
    if key == _IMAGES:
        fingerprint = str(run.record.get("fingerprint.test") or "?")
        return Value(fingerprint, fingerprint.rpartition(":")[2][:8])
    return run.overrides.get(key)


def _normal(run: Run, key: str) -> Hashable:
    value = _value(run, key)
    return None if value is None else (value.normal,)


def _parts_doubles(runs: Sequence[Run], key: str) -> bool:
    """Whether finished runs of one seed differ in a key."""
    seen: dict[int | None, Hashable] = {}
    finished = [run for run in runs if run.status == "finished"]
    return any(seen.setdefault(run.seed, _normal(run, key)) != _normal(run, key) for run in finished)


def _shared(groups: Sequence[_Keys]) -> _Keys:
    first = groups[0] if groups else {}
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key].normal == value.normal for other in groups)
    }


def _label(keys: _Keys, shared: Mapping[str, Value]) -> str:
    return " ".join(_typed(key, value) for key, value in keys.items() if key not in shared) or DEFAULTS


def _typed(key: str, value: Value) -> str:
    return printable(f"{key}={value.spelled}")


def _group(label: str, runs: Sequence[Run], notes: list[str]) -> Group:
    counted: dict[int, Run] = {}
    doubles: dict[int, list[Run]] = {}
    for run in runs:
        if run.status == "finished" and run.seed is not None:
            if run.seed in counted:
                doubles.setdefault(run.seed, [counted[run.seed]]).append(run)
            else:
                counted[run.seed] = run
    for seed, same in doubles.items():
        notes.append(f"{label}: seed {seed} stands {len(same)} times, and the first counts: {_places(same)}")
    if len({run.record.get("fingerprint.train") for run in counted.values()} - {None}) > 1:
        notes.append(f"{label}: its runs were trained on different images; by=fingerprint.train parts them")
    return Group(label, tuple(runs), counted)


def _places(runs: Iterable[Run]) -> str:
    return listed([run.place for run in runs], at_most=4)
