"""A gate version torn at any moment of its writing is never served: kill -9 at every system call, a disk that fails or
fills at every step, a power cut that forgets what was not flushed, and starts with damaged versions.

What is looked at afterwards is what a starting product looks at: the registry's versions and which one is to serve.
"""

import asyncio
import contextlib
import os
import random
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from api_world import World

from drills._strace import traceable, traced
from drills.row import Row, Scale
from multimoe.checkpoint import MANIFEST, TENSORS, Manifest, Registry
from multimoe.errors import CheckpointError, MultimoeError
from multimoe.journal import Step
from multimoe.quality import Learned

MEMORY = Path("/dev/shm")
NOW = datetime(2026, 11, 1, tzinfo=UTC)
CHANGES = "mkdir,openat,write,fsync,rename,unlink,unlinkat,rmdir,ftruncate,lseek,close,flock,newfstatat,getdents64"


def promote(root: Path, version: int | None = None) -> int:
    """Write a version and make it champion: all that a retraining does to the disk."""
    registry = Registry(root)
    learned = Learned().rows([f"e{n}" for n in range(40)])
    learned.balance[:] = np.linspace(0, 1, 40)
    made = registry.write(learned, Manifest(created=NOW, reason="better", proven=True)).version
    registry.take(Step(at=NOW, action="promoted", version=made))
    return made


def state(root: Path, promised: bool = False) -> str:
    """ "old" or "new", or what is wrong. `promised`: the promotion had returned, so that only "new" is right."""
    registry = Registry(root)
    for version in registry.versions():
        try:
            registry.load(version)
        except MultimoeError as error:
            return f"version {version} is there and cannot be loaded: {error}"
    try:
        champion = registry.standing().champion
    except CheckpointError as error:
        return str(error)
    if registry.serving()[0] != champion or champion not in (1, 2):
        return f"{champion} is champion and cannot serve"
    if promised and champion != 2:
        return "a promotion that was told is gone"
    return "new" if champion == 2 else "old"


def leftovers(root: Path) -> int:
    """Drafts that are still there after a next version, hours later, has been written."""
    later = datetime.now(UTC) + timedelta(hours=3)
    Registry(root).write(Learned().rows(["a"]), Manifest(created=later))
    return len(list(root.glob(".draft-*")))


