"""An expert that leaks: the soak's negative control, found by the same detector as everything else."""

from collections.abc import AsyncIterator

from experts.echo import Echo
from multimoe.expert import Delta
from multimoe.messages import ChatRequest

LEAK = 100_000  # bytes a request
kept: list[bytes] = []


class Leaky(Echo):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        kept.append(bytes(bytearray(b"\x01") * LEAK))
        async for delta in super().answer(request):
            yield delta
