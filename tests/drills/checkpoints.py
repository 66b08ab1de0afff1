"""Gate versions made by somebody else: none replaces the gate that serves, and nothing in them is run.

Each is tried in a process of its own whose audit hook sees every import, every unpickled class, every command and every
file opened; the control unpickles one of the files, which the hook must see.
"""

import asyncio
import hashlib
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.numpy
import torch
from api_world import World
from worlds import embed_texts, expert, gate_spec, request

from drills.row import Row, Scale
from gateway.deployment.gate_service import GateService
from multimoe.checkpoint import HEADER_LIMIT, MANIFEST, TENSORS, Manifest, Registry
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.errors import CheckpointError, MultimoeError, NotFound
from multimoe.journal import Step
from multimoe.messages import ChatRequest, Message, TextPart
from multimoe.quality import HEAD, Axes, Learned

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
WIDTH = 384  # of a text's features in these worlds
ROOT = Path(__file__).parents[2]
EXPERTS = ("a", "b")
LARGE = 101 * 10**6
MIB = 2**20

Told = dict[str, Any]
Change = Callable[[bytes], bytes]


def learned(seed: int = 0) -> Learned:
    draw = np.random.default_rng(seed).normal
    q = HEAD + 3
    return replace(
        Learned().rows(EXPERTS),
        axes={"text": Axes(draw(size=(WIDTH, 3)).astype(np.float32), np.zeros(3, np.float32))},
        common=draw(size=q),
        own=draw(size=(2, q)),
        covariance=np.stack([np.eye(q, dtype=np.float32)] * 2),
        variance=np.ones(q),
        tilt=np.zeros((2, q)),
        revisions={"text": "t1"},
    )


# --- contents ---


