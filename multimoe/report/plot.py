"""One plot: its numbers, its words and how it is drawn, rendered as SVG for the page, and as PNG and CSV beside it."""

import csv
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Cell = str | int | float | datetime | None

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by colour-blind eyes; its black is the ink.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, YELLOW)
MARKERS = "osD^vPX*"

WIDTH = 9.0  # inches, of every plot
DOTS = 130  # an inch, of a PNG
FONTS = ["DejaVu Sans"]  # what matplotlib brings, and measures by; the page has its own


@dataclass(frozen=True)
class Look:
    """Colours that differ between a light and a dark page."""

    ink: str
    soft: str
    line: str
    paper: str


WHITE = Look(ink="#211f1c", soft="#6f6a60", line="#d9d4c8", paper="#ffffff")
STAND_INS = Look(ink="#010203", soft="#010204", line="#010205", paper="#010206")  # for the page's own, in SVG

Draw = Callable[[Figure, Look], None]


@dataclass(frozen=True, eq=False)
class Plot:
    """`name` is an anchor and a file name. Without `draw` there is nothing to see, and `caption` says why.

    `alt` says what is to be seen to who cannot see it. `rows` under `columns` are the numbers drawn.
    """

    name: str
    title: str
    caption: str
    alt: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    draw: Draw | None = None
    height: float = 3.4  # inches

    def cells(self) -> list[list[str]]:
        """`rows` as they are printed, in the page as in the CSV."""
        return [[_printed(cell) for cell in row] for row in self.rows]

    def csv(self) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.cells())
        return file.getvalue()

    def svg(self) -> str:
        """To stand in a page that says what `--ink`, `--soft`, `--line` and `--paper` are. Empty without `draw`."""
        if self.draw is None:
            return ""
        file = io.StringIO()
        with _drawn(self.draw, STAND_INS, self.height) as figure:
            figure.savefig(file, format="svg")
        return _inline(file.getvalue(), self.name, self.alt)

    def png(self) -> bytes:
        """On white. Empty without `draw`."""
        if self.draw is None:
            return b""
        file = io.BytesIO()
        with _drawn(self.draw, WHITE, self.height) as figure:
            figure.savefig(file, format="png")
        return file.getvalue()


def nothing(name: str, title: str, why: str) -> Plot:
    """A plot that there is no data for, which says so."""
    return Plot(name, title, why)


def bare(axes: Axes, look: Look, grid: str = "y") -> Axes:
    """Without a frame; faint lines to read values off along `grid` ("x", "y", "both" or "")."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(look.line)
    axes.tick_params(length=0, labelcolor=look.soft)
    axes.set_axisbelow(True)
    if grid in ("x", "y", "both"):
        axes.grid(axis="both" if grid == "both" else "x" if grid == "x" else "y", color=look.line, linewidth=0.6)
    return axes


def colours(names: Sequence[str]) -> dict[str, str]:
    """One for each. After seven they repeat: tell names apart by a marker or a label too."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    """One for each, different for names of one colour."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


@contextmanager
def _drawn(draw: Draw, look: Look, height: float) -> Iterator[Figure]:
    """The figure, to be saved within: settings of matplotlib hold only there."""
    style: Any = {  # any of matplotlib's hundreds of names
        "text.parse_math": False,  # a dollar sign is one
        "svg.fonttype": "none",
        "svg.hashsalt": "multimoe",
        "font.family": FONTS,
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.facecolor": look.paper,
        "axes.facecolor": "none",
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), look.ink),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a PNG shows a box instead
        figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained")
        draw(figure, look)
        yield figure


def _inline(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of a page: its own ids, the page's colours, no names of other places."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]+"', body)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for field in fields(Look):
        body = body.replace(getattr(STAND_INS, field.name), f"var(--{field.name})")
    opening = f'<svg role="img" aria-label="{html.escape(alt)}" {box.group() if box else ""}>'
    return opening + body[body.index(">") + 1 :]


def _printed(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return cell.isoformat(timespec="seconds") if isinstance(cell, datetime) else str(cell)
