"""Self-contained pages: one HTML file that loads nothing and is read without a script.

Whatever is put into a page is text, which the templates escape: names of classes and files are anybody's. The page's
policy lets a browser run the page's own script and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from cifar_lightning.errors import counted, printable, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "#101010": "var(--ink)",
    "#202020": "var(--quiet)",
    "#303030": "var(--line)",
    "#404040": "var(--accent)",
    "#505050": "var(--fault)",
    "#606060": "var(--muted-bar)",
    "#707070": "var(--surface)",
}
"""Colours that stand in a figure for those of the page, which differ on light and dark screens."""

INK, QUIET, LINE, ACCENT, FAULT, MUTED, SURFACE = COLORS

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: searchable, and in the page's font
    "svg.hashsalt": "cifar-lightning",  # ids are the same each time
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": LINE,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
"""matplotlib's settings for the figures of pages: ``with matplotlib.rc_context(STYLE)`` while one is made."""

_OF_MATPLOTLIB = {
    r"<style type.*?</style>": "",  # which would be one for the whole page
    r"font-family: [^;\"]*(; )?": "",  # the page has its own
    r' (width|height)="[\d.]+pt"': "",  # as wide as the page lets it be
    r'<g id="[^"]*"': "<g",  # the next figure has the same ones
}
"""What matplotlib writes for a picture that stands alone, by pattern, and what stands for it within a page."""

_MAX_WHOLE = 20
"""Most characters of a word that stands on one line of a table, however narrow the screen."""

_JOINT = re.compile(r"(?<=[=/,_])(?=[^=/,_])|(?<=[a-z]\.)(?=[a-z])")
"""Between the parts of a path or an override; no decimal point is one."""

_MAX_SIDE = 160
"""Most pixels of a picture in a page."""


def svg(figure: Figure, description: str) -> Markup:
    """A figure, made within ``STYLE``, as a piece of a page whose colours it takes.

    Args:
        figure: The figure.
        description: What is seen in it, for those who do not see it.
    """
    content = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Type", "Format")))
    text = content.getvalue()
    text = text[text.index("<svg") + len("<svg") :]
    for color, variable in COLORS.items():
        text = text.replace(color, variable)
    for pattern, instead in _OF_MATPLOTLIB.items():
        text = re.sub(pattern, instead, text)
    # matplotlib has escaped the texts in the figure
    return Markup('<svg role="img" aria-label="{}"').format(description) + Markup(text)


def picture(image: UInt8[Tensor, "c h w"]) -> str:
    """An image as an address that holds it: PNG, or JPEG where it has more pixels than a hundred by a hundred."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
    drawn.thumbnail((_MAX_SIDE, _MAX_SIDE))
    kind = "jpeg" if drawn.width * drawn.height > 10_000 else "png"
    content = io.BytesIO()
    drawn.save(content, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def page(template: str, **values: Any) -> str:
    """A page from a template in report/page, with its style and script inside.

    Args:
        template: Name of the file, such as ``evaluation.html``; it extends ``base.html``.
        values: What the template shows. Every text is escaped.
    """
    environment = _environment()
    script = _source(environment, "sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **values, style=Markup(_source(environment, "style.css")), script=Markup(script), script_digest=digest
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cifar_lightning.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "value": _value,
        "name": _name,
        "short": shortened,
        "counted": counted,
        "end": _end,
        "breakable": _breakable,
    }
    return environment


def _name(text: str) -> str:
    """A name of anybody's as text that shows what is in it; quotation marks show one of nothing but spaces."""
    return printable(text) if text.strip() else f"“{printable(text)}”"


def _end(text: str, length: int) -> str:
    """The end of a text, where paths differ."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


def _breakable(text: str) -> Markup:
    """A text whose long words, such as paths and overrides, may break where their parts are joined."""
    words = [_JOINT.split(word) if len(word) > _MAX_WHOLE else [word] for word in text.split(" ")]
    return Markup(" ").join(Markup("<wbr>").join(parts) for parts in words)


def _value(value: float | None) -> str:
    """A number to sort by; nothing for what stands last."""
    return "" if value is None or value != value else f"{value:.6g}"


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or value != value else f"{100 * value:.{digits}f} %"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or value != value else f"{value:,.{digits}f}"