class Command:
    """What a pickle from a stranger is made of."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def raw(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def one(shape: Any, offsets: Any = (0, 8), dtype: Any = "F32") -> bytes:
    """A file of one tensor, described so."""
    return raw({"own": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}, b"\0" * 8)


def saved(**tensors: np.ndarray | None) -> Change:
    def change(data: bytes) -> bytes:
        whole = {**safetensors.numpy.load(data), **tensors}
        return safetensors.numpy.save({name: t for name, t in whole.items() if t is not None})

    return change


def filled(name: str, value: float) -> Change:
    def change(data: bytes) -> bytes:
        tensor = safetensors.numpy.load(data)[name]
        tensor.flat[-1] = value
        return saved(**{name: tensor})(data)

    return change


def as_torch(mark: Path, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"own": Command(mark)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def as_numpy(mark: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, own=np.array([Command(mark)], dtype=object))
    return file.getvalue()


def contents(mark: Path) -> dict[str, Change]:
    """Files under the name of the tensors. Every one claims to be what its manifest was written for."""
    tables = {"common", "own", "covariance", "variance", "balance", "tilt", "slope", "basis.text", "shift.text"}
    found: dict[str, Change] = {
        "a pickle that runs a command": lambda _: pickle.dumps(Command(mark)),
        "a torch zip": lambda _: as_torch(mark, True),
        "a torch pickle": lambda _: as_torch(mark, False),
        "numpy objects": lambda _: as_numpy(mark),
        "a pickle behind a header": lambda data: data + pickle.dumps(Command(mark)),
        "a header of 2**63": lambda data: (2**63).to_bytes(8, "little") + data[8:],
        "a header of 2**64 - 1": lambda data: b"\xff" * 8 + data[8:],
        "100,000 tensors": lambda _: raw(
            {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
        ),
        "as many tensors as the header may name": lambda _: raw(
            {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(HEADER_LIMIT // 64)}
        ),
        "a header of brackets": lambda _: raw(b"[" * 10**6),
        "a header of objects": lambda _: raw(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
        "a header that is no UTF-8": lambda _: raw(b'{"\xff":1}'),
        "a header of another kind": lambda _: raw([1, 2]),
        "an empty header": lambda _: raw(b""),
        "names twice": lambda _: raw(
            b'{"own":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"own":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            b"\0" * 8,
        ),
        "a shape that overflows": lambda _: one([2**63, 2]),
        "a shape that overflows to nothing": lambda _: one([2**32, 2**32]),
        "a shape that overflows to what is there": lambda _: one([2**62 + 1, 2]),
        "a shape below nothing": lambda _: one([-2]),
        "a shape of words": lambda _: one(["2"]),
        "a shape of 100,000 axes": lambda _: one([1] * 99_999 + [2]),
        "offsets beyond the end": lambda _: one([2], (0, 2**62)),
        "offsets backwards": lambda _: one([2], (8, 0)),
        "offsets of another size": lambda _: one([2], (0, 4)),
        "offsets below nothing": lambda _: one([2], (-8, 0)),
        "an unknown type": lambda _: one([2], dtype="F33"),
        "a type numpy has not": lambda _: one([4], dtype="BF16"),
        "eighths of a byte": lambda _: one([8], dtype="F8_E4M3"),
        "truncated": lambda data: data[: len(data) // 2],
        "short of a byte": lambda data: data[:-1],
        "with a tail": lambda data: data + b"\0",
        "features of another width": saved(**{"basis.text": np.ones((7, 3), np.float32)}),
        "no features": saved(**{"basis.text": np.ones((0, 3), np.float32)}),
        "a rank more": saved(**{"basis.text": np.ones((WIDTH, 4), np.float32)}),
        "another type": saved(own=np.zeros((2, HEAD + 3), np.float64)),
        "objects' worth of bytes": saved(rated=np.zeros(2, np.float32)),
        "fewer ratings than none": saved(rated=np.array([-1, 3])),
        "a tensor nobody knows": saved(extra=np.zeros(2, np.float32)),
    }
    found |= {f"without {name}": saved(**{name: None}) for name in sorted(tables | {"rated"})}
    for value in (np.nan, np.inf, -np.inf, 1e38, -1e38):
        found |= {f"{value:g} in {name}": filled(name, value) for name in sorted(tables)}
    return found


MANIFESTS: dict[str, Callable[[Told], Told | bytes]] = {
    "another hash": lambda told: {**told, "sha256": "0" * 64},
    "no hash": lambda told: {key: value for key, value in told.items() if key != "sha256"},
    "an older format": lambda told: {**told, "format": 0},
    "a newer format": lambda told: {**told, "format": 2},
    "another version's": lambda told: {**told, "version": 1},
    "an expert more": lambda told: {**told, "experts": [*told["experts"], "c"]},
    "a million experts": lambda told: {**told, "experts": ["x"] * 10**6},
    "another encoder": lambda told: {**told, "encoder_revisions": {"text": "t2"}},
    "keys nobody knows": lambda told: {**told, "__class__": "os.system", "backend": "os:system"},
    "no JSON": lambda told: b"!!python/object/apply:os.system ['true']",
    "a pickle": lambda told: pickle.dumps(told),
    "deep": lambda told: b'{"settings":' * 100_000,
    "5 MB": lambda told: b'{"reason": "' + b"x" * 5 * MIB + b'"}',
    "numbers without end": lambda told: b'{"ratings": ' + b"9" * 100_000 + b"}",
}


# --- where the files lie ---


def linked(folder: Path, outside: Path) -> dict[str, Callable[[], None]]:
    """What can lie where a file should; `outside` holds a version that would be good, if it were gone to."""
    tensors = folder / TENSORS

    def instead(make: Callable[[], Any]) -> Callable[[], None]:
        def place() -> None:
            tensors.unlink()
            make()

        return place

    def folder_link() -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.symlink_to(outside)

    def listening() -> None:
        with socket.socket(socket.AF_UNIX) as made, within(folder):
            made.bind(TENSORS)

    return {
        "a link out": instead(lambda: tensors.symlink_to(outside / TENSORS)),
        "a link by ..": instead(lambda: tensors.symlink_to(Path("..", "..", outside.name, TENSORS))),
        "a link to /dev/zero": instead(lambda: tensors.symlink_to("/dev/zero")),
        "a link to itself": instead(lambda: tensors.symlink_to(TENSORS)),
        "a pipe": instead(lambda: os.mkfifo(tensors)),
        "a socket": instead(listening),
        "a folder": instead(tensors.mkdir),
        "nothing": instead(lambda: None),
        "a folder that is a link": folder_link,
    }


class within:  # reads as a word where it is used
    """Paths of sockets are short, those of tests are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.before = Path.cwd()
        os.chdir(self.folder)

    def __exit__(self, *error: object) -> None:
        os.chdir(self.before)


