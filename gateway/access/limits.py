"""The size of a body, held to its limit before and while it is read. It knows only ASGI and one number.

A body that says it is too long is refused before a byte of it is read; one that does not say, when it has become so.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import problem
from multimoe.errors import BadInput, MultimoeError, TooLarge, UnsupportedMedia

SMALL = 64 * 1024  # bytes of a body that is read to its end rather than the line be cut


def closing(headers: Headers) -> dict[str, str]:
    """For an answer that does not wait for the body: the line is closed where much of it may be to come."""
    length = headers.get("content-length", "0" if "transfer-encoding" not in headers else str(SMALL))
    return {} if length.isdigit() and int(length[:32]) < SMALL else {"connection": "close"}


class BodyLimit:
    """ASGI middleware. `limit` in bytes, of the body as sent (a compressed body is never unpacked here)."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if refused := self._refuses(Headers(scope=scope)):
            response = problem(refused, scope.get("request_id", "")).response()
            response.headers["connection"] = "close"  # the rest of the body is not read
            await response(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), send)

    def _refuses(self, headers: Headers) -> MultimoeError | None:
        if headers.get("content-encoding", "identity") not in ("", "identity"):
            return UnsupportedMedia("compressed bodies are not taken; send it without content-encoding")
        length = headers.get("content-length")
        if length is None:
            return None
        if not (length.isascii() and length.isdigit()):
            return BadInput(f"content-length is {length[:32]!r}, not a number of bytes", None, "invalid_body")
        return self._too_large() if int(length[:32]) > self.limit else None

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b"")) if message["type"] == "http.request" else 0
            if read > self.limit:
                raise self._too_large()
            return message

        return counting

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self.limit:,} bytes; send smaller or fewer pictures and recordings")
