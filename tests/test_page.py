"""The page in a real browser, against an API that speaks the documented shapes."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright

from gateway.client import Json
from gateway.page import mount_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # Gradio's own
]

CHROMIUM = Path("/usr/bin/chromium")
EXPERTS = ("text-qwen", "imagenet-mixer", "imagenet-vit", "ocr", "whisper", "sound-events", "notes")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a microphone that beeps
    "--use-fake-ui-for-media-stream",
]


@dataclass
class StandIn:
    """An API of documented shapes whose behaviour the question's words choose, and what it was sent."""

    asked: list[Json] = field(default_factory=list)
    ratings: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    hung_up: int = 0
    version: int = 7
    polled: int = 0
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/ready")(lambda: {"status": "ok"})
        app.get("/v1/models")(self.models)
        app.get("/v1/experts")(lambda: {"data": [{"id": f"multimoe/{e}", "state": "ready"} for e in EXPERTS]})
        app.post("/v1/route")(self.route)
        app.post("/v1/chat/completions")(self.chat)
        app.post("/v1/feedback")(self.rate)
        app.delete("/v1/feedback")(self.unrate)
        app.get("/v1/feedback/stats")(self.stats)
        app.get("/v1/gate")(lambda: {"version": self.version, "alias": "champion"})
        app.get("/v1/gate/versions")(self.versions)
        app.post("/v1/gate/train")(lambda: {"job_id": "job-1"})
        app.get("/v1/gate/jobs/job-1")(self.job)
        app.put("/v1/gate/aliases/champion")(self.promote)
        app.post("/v1/gate/rollback")(self.rollback)
        return app

    def models(self) -> Json:
        names = ["multimoe", "multimoe:fast", "multimoe:cheap", "multimoe:best"]
        return {"object": "list", "data": [{"id": name} for name in names]}

    async def route(self, body: Json) -> Json:
        self.asked.append(body)
        return info(body, 0)

    async def chat(self, body: Json) -> Any:
        self.asked.append(body)
        said = question(body)
        if "nobody" in said:
            return refusal(503, "no_expert_for_modality", "no expert here reads a recording; add one to the catalog")
        return StreamingResponse(self.stream(body, said), media_type="text/event-stream")

    async def stream(self, body: Json, said: str) -> AsyncIterator[str]:
        told = info(body, len(self.asked))
        try:
            yield frame({"choices": [{"delta": {"role": "assistant", "content": ""}}], "x_multimoe": told})
            words = (TRACKER if "tracker" in said else ANSWER).split(" ") * (40 if "slow" in said else 1)
            for word in words:
                await asyncio.sleep(0.25 if "slow" in said else 0.01)
                yield frame({"choices": [{"delta": {"content": word + " "}}], "usage": None})
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up += 1
            raise
        last = finished(told, failed="degraded" in said)
        yield frame({"choices": [{"delta": {}, "finish_reason": "stop"}], "x_multimoe": last, "usage": None})
        usage = {"prompt_tokens": 31, "completion_tokens": 44, "total_tokens": 75, "cost": 0.00012}
        yield frame({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def rate(self, body: Json) -> Any:
        key = (body["completion_id"], body.get("expert", ""), body["user"])
        created = key not in self.ratings
        self.ratings[key] = body
        return JSONResponse(body, 201 if created else 200)

    async def unrate(self, request: HttpRequest) -> Json:
        sent = request.query_params
        del self.ratings[(sent["completion_id"], sent.get("expert", ""), sent["user"])]
        return {}

    def stats(self) -> Json:
        return {"interactions": 412, "ratings": 96 + len(self.ratings), "positive": 0.81, "experts": {}}

    def versions(self) -> Json:
        made = [
            (7, 96, {"value": 0.061, "low": 0.018, "high": 0.104}, True, "better by 0.061, and the interval clears 0"),
            (6, 41, {"value": 0.009, "low": -0.03, "high": 0.05}, False, "the interval of the improvement includes 0"),
            (0, 0, None, True, "made from the experts' cards"),
        ]
        names = ("version", "ratings", "gain", "promoted", "reason")
        rows = [dict(zip(names, row, strict=True)) | {"created": "2026-01-02T10:00:00Z"} for row in made]
        return {"data": [row | {"metrics": {"gain_doubly_robust": row.pop("gain")}} for row in rows]}

    def job(self) -> Json:
        self.polled += 1
        if self.polled < 3:
            return {"status": "running", "progress": self.polled / 3, "message": "fitting the gate"}
        self.version = 8
        result = {"version": 8, "promoted": True, "reason": "better by 0.052"}
        return {"status": "done", "progress": 1.0, "result": result}

    async def promote(self, body: Json) -> Json:
        self.version = int(body["version"])
        return {"version": self.version}

    def rollback(self) -> Json:
        self.version = 6
        return {"version": 6}


ANSWER = (
    "This looks like a **cheetah**, most likely a young adult. The black tear marks running from the eyes to the mouth "
    "and the small round spots set it apart from a leopard, whose spots form rosettes."
)

TRACKER = "Look: ![a dot](http://tracker.test/dot.png) <script>alert(1)</script>"


def question(body: Json) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def info(body: Json, number: int) -> Json:
    experts = [
        {"id": "multimoe/imagenet-vit", "weight": 0.58, "prob": 0.51, "status": "ok"},
        {"id": "multimoe/imagenet-mixer", "weight": 0.27, "prob": 0.24, "status": "ok"},
        {"id": "multimoe/text-qwen", "weight": 0.15, "prob": 0.13, "status": "ok", "role": "evidence"},
    ]
    considered = [{"id": "multimoe/ocr", "prob": 0.08}, {"id": "multimoe/<b>odd</b>", "prob": 0.004}]
    return {
        "schema": 1, "completion_id": f"chatcmpl-{number}", "gate": {"version": 7, "alias": "champion"},
        "top_k": 3, "combine": "weighted", "modalities": ["text", "image"], "explored": False, "propensity": 0.2059,
        "experts": experts, "considered": considered, "timing_ms": {"embed": 18, "route": 1},
        "reason": ["a picture is part of the question", "close to 14 rated questions, 12 liked"],
    }  # fmt: skip


def finished(told: Json, failed: bool) -> Json:
    labels = [{"name": "cheetah", "probability": 0.93}, {"name": "leopard", "probability": 0.04}]
    outputs = (
        {"kind": "labels", "space": "imagenet-1k", "labels": labels},
        {"kind": "labels", "space": "imagenet-1k", "labels": labels[:1]},
        {"kind": "text", "text": "A cheetah <script>alert(1)</script>"},
    )
    times = (203.0, 148.0, 391.0)
    experts = [
        {**expert, "latency_ms": ms, "output": output}
        for expert, output, ms in zip(told["experts"], outputs, times, strict=True)
    ]
    if failed:
        experts[1] |= {"status": "error", "error": "its replica is gone", "weight": 0.0}
    timing = {**told["timing_ms"], "experts": 391, "blend": 6}
    return {**told, "final": True, "experts": experts, "timing_ms": timing, "degraded": failed}


def frame(chunk: Json) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "server_error", "param": None, "code": code}}, status)


