"""The page in a real browser, against the real API with small experts behind it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from api_world import Sloth, World
from fastapi import FastAPI
from page_world import CHROMIUM, chromium, serve
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, expect

from gateway.page import mount_page
from gateway.page.turn import Turn, Visit
from multimoe.feedback import Rating
from multimoe.journal import Step

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # Gradio's own
]


@pytest.fixture(scope="module")
def served_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    """A whole gateway on a port, with its page beside it."""
    world = World(tmp_path_factory.mktemp("world"))
    api = serve(world.app)
    page = serve(mount_page(FastAPI(), api.url))
    yield world, f"{page.url}/ui"
    page.stop()
    api.stop()
    world.log.close()


@pytest.fixture
def world(served_world: tuple[World, str]) -> World:
    """Its gate picks the first expert that can read the question, until a test says whom."""
    world, _ = served_world
    world.gate.picks = ()
    return world


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; install the package chromium to test the page")
    expect.set_options(timeout=45_000)  # milliseconds; the machine may be busy
    with chromium() as opened:
        yield opened


@dataclass
class Open:
    """One open page, and what it asked of other hosts or complained about."""

    page: Page
    url: str
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ask(self, text: str) -> None:
        self.page.fill("#mm-ask textarea", text)
        self.page.keyboard.press("Enter")

    def answered(self, count: int = 1) -> Locator:
        """The footer of the `count`th finished answer."""
        expect(self.page.locator(".mm-rate")).to_have_count(count)
        return self.page.locator(".mm-foot").nth(count - 1)

    def _left(self, request: Request) -> None:
        if not request.url.startswith((self.url.removesuffix("/ui"), "data:", "blob:")):
            self.outside.append(request.url)

    def watch(self) -> None:
        self.page.on("requestfinished", self._left)
        self.page.on("requestfailed", lambda r: self._left(r) if r.failure != "csp" else None)  # that one never left
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))


@pytest.fixture
def opened(browser: Browser, served_world: tuple[World, str], request: pytest.FixtureRequest) -> Iterator[Open]:
    """The page at 1280 px, or at the size the test's parameter names."""
    width, height = getattr(request, "param", (1280, 860))
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
    context.set_default_timeout(60_000)
    shown = Open(context.new_page(), served_world[1])
    shown.watch()
    shown.page.goto(shown.url)
    shown.page.wait_for_selector(".mm-status")
    yield shown
    context.close()


def ratings(world: World) -> list[Rating]:
    """Those of the latest answer, as stored."""
    return list(world.log.ratings(world.log.interactions(1)[0].id))


def test_a_typed_question_streams_an_answer_with_experts_weights_and_why(opened: Open, world: World) -> None:
    world.gate.picks = ("parrot", "eye")
    opened.ask("the words come **back**")
    foot = opened.answered()
    for said in ("parrot", "100 %", "gate 0", "8 tokens", "it was set so"):
        expect(foot).to_contain_text(said)
    expect(opened.page.locator("#mm-chat .bot-row strong")).to_have_text("back")


def test_experts_are_named_before_the_answer_is_whole_and_stop_reaches_them(opened: Open, world: World) -> None:
    world.gate.picks = ("sloth",)
    opened.ask("slowly")
    foot = opened.page.locator(".mm-foot[data-state=streaming]")
    expect(foot).to_contain_text("sloth")
    expect(opened.page.locator("#mm-chat")).to_contain_text("well")
    assert Sloth.answering == 1
    opened.page.locator("#mm-ask .stop-button").click()
    expect(opened.page.locator(".mm-foot")).to_contain_text("Stopped")
    expect(opened.page.locator("#mm-chat .bot-row").first).to_contain_text("well")
    deadline = time.monotonic() + 5
    while Sloth.answering and time.monotonic() < deadline:
        time.sleep(0.05)
    assert Sloth.answering == 0


def test_a_chosen_picture_is_shown_and_read_by_an_expert_for_pictures(opened: Open, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "#c33").save(tmp_path / "red.png")
    with opened.page.expect_file_chooser() as chooser:
        opened.page.locator("#mm-ask .upload-button").first.click()
    chooser.value.set_files(tmp_path / "red.png")
    expect(opened.page.locator("#mm-ask .thumbnails img")).to_be_visible()
    opened.page.locator("#mm-ask .submit-button").click()
    expect(opened.answered()).to_contain_text("eye")
    expect(opened.page.locator("#mm-chat .user-row img")).to_be_visible()
    expect(opened.page.locator("#mm-chat")).to_contain_text("64x48")


def test_a_recording_from_the_microphone_is_heard_by_an_expert_for_sound(opened: Open) -> None:
    opened.page.get_by_label("Record audio").click()
    opened.page.get_by_role("button", name="Start recording").click()
    opened.page.wait_for_timeout(1500)
    opened.page.get_by_role("button", name="Stop recording").click()
    opened.page.get_by_role("button", name="Attach audio").click()
    opened.page.locator("#mm-ask .submit-button").click()
    expect(opened.answered()).to_contain_text("ear")
    expect(opened.page.locator("#mm-chat")).to_contain_text("seconds")