@contextlib.contextmanager
def places() -> Iterator[Callable[[], Path]]:
    """Fresh copies of a folder with one version, which serves."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        first = Path(folder) / "first"
        promote(first)
        numbers = iter(range(10**6))

        def fresh() -> Path:
            path = Path(folder) / f"{next(numbers)}"
            shutil.copytree(first, path)
            return path

        yield fresh


# --- kill -9 and failing calls ---


def killed_at_every_call(scale: Scale) -> Iterator[Row]:
    if not traceable():
        return
    calls, every = ("all", 1) if scale == "long" else (CHANGES, 8)
    points, wrong, drafts, seen = 0, list[str](), 0, set[str]()
    with places() as fresh:
        for when in range(1, 10**6, every):
            root = fresh()
            status = traced(partial(promote, root), "-o", "/dev/null", "-e", f"inject={calls}:signal=KILL:when={when}")
            found = state(root, promised=not status)
            seen.add(found)
            wrong += [found] * (found not in ("old", "new"))
            drafts += leftovers(root)
            shutil.rmtree(root)
            if not status:
                break
            points += 1
    tried = f"{points} system calls of writing and promoting a version"
    figure = f"{len(wrong)} bad states {wrong[:1] or ''}, {drafts} drafts left"
    yield Row("T34", "kill -9 at every call", tried, figure, "0 bad", not wrong and not drafts and len(seen) == 2)


def failing_calls(scale: Scale) -> Iterator[Row]:
    if not traceable():
        return
    tried, wrong = 0, list[str]()
    with places() as fresh:
        for call in ("write", "fsync", "rename", "mkdir") if scale == "long" else ("fsync",):
            for error in ("ENOSPC", "EIO") if scale == "long" else ("EIO",):
                for when in range(1, 20):
                    root = fresh()
                    inject = f"inject={call}:error={error}:when={when}"
                    status = traced(partial(promote, root), "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
                    found = state(root, promised=not status)
                    right = "new" if not status else "old"  # told that it failed, it must not have happened
                    wrong += [f"{call} {when}: {found}"] * (found != right)
                    wrong += ["a draft was left"] * bool(list(root.glob(".draft-*")))
                    shutil.rmtree(root)
                    if not status:
                        break
                    tried += 1
    figure = f"{len(wrong)} bad states {wrong[:2] or ''}"
    yield Row("T34", "ENOSPC and EIO at every call", f"{tried} failing calls", figure, "0 bad", tried > 2 and not wrong)


def full_at_every_decile(scale: Scale) -> Iterator[Row]:
    """The file cannot grow beyond a tenth, two tenths ... of what it should become."""
    wrong, tried = list[str](), 0
    with places() as fresh:
        whole = (fresh() / "0001" / TENSORS).stat().st_size
        for tenth in range(11):
            root = fresh()
            size = whole * tenth // 10 - (tenth == 10)
            status = _with_limited_files(root, size)
            found = state(root)
            tried += 1
            wrong += [f"{tenth}/10: {found}"] * (found != "old" or not status)
            wrong += ["a draft was left"] * bool(list(root.glob(".draft-*")))
    yield Row("T34", "no room after each tenth of the file", f"{tried} sizes", f"{len(wrong)} bad", "0 bad", not wrong)


def _with_limited_files(root: Path, size: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # EFBIG from there on; Python ignores the signal
            with contextlib.suppress(CheckpointError):
                promote(root)
                os._exit(0)
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1]


# --- power cuts ---


class Folder:
    """A folder or a file: what it is now, and what of that the disk has for sure. Pending changes in order."""

    def __init__(self) -> None:
        self.entries: dict[str, Folder] = {}
        self.kept: dict[str, Folder] = {}
        self.pending: list[Any] = []
        self.seen = self.content = b""
        self.is_file = False


class Replay:
    """System calls of a trace, played on a model of a disk that may be cut off after each of them."""

    def __init__(self, root: Path, flushed: bool = True) -> None:
        self.root, self.flushed = str(root), flushed
        self.top = self._loaded(root)

    def _loaded(self, path: Path) -> Folder:
        node = Folder()
        if path.is_file():
            node.is_file, node.seen = True, path.read_bytes()
            node.content = node.seen
        else:
            node.entries = {child.name: self._loaded(child) for child in path.iterdir()}
            node.kept = dict(node.entries)
        return node

    def _node(self, path: str) -> Folder | None:
        node: Folder | None = self.top
        for part in Path(path).relative_to(self.root).parts:
            node = node and node.entries.get(part)
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        parent = self._node(str(Path(path).parent))
        assert parent is not None
        return parent, Path(path).name

    def _name(self, path: str, node: Folder | None, gone: str | None = None) -> None:
        """Two names that change together, as in a renaming, are one change."""
        parent, name = self._parent(path)
        change = {name: node} | ({gone: None} if gone else {})
        parent.pending.append(change)
        _named(parent.entries, change)

    def play(self, call: str, path: str, more: Any) -> None:
        if not path.startswith(self.root) or path == self.root:
            if call == "fsync" and path == self.root and self.flushed:
                _sync(self.top)
            return
        node = self._node(path)
        if call == "mkdir":
            self._name(path, Folder())
        elif call == "create" and node is None:
            made = Folder()
            made.is_file = True
            self._name(path, made)
        elif call == "write" and node:
            node.pending.append(more)
            node.seen += more
        elif call == "ftruncate" and node:
            node.pending.append(int(more))
            node.seen = node.seen[: int(more)]
        elif call == "fsync" and node and self.flushed:
            _sync(node)
        elif call == "rename":
            self._name(more, node, Path(path).name)
        elif call == "remove":
            self._name(path, None)

    def cut(self, chance: random.Random, into: Path) -> None:
        """What the disk may have after a cut now."""
        _written(self.top, chance, into)


def _named(entries: dict[str, Folder], change: dict[str, Folder | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _sync(node: Folder) -> None:
    node.kept, node.content, node.pending = dict(node.entries), node.seen, []


def _written(node: Folder, chance: random.Random, into: Path) -> None:
    if node.is_file:
        left = node.content
        for change in node.pending:
            if chance.random() < 0.5:
                left = left[:change] if isinstance(change, int) else left + change[: chance.randrange(len(change) + 1)]
        into.write_bytes(left)
        return
    into.mkdir()
    entries = dict(node.kept)
    for change in node.pending:
        if chance.random() < 0.5:
            _named(entries, change)
    for name, child in entries.items():
        _written(child, chance, into / name)


CALL = re.compile(r"^\d+ +(\w+)\((.*)\) = (\d+)")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
OPENED = re.compile(r"^\d+<((?:\\x[0-9a-f]{2}|[^>])*)>")


def _text(quoted: str) -> bytes:
    return bytes.fromhex(quoted.replace("\\x", ""))


def calls(trace: str) -> Iterator[tuple[str, str, Any]]:
    """(call, path, what else) of each that changes the disk and went well."""
    for line in trace.splitlines():
        if not (found := CALL.match(line)):
            continue
        call, told, _ = found.groups()
        strings = [_text(string) for string in STRING.findall(told)]
        at = OPENED.match(told)
        path = (_text(at[1]) if at and at[1].startswith("\\x") else at[1].encode() if at else b"").decode()
        if call in ("openat", "mkdir", "unlink", "rmdir", "unlinkat", "rename"):
            name = strings[0].decode()
            if not name.startswith("/"):  # below a folder that is open, as rmtree does it
                within = re.search(r"<((?:\\x[0-9a-f]{2})+)>", told)
                name = f"{_text(within[1]).decode()}/{name}" if within else name
            if call == "openat" and "O_CREAT" not in told:
                continue
            kind = {"openat": "create", "mkdir": "mkdir", "rename": "rename"}.get(call, "remove")
            yield kind, name, strings[1].decode() if call == "rename" else None
        elif call == "write":
            yield "write", path, strings[0]
        elif call in ("fsync", "fdatasync"):
            yield "fsync", path, None
        elif call == "ftruncate":
            yield "ftruncate", path, told.rpartition(", ")[2]


def power_cuts(scale: Scale) -> Iterator[Row]:
    if not traceable():
        return
    each = 25 if scale == "long" else 3
    with places() as fresh:
        root, traced_to = fresh(), fresh().parent / "trace"
        before = Path(shutil.copytree(root, fresh().parent / "before"))
        wanted = "trace=openat,mkdir,write,fsync,fdatasync,rename,unlink,unlinkat,rmdir,ftruncate"
        assert traced(partial(promote, root), "-y", "-xx", "-s", "10000000", "-e", wanted, "-o", str(traced_to)) == 0
        played = list(calls(traced_to.read_text()))
        for what, flushed in (("power cut between any two calls", True), ("the same, did nothing flush", False)):
            cuts, wrong = _cuts(played, root, before, each, flushed)
            figure = f"{len(wrong)} bad states {wrong[:1] or ''}"
            yield Row(
                "T34", what, f"{cuts} cuts after {len(played)} calls", figure, "0 bad" if flushed else "some bad",
                bool(wrong) is not flushed and cuts > 20, control=not flushed,
            )  # fmt: skip


def _cuts(
    played: list[tuple[str, str, Any]], root: Path, before: Path, each: int, flushed: bool
) -> tuple[int, list[str]]:
    chance, wrong, cuts = random.Random(5), list[str](), 0
    disk = Replay(before, flushed)
    for number, (call, path, more) in enumerate(played, 1):
        there = [one.replace(str(root), str(before)) if isinstance(one, str) else one for one in (path, more)]
        disk.play(call, there[0], there[1])
        if not there[0].startswith(str(before)):
            continue
        for _ in range(each):
            after = before.parent / "after"
            disk.cut(chance, after)
            found = state(after, promised=number == len(played))
            wrong += [found] * (found not in ("old", "new"))
            shutil.rmtree(after)
            cuts += 1
    return cuts, wrong


# --- starts ---


DAMAGE: dict[str, tuple[Callable[[Path], Any], int]] = {  # what is done to the folder of versions -> who must serve
    "nothing": (lambda gates: None, 3),
    "newest corrupted": (lambda gates: (gates / "0003" / TENSORS).write_bytes(b"junk" * 99), 2),
    "newest missing": (lambda gates: shutil.rmtree(gates / "0003"), 2),
    "newest is a manifest alone": (lambda gates: (gates / "0003" / TENSORS).unlink(), 2),
    "newest is a file": (lambda gates: (shutil.rmtree(gates / "0003"), (gates / "0003").touch()), 2),
    "newest two empty": (lambda gates: [(gates / v / MANIFEST).write_text("") for v in ("0002", "0003")], 1),
    "all corrupted": (lambda gates: [f.write_bytes(b"") for f in gates.glob(f"*/{TENSORS}")], 0),
    "journal corrupted": (lambda gates: (gates / "journal.jsonl").write_text("junk\n"), 0),
    "all gone": (lambda gates: shutil.rmtree(gates), 0),
}


def starts(scale: Scale) -> Iterator[Row]:
    for what, (damage, right) in DAMAGE.items():
        with tempfile.TemporaryDirectory(dir=MEMORY) as home:
            world = World(Path(home))
            for _ in range(3):
                promote(world.registry.root)
            damage(world.registry.root)
            began = time.monotonic()
            answer, said = asyncio.run(_started(world))
            took = time.monotonic() - began
            world.log.close()
        honest = {True: "ready", False: "degraded"}[right == 3 or what == "all gone"]
        figure = f"gate {answer['gate']} serves, says {answer['status']}, answers {said}, {took:.2f} s"
        met = answer["gate"] == right and answer["status"] == honest and said == 200
        yield Row("T35", f"start, {what}", "3 versions, the third champion", figure, f"gate {right}, {honest}", met)
    yield from _unreadable()


async def _started(world: World) -> tuple[dict[str, Any], int]:
    version, trial = world.registry.serving()
    await world.cluster.serve_gate(version, trial)
    async with world.client() as client:
        ready = (await client.get("/ready")).json()
        asked = {"model": "multimoe", "messages": [{"role": "user", "content": "hi"}]}
        return ready, (await client.post("/v1/chat/completions", json=asked)).status_code


def _unreadable() -> Iterator[Row]:
    if os.geteuid() != 0:
        return
    for what, name, right in (("newest unreadable", "0003", 2), ("all unreadable", "", 0)):
        with tempfile.TemporaryDirectory(dir=MEMORY) as home:
            Path(home).chmod(0o755)
            gates = Path(home) / "gates"
            for _ in range(3):
                promote(gates)
            (gates / name).chmod(0)
            os.seteuid(65534)
            try:
                served = Registry(gates).serving()[0]
            finally:
                os.seteuid(0)
        yield Row("T35", f"start, {what}", "as another user", f"gate {served}", f"gate {right}", served == right)


DRILLS = (killed_at_every_call, failing_calls, full_at_every_decile, power_cuts, starts)