@dataclass
class Served:
    server: uvicorn.Server
    thread: threading.Thread
    url: str

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(timeout=10)


def serve(app: FastAPI) -> Served:
    line = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [line]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    return Served(server, thread, f"http://127.0.0.1:{line.getsockname()[1]}")


@pytest.fixture(scope="module")
def api() -> Iterator[StandIn]:
    """The stand-in API; tests ask it what it was sent."""
    made = StandIn()
    served = serve(made.app())
    made.url = served.url
    yield made
    served.stop()


@pytest.fixture(scope="module")
def page_url(api: StandIn) -> Iterator[str]:
    served = serve(mount_page(FastAPI(), api.url))
    yield f"{served.url}/ui"
    served.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; install the package chromium to test the page")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


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
def opened(browser: Browser, page_url: str, request: pytest.FixtureRequest) -> Iterator[Open]:
    """The page at 1280 px, or at the size the test's parameter names; a failing one leaves nothing behind."""
    width, height = getattr(request, "param", (1280, 860))
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
    context.set_default_timeout(15_000)
    shown = Open(context.new_page(), page_url)
    shown.watch()
    shown.page.goto(page_url)
    shown.page.wait_for_selector(".mm-status")
    yield shown
    context.close()


def rated(api: StandIn, expert: str = "") -> list[float]:
    return [body["score"] for (_, who, _), body in api.ratings.items() if who == expert]