def test_thumbs_for_the_answer_are_stored_changed_and_taken_back(opened: Open, world: World) -> None:
    opened.ask("rate me")
    foot = opened.answered()
    foot.locator(".mm-rate .mm-good").click()
    expect(foot.locator(".mm-saved")).to_have_text("Stored. It counts at the next retraining.")
    assert [(r.target, r.score) for r in ratings(world)] == [("answer", 1.0)]
    foot.locator(".mm-rate .mm-bad").click()
    foot.get_by_role("button", name="Wrong expert").click()
    expect(foot.get_by_role("button", name="Wrong expert")).to_have_attribute("aria-pressed", "true")
    assert [(r.target, r.score, r.label) for r in ratings(world)] == [("answer", 0.0, "wrong_expert")]
    foot.locator(".mm-rate .mm-bad").click()
    expect(foot.locator(".mm-saved")).to_have_text("Taken back.")
    assert ratings(world) == []


def test_each_expert_has_thumbs_of_its_own(opened: Open, world: World) -> None:
    opened.ask("rate them")
    foot = opened.answered()
    foot.get_by_role("button", name="Bad: parrot").click()
    expect(foot.get_by_role("button", name="Bad: parrot")).to_have_attribute("aria-pressed", "true")
    assert [(r.target, r.expert, r.score) for r in ratings(world)] == [("expert", "parrot", 0.0)]


def test_route_only_shows_who_would_answer_and_asks_nobody(opened: Open, world: World) -> None:
    world.gate.picks = ("broken",)
    opened.page.fill("#mm-ask textarea", "who would?")
    opened.page.get_by_role("button", name="Route only").click()
    foot = opened.page.locator(".mm-foot")
    expect(foot).to_contain_text("Nobody was asked")
    expect(foot).to_contain_text("broken")
    expect(opened.page.locator("#mm-inspector")).to_contain_text("Who would answer")


def test_an_expert_that_failed_is_named_and_has_no_thumbs(opened: Open, world: World) -> None:
    world.gate.picks = ("broken", "parrot")
    opened.ask("half of you")
    foot = opened.answered()
    expect(foot.get_by_role("status")).to_contain_text("broken failed")
    expect(foot).to_contain_text("answered without it")
    expect(foot.get_by_role("button", name="Good: broken")).to_have_count(0)


def test_the_api_s_own_sentence_is_shown_when_nobody_can_answer(opened: Open) -> None:
    opened.page.get_by_text("Routing options").click()
    for name in ("parrot", "sloth", "broken"):
        opened.page.get_by_label(name).check()
    opened.ask("anybody?")
    expect(opened.page.get_by_role("alert")).to_contain_text("No expert reads this; add one to the catalog")


def test_options_reach_the_gate(opened: Open, world: World) -> None:
    opened.page.get_by_text("Routing options").click()
    opened.page.get_by_label("Top1").check()
    opened.page.get_by_label("broken").check()
    opened.page.get_by_label("explore").uncheck()
    opened.ask("with options")
    opened.answered()
    asked = world.gate.policies[-1]
    assert (asked.top_k, asked.exclude, asked.explore) == (1, ("broken",), False)


def test_the_inspector_shows_an_expert_s_own_output_and_escapes_it(opened: Open) -> None:
    opened.ask("say <script>alert(1)</script>")
    opened.answered()
    inspector = opened.page.locator("#mm-inspector")
    inspector.get_by_text("What each expert said by itself").click()
    expect(inspector).to_contain_text("say <script>alert(1)</script>")
    expect(inspector).to_contain_text("0.250")
    inspector.get_by_text("Could not answer this").click()
    expect(inspector).to_contain_text("reads something else")
    assert opened.complaints == []


def test_earlier_turns_stay_and_details_go_back_to_them(opened: Open) -> None:
    opened.ask("first words")
    opened.answered()
    opened.ask("second")
    opened.answered(2)
    inspector = opened.page.locator("#mm-inspector")
    expect(inspector).to_contain_text("1 in, 1 out")
    opened.page.get_by_role("button", name="Details").first.click()
    expect(inspector).to_contain_text("2 in, 2 out")


def test_what_was_said_before_is_told_again_without_its_media() -> None:
    done = Turn("what is it?", ("cat.png",), answer="a cat", state="done")
    visit = Visit("u", [done, Turn("broken", state="failed", problem="no"), Turn("go on", state="routing")])
    assert visit.history() == [
        {"role": "user", "content": "what is it? [1 attachment(s)]"},
        {"role": "assistant", "content": "a cat"},
    ]


def test_an_example_asks_its_question_with_its_file(opened: Open, world: World) -> None:
    world.gate.picks = ("eye",)
    opened.page.get_by_role("button", name="Read the words").click()
    expect(opened.answered()).to_contain_text("eye")
    expect(opened.page.locator("#mm-chat")).to_contain_text("Read the words.")
    expect(opened.page.locator("#mm-chat")).to_contain_text("720x400")


