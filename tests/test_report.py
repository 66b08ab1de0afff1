"""The report: its plots against what is known of the world they show, and its page in a real browser."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from past import EXPERTS, GOOD, QUESTIONS, START, Past, liking
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from gateway.cli import app
from gateway.cli.report import moment
from multimoe.decision import Policy
from multimoe.errors import BadInput
from multimoe.feedback import Interaction, Outcome, Rating
from multimoe.report import page
from multimoe.report.bench import Bench
from multimoe.report.history import History
from multimoe.report.learning import losses, stages
from multimoe.report.overlap import overlap
from multimoe.report.plot import Look, Plot
from multimoe.report.ratings import coverage, volume
from multimoe.report.reliability import bins
from multimoe.report.routes import routing_map
from multimoe.report.speed import waterfall
from multimoe.report.topics import names
from multimoe.report.wins import counts, fit, win_matrix
from multimoe.topics import k_means

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """A gate that learned and serves, requests after it, and a newer version that does not serve."""
    made = Past(tmp_path_factory.mktemp("past"))
    made.live(120)
    made.promote(made.learn())
    made.live(80)
    made.learn(0.8)
    yield made
    made.log.close()


@pytest.fixture(scope="module")
def history(past: Past) -> History:
    return past.history()


@pytest.fixture(scope="module")
def chance(tmp_path_factory: pytest.TempPathFactory) -> History:
    """300 requests, each answered by one expert drawn by chance: what every expert is worth can be read off."""
    past = Past(tmp_path_factory.mktemp("chance"), explore=1.0, kinds=("chat", "sum", "code"))
    past.live(300, policy=Policy(top_k=1))
    read = past.history()
    past.log.close()
    return read


@pytest.fixture(scope="module")
def folder(past: Past, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes while the store is in use: `report.html` and `plots/`."""
    at = tmp_path_factory.mktemp("written")
    words = ["report", "--catalog", str(past.catalog), "-o", str(at / "report.html"), "--plots", str(at / "plots")]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "12 of 12 plots have data; 24 files in" in done.stdout) == (0, True), done.output
    return at


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Tables(HTMLParser):
    """The cells of every figure's table, by the figure's id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self._figure, self._inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "figure":
            self._figure = str(dict(attrs)["id"])
            self.rows[self._figure] = []
        elif tag == "tr":
            self.rows[self._figure].append([])
        elif tag in ("td", "th"):
            self._inside = True
            self.rows[self._figure][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[self._figure][-1][-1] += data


def column(plot: Plot, name: str, **where: object) -> list[object]:
    """Values of a column in the rows where other columns (blanks as underscores) have these values."""
    at = {heading.replace(" ", "_"): i for i, heading in enumerate(plot.columns)}
    return [row[at[name]] for row in plot.rows if all(row[at[key]] == value for key, value in where.items())]


def test_all_twelve_plots_are_drawn_and_have_numbers(html: str, folder: Path) -> None:
    figures = re.findall(r'<figure id="([^"]+)">(.*?)</figure>', html, re.DOTALL)
    assert len({name for name, _ in figures}) == len(page.PLOTS) == 12
    for name, inside in figures:
        assert re.search(r'<svg role="img" aria-label="[^"]{40,}"', inside), name
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        assert (folder / "plots" / f"{name}.csv").read_text(encoding="utf-8").count("\n") > 1, name


@pytest.mark.parametrize("name", ["value", "cost-quality", "learning-curve"])
def test_best_single_chance_and_the_bound_stand_wherever_gates_are_valued(folder: Path, name: str) -> None:
    drawn = (folder / "plots" / f"{name}.csv").read_text(encoding="utf-8")
    for baseline in ("best single expert", "one expert by chance", "upper bound (reward model)"):
        assert baseline in drawn


def test_the_page_asks_nobody_and_repeats_no_id(html: str) -> None:
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "<script" not in html
    ids = Counter(re.findall(r'\bid="([^"]+)"', html))
    assert [id for id, times in ids.items() if times > 1] == []
    missing = [ref for ref in re.findall(r'(?:href="|url\()#([^")]+)', html) if ref not in ids]
    assert missing == []


def test_the_numbers_on_the_page_are_those_of_the_csv(html: str, folder: Path) -> None:
    tables = Tables(html).rows
    assert len(tables) == 12
    for name, rows in tables.items():
        written = (folder / "plots" / f"{name}.csv").read_text(encoding="utf-8")
        assert rows == list(csv.reader(io.StringIO(written))), name


@pytest.mark.browser
def test_a_browser_shows_it_in_light_and_dark_without_a_complaint_or_a_request(folder: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; install the package chromium to test the page")
    asked: list[str] = []
    complaints: list[str] = []
    brightness = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            shown = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
            shown.on("request", lambda request: asked.append(request.url))
            shown.on("console", lambda message: complaints.append(message.text))
            shown.on("pageerror", lambda error: complaints.append(str(error)))
            shown.goto(f"file://{folder}/report.html")
            boxes = shown.eval_on_selector_all(
                "figure svg[role=img]", "all => all.map(one => one.getBoundingClientRect().toJSON())"
            )
            ink = shown.locator("figure svg text").first.evaluate("text => getComputedStyle(text).fill")
            brightness[scheme] = max(map(int, re.findall(r"\d+", ink)[:3]))
            assert len(boxes) == 12
            assert all(box["width"] > 600 and box["height"] > 150 for box in boxes)
            assert shown.evaluate("document.documentElement.scrollWidth") <= 1000
        browser.close()
    assert {url for url in asked if not url.startswith("data:")} == {f"file://{folder}/report.html"}
    assert complaints == []
    assert brightness["light"] < 128 < brightness["dark"]


def test_without_a_log_every_plot_says_what_is_missing(tmp_path: Path) -> None:
    past = Past(tmp_path)
    made = page.plots(past.history())
    text = page.html(past.history(), made)
    past.log.close()
    assert [plot.name for plot in made if plot.draw is not None] == []
    assert all(len(plot.caption) > 20 for plot in made)
    assert text.count('class="none"') == 12
    assert page.write_plots(made, tmp_path / "plots") == []


def test_a_period_leaves_out_what_was_before(past: Past) -> None:
    since = START + timedelta(minutes=5 * 150)
    recent = past.history(since)
    assert len(recent.interactions) == 50
    assert len(recent.requests) == 50
    assert min(one.interaction.created for one in recent.recent) >= since
    assert min(example.created for example in recent.later) >= since
    assert recent.past


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("90m", datetime(2026, 11, 8, 10, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 1, 12, tzinfo=UTC)),
        ("1.5h", datetime(2026, 11, 8, 10, 30, tzinfo=UTC)),
        ("2026-11-02", datetime(2026, 11, 2, tzinfo=UTC)),
        ("2026-11-02T03:00+01:00", datetime(2026, 11, 2, 2, tzinfo=UTC)),
    ],
)
def test_a_period_begins_so_long_ago_or_on_a_date(said: str, meant: datetime) -> None:
    assert moment(said, datetime(2026, 11, 8, 12, tzinfo=UTC)) == meant


@pytest.mark.parametrize("said", ["7", "d", "yesterday", "-1d", ""])
def test_a_period_that_makes_no_sense_is_refused(said: str) -> None:
    with pytest.raises(BadInput, match="--since"):
        moment(said, datetime(2026, 11, 8, tzinfo=UTC))


def test_the_map_counts_who_was_asked(history: History) -> None:
    plot = routing_map(history)
    pictures = [r for r in history.requests if "image" in r.decision.modalities]
    asked = sum(any(choice.expert == "eye" for choice in r.decision.chosen) for r in pictures)
    assert column(plot, "share", expert="eye", group="text + image") == [asked / len(pictures)]
    assert column(plot, "share", expert="eye", group="text") == [0.0]
    assert column(plot, "lift", expert="eye", group="text + image") == [
        pytest.approx(len(history.requests) / len(pictures))
    ]


def test_topics_are_clusters_named_by_their_own_words() -> None:
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(3, 20))
    kind = generator.integers(3, size=120)
    points = centres[kind] + 0.3 * generator.normal(size=(120, 20))
    found = k_means(points / np.linalg.norm(points, axis=1, keepdims=True), 3, generator)
    assert all(len(set(found[kind == k])) == 1 for k in range(3))
    words = [{"what", ("tax", "poem", "bug")[k], ("law", "rhyme", "code")[k]} for k in kind]
    assert sorted(names(words, kind, 3)) == ["bug code", "law tax", "poem rhyme"]


def test_words_of_others_cannot_write_into_the_page(history: History) -> None:
    evil = '"><script>alert(1)</script> $x^2 `a` & so on'

    def draw(figure: Figure, look: Look) -> None:
        figure.subplots().set_title(evil)

    made = Plot("evil", evil, evil, evil, (evil,), ((evil,),), draw)
    text = page.html(history, [made])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5
    assert "<code>a</code> &amp; so on" in text


def test_strengths_come_back_from_wins_and_their_intervals_cover_them() -> None:
    generator = np.random.default_rng(3)
    true = np.array([1.0, 0.3, -0.4, -0.9])
    covered = []
    for _ in range(60):
        won = np.zeros((4, 4))
        for i, j in [(0, 1), (1, 2), (2, 3), (0, 3), (1, 3)]:  # 0 and 2 are compared through others only
            wins = generator.binomial(40, 1 / (1 + np.exp(true[j] - true[i])))
            won[i, j], won[j, i] = wins, 40 - wins
        chance, low, high = fit(won).beats(0, 2)
        assert low < chance < high
        covered.append(low < 1 / (1 + np.exp(true[2] - true[0])) < high)
    assert 0.88 <= np.mean(covered) <= 1.0


def test_equal_wins_prefer_nobody_and_a_clean_sweep_is_not_certain() -> None:
    even = fit(np.array([[0.0, 12.0], [12.0, 0.0]]))
    assert even.beats(0, 1)[0] == pytest.approx(0.5)
    sweep = fit(np.array([[0.0, 12.0], [0.0, 0.0]]))
    chance, low, high = sweep.beats(0, 1)
    assert 0.8 < chance < 1.0
    assert low < 0.9 < high < 1.0


def test_wins_are_comparisons_and_parts_rated_by_one_person(tmp_path: Path) -> None:
    past = Past(tmp_path)
    past.live(1, rated=0.0)
    interaction = past.log.interactions(1)[0]
    both = tuple(Outcome(expert=n, role="answer", weight=0.5, status="ok") for n in ("small", "big"))
    past.log.record(interaction.model_copy(update={"id": "x", "outcomes": both}))
    compare = {"target": "comparison", "preferred": "big", "rejected": ("small",)}
    past.log.rate(Rating(completion_id="x", user="a", **compare))
    for user, expert, score in (
        ("b", "small", 0.2),
        ("b", "big", 0.9),
        ("c", "small", 0.5),
        ("c", "big", 0.5),
        ("d", "big", 1),
    ):
        past.log.rate(Rating(completion_id="x", user=user, target="expert", expert=expert, score=score))
    won = counts(past.history(), ["small", "big"])
    plot = win_matrix(past.history())
    past.log.close()
    assert won.tolist() == [[0.0, 0.5], [2.5, 0.0]]
    assert column(plot, "compared", preferred="big", to="small") == [3.0]


def test_bins_of_a_calibrated_prediction_lie_on_the_line_and_of_another_do_not() -> None:
    generator = np.random.default_rng(0)
    true = generator.uniform(0.1, 0.9, size=4000)
    scores = (generator.random(4000) < true).astype(np.float64)
    assert sum(b.low <= b.predicted <= b.high for b in bins(true, scores)) >= 8
    assert sum(b.low <= b.predicted <= b.high for b in bins(np.clip(true + 0.2, 0, 1), scores)) <= 2


def test_a_log_without_exploration_cannot_say_what_others_were_worth(tmp_path: Path) -> None:
    past = Past(tmp_path, explore=0.0)
    past.live(60, rated=0.0)
    greedy = overlap(past.history())
    past.log.close()
    blind = column(greedy, "experts'_cases", identifiable="no")
    assert sum(map(int, blind)) > 60


def test_a_log_with_exploration_can(history: History) -> None:
    plot = overlap(history)
    assert sum(map(int, column(plot, "experts'_cases", identifiable="no"))) == 0
    assert sum(map(int, column(plot, "gate's_first_choices"))) == len(history.requests)


def test_experts_whose_answers_are_seldom_rated_are_warned_of(tmp_path: Path) -> None:
    past = Past(tmp_path)
    past.live(120, rated=0.0)
    for one in past.log.interactions(500):
        if "big" not in one.experts:
            past.log.rate(Rating(completion_id=one.id, score=1.0, user="a", created=past.now()))
    history = past.history()
    past.log.close()
    assert next(row for row in coverage(history) if row[0] == "big")[2] == 0
    assert "Warning: answers with big are rated in 0% of cases" in volume(history).caption


def test_evenly_rated_experts_are_not(history: History) -> None:
    assert "Warning" not in volume(history).caption


def test_the_waterfall_is_of_the_median_request_and_adds_up(history: History) -> None:
    steps = waterfall(history.interactions)
    totals = sorted(one.timing_ms["total"] for one in history.interactions)
    assert steps[-1].end == totals[(len(totals) - 1) // 2]
    assert [step.name for step in steps[:2]] == ["embed", "route"]
    assert steps[1].start == steps[0].end
    assert all(step.start >= steps[1].end for step in steps[2:])
    assert waterfall([Interaction(id="x", created=START, model="multimoe")]) == []


def test_values_are_near_what_the_policies_are_truly_worth(chance: History) -> None:
    bench = Bench(chance, chance.later)
    asked = kinds(bench)
    best = [bench.history.experts[bench.singles[modalities]] for _, modalities in asked]
    truth = {
        "best": [GOOD[kind].get(name, 0.1) for (kind, _), name in zip(asked, best, strict=True)],
        "chance": [np.mean([GOOD[kind].get(name, 0.1) for name in able(modalities)]) for kind, modalities in asked],
    }
    for name, replay in (("best", bench.of_best_single()), ("chance", bench.of_uniform())):
        for value in bench.values(name, replay):
            assert value.estimate is not None
            e = value.estimate
            assert abs(e.value - np.mean(truth[name])) < e.high - e.low < 0.7
    assert bench.oracle().value >= bench.of_best_single().expected.mean() - 1e-9


def test_what_was_done_is_worth_its_mean_rating(chance: History) -> None:
    bench = Bench(chance, chance.later)
    logged = bench.values("as logged", bench.of_log())[0].estimate
    assert logged is not None
    assert logged.value == pytest.approx(np.average(bench.log.rewards, weights=bench.log.votes))
    assert logged.effective_sample_size == pytest.approx(len(bench.rows), rel=0.02)


def kinds(bench: Bench) -> list[tuple[str, tuple[str, ...]]]:
    """Of every row what was asked and with which modalities."""
    by_id = {one.id: one for one in bench.history.interactions}
    kind = {words: kind for kind, words in QUESTIONS.items()}
    return [
        (kind[str(by_id[row.id].question)], d.modalities) for row, d in zip(bench.rows, bench.decisions, strict=True)
    ]


def able(modalities: tuple[str, ...]) -> list[str]:
    return [spec.name for spec in EXPERTS if not spec.inputs.isdisjoint(modalities)]


def test_the_serving_gate_is_valued_near_its_worth(history: History) -> None:
    bench = Bench(history, history.later)
    truth = np.mean(
        [
            liking(request.interaction.question, history.gate.decide(request.embedding, Policy(), number))
            for number, request in enumerate(history.requests)
        ]
    )
    for value in bench.values("gate", bench.of_gate(history.gate)):
        assert value.estimate is not None
        assert abs(value.estimate.value - truth) < value.estimate.high - value.estimate.low


def test_more_ratings_predict_later_ones_better_than_the_cards(chance: History) -> None:
    found = stages(chance)
    assert found[0].ratings == 0
    assert [stage.ratings for stage in found] == sorted({stage.ratings for stage in found})
    plot = losses(chance)
    assert column(plot, "validation_loss")[-1] < column(plot, "cards_alone,_validation")[-1]