def test_a_typed_question_streams_an_answer_with_experts_weights_and_why(opened: Open) -> None:
    opened.ask("what is it?")
    expect(opened.page.locator(".mm-foot[data-state=streaming]")).to_be_visible()
    foot = opened.answered()
    for said in ("imagenet-vit", "58 %", "imagenet-mixer", "text-qwen", "gate 7", "75 tokens", "12 liked"):
        expect(foot).to_contain_text(said)
    expect(opened.page.locator("#mm-chat")).to_contain_text("most likely a young adult")


def test_a_chosen_picture_is_shown_and_sent_as_an_image_part(opened: Open, api: StandIn, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "#c33").save(tmp_path / "red.png")
    with opened.page.expect_file_chooser() as chooser:
        opened.page.locator("#mm-ask .upload-button").first.click()
    chooser.value.set_files(tmp_path / "red.png")
    expect(opened.page.locator("#mm-ask .thumbnails img")).to_be_visible()
    opened.ask("and this?")
    opened.answered()
    expect(opened.page.locator("#mm-chat .user-row img")).to_be_visible()
    text, image = api.asked[-1]["messages"][-1]["content"]
    assert text == {"type": "text", "text": "and this?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")


def test_thumbs_for_the_answer_are_stored_changed_and_taken_back(opened: Open, api: StandIn) -> None:
    opened.ask("rate me")
    foot = opened.answered()
    before = len(rated(api))
    foot.locator(".mm-rate .mm-good").click()
    expect(foot.locator(".mm-saved")).to_have_text("Stored. It counts at the next retraining.")
    assert rated(api)[before:] == [1.0]
    foot.locator(".mm-rate .mm-bad").click()
    foot.get_by_role("button", name="Wrong expert").click()
    expect(foot.get_by_role("button", name="Wrong expert")).to_have_attribute("aria-pressed", "true")
    assert rated(api)[before:] == [0.0]
    assert list(api.ratings.values())[-1]["label"] == "wrong_expert"
    foot.locator(".mm-rate .mm-bad").click()
    expect(foot.locator(".mm-saved")).to_have_text("Taken back.")
    assert rated(api)[before:] == []


def test_each_expert_has_thumbs_of_its_own(opened: Open, api: StandIn) -> None:
    opened.ask("rate them")
    foot = opened.answered()
    foot.get_by_role("button", name="Bad: imagenet-mixer").click()
    expect(foot.get_by_role("button", name="Bad: imagenet-mixer")).to_have_attribute("aria-pressed", "true")
    assert rated(api, "imagenet-mixer")[-1] == 0.0
    assert list(api.ratings.values())[-1]["target"] == "expert"


def test_route_only_shows_who_would_answer_and_asks_nobody(opened: Open, api: StandIn) -> None:
    opened.page.fill("#mm-ask textarea", "who would?")
    opened.page.get_by_role("button", name="Route only").click()
    foot = opened.page.locator(".mm-foot")
    expect(foot).to_contain_text("Nobody was asked")
    expect(foot).to_contain_text("imagenet-vit")
    assert "stream" not in api.asked[-1]


def test_an_expert_that_failed_is_named(opened: Open) -> None:
    opened.ask("degraded")
    expect(opened.answered()).to_contain_text("imagenet-mixer failed (its replica is gone)")


def test_the_api_s_own_sentence_is_shown_when_it_refuses(opened: Open) -> None:
    opened.ask("nobody")
    expect(opened.page.get_by_role("alert")).to_contain_text("No expert here reads a recording; add one")


def test_stop_keeps_what_had_come_and_hangs_up_on_the_experts(opened: Open, api: StandIn) -> None:
    before = api.hung_up
    opened.ask("slow")
    expect(opened.page.locator("#mm-chat")).to_contain_text("looks")
    opened.page.locator("#mm-ask .stop-button").click()
    expect(opened.page.locator(".mm-foot")).to_contain_text("Stopped")
    expect(opened.page.locator("#mm-chat .bot-row").first).to_contain_text("This looks")
    deadline = time.monotonic() + 5
    while api.hung_up == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert api.hung_up == before + 1


