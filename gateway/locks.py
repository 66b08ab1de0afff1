"""One at a time across processes: a file that is held open. Where nobody holds it, nothing has to be cleaned up.

Across machines that share a PostgreSQL store its own lock is held as well: how far a file's reaches depends on the file
system between them.
"""

import asyncio
import fcntl
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from weakref import WeakValueDictionary

from multimoe.errors import Unavailable

if TYPE_CHECKING:
    from multimoe.feedback import FeedbackLog

PATIENCE_SECONDS = 120.0  # longer than any of the changes it guards may take
POLL_SECONDS = 0.05
THREADS = ThreadPoolExecutor(8, thread_name_prefix="locks")  # for each file one that waits or lets go

_turns: WeakValueDictionary[tuple[int, Path], asyncio.Lock] = WeakValueDictionary()  # as long as somebody has use of it


def lock(path: Path) -> IO[bytes]:
    """The file, held until it is closed; the end of a process closes it too. Blocks. Raises Unavailable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                file.close()
                raise _held_by_another(path) from error
            time.sleep(POLL_SECONDS)


@asynccontextmanager
async def alone(path: Path, log: "FeedbackLog | None") -> AsyncIterator[None]:
    """Held until it is left, by the file and, where there is a `log`, in its store. Raises Unavailable.

    Of one event loop only one waits for the file, on a thread that nobody else needs: were threads shared with whoever
    holds it, those who wait could take the last, and it would never be let go.
    """
    loop, turn, held = asyncio.get_running_loop(), await _my_turn(path), ExitStack()

    def enter() -> None:
        held.enter_context(lock(path))
        if log is not None:
            held.enter_context(log.database.alone(path.name, PATIENCE_SECONDS))

    def leave(_: Future[None]) -> None:
        held.close()
        with suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(turn.release)

    thread = THREADS.submit(enter)
    entering = asyncio.wrap_future(thread)
    try:
        await asyncio.shield(entering)
        yield
    finally:
        if entering.done():
            try:
                await loop.run_in_executor(THREADS, held.close)
            finally:
                turn.release()
        else:  # whoever waited has hung up; the thread that waits for it cannot
            thread.add_done_callback(leave)


async def _my_turn(path: Path) -> asyncio.Lock:
    """This event loop's own lock before that of the file, held."""
    turn = _turns.setdefault((id(asyncio.get_running_loop()), path), asyncio.Lock())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await turn.acquire()
    except TimeoutError as error:
        raise _held_by_another(path) from error
    return turn


def _held_by_another(path: Path) -> Unavailable:
    return Unavailable(f"another change holds {path.name}; try again in a minute")