NAMES = (  # those of dots alone a client never sends as they are
    *("..%2f..%2fetc", "%2e%2e%2fx", "/etc/passwd", "%2fetc%2fpasswd", "....//x", "0x1", "1e0", "1.5", "-1", "1_0x"),
    *("%00", "1%00", "gate.pt", "0001.pt", "latest", "journal.jsonl", ".draft-0", "~", "$HOME", "*", "1;ls", "`ls`"),
    *("9" * 19, "9" * 300, "9" * 5000, "x" * 300, "①", "²", "൬x"),
)
ALIASES = ("champion", "canary", "shadow")

# --- the process that is watched ---

ALARMS = (
    "pickle.",
    "os.system",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "ctypes.",
    "marshal.",
)
WATCHED = (*ALARMS, "exec", "compile", "import", "socket.connect", "socket.getaddrinfo", "open")


class Watch:
    """An audit hook; what happens on the watching thread while it is armed counts. Hooks stay for good."""

    def __init__(self, allowed: Path) -> None:
        self.armed = False
        self.seen: Counter[str] = Counter()
        self._allowed = str(allowed)
        self._thread = threading.get_ident()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed or threading.get_ident() != self._thread or not event.startswith(WATCHED):
            return
        if event == "open":
            path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
            if not path.startswith("/") or path.startswith(self._allowed):
                return
            self.seen["opened outside"] += 1
        else:
            self.seen[event] += 1

    def __enter__(self) -> "Watch":
        self.armed = True
        return self

    def __exit__(self, *error: object) -> None:
        self.armed = False


class Words:
    """Embeds by the words alone."""

    revisions = {"text": "t1"}
    embed_texts = staticmethod(embed_texts)

    def embed(self, requests: list[ChatRequest]) -> list[Embedding]:
        return [request(text=one.text) for one in requests]


ASKED = ChatRequest("r", (Message("user", (TextPart("hi"),)),))


