"""The chat: a box to ask in, answers that stream, who gave them, and thumbs that go to the API.

Everything it shows comes from the REST API through the visitor's own `Client`. A visit's turns
live as long as its page is open.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from gateway.client import Client, Json, chat_body
from gateway.page import look
from gateway.page.answer import footer
from gateway.page.door import Sessions
from gateway.page.examples import Example, available
from gateway.page.html import name
from gateway.page.inspector import inspector
from gateway.page.turn import ANSWER, RATED, Turn, Visit, handfuls
from gateway.page.welcome import status, welcome
from multimoe.errors import MultimoeError

REDRAW_SECONDS = 0.08  # a faster stream is drawn in larger pieces
SAVED = "Stored. It counts at the next retraining."
TAKEN_BACK = "Taken back."
PLACEHOLDER = "Ask, paste, drop or record…"
HINT = '<div class="mm-hint">Paste or drop a picture or a sound. Microphone: record, stop, tick, send.</div>'

View = tuple[Any, ...]


def plain(html: str, **options: Any) -> gr.HTML:
    """HTML as it is, without Gradio's own style on top."""
    return gr.HTML(html, apply_default_css=False, elem_classes="mm-plain", **options)


class Chat:
    """Builds its part of the page where it is created; `status` and `greet` are for the page's load event."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.examples: tuple[Example, ...] = available()
        self.visit = gr.State(Visit.begin, time_to_live=12 * 3600)
        with gr.Row(equal_height=False):
            with gr.Column(scale=8, min_width=300):
                self.welcome = plain(welcome(self.examples))
                self._conversation()
            with gr.Column(scale=4, min_width=300):
                self._options()
                self.inspector = plain(inspector(None), elem_id="mm-inspector")
        self.bridge = gr.HTML("", js_on_load=look.BRIDGE, elem_classes="mm-hidden")
        self._wire()

    def _conversation(self) -> None:
        self.log = gr.Chatbot(
            elem_id="mm-chat",
            show_label=False,
            height="calc(100dvh - 250px)",
            min_height=380,
            visible=False,
            layout="bubble",
            group_consecutive_messages=False,
            feedback_options=None,
            buttons=[],
        )
        self.ask = gr.MultimodalTextbox(
            elem_id="mm-ask",
            show_label=False,
            placeholder=PLACEHOLDER,
            file_count="multiple",
            file_types=["image", "audio"],
            sources=["upload", "microphone"],
            max_lines=8,
        )
        with gr.Row(elem_classes="mm-under"):
            plain(HINT)
            self.only = gr.Button("Route only", size="sm", elem_classes="mm-small")
            self.new = gr.Button("New chat", size="sm", elem_classes="mm-small")

    def _options(self) -> None:
        with gr.Accordion("Routing options", open=False, elem_id="mm-options"):
            self.preset = gr.Radio([("Auto", "multimoe")], value="multimoe", label="Preset")
            self.top_k = gr.Slider(0, 6, value=0, step=1, label="Experts at most", info="0 leaves it to the preset")
            self.explore = gr.Checkbox(True, label="Let the gate explore now and then, to learn")
            self.without = gr.CheckboxGroup([], label="Leave out")

    def _wire(self) -> None:
        asked = [self.visit, self.ask, self.preset, self.top_k, self.explore, self.without]
        shown = [self.welcome, self.log, self.inspector, self.ask]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.ask.submit(self.send, asked, shown, **quiet)
        self.ask.stop(self.stop, self.visit, None, **quiet)
        self.only.click(self.route_only, asked, shown, **quiet)
        self.new.click(self.forget, self.visit, shown, **quiet)
        example = [self.visit, self.preset, self.top_k, self.explore, self.without]
        self.bridge.example(self.try_example, example, shown, **quiet)
        self.bridge.rate(self.rate, self.visit, self.log, **quiet)
        self.bridge.inspect(self.inspect, self.visit, self.inspector, **quiet)

    def greet(self, request: gr.Request) -> View:
        """Fill the options from what the API offers; an unreachable API leaves them as they are."""
        client = self._client(request)
        try:
            models, experts = client.models(), [name(expert) for expert in client.experts()]
        except MultimoeError:
            return gr.skip(), gr.skip()
        return gr.Radio(choices=_presets(models)), gr.CheckboxGroup(choices=experts)

    def status(self, request: gr.Request) -> str:
        client = self._client(request)
        try:
            return status(_gate(client), client.experts())
        except MultimoeError as error:
            return status(None, (), f"Gateway offline: {error}" if error.code == "unreachable" else str(error))

    def send(self, request: gr.Request, visit: Visit, box: Json, preset: str, *options: Any) -> Iterator[View]:
        turn = _turn(box)
        if turn is None:
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        yield from self._answer(self._client(request), visit, turn, preset, _policy(*options))

    def try_example(
        self,
        request: gr.Request,
        visit: Visit,
        preset: str,
        top_k: int,
        explore: bool,
        without: list[str],
        e: gr.EventData,
    ) -> Any:
        example = self.examples[int(e._data["number"])]
        turn = Turn(example.text, tuple(example.files()))
        yield from self._answer(self._client(request), visit, turn, preset, _policy(top_k, explore, without))

    def route_only(self, request: gr.Request, visit: Visit, box: Json, preset: str, *options: Any) -> View:
        turn = _turn(box)
        if turn is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        visit.turns.append(turn)
        visit.shown = len(visit.turns) - 1
        try:
            messages = chat_body(turn.text, turn.files)
            turn.info = self._client(request).route(messages, preset, x_multimoe=_policy(*options), user=visit.user)
            turn.state = "routed"
        except MultimoeError as error:
            turn.state, turn.problem = "failed", str(error)
        return *self._draw(visit), _box(busy=False)

    def stop(self, visit: Visit) -> None:
        """Hang up; the handler that streams notices and draws what had come."""
        if visit.turns:
            visit.turns[-1].state = "stopped"
        if visit.stream:
            visit.stream.close()

    def forget(self, visit: Visit) -> View:
        self.stop(visit)
        visit.turns.clear()
        return gr.HTML(visible=True), gr.Chatbot(value=[], visible=False), inspector(None), _box(busy=False)

    def rate(self, request: gr.Request, visit: Visit, event: gr.EventData) -> list[Any]:
        """Store a thumb or its reason; the same button again takes it back."""
        client = self._client(request)
        pressed: Json = event._data
        turn = visit.turns[int(pressed["turn"])]
        who, value = pressed.get("expert", ANSWER), pressed["value"]
        taken_back = turn.ratings.get(who) == value or (value == "bad" and turn.ratings.get(who, "good") != "good")
        try:
            if taken_back:
                client.unrate(turn.completion_id, expert=who or None, user=visit.user)
                del turn.ratings[who]
            else:
                label = value if value not in ("good", "bad") else None
                client.feedback(turn.completion_id, RATED[value], expert=who or None, label=label, user=visit.user)
                turn.ratings[who] = value
            turn.note = TAKEN_BACK if taken_back else SAVED
        except MultimoeError as error:
            turn.note = f"Not stored: {error}"
        return _messages(visit)

    def inspect(self, visit: Visit, event: gr.EventData) -> str:
        visit.shown = int(event._data["turn"])
        return inspector(visit.turns[visit.shown])

    def _answer(self, client: Client, visit: Visit, turn: Turn, preset: str, policy: Json) -> Iterator[View]:
        history = visit.history()
        visit.turns.append(turn)
        visit.shown = len(visit.turns) - 1
        yield *self._draw(visit), _box(busy=True)
        try:
            messages = history + chat_body(turn.text, turn.files)
            visit.stream = client.stream_chat(messages, preset, x_multimoe=policy, user=visit.user)
            for handful in handfuls(visit.stream, REDRAW_SECONDS):
                for event in handful:
                    turn.take(event)
                yield *self._draw(visit), gr.skip()
            turn.state = "stopped" if turn.state == "stopped" else "done"
        except MultimoeError as error:
            turn.state, turn.problem = "failed", str(error)
        finally:
            if visit.stream:
                visit.stream.close()
                visit.stream = None
        yield *self._draw(visit), _box(busy=False, clear=False)

    def _client(self, request: gr.Request) -> Client:
        return self.sessions.client(request.cookies)

    def _draw(self, visit: Visit) -> View:
        turn = visit.turns[visit.shown] if visit.turns else None
        return gr.HTML(visible=False), gr.Chatbot(value=_messages(visit), visible=True), inspector(turn)


def _gate(client: Client) -> Json | None:
    """None where the visitor's key reaches the experts, but not the gate."""
    try:
        return client.gate()
    except MultimoeError as error:
        if error.code != "scope_missing":
            raise
        return None


