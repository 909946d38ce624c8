"""Makes tables of README.md, RESULTS.md and docs/, and result lines of conf/, from the records in benchmarks/results/.

    python benchmarks/tables.py              # writes what is stale
    python benchmarks/tables.py --check      # names what is stale, and exits 1 if there is something
    python benchmarks/tables.py --add logs/tutorial/* --hardware zen5      # first keeps metrics.json of these runs

``--shared`` says that other work ran beside these runs, so that their seconds measure no speed. ``--recipe`` names a
variant, such as ``speedrun_gpu-compiled``. What stands between ``<!-- made: NAME -->`` and ``<!-- end -->`` is made.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import scale_tables
from records import NAMES, RESULTS, Group, add, groups, percent, runs

from cifar_lightning.report.stats import paired_test, summary

ROOT = RESULTS.parents[1]
DOCUMENTS = (
    *("README.md", "README.zh-CN.md", "RESULTS.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
MADE = re.compile(r"(<!-- made: (?P<name>.*?) -->)(?P<text>.*?)(<!-- end -->)", re.DOTALL)
NOT_REPRODUCED = "not reproduced since"
DAGGER = "†"
"""What marks such a figure in a table, with a line below."""
LINE_LENGTH = 120


def table(header: str, rows: list[list[str]]) -> str:
    """A table of Markdown between empty lines; its header is written with | between the columns."""
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    shown = ("".join(f"| {cell} " if cell else "| " for cell in line) + "|\n" for line in lines)
    return "\n\n" + "".join(shown) + "\n"


def duration(group: Group) -> str:
    """Seconds of training of the fastest and the slowest run, such as ``51 to 82``."""
    if group.seconds is None:
        return "not measured"
    low, high = (f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}" for seconds in group.seconds)
    return low if low == high else f"{low} to {high}"


def place(group: Group) -> str:
    """Where it was trained, and in what time."""
    words = ("one thread of " if group.is_one_thread else "") + NAMES["hardware"][group.folder]["words"]
    if group.seconds is None:
        return words
    return f"{words} in {duration(group)} s" + " beside other work" * group.is_shared


def recipes() -> str:
    """RESULTS.md's table: every group on CIFAR-10."""
    rows = []
    for group in (group for group in groups() if group.data == "cifar10"):
        figures = [percent(group.acc), percent(group.acc_tta) if group.acc_tta else ""]
        figures[-1 if group.acc_tta else 0] = f"**{percent(group.best)}**"
        where = f"benchmarks/results/{group.recipe}/{group.folder}"
        commits = ", ".join(group.commits)
        record = f"[{commits}]({where})" if group.is_reproduced else f"[{commits}]({where}/published.json) {DAGGER}"
        precision = (
            group.precision.replace("32-true", "fp32").removesuffix("-mixed") + ", one thread" * group.is_one_thread
        )
        rows.append(
            [
                f"`{group.command.replace('python train.py experiment', '... experiment')}`",
                *figures,
                str(group.acc.num),
                duration(group) + " (shared)" * group.is_shared,
                f"{NAMES['hardware'][group.folder]['short']}, {precision}",
                record,
            ]
        )
    return table("command | accuracy | with TTA | n | training, s | hardware | commit, record", rows)


def best_known(recipe: str) -> list[Group]:
    """Groups of a recipe: those with records first, then by their number of seeds."""
    return sorted(
        (group for group in groups() if group.recipe == recipe), key=lambda g: (not g.is_reproduced, -g.acc.num)
    )


SPEEDRUNS = ("speedrun_gpu", "speedrun", "speedrun95", "speedrun96")


def in_short(names: Sequence[str], accuracy: str) -> str:
    """A table of recipes, each by the figure that is known best, with this heading for it."""
    note = f"{DAGGER}: {NOT_REPRODUCED}.\n\n"
    return _in_short(names, f"recipe | what it is | {accuracy} | n | training", "what", place, note)


def in_short_in_chinese(names: Sequence[str]) -> str:
    """The same table for README.zh-CN.md."""
    note = f"{DAGGER}：代码后来有改动，这个数字还没有用新代码重新验证过。\n\n"
    return _in_short(names, "配方 | 内容 | 准确率 | n | 训练用时", "zh", _place_in_chinese, note)


