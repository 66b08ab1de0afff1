"""The gate's tab: which version answers, what came of each retraining, and the buttons to retrain and to go back."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from gateway.client import Client, Json
from gateway.page.chat import plain
from gateway.page.door import Sessions
from gateway.page.html import done, problem
from gateway.page.versions import gate_cards, job, trial, versions
from multimoe.errors import MultimoeError

POLL_SECONDS = 0.7
ENDED = ("done", "failed")

View = tuple[Any, ...]


class Gate:
    """Builds its part of the page where it is created. `bridge` is where the buttons of the table report to.

    `changes` are the events after which another version may answer.
    """

    def __init__(self, sessions: Sessions, bridge: gr.HTML) -> None:
        self.sessions = sessions
        self.cards = plain("")
        with gr.Row(elem_classes="mm-under"):
            self.retrain = gr.Button("Retrain from ratings", variant="primary", size="md", min_width=220, scale=0)
            self.back = gr.Button("Roll back", size="md", min_width=120, scale=0)
            self.refresh = gr.Button("Refresh", size="md", min_width=100, scale=0)
        self.job = plain("")
        self.versions = plain("")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        shown = [self.cards, self.job, self.versions]
        self.changes = (
            self.retrain.click(self.train, None, shown, **quiet),
            self.back.click(self.roll_back, None, shown, **quiet),
            self.refresh.click(self.show, None, shown, **quiet),
            bridge.promote(self.promote, None, shown, **quiet),
        )

    def show(self, request: gr.Request) -> View:
        """Everything anew."""
        return _shown(self.sessions.client(request.cookies))

    def train(self, request: gr.Request) -> Iterator[View]:
        """Start a retraining and follow it to its end."""
        client = self.sessions.client(request.cookies)
        try:
            running: Json = {"status": "running"}
            job_id = client.train()
            while running.get("status") not in ENDED:
                yield gr.skip(), job(running), gr.skip()
                time.sleep(POLL_SECONDS)
                running = client.job(job_id)
        except MultimoeError as error:
            yield gr.skip(), problem(str(error)), gr.skip()
            return
        yield _shown(client, job(running))

    def promote(self, event: gr.EventData, request: gr.Request) -> View:
        version = int(event._data["version"])
        return self._change(request, lambda client: client.promote(version))

    def roll_back(self, request: gr.Request) -> View:
        return self._change(request, Client.rollback)

    def _change(self, request: gr.Request, ask: Callable[[Client], object]) -> View:
        client = self.sessions.client(request.cookies)
        try:
            ask(client)
            return _shown(client, done(f"Gate {client.gate().get('version')} answers now."))
        except MultimoeError as error:
            return gr.skip(), problem(str(error)), gr.skip()


def _shown(client: Client, said: str = "") -> View:
    """Cards, the line between buttons and table, and the table."""
    try:
        gate, rows, stats = client.gate(), client.versions(), client.stats()
    except MultimoeError as error:
        return gr.skip(), problem(str(error)), gr.skip()
    return gate_cards(gate, stats), said, trial(gate) + versions(rows, gate.get("version"))
