"""Do the tests notice faults? Small random changes of the package, and how many of them some test fails for.

    python benchmarks/mutants.py --num 100 --seed 0 --out mutants.json
    python benchmarks/mutants.py --num 10 --only cifar_lightning/augment.py

A mutant is the package with one change: a comparison, a sign or an operator swapped, a number larger by one, a call
left out, a condition negated, None returned. The mutants are drawn evenly from all places where such a change can be
made; messages, log lines, annotations, decorators, assertions and zip's ``strict`` are left alone. Each survivor is
printed, and at the end how many were noticed; read a survivor before a test is written, for some changes make no
difference that anyone could see.

Everything happens in copies of the working tree in a temporary folder. One run of all tests under coverage (pip install
pytest-cov) finds which test executes which line; it is kept in the file of ``--coverage`` and repeated only when the
tree has changed. A mutant then meets only the tests that execute its line, the fastest first, until one fails: in a
process that is forked from one which has torch and the like imported already. What is executed at import, such as a
constant or the body of a cached function, meets the tests of its whole file, and a default value those of its function.
A test that takes ten times as long as before and 20 s has noticed the mutant, too. A mutant survives at a line that no
test executes (one in a process that a test starts is not seen), and after ``--budget`` seconds of computing. Whatever
noticed a mutant is then run without any change: where that fails, too, it does not count.
"""

import argparse
import ast
import copy
import faulthandler
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "cifar_lightning"
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd},
}
_NEGATED = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Not)
Lines = tuple[int, int] | None
"""The lines whose execution concerns a change, first and last; None for what is executed at import."""


@dataclass
class Mutant:
    """One change of one file, and what became of it."""

    path: str
    line: int
    before: str
    after: str
    start: int
    end: int
    lines: Lines
    tests: list[str] = field(default_factory=list)
    num_run: int = 0
    noticed_by: str = ""
    why: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} -> {self.after} ({self.num_run} of {len(self.tests)} tests)"


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.keyword(arg="strict"):
            return True
        case ast.If(test=test):
            return "TYPE_CHECKING" in ast.unparse(test) or "__name__" in ast.unparse(test)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in ("log", "logger", "logging")
    return False


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What may be changed at a node: what is replaced, and by which text."""
    changed: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                changed = copy.deepcopy(node)
                changed.ops[i] = SWAPS[type(op)]()
                yield node, f"({ast.unparse(changed)})"
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) | ast.UnaryOp(op=op) if type(op) in SWAPS:
            changed.op = SWAPS[type(op)]()
            yield node, ast.unparse(changed) if isinstance(node, ast.AugAssign) else f"({ast.unparse(changed)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield node, repr(value + 1)
        case ast.Expr(value=ast.Call()):
            yield node, "pass"
        case ast.Return(value=value) if value and ast.unparse(value) not in ("None", "False"):
            yield node, "return None"
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp) else getattr(node, "ifs", [])
    for test in tests:
        operators = test.ops if isinstance(test, ast.Compare) else [getattr(test, "op", None)]
        if not isinstance(operators[0], _NEGATED):  # else it is a swap already
            yield test, f"(not ({ast.unparse(test)}))"


class Sites:
    """All mutants of a file, and the lines of it that are executed when a function is called."""

    def __init__(self, root: Path, path: str) -> None:
        source = (root / path).read_bytes()
        self._path = path
        self._starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]
        self.mutants: list[Mutant] = []
        self.called: set[int] = set()
        self._visit(ast.parse(source), None)

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def _visit(self, node: ast.AST, lines: Lines, is_called: bool = False) -> None:
        """Walk down, with the lines of the statement; ``is_called``: within the body of a function."""
        if _is_left_alone(node):
            return
        if isinstance(node, ast.stmt) and is_called:
            body: Any = getattr(node, "body", None) or getattr(node, "cases", None)
            first = getattr(body[0], "lineno", node.lineno + 1) if body else 0
            lines = (node.lineno, max(node.lineno, first - 1) if body else node.end_lineno or node.lineno)
            self.called.update(range(lines[0], lines[1] + 1))
        if isinstance(node, ast.match_case) and is_called:
            lines = (node.pattern.lineno, node.body[0].lineno - 1)
        for old, text in _changes(node):
            spot: Any = old
            start = self._offset(spot.lineno, spot.col_offset)
            end = self._offset(spot.end_lineno, spot.end_col_offset)
            self.mutants.append(Mutant(self._path, spot.lineno, ast.unparse(old), text, start, end, lines))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                self._visit(default, (node.body[0].lineno, node.end_lineno or node.lineno), is_called)
            is_cached = any("cache" in ast.unparse(decorator) for decorator in node.decorator_list)
            for statement in node.body:
                self._visit(statement, None, not is_cached)
        elif isinstance(node, ast.AnnAssign):
            if node.value:
                self._visit(node.value, lines, is_called)
        else:
            for child in ast.iter_child_nodes(node):
                if child not in getattr(node, "decorator_list", []):
                    self._visit(child, lines, is_called)


def files() -> list[str]:
    """The working tree: what git tracks, and what it would."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    return sorted(path for path in set(listed.splitlines()) if (ROOT / path).is_file())