class Target:
    """A registry with a champion, and the gate that serves it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.registry = Registry(home / "gates")
        self.good = self.registry.write(learned(), Manifest(created=NOW, reason="better"))
        self.registry.take(Step(at=NOW, action="promoted", version=self.good.version))
        with patch("gateway.deployment.gate_service.Encoders.load", lambda *_: Words()):
            self.service = GateService(gate_spec(), self.registry.root, Path, seed=lambda: 1)
        self.specs = [expert(name) for name in EXPERTS]
        self.service.configure(self.good.version, self.specs)
        self.registry.write(learned(1), Manifest(created=NOW, reason="better"))
        self.data = (self.folder / TENSORS).read_bytes()
        self.told: Told = json.loads((self.folder / MANIFEST).read_text())

    @property
    def folder(self) -> Path:
        return self.registry.root / "0002"

    def place(self, data: bytes, told: Told | bytes) -> None:
        (self.folder / TENSORS).write_bytes(data)
        (self.folder / MANIFEST).write_bytes(told if isinstance(told, bytes) else json.dumps(told).encode())

    def vouched(self, data: bytes) -> None:
        self.place(data, {**self.told, "sha256": hashlib.sha256(data).hexdigest()})

    def refused(self, watch: Watch) -> bool:
        """By who would serve it; and the old one still serves. Neither listing nor looking breaks on it."""
        with watch:
            try:
                self.service.configure(2, self.specs)
                taken = True
            except (CheckpointError, NotFound):
                taken = False
            decided = self.service.decide(ASKED, Policy()).decision.gate_version
            with suppress(MultimoeError):
                self.registry.manifest(2)
            self.registry.places()
            sound = self.registry.sound_champion()
        if taken:
            self.service.configure(self.good.version, self.specs)
        return not taken and decided == sound == self.good.version


def _watched(home: Path, flips: int, junk: int) -> Told:
    """All of it, in this very process; its figures."""
    mark, outside = home / "ran", home / "outside"
    target = Target(home)
    watch = Watch(target.registry.root)
    target.vouched(b"")
    target.refused(watch)  # the first failure imports what failures need
    target.place(target.data, target.told)
    target.service.configure(2, target.specs)  # as it is, it is good: what follows is refused for what was changed
    taken_when_good = target.service.state().version == 2
    target.service.configure(target.good.version, target.specs)
    watch.seen.clear()

    through: dict[str, list[str]] = {"contents": [], "manifests": [], "files": [], "flips": [], "junk": []}
    tried: Counter[str] = Counter()
    before = peak()
    for name, change in contents(mark).items():
        target.vouched(change(target.data))
        tried["contents"] += 1
        if not target.refused(watch):
            through["contents"].append(name)
    for name, retell in MANIFESTS.items():
        target.place(target.data, retell(target.told))
        tried["manifests"] += 1
        if not target.refused(watch):
            through["manifests"].append(name)

    chance = np.random.default_rng(21)
    for at in chance.integers(len(target.data) * 8, size=flips).tolist():
        flipped = bytearray(target.data)
        flipped[at // 8] ^= 1 << (at % 8)
        target.place(bytes(flipped), target.told)
        tried["flips"] += 1
        if not target.refused(watch):
            through["flips"].append(str(at))
    # headers with bytes changed, under their own hash: what still reads as a good version may be one
    length = int.from_bytes(target.data[:8], "little") + 8
    for _ in range(junk):
        changed = bytearray(target.data)
        for at in chance.integers(length, size=chance.integers(1, 6)).tolist():
            changed[at] = int(chance.integers(256))
        target.vouched(bytes(changed))
        tried["junk"] += 1
        with watch:
            try:
                target.registry.load(2)
            except CheckpointError:
                pass
            except Exception as error:
                through["junk"].append(f"{type(error).__name__}: {error}")

    outside.mkdir()
    (outside / TENSORS).write_bytes(target.data)
    (outside / MANIFEST).write_text(json.dumps(target.told))
    for name in linked(target.folder, outside):
        target.place(target.data, target.told)
        linked(target.folder, outside)[name]()
        tried["files"] += 1
        if not target.refused(watch):
            through["files"].append(name)
        if target.folder.is_symlink():
            target.folder.unlink()
            target.folder.mkdir()
        for file in target.folder.iterdir():
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    grown = peak() - before
    large = raw(b"{" + b" " * LARGE + b"}")
    target.vouched(large)
    tried["contents"] += 1
    if not target.refused(watch):
        through["contents"].append("a header of 101 MB")
    quiet = dict(watch.seen)

    watch.seen.clear()
    with watch:
        pickle.loads(pickle.dumps(Command(mark)))  # noqa: S301  # the control
        (outside / TENSORS).read_bytes()
    return {
        "tried": tried,
        "through": through,
        "seen": quiet,
        "grown": grown,
        "grown_large": peak() - before,
        "good": taken_when_good,
        "control": dict(watch.seen),
        "marked": mark.exists(),
    }


def peak() -> int:
    """The most memory that this process has had, in bytes; getrusage would count what its parent had, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def watched(flips: int, junk: int, optimised: bool = False) -> Told:
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            *(["-O"] if optimised else []),
            "-m",
            "drills.checkpoints",
            home,
            str(flips),
            str(junk),
        ]
        done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    told: Told = json.loads(done.stdout.splitlines()[-1])
    return told


# --- the drills ---


