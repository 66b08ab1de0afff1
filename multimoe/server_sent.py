"""Server-sent events read from a body that comes in pieces (WHATWG HTML, "Interpreting an event stream").

Only the data of events is of interest here. It knows no HTTP: who reads a body passes its pieces on, and closes it.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator

LINE_END = re.compile(rb"\r\n|\n|\r")


async def event_data(pieces: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The data of each event. An event that the body breaks off in is none. Raises ValueError where it is not UTF-8."""
    data: list[str] = []
    async for line in _lines(pieces):
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ").decode())
        elif data:
            yield "\n".join(data)
            data = []


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines, without their ends. A CR that ends a piece may be half of a CRLF, and waits for the next."""
    begun: list[bytes] = []
    held = b""
    async for piece in pieces:
        piece = held + piece
        held = b"\r" if piece.endswith(b"\r") else b""
        first, *others = LINE_END.split(piece.removesuffix(held) if held else piece)
        begun.append(first)
        for line in others:
            yield b"".join(begun)
            begun = [line]
    if held:
        yield b"".join(begun)