def _turn(box: Json) -> Turn | None:
    """What stands in the box as a question; None when it is empty."""
    text, files = str(box.get("text") or "").strip(), tuple(box.get("files") or ())
    return Turn(text, files) if text or files else None


def _box(busy: bool, clear: bool = True) -> gr.MultimodalTextbox:
    changed: Json = {"value": None} if clear else {}
    return gr.MultimodalTextbox(submit_btn=not busy, stop_btn=busy, **changed)


def _policy(top_k: int, explore: bool, without: list[str]) -> Json:
    policy: Json = {"include_outputs": True}
    if top_k:
        policy["top_k"] = int(top_k)
    if not explore:
        policy["explore"] = False
    if without:
        policy["exclude"] = without
    return policy


def _messages(visit: Visit) -> list[Any]:
    """The turns as the chatbot takes them: question, answer, and what stands under it."""
    drawn: list[Any] = []
    for place, turn in enumerate(visit.turns):
        asked: list[Any] = [{"path": file} for file in turn.files]
        drawn.append({"role": "user", "content": [*asked, turn.text] if turn.text else asked})
        if turn.answer:
            drawn.append({"role": "assistant", "content": turn.answer})
        drawn.append(
            {"role": "assistant", "content": gr.HTML(footer(turn, place), apply_default_css=False, render=False)}
        )
    return drawn


def _presets(models: list[Json]) -> list[tuple[str, str]]:
    named = [str(model["id"]) for model in models if str(model["id"]).startswith("multimoe:")]
    rest = [(each.removeprefix("multimoe:").capitalize(), each) for each in named if each != "multimoe:latest"]
    return [("Auto", "multimoe"), *rest]
