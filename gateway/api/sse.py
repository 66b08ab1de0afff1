"""Server-sent events: frames, and a response that sends them until they end or the client hangs up.

It knows ASGI and bytes. While nothing comes it sends comments, so that proxies keep the line and a lost client shows.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15.0
KEEPALIVE = b": keepalive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def frame(data: Mapping[str, Any]) -> bytes:
    """One event. JSON escapes line ends, so no text can break out of its frame."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(Response):
    """Sends `frames` as they come. When the client hangs up the generator is cancelled where it stands, and closed."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        headers: Mapping[str, str] | None = None,
        keepalive: float = KEEPALIVE_SECONDS,
    ) -> None:
        self.frames = frames
        self.keepalive = keepalive
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)
        # the generator runs in one task from first to last, so that timeouts and contexts inside it hold
        making = asyncio.create_task(self._make(queue))
        sending = asyncio.create_task(self._send(queue, send))
        gone = asyncio.create_task(hung_up(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except (ClientDisconnect, OSError):
            pass  # a line that breaks while we write is a client that hung up
        finally:
            for task in (making, sending, gone):
                task.cancel()
            await asyncio.gather(making, sending, gone, return_exceptions=True)
            await self.frames.aclose()

    async def _make(self, queue: asyncio.Queue[bytes | None]) -> None:
        try:
            async for piece in self.frames:
                await queue.put(piece)
        except Exception:
            logger.exception("a stream broke off")
        await queue.put(None)

    async def _send(self, queue: asyncio.Queue[bytes | None], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while True:
            try:
                async with asyncio.timeout(self.keepalive):
                    piece = await queue.get()
            except TimeoutError:
                piece = KEEPALIVE
            if piece is None:
                break
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def hung_up(receive: Receive) -> None:
    """Returns when the client is gone; never, where the server cannot tell."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:
        logger.warning("the server no longer says whether the client is there", exc_info=True)
        await asyncio.Event().wait()