def attacks(scale: Scale) -> Iterator[Row]:
    many = (10, 50) if scale == "quick" else (300, 3_000)
    told = watched(*many)
    tried, through, seen, control = told["tried"], told["through"], told["seen"], told["control"]
    for kind, what in (
        ("contents", "tensors of another kind, shape or value, under their own hash"),
        ("manifests", "manifests that do not fit, or are none"),
        ("files", "links, pipes, devices where a file should be"),
        ("flips", "a bit flipped"),
    ):
        test = "T21" if kind == "files" else "T22"
        figure = f"{len(through[kind])} served, {tried[kind]} refused while the old gate answered"
        yield Row(test, what, f"{tried[kind]:,} versions", figure, "0 served", not through[kind] and told["good"])
    unexpected = len(through["junk"])
    yield Row(
        "T22",
        "headers with bytes changed, under their own hash",
        f"{tried['junk']:,} versions",
        f"{unexpected} errors of another kind than a refusal",
        "0",
        not unexpected,
    )
    yield Row(
        "T22",
        "what runs meanwhile: classes unpickled, commands, imports, files outside",
        f"{sum(tried.values()):,} versions",
        ", ".join(f"{event} {count}" for event, count in seen.items()) or "0 of all",
        "0 of all",
        not seen,
    )
    yield Row(
        "T22",
        "memory that refusing all but the one of 101 MB takes",
        f"{sum(tried.values()) - 1:,} versions",
        f"{told['grown'] / MIB:.0f} MiB at the peak",
        "at most 64 MiB",
        told["grown"] <= 64 * MIB,
    )
    yield Row(
        "T22",
        "memory that the one of 101 MB takes, made and refused",
        "1 version",
        f"{told['grown_large'] / MIB:.0f} MiB at the peak",
        "over 64 MiB",
        told["grown_large"] > 64 * MIB,
        control=True,
    )
    yield Row(
        "T22",
        "one of the files, unpickled; a file outside, read",
        "1 pickle, 1 file",
        ", ".join(f"{event} {count}" for event, count in control.items()),
        "seen by the hook",
        {"pickle.find_class", "os.system", "opened outside"} <= control.keys() and told["marked"],
        control=True,
    )


def names(scale: Scale) -> Iterator[Row]:
    yield asyncio.run(_names())


async def _names() -> Row:
    """By every route that takes a version's number."""
    statuses: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home) / "home")
        version = world.write_version()
        (Path(home) / "x").mkdir()
        async with world.client() as client:
            for name in NAMES:
                asked = {"messages": [{"role": "user", "content": "hi"}]}
                header = {"x-multimoe-gate": name.encode()[:4000]}
                responses = [await client.get(f"/v1/gate/versions/{name}")]
                responses += [await client.put(f"/v1/gate/aliases/{to}", json={"version": name}) for to in ALIASES]
                responses += [await client.post("/v1/route", json=asked, headers=header)]
                statuses.update(response.status_code for response in responses)
            serving = world.gate.version
            sound = (await client.get(f"/v1/gate/versions/{version}")).status_code
        world.log.close()
    return Row(
        "T21",
        "names that are no version",
        f"{len(NAMES)} names, 5 routes",
        ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())) + f"; gate {serving} serves",
        "all 4xx; gate 0 serves",
        serving == 0 and sound == 200 and all(400 <= status < 500 for status in statuses),
    )


# --- T23 ---

SECURITY = (
    *("test_checkpoint_attacks.py", "test_checkpoint.py", "test_fetch.py", "test_keys.py", "test_wire.py"),
    *("test_journal.py", "test_rating_abuse.py"),
)


def optimised(scale: Scale) -> Iterator[Row]:
    """The security tests without `assert`: nothing that holds rests on one."""
    files = SECURITY[:2] if scale == "quick" else SECURITY
    with tempfile.TemporaryDirectory() as folder:
        false = Path(folder) / "test_false.py"
        false.write_text("def test_false():\n    assert 1 == 2\n")
        failed, passed = run_optimised([*(f"tests/{name}" for name in files), str(false)])
    ours = [name for name in failed if "test_false" not in name]
    yield Row(
        "T23",
        "security tests under python -O",
        f"{len(ours) + passed:,} tests of {len(files)} files",
        ", ".join(ours)[:200] or "0 failed",
        "0 failed",
        not ours and passed > 0,
    )
    wrong = len(failed) - len(ours)
    yield Row("T23", "a wrong test, under python -O", "1 test", f"{wrong} failed", "1 failed", wrong == 1, control=True)


def run_optimised(paths: list[str]) -> tuple[list[str], int]:
    """Which failed, and how many passed."""
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "--color=no", "-W", "ignore:assertions not in test modules"]
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", *options, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    if passed is None:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M), int(passed[1])


DRILLS = (attacks, names, optimised)

if __name__ == "__main__":
    print(json.dumps(_watched(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
