"""README and the pages of docs/ as tests read them: code blocks, commands, links and headings."""

import ast
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIME = "2026-11-24_12-00-00"
"""What stands for <time> where commands and code are tried."""

ENTRIES = sorted(path.name for path in ROOT.glob("*.py"))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and what the next block shows as its output, if it does."""

    language: str
    text: str
    output: str | None


@dataclass(frozen=True)
class Command:
    """What can be typed: its words, and what the page shows as its answer, if it does."""

    words: tuple[str, ...]
    answer: str = ""

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def call(self) -> tuple[str, ...]:
        """The entry that it calls and the arguments, also behind ``srun``; nothing where it calls none."""
        words = self.words[1:] if self.words[0] == "srun" else self.words
        return words[1:] if words[0] == "python" and words[1] in ENTRIES else ()


@dataclass(frozen=True)
class Page:
    """A document of the project."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        return self.path.read_text()

    def blocks(self, *languages: str) -> list[Block]:
        """Its blocks in these languages, or all; a block of text that follows at once is the output."""
        found = re.findall(r"^```(\w*)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", self.text, re.DOTALL | re.MULTILINE)
        blocks = [Block(language, text.replace("<time>", TIME), output or None) for language, text, output in found]
        return [block for block in blocks if not languages or block.language in languages]

    @property
    def commands(self) -> list[list[str]]:
        """What it says can be typed: lines of bash blocks, and commands that are the last cell of a table's row."""
        typed = [line for block in self.blocks("bash") for line in block.text.splitlines()]
        cells = re.findall(r"^\|.*\| `(python .*?)` \|$", self.text, re.MULTILINE)
        return [
            shlex.split(line, comments=True) for line in [*typed, *(cell.replace("<time>", TIME) for cell in cells)]
        ]

    @property
    def calls(self) -> list[tuple[str, list[str]]]:
        """The commands that call an entry, as the entry and its arguments."""
        return [(entry, c[c.index(entry) + 1 :]) for entry in ENTRIES for c in self.commands if entry in c]

    @property
    def typed(self) -> list[Command]:
        """Each command once, in the order of the page: of bash and console blocks, and of last cells of tables."""
        block, cell = r"^```(bash|console)\n(.*?)^```$", r"^\|[^\n]*\| `((?:python|tensorboard) [^`\n]*)` \|$"
        found: list[Command] = []
        for language, text, in_cell in re.findall(
            f"{block}|{cell}", self.text.replace("<time>", TIME), re.DOTALL | re.MULTILINE
        ):
            if language == "console":
                shown = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
                found += [Command(tuple(shlex.split(line)), answer) for line, answer in shown]
            else:
                found += [command for line in (in_cell or text).splitlines() for command in one_by_one(line)]
        return list(dict.fromkeys(found))

    @property
    def links(self) -> list[str]:
        """Where it links to within the project: ``path``, ``path#heading`` or ``#heading``."""
        return re.findall(r"\]\((?!https?:)([^)\s]+)\)", self.text)

    @property
    def anchors(self) -> set[str]:
        """Its headings, as links name them."""
        without_code = re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
        return {anchor(heading) for heading in headings}


def one_by_one(line: str) -> list[Command]:
    """The commands of a line of a shell, which ``&&`` joins."""
    words = shlex.split(line, comments=True)
    ends = [-1, *(i for i, word in enumerate(words) if word == "&&"), len(words)]
    return [Command(tuple(words[i + 1 : j])) for i, j in pairwise(ends) if words]


def anchor(heading: str) -> str:
    """A heading as a link on GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections(page: Page) -> dict[str, str]:
    """The text below each heading of the second level, by the heading."""
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page.text, re.DOTALL | re.MULTILINE))


EXTENSIONS = {
    heading: text for heading, text in sections(Page(ROOT / "docs" / "recipes.md")).items() if "```python" in text
}
"""Sections that add files of one's own: their commands run with these files, in tests/test_extending.py."""


@dataclass(frozen=True)
class Help:
    """What ``--help`` of an entry shows, as a page: its examples."""

    entry: str

    def __str__(self) -> str:
        return f"{self.entry} --help"

    @property
    def typed(self) -> list[Command]:
        """The examples."""
        return [Command(("python", self.entry, *arguments)) for arguments in examples(self.entry)]


def examples(entry: str) -> list[list[str]]:
    """The arguments of the examples that ``--help`` of an entry shows."""
    lines = re.findall(
        rf"^    python {entry}(.*)$", ast.get_docstring(ast.parse((ROOT / entry).read_text())), re.MULTILINE
    )
    return [shlex.split(line.replace("<time>", TIME), comments=True) for line in lines]


PAGES = [Page(path) for path in [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]]

ORIGINALS = [page for page in PAGES if ".zh-CN" not in page.path.name]
"""Those that are no translation; a translation has the same blocks of code."""

QUICK = {"README.md", "docs/from-the-tutorial.md"}
"""Pages whose commands are typed by default, but for those that start processes; elsewhere that is slow."""
