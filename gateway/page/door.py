"""The page's door: where the API asks for keys, a browser shows one and gets a session; without it nothing is served.

The key stays on this side, under a random name that the browser keeps as a cookie; so nothing a page shows can read it.
Behind the door, too, only what the page is made of is served: of Gradio's other addresses nobody here has need.
"""

import asyncio
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from string import Template
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access.edge import foreign
from gateway.access.guard import addressed_here
from gateway.client import Client
from gateway.page import look
from gateway.page.html import e
from multimoe.errors import BadInput, MultimoeError

COOKIE = "multimoe-session"
SESSION_SECONDS = 12 * 3600
MOST_SESSIONS = 10_000  # the one not used for longest goes first
FRESH_SECONDS = 5.0  # for which a look at whether the API asks for keys is good
FORM_BYTES = 4096
SERVED = re.compile(  # under the page's own path; everything else is not there
    r"/?|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/assets/[\w./-]+|/static/[\w./-]+"
    r"|/gradio_api/(theme\.css|app_id|startup-events|info|queue/(join|data)|upload(_progress)?|cancel|reset/?"
    r"|heartbeat/\w+|file=/[^/].*)"
)

FORM = Template(Path(__file__).with_name("door.html").read_text(encoding="utf-8"))


class Sessions:
    """Who has come in, and with which key."""

    def __init__(self, api_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.api_url = api_url
        self.clock = clock
        self._nobody = Client(api_url)
        self._clients: OrderedDict[str, tuple[float, Client]] = OrderedDict()  # until when, and as whom
        self._closed = (float("-inf"), False)

    def client(self, cookies: Mapping[str, str]) -> Client:
        """The API as this browser may use it."""
        found = self._clients.get(cookies.get(COOKIE, ""))
        if found is None or found[0] < self.clock():
            return self._nobody
        self._clients.move_to_end(cookies[COOKIE])
        return found[1]

    def knows(self, cookies: Mapping[str, str]) -> bool:
        return self.client(cookies) is not self._nobody

    def begin(self, key: str) -> str | None:
        """A new session's name; None for a key the API does not take. Raises MultimoeError where it does not answer."""
        try:
            client = Client(self.api_url, key)
        except BadInput:
            return None
        if _refuses(client):
            client.close()
            return None
        name = secrets.token_urlsafe(32)
        self._clients[name] = (self.clock() + SESSION_SECONDS, client)
        if len(self._clients) > MOST_SESSIONS:
            self._clients.popitem(last=False)
        return name

    def needed(self) -> bool:
        """Whether the API asks for keys; one that does not answer is taken to do as it last did."""
        seen, closed = self._closed
        if self.clock() - seen > FRESH_SECONDS:
            with suppress(MultimoeError):
                closed = _refuses(self._nobody)
            self._closed = (self.clock(), closed)
        return closed


class Door:
    """ASGI middleware in front of the page under `path`."""

    def __init__(self, app: ASGIApp, sessions: Sessions, path: str) -> None:
        self.app = app
        self.sessions = sessions
        self.path = path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive) if scope["type"] == "http" else None
        door = f"{scope.get('root_path', '')}{self.path}/door"
        if request and (refused := foreign(request.method, request.headers)):
            await refused.response()(scope, receive, send)
        elif request and scope["path"] == door:
            await (await self._entered(request, door))(scope, receive, send)
        elif await self._open(scope):
            if self._serves(scope):
                await self.app(scope, receive, send)
            else:
                await JSONResponse({"detail": "there is nothing here"}, 404)(scope, receive, send)
        elif request and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            await RedirectResponse(door, 303)(scope, receive, send)
        else:
            refusal = {"detail": "a key is needed; open the page anew and enter one"}
            await JSONResponse(refusal, 401)(scope, receive, send)

    def _serves(self, scope: Scope) -> bool:
        """Other paths than the page's own are not for this door to open or shut."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        inside = path == self.path or path.startswith(f"{self.path}/")
        return not inside or SERVED.fullmatch(path.removeprefix(self.path)) is not None

    async def _open(self, scope: Scope) -> bool:
        cookies = Request({**scope, "type": "http"}).cookies
        if self.sessions.knows(cookies):
            return True
        return addressed_here(Headers(scope=scope)) and not await asyncio.to_thread(self.sessions.needed)

    async def _entered(self, request: Request, door: str) -> Response:
        if request.method != "POST":
            return _form(door)
        if int(request.headers.get("content-length") or FORM_BYTES + 1) > FORM_BYTES:
            return _form(door, "That is no key.", 413)
        (key, *_) = parse_qs((await request.body()).decode("utf-8", "replace")).get("key", [""])
        try:
            name = await asyncio.to_thread(self.sessions.begin, key.strip())
        except MultimoeError as error:
            return _form(door, str(error), 503)
        if name is None:
            return _form(door, "This key is unknown, expired or revoked.", 401)
        inside = RedirectResponse(door.removesuffix("door"), 303)
        inside.set_cookie(COOKIE, name, max_age=SESSION_SECONDS, httponly=True, samesite="strict",
                          secure=request.url.scheme == "https")  # fmt: skip
        return inside


def _refuses(client: Client) -> bool:
    """Whether the API lets this client in. Raises MultimoeError where it does not say."""
    try:
        client.limits()
    except MultimoeError as error:
        if error.code != "invalid_api_key":
            raise
        return True
    return False


def _form(action: str, problem: str = "", status: int = 200) -> Response:
    shown = f"<p>{e(problem)}</p>" if problem else ""
    return HTMLResponse(FORM.substitute(action=e(action), mark=look.MARK, problem=shown), status)
