"""The report: every plot on one page that asks nothing of anybody, and their PNGs and CSVs beside it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

import multimoe
from multimoe.report.history import History
from multimoe.report.learning import learning_curve, losses
from multimoe.report.overlap import overlap
from multimoe.report.plot import Plot
from multimoe.report.ratings import volume
from multimoe.report.reliability import reliability
from multimoe.report.routes import routing_map, weights_over_time
from multimoe.report.speed import latency, load
from multimoe.report.wins import win_matrix
from multimoe.report.worth import cost_quality, value

PLOTS: Sequence[Callable[[History], Plot]] = (
    routing_map,
    weights_over_time,
    reliability,
    value,
    cost_quality,
    win_matrix,
    overlap,
    latency,
    load,
    volume,
    learning_curve,
    losses,
)
TEMPLATE = Path(__file__).with_name("page.html")

Progress = Callable[[float, str], None]  # a share from 0 to 1, and what is being done


@dataclass(frozen=True)
class Fact:
    """A figure at the head of the page."""

    name: str
    figure: str


def plots(history: History, progress: Progress = lambda share, what: None) -> tuple[Plot, ...]:
    """All of them, in the order of the page; one without data says so."""
    made = []
    for i, plot in enumerate(PLOTS):
        progress(i / len(PLOTS), plot.__name__.replace("_", " "))
        made.append(plot(history))
    return tuple(made)


def html(history: History, made: Sequence[Plot]) -> str:
    """One self-contained page: its policy forbids the browser to ask anybody for anything."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["code"] = _code
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(facts=_facts(history), period=_period(history), plots=made, version=multimoe.__version__)


def write_plots(made: Sequence[Plot], folder: Path) -> list[Path]:
    """A PNG and a CSV of every plot that has something to show."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in made:
        if plot.draw is not None:
            (folder / f"{plot.name}.png").write_bytes(plot.png())
            (folder / f"{plot.name}.csv").write_text(plot.csv(), encoding="utf-8")
            written += [folder / f"{plot.name}.png", folder / f"{plot.name}.csv"]
    return written


def _code(text: str) -> Markup:
    """What stands between backticks, as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped above


def _facts(history: History) -> list[Fact]:
    scores = [r.score for one in history.recent for r in one.ratings if r.score is not None]
    explored = [one.decision.explored for one in history.interactions if one.decision]
    return [
        Fact("gate that serves", str(history.gate.version)),
        Fact("requests", f"{len(history.interactions):,}"),
        Fact("drawn by chance", f"{sum(explored) / len(explored):.0%}" if explored else "–"),
        Fact("ratings", f"{len(scores):,}"),
        Fact("liked", f"{sum(score > 0.5 for score in scores) / len(scores):.0%}" if scores else "–"),
        Fact("experts", str(len(history.experts))),
    ]


def _period(history: History) -> str:
    """From when to when, in words."""
    if not history.interactions:
        return "no requests yet"
    first, last = history.interactions[0].created, history.interactions[-1].created
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