def _in_short(names: Sequence[str], header: str, what: str, where: Callable[[Group], str], note: str) -> str:
    known = [best_known(recipe)[0] for recipe in names]
    rows = []
    for group in known:
        figure = percent(group.best) + ("" if group.is_reproduced else f" {DAGGER}")
        what_it_is = NAMES["recipes"][group.recipe][what]
        rows.append([f"`{group.recipe}`", what_it_is, figure, str(group.best.num), where(group)])
    return table(header, rows) + ("" if all(group.is_reproduced for group in known) else note)


def _place_in_chinese(group: Group) -> str:
    hardware = NAMES["hardware"][group.folder]["zh"]
    words = f"在{hardware}的机器上只用一个线程" if group.is_one_thread else hardware
    words += "（同时有其他任务）" * group.is_shared
    return f"{words}，" + ("未测" if group.seconds is None else f"{duration(group).replace('to', '至')} 秒")


def finetuning() -> dict[str, list[float]]:
    """Test accuracies of fine-tuning on few images and of what it is compared with, by seed."""
    record = json.loads((RESULTS / "finetune.json").read_text())
    return {name: [run["test/acc"] for run in one["runs"]] for name, one in record["contenders"].items()}


def _gain_of_fine_tuning() -> float:
    accuracies = finetuning()
    return summary(accuracies["fine-tuned"]).mean - summary(accuracies["from scratch"]).mean


def few_images() -> str:
    """RESULTS.md's table of fine-tuning."""
    accuracies = finetuning()
    commands = {
        "fine-tuned": "`python train.py experiment=finetune init=CKPT`",
        "fine-tuned, without the frozen phase": "`freeze_trunk=0` added: the whole network from the first step on",
        "from scratch": "the same steps from scratch: `init=null freeze_trunk=0 schedule.trunk_factor=1`",
    }
    rows = []
    for name, values in accuracies.items():
        gain, against = "", ""
        if name != "fine-tuned":
            test = paired_test(values, accuracies["fine-tuned"])
            gain = f"{100 * test.difference.mean:.2f} ± {100 * test.difference.sd:.2f} points"
            against = "< 0.001" if test.p < 0.001 else f"{test.p:.3f}"
        rows.append([commands[name], percent(summary(values)), str(len(values)), gain, against])
    return table("what | accuracy | n | fine-tuning gains, by seed | p", rows)


def speeds() -> dict[str, dict[str, Any]]:
    """The rows of results/speed.json by their names."""
    return {row["name"]: row for row in json.loads((RESULTS / "speed.json").read_text())}


def ratio(row: dict[str, Any]) -> str:
    """The ratio of a row of speed.json, and its range, such as ``0.36 (0.34 to 0.42)``."""
    middle, low, high = row["ratio"]
    digits = 2 if middle >= 0.1 else 3
    return f"{middle:.{digits}f}" + ("" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})")


def speed() -> str:
    """RESULTS.md's table of ratios."""

    def timed(value: float | None, unit: str) -> str:
        return "" if value is None else f"{value:,.{0 if value >= 1000 else 1 if value >= 10 else 2}f} {unit}"

    rows = []
    for row in speeds().values():
        other = ", ".join(part for part in (row["beside"], timed(row["other"], row["unit"])) if part)
        rows.append(
            [
                row["what"],
                timed(row["project"], row["unit"]),
                other,
                ratio(row) + (f" {DAGGER}" if "published" in row else ""),
                str(row["n"]),
                NAMES["hardware"][row["hardware"]]["short"],
            ]
        )
    return table("what is timed | project | beside | ratio | n | hardware", rows)


TEXTS: dict[str, Callable[[], str]] = {
    "recipes": recipes,
    "recipes in short": lambda: in_short(("tutorial", "resnet18", *SPEEDRUNS), "accuracy"),
    "recipes in Chinese": lambda: in_short_in_chinese(("tutorial", "resnet18", *SPEEDRUNS)),
    "speedruns": lambda: in_short(SPEEDRUNS, "accuracy with TTA"),
    "few images": few_images,
    "speed": speed,
    "cost of 10,000 runs": lambda: table(*scale_tables.costs(DAGGER)),
    "many runs": lambda: table(*scale_tables.many_runs()),
    "minutes to compose": scale_tables.minutes_to_compose,
    "disk": lambda: table(*scale_tables.disk()),
    "tutorial": lambda: f"{100 * best_known('tutorial')[0].acc.mean:.1f} %",
    "tutorial with n": lambda: (
        f"{percent(best_known('tutorial')[0].acc, 1)} (mean ± standard deviation over "
        f"{best_known('tutorial')[0].acc.num} seeds)"
    ),
    "speedrun_gpu": lambda: result_line("speedrun_gpu").removeprefix("# TTA accuracy ").removesuffix("."),
    "points of fine-tuning": lambda: f"{100 * _gain_of_fine_tuning():.0f}",
    "speedrun beside its loop": lambda: ratio(speeds()["speedrun"]),
    "seconds of speedrun_gpu": lambda: f"{speeds()['speedrun_gpu']['project']:.1f}",
    "seconds of speedrun_gpu compiled": lambda: f"{speeds()['speedrun_gpu_compiled']['project']:.1f}",
}
"""What documents can have between their marks, by name."""


