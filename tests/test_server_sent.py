"""Server-sent events, however the body that holds them is cut into pieces."""

from collections.abc import AsyncIterator

import pytest

from multimoe.server_sent import event_data

BODY = (
    "\ufeff: a comment\r\n\r\ndata: one\n\ndata:two\r\rid: 7\n"
    "data: three\r\ndata:  four\r\n\r\nevent: x\n\ndata\n\ndata: 5é\n\n"
)


async def read(body: bytes, size: int) -> list[str]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    return [data async for data in event_data(pieces())]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_the_data_of_every_event_however_it_is_cut(size: int) -> None:
    assert await read(BODY.encode(), size) == ["one", "two", "three\n four", "", "5é"]


async def test_an_event_that_is_broken_off_is_none() -> None:
    assert await read(b"data: whole\n\ndata: half\n", 5) == ["whole"]
    assert await read(b"data: half", 5) == []


async def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        await read(b"data: \xff\xfe\n\n", 100)
