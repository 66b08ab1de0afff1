"""`multimoe serve`: fetch what is missing, start everything here, and stay until Ctrl-C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from gateway.cli.console import err, out, short
from gateway.cli.session import session
from gateway.cli.weights import fetch
from multimoe.config import Catalog

if TYPE_CHECKING:
    from gateway.deployment.launch import Step


def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: the catalog's.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port. Default: the catalog's.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster to join, such as `auto`. Default: start one here.")
    ] = None,
    pull: Annotated[bool, typer.Option(help="Fetch missing weights before starting.")] = True,
) -> None:
    """Start the product on this machine: API, page and experts on one port. Ctrl-C stops all of it."""
    catalog = listening(session(ctx).catalog(), host, port)
    if pull:
        fetch(catalog.weights, catalog.weight_uris())
    from gateway.deployment.launch import running, wait_for_signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop while starting cleans up as Ctrl-C does
    started = time.monotonic()
    with checklist() as report, running(catalog, report, ray_address) as url:
        report.stop()
        out().print(addresses(url), markup=False)
        err().print(f"ready after {time.monotonic() - started:.0f} s; Ctrl-C stops everything", style="dim")
        wait_for_signal()
        err().print("stopping …", style="dim")


def listening(catalog: Catalog, host: str | None, port: int | None) -> Catalog:
    """The catalog with its address replaced where one is given."""
    given = {"host": host, "port": port}
    server = catalog.server.model_copy(update={k: v for k, v in given.items() if v is not None})
    return catalog.model_copy(update={"server": server})


def addresses(url: str) -> str:
    return f"page  {url}/ui\nAPI   {url}/v1\ndocs  {url}/docs"


class Checklist:
    """The steps of the start: on a terminal a list redrawn in place, else a line for each as it is done."""

    def __init__(self) -> None:
        self._console = err()
        self._live = Live(console=self._console, transient=True) if self._console.is_terminal else None
        self._done: set[str] = set()
        self._started = time.monotonic()
        self._usable = ""

    def __call__(self, steps: "list[Step]") -> None:
        from gateway.deployment.launch import is_usable

        if not self._usable and is_usable(steps):
            self._usable = f"answers since {time.monotonic() - self._started:.0f} s; the other experts are loading"
            if self._live is None:
                self._console.print(self._usable, style="dim")
        if self._live is not None:
            self._live.update(Group(*map(_line, steps), Text(self._usable, "dim")))
            return
        for step in steps:
            if step.done and step.name not in self._done:
                self._done.add(step.name)
                self._console.print(_line(step))

    def start(self) -> None:
        if self._live is not None:
            self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()


@contextmanager
def checklist() -> Iterator[Checklist]:
    shown = Checklist()
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


def _line(step: "Step") -> Text:
    mark = ("✓ ", "green") if step.done else ("… ", "yellow")
    return Text.assemble(mark, step.name, "  ", (short(step.message), "dim"))