def covered(tree: Path, box: Path, jobs: int) -> dict[str, Any]:
    """Seconds of each test, and the tests that execute each line, from a run of all of them."""
    try:
        from coverage import CoverageData

        import_module("pytest_cov")
    except ImportError:
        sys.exit("which test executes which line is found by pytest-cov, which is missing: pip install pytest-cov")
    arguments = ["-p", "no:cacheprovider", "-n", str(jobs), "-vv", "--durations=0", f"--basetemp={box / 'tests'}"]
    arguments += [f"--cov={PACKAGE}", "--cov-context=test", "--cov-report="]
    environment = os.environ | {"COVERAGE_FILE": str(box / "coverage"), "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\nthe tests fail without any change")
    seconds: dict[str, float] = {}
    for figure, test in re.findall(r"^([\d.]+)s (?:call|setup|teardown) +(.+)$", done.stdout, re.MULTILINE):
        seconds[test] = seconds.get(test, 0.0) + float(figure)
    data = CoverageData(str(box / "coverage"))
    data.read()
    lines: dict[str, dict[str, list[str]]] = {}
    for file in data.measured_files():
        of_file = lines.setdefault(str(Path(file).relative_to(tree)), {})
        for line, contexts in data.contexts_by_lineno(file).items():
            tests = {context.rpartition("|")[0] for context in contexts if context}
            # What one test sets up, others of its file may share.
            shared = {context.partition("::")[0] for context in contexts if context.endswith("|setup")}
            tests |= {test for test in seconds if test.partition("::")[0] in shared}
            of_file[str(line)] = sorted(tests & seconds.keys())
    return {"seconds": seconds, "lines": lines}


class Watch:
    """pytest's plugin of a forked process: chooses and sorts the tests, limits their time, and notes what fails."""

    def __init__(self, tests: Sequence[str], seconds: dict[str, float], box: Path, budget: float) -> None:
        self.failed: dict[str, str] = {}
        self._places = {test: i for i, test in enumerate(tests)}
        self._seconds, self._budget = seconds, budget
        self._started = (box / "started").open("w", buffering=1)
        faulthandler.dump_traceback_later(180, exit=True, file=self._started)  # for the collection

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._places), key=lambda item: self._places[item.nodeid]
        )

    def pytest_collection_finish(self) -> None:
        self._until = time.process_time() + self._budget

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if time.process_time() > self._until:
            item.session.shouldstop = "the budget is spent"

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        print(nodeid, file=self._started)
        faulthandler.dump_traceback_later(10 * self._seconds[nodeid] + 20, exit=True, file=self._started)

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            errors = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self.failed.setdefault(report.nodeid, (errors or report.longreprtext.splitlines()[-1:] or [""])[0])

    pytest_collectreport = pytest_runtest_logreport


class Server:
    """Forks a process for each run of some tests in some tree; imports what they need but for the package itself."""

    def __init__(self, box: Path, seconds: dict[str, float], budget: float) -> None:
        self._box, self._seconds, self._budget = box, seconds, budget
        self._plain = box / "plain"
        local = {PACKAGE, *(path.stem for path in (self._plain / "tests").rglob("*.py"))}
        names: set[str] = set()
        for path in (*(self._plain / PACKAGE).rglob("*.py"), *(self._plain / "tests").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module or "")
        for name in sorted(names):
            if name.partition(".")[0] not in local:
                with suppress(ImportError):
                    import_module(name)

    def _run(self, tree: Path, box: Path, tests: list[str], stop: bool) -> None:
        """In the forked process: pytest over the tests, and what failed into the box."""
        os.setsid()
        log = os.open(box / "log", os.O_WRONLY | os.O_CREAT)
        for descriptor, target in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(target, descriptor)
        os.chdir(tree)
        # Some tests import the files of others, which pytest would find only where it has collected them.
        folders = sorted({str(path.parent) for path in (tree / "tests").rglob("test_*.py")})
        sys.path[:] = [str(tree), *sys.path[1:], *folders]
        os.environ |= {"PYTHONPATH": str(tree), "TMPDIR": str(box)}
        tempfile.tempdir = None
        watch = Watch(tests, self._seconds, box, self._budget if stop else float("inf"))
        paths = dict.fromkeys(test.partition("::")[0] for test in tests)
        options = ["-p", "no:cacheprovider", "-n", "0", "--tb=short", f"--rootdir={tree}", *(["-x"] if stop else [])]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # some plugins were imported before pytest began
        code = pytest.main([*options, f"--basetemp={box / 'tests'}", *paths], plugins=[watch])
        (box / "result").write_text(json.dumps({"code": code, "failed": watch.failed}))

    def start(self, mutant: Mutant | None, box: Path, tests: list[str], stop: bool = True) -> int:
        """Begin a run over a mutant, or over the unchanged package; gives the process id."""
        shutil.rmtree(box, ignore_errors=True)
        box.mkdir()
        tree = self._plain
        if mutant:
            tree = shutil.copytree(self._plain, box / "tree")
            file = tree / mutant.path
            source = file.read_bytes()
            file.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
            os.utime(file, (1e9, 1e9))  # no compiled file is of that time
        if child := os.fork():
            return child
        try:
            self._run(tree, box, tests, stop)
        except BaseException:
            traceback.print_exc()  # into the box's log
        finally:
            os._exit(0)

    def end(self, child: int, box: Path) -> dict[str, str]:
        """What failed in a run that has ended, and why."""
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests left behind
        if not (box / "result").exists():
            lines = (box / "started").read_text().splitlines() if (box / "started").exists() else []
            begun = [line for line in lines if line in self._seconds]
            return {begun[-1] if begun else "collection": "took too long, or the process died"}
        result = json.loads((box / "result").read_text())
        if result["code"] in (0, 1, 2, 5):
            return result["failed"]
        return {"pytest": (box / "log").read_text(errors="replace").strip().splitlines()[-1]}

    def failing(self, tests: Iterable[str]) -> dict[str, str]:
        """Which of these tests fail without any change."""
        child = self.start(None, self._box / "check", sorted(set(tests)), stop=False)
        os.waitpid(child, 0)
        return self.end(child, self._box / "check")

    def test(self, mutants: Sequence[Mutant], jobs: int) -> None:
        """Meet each mutant with its tests, several at a time."""
        waiting = [mutant for mutant in mutants if mutant.tests][::-1]
        running: dict[int, tuple[Mutant, Path, float]] = {}
        free = [self._box / f"box{i}" for i in range(jobs)]
        while waiting or running:
            while waiting and free:
                mutant, box, since = waiting.pop(), free.pop(), time.perf_counter()
                running[self.start(mutant, box, mutant.tests)] = mutant, box, since
            child, _ = os.wait()
            mutant, box, since = running.pop(child)
            free.append(box)
            mutant.noticed_by, mutant.why = next(iter(self.end(child, box).items()), ("", ""))
            begun = (box / "started").read_text().splitlines() if (box / "started").exists() else []
            mutant.num_run = len(set(begun) & set(mutant.tests))
            mutant.seconds = time.perf_counter() - since
            print(f"  {len(waiting):4} to go: {mutant.why or 'survived'}"[:120], file=sys.stderr)


