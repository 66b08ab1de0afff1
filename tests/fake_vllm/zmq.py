"""NOT ZeroMQ, which vLLM brings along: Ray imports it for a router that is not used here."""

import sys
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Socket:
    pass


class Context(Generic[T]):
    pass


asyncio: Any = ModuleType("zmq.asyncio")
asyncio.Socket, asyncio.Context = Socket, Context
sys.modules["zmq.asyncio"] = asyncio