def test_the_gate_s_tab_retrains_promotes_and_rolls_back(opened: Open, world: World) -> None:
    version = world.write_version()
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-versions")).to_contain_text(f"gate {version}")
    opened.page.get_by_role("button", name="Retrain from ratings").click()
    expect(opened.page.locator(".mm-note")).to_contain_text("Gate 1 is kept, but does not answer")
    assert world.trained
    opened.page.get_by_role("button", name="Promote").first.click()
    expect(opened.page.get_by_text(f"Gate {version} answers now.")).to_be_visible()
    expect(opened.page.locator(".mm-status")).to_contain_text(f"gate {version}")
    opened.page.get_by_role("button", name="Roll back").click()
    expect(opened.page.get_by_text("Gate 0 answers now.")).to_be_visible()
    opened.page.get_by_role("button", name="Roll back").click()
    expect(opened.page.get_by_role("alert")).to_be_visible()


def test_the_gate_s_tab_shows_who_is_on_trial_and_takes_it_back(opened: Open, world: World) -> None:
    version = world.write_version()
    canary = Step(at=datetime.now(UTC), action="canary", version=version, share=0.2)
    world.gate.trial = world.registry.take(canary).trial
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-trial")).to_contain_text(f"Gate {version} answers 20 % of questions")
    expect(opened.page.locator(".mm-versions")).to_contain_text("canary")
    opened.page.get_by_role("button", name="Roll back").click()
    expect(opened.page.locator(".mm-versions")).to_contain_text("withdrawn")
    expect(opened.page.locator(".mm-trial")).to_have_count(0)


def test_nothing_is_asked_of_other_hosts_and_nothing_breaks(opened: Open) -> None:
    opened.ask("hello")
    opened.answered().locator(".mm-rate .mm-good").click()
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-versions")).to_be_visible()
    assert opened.outside == []
    assert opened.complaints == []


def test_a_picture_s_address_in_an_answer_is_not_fetched(opened: Open) -> None:
    opened.ask("![dot](http://tracker.test/dot.png)")
    opened.answered()
    expect(opened.page.locator("#mm-chat .bot-row img")).to_be_attached()
    opened.page.wait_for_timeout(300)
    assert opened.outside == []
    assert any("Content Security Policy" in said for said in opened.complaints)


@pytest.mark.parametrize("opened", [(390, 844)], indirect=True)
def test_a_phone_needs_no_sideways_scrolling(opened: Open, tmp_path: Path) -> None:
    def overflow() -> int:
        return int(opened.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    assert overflow() <= 0
    opened.ask("a longwordwithoutanyplacetobreakit" * 4)
    opened.answered()
    assert overflow() <= 0
    opened.page.screenshot(path=tmp_path / "phone.png", full_page=True)
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-versions")).to_be_visible()
    assert overflow() <= 0


def test_a_gateway_that_is_gone_is_a_sentence(browser: Browser) -> None:
    served = serve(mount_page(FastAPI(), "http://127.0.0.1:9"))
    page = browser.new_page()
    try:
        page.goto(f"{served.url}/ui")
        expect(page.locator(".mm-status")).to_contain_text("multimoe serve")
        page.fill("#mm-ask textarea", "anybody?")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("is `multimoe serve` running at http://127.0.0.1:9?")
    finally:
        page.close()
        served.stop()


def test_where_keys_are_asked_for_the_page_opens_to_a_key_alone(browser, tmp_path):
    world = World(tmp_path / "home")
    _, key = world.log.create_key("ann", ["chat", "rate"])
    api = serve(world.app)
    page = serve(mount_page(FastAPI(), api.url))
    try:
        for path in ("/ui/config", "/ui/gradio_api/info", "/ui/gradio_api/queue/data", "/ui/assets/index.js", "/ui/"):
            assert httpx.get(f"{page.url}{path}").status_code == 401, path
        assert httpx.post(f"{page.url}/ui/gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert httpx.post(f"{page.url}/ui/door", data={"key": "mm-ü"}).status_code == 401
        tab = browser.new_page()
        tab.goto(f"{page.url}/ui/")
        tab.fill("#key", "mm-wrong-key")
        tab.click("button")
        expect(tab.locator("p")).to_contain_text("unknown")
        tab.fill("#key", key)
        tab.click("button")
        expect(tab.locator(".mm-status")).to_contain_text("experts ready")  # what a key for chat may know
        tab.fill("#mm-ask textarea", "hello door")
        tab.keyboard.press("Enter")
        expect(tab.locator("#mm-chat")).to_contain_text("hello door")
        expect(tab.locator(".mm-rate")).to_have_count(1)
        assert key not in tab.content()
        assert world.log.interactions()[0].tenant
        tab.context.clear_cookies()
        tab.goto(f"{page.url}/ui/")
        expect(tab.locator("#key")).to_be_visible()
        tab.close()
    finally:
        page.stop()
        api.stop()
        world.log.close()