def main() -> None:
    """Draw mutants, test them and list the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100, help="mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default=PACKAGE, help="file or folder of the package to change")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--budget", type=float, default=60, help="seconds of processor time for a mutant's tests")
    parser.add_argument("--out", type=Path, help="JSON file of all mutants")
    parser.add_argument("--coverage", type=Path, default=Path(tempfile.gettempdir()) / "mutants-coverage.json")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        box = Path(folder)
        digest = hashlib.sha256()
        for path in files():
            (box / "plain" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, box / "plain" / path)
            if not path.startswith("benchmarks/"):
                digest.update(path.encode() + b"\0" + hashlib.sha256((ROOT / path).read_bytes()).digest())
        cover = json.loads(options.coverage.read_text()) if options.coverage.exists() else {}
        if cover.get("tree") != digest.hexdigest():
            print("which test executes which line? All tests are run once", file=sys.stderr)
            cover = {"tree": digest.hexdigest(), **covered(box / "plain", box, options.jobs)}
            options.coverage.write_text(json.dumps(cover))

        sites = {path: Sites(box / "plain", path) for path in files() if re.fullmatch(rf"{PACKAGE}/.*\.py", path)}
        found = [one for path in sites if path.startswith(options.only) for one in sites[path].mutants]
        mutants = random.Random(options.seed).sample(found, min(options.num, len(found)))
        for mutant in mutants:
            lines = {int(line): tests for line, tests in cover["lines"].get(mutant.path, {}).items()}
            asked = range(mutant.lines[0], mutant.lines[1] + 1) if mutant.lines else sites[mutant.path].called
            chosen = {test for line in asked for test in lines.get(line, [])}
            mutant.tests = sorted(chosen, key=lambda test: (cover["seconds"][test], test))

        server = Server(box, cover["seconds"], options.budget)
        if failing := server.failing(mutant.tests[0] for mutant in mutants if mutant.tests):
            sys.exit(f"these fail without any change, so that nothing can be said: {failing}")
        to_test = mutants
        while to_test:
            server.test(to_test, options.jobs)
            noticing = {mutant.noticed_by for mutant in to_test} & cover["seconds"].keys()
            failing = server.failing(noticing) if noticing else {}
            to_test = [mutant for mutant in to_test if mutant.noticed_by in failing]
            for mutant in mutants:
                mutant.tests = [test for test in mutant.tests if test not in failing]

    for mutant in mutants:
        if not mutant.noticed_by:
            print(mutant)
    noticed = sum(bool(mutant.noticed_by) for mutant in mutants)
    print(f"noticed {noticed} of {len(mutants)} (seed {options.seed})")
    if options.out:
        listed = [asdict(mutant) | {"tests": len(mutant.tests)} for mutant in mutants]
        options.out.write_text(json.dumps({"seed": options.seed, "noticed": noticed, "mutants": listed}, indent=1))


if __name__ == "__main__":
    main()