def test_options_choose_the_preset_and_leave_experts_out(opened: Open, api: StandIn) -> None:
    opened.page.get_by_text("Routing options").click()
    opened.page.get_by_label("Cheap").check()
    opened.page.get_by_label("ocr").check()
    opened.page.get_by_label("explore").uncheck()
    opened.ask("cheaply")
    opened.answered()
    sent = api.asked[-1]
    assert sent["model"] == "multimoe:cheap"
    assert sent["x_multimoe"] == {"include_outputs": True, "explore": False, "exclude": ["ocr"]}


def test_the_inspector_shows_every_expert_s_own_output_and_escapes_it(opened: Open) -> None:
    opened.ask("what is it?")
    opened.answered()
    inspector = opened.page.locator("#mm-inspector")
    inspector.get_by_text("What each expert said by itself").click()
    expect(inspector).to_contain_text("cheetah")
    expect(inspector).to_contain_text("A cheetah <script>alert(1)</script>")
    expect(inspector).to_contain_text("<b>odd</b>")
    expect(inspector).to_contain_text("0.206")


def test_earlier_turns_are_sent_as_history(opened: Open, api: StandIn) -> None:
    opened.ask("first")
    opened.answered()
    opened.ask("second")
    opened.answered(2)
    assert [message["role"] for message in api.asked[-1]["messages"]] == ["user", "assistant", "user"]


def test_an_example_asks_its_question_with_its_file(opened: Open, api: StandIn) -> None:
    opened.page.get_by_role("button", name="Read the words").click()
    opened.answered()
    kinds = [part["type"] for part in api.asked[-1]["messages"][-1]["content"]]
    assert kinds == ["text", "image_url"]


def test_the_gate_s_tab_retrains_promotes_and_rolls_back(opened: Open, api: StandIn) -> None:
    api.version, api.polled = 7, 0
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-versions")).to_contain_text("+0.061 [+0.018, +0.104]")
    opened.page.get_by_role("button", name="Retrain from ratings").click()
    expect(opened.page.locator(".mm-job")).to_contain_text("fitting the gate")
    expect(opened.page.get_by_text("Gate 8 answers now: better by 0.052")).to_be_visible()
    expect(opened.page.locator(".mm-status")).to_contain_text("gate 8")
    opened.page.get_by_role("button", name="Roll back").click()
    expect(opened.page.get_by_text("Gate 6 answers now.")).to_be_visible()
    opened.page.get_by_role("button", name="Promote").first.click()
    expect(opened.page.get_by_text("Gate 7 answers now.")).to_be_visible()


def test_nothing_is_asked_of_other_hosts_and_nothing_breaks(opened: Open) -> None:
    opened.ask("what is it?")
    opened.answered().locator(".mm-rate .mm-good").click()
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-versions")).to_be_visible()
    assert opened.outside == []
    assert opened.complaints == []


def test_a_picture_s_address_in_an_answer_is_not_fetched(opened: Open) -> None:
    opened.ask("tracker")
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
    opened.ask("what is it?")
    opened.answered()
    assert overflow() <= 0
    opened.page.screenshot(path=tmp_path / "phone.png", full_page=True)
    opened.page.get_by_role("tab", name="Gate").click()
    expect(opened.page.locator(".mm-versions")).to_be_visible()
    assert overflow() <= 0


def test_a_recording_from_the_microphone_is_sent_as_audio(opened: Open, api: StandIn) -> None:
    opened.page.get_by_label("Record audio").click()
    opened.page.get_by_role("button", name="Start recording").click()
    opened.page.wait_for_timeout(1200)
    opened.page.get_by_role("button", name="Stop recording").click()
    opened.page.get_by_role("button", name="Attach audio").click()
    opened.page.locator("#mm-ask .submit-button").click()
    opened.answered()
    (part,) = api.asked[-1]["messages"][-1]["content"]
    assert part["type"] == "input_audio"
    assert len(part["input_audio"]["data"]) > 10_000


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