def remade(document: str) -> str:
    """The text of a document with all that is made here made anew.

    Raises:
        ValueError: If it has a mark with an unknown name.
    """

    def make(found: re.Match[str]) -> str:
        if found["name"] not in TEXTS:
            raise ValueError(f"{document}: made: {found['name']}: there is no such text; allowed: {', '.join(TEXTS)}")
        return f"{found[1]}{TEXTS[found['name']]()}{found[4]}"

    return MADE.sub(make, (ROOT / document).read_text())


def result_line(recipe: str) -> str:
    """The line of a file in conf/ that says what its recipe gives; of two kinds of hardware where they fit."""
    if recipe == "finetune":
        accuracies = {name: summary(values) for name, values in finetuning().items()}
        tuned, scratch = accuracies["fine-tuned"], accuracies["from scratch"]
        return (
            f"# Accuracy {percent(tuned)} (n = {tuned.num}): 20 images a class, pretrained on others of CIFAR-10; "
            f"{percent(scratch)} from scratch."
        )

    known = best_known(recipe)[:2]
    kind = "TTA accuracy" if known[0].acc_tta else "Accuracy"
    remark = NAMES["recipes"][recipe].get("remark")
    lines = []
    for shown in (known[:1], known):
        parts = [f"{percent(group.best)} (n = {group.best.num}) on {place(group)}" for group in shown]
        for i, group in enumerate(shown):
            if not group.is_reproduced and (i + 1 == len(shown) or shown[i + 1].is_reproduced):
                parts[i] += f"; {NOT_REPRODUCED}"  # once for both
        lines.append(f"# {kind} {'; '.join([*parts, *([remark] if remark else [])])}.")
    return lines[-1] if len(lines[-1]) <= LINE_LENGTH else lines[0]


def files_of_recipes() -> dict[str, str]:
    """Files that have a result line, and their recipes."""
    files = {"conf/train.yaml": "tutorial"}
    return files | {f"conf/experiment/{path.name}": path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}


def made() -> dict[str, str]:
    """The text of each file that has a made part, by its path, as it should be."""
    texts = {document: remade(document) for document in DOCUMENTS}
    for file, recipe in files_of_recipes().items():
        lines = (ROOT / file).read_text().splitlines(keepends=True)
        number = next(i for i, line in enumerate(lines) if line.startswith(("# Accuracy", "# TTA accuracy")))
        texts[file] = "".join([*lines[:number], result_line(recipe) + "\n", *lines[number + 1 :]])
    return texts


def main() -> int:
    """Keep records, then write or check; returns the exit code."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is stale")
    parser.add_argument("--add", nargs="+", type=Path, metavar="FOLDER", help="folders of runs, or of sweeps")
    parser.add_argument("--hardware", choices=NAMES["hardware"], help="of these runs")
    parser.add_argument("--recipe", choices=NAMES["recipes"], help="of these runs; by default the name of each")
    parser.add_argument("--shared", action="store_true", help="other work ran beside these runs")
    options = parser.parse_args()
    if options.add and not options.hardware:
        parser.error("--add needs --hardware")
    if options.add and options.check:
        parser.error("--check writes nothing, so it goes without --add")
    try:
        for folder in runs(options.add or ()):
            kept = add(folder, hardware=options.hardware, recipe=options.recipe, is_shared=options.shared)
            print(f"{kept.relative_to(ROOT)} is kept")
        stale = {path: text for path, text in made().items() if text != (ROOT / path).read_text()}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in stale.items():
        print(f"{path} is stale: python benchmarks/tables.py" if options.check else f"{path} is new")
        if not options.check:
            (ROOT / path).write_text(text)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
