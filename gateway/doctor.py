"""What this machine must have for the product to run, looked at one thing after another, each with its cure.

It starts nothing and changes nothing but a probe file, removed again. It knows no console: `multimoe doctor` prints.
"""

import importlib.metadata
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gateway.deployment.launch import why_not_listen
from gateway.deployment.perimeter import (
    asks_for_token,
    by_certificate,
    cluster_address,
    refuse_disabled_token,
    refuse_open_cluster,
)
from multimoe.config import Catalog
from multimoe.errors import BadConfig, Unavailable
from multimoe.outputs import Frozen

GIB = 2**30
PYTHON = (3, 11)
DISK_NEEDED = 2 * GIB  # weights, store and gate versions
MEMORY_NEEDED = 6 * GIB  # the embedded default, all experts awake
SHM_NEEDED = GIB // 4  # Ray keeps large messages there, or slowly on disk
CODECS = ("pcm_s16le", "mp3", "flac", "vorbis", "opus")
PICTURES = ("jpg", "zlib", "webp")  # as Pillow names them; zlib reads png

State = Literal["ok", "note", "missing"]


class Finding(Frozen):
    """`missing` stops the product, `note` only narrows it; `cure` says what to do about either."""

    name: str
    state: State
    found: str
    cure: str = ""


def examine(catalog: Catalog, ray_address: str | None = None) -> Iterator[Finding]:
    """Everything that is looked at, as it is found. `ray_address` is that of a cluster to join."""
    yield python()
    yield packages()
    yield codecs()
    yield espeak()
    yield port(catalog.server.host, catalog.server.port)
    yield own_ray() if ray_address is None else joined_ray(ray_address)
    yield disk(catalog.home)
    yield memory()
    yield shared_memory()
    yield weights(catalog)
    yield store(catalog)


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    cure = "" if sys.version_info >= PYTHON else "install Python 3.11 and run `make clean run`"
    return Finding(name="python", state="missing" if cure else "ok", found=found, cure=cure)


def packages() -> Finding:
    """Every dependency the project declares, by its distribution."""
    declared = [line for line in importlib.metadata.requires("multimoe") or [] if "extra ==" not in line]
    names = [re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0] for line in declared]
    absent = [name for name in names if not _installed(name)]
    cure = "pip install -c constraints.txt -e ." if absent else ""
    found = f"not installed: {', '.join(absent)}" if absent else f"{len(names)} installed"
    return Finding(name="packages", state="missing" if absent else "ok", found=found, cure=cure)


def codecs() -> Finding:
    """What recordings and pictures can be decoded."""
    import av
    from PIL import features

    absent = [name for name in CODECS if name not in av.codecs_available]
    absent += [name for name in PICTURES if not features.check(name)]
    cure = "reinstall av and pillow from their wheels" if absent else ""
    found = f"cannot decode: {', '.join(absent)}" if absent else ", ".join(CODECS + PICTURES)
    return Finding(name="media codecs", state="note" if absent else "ok", found=found, cure=cure)


def espeak() -> Finding:
    path = shutil.which("espeak-ng")
    cure = "" if path else "only tests that synthesise speech want it: apt-get install espeak-ng"
    return Finding(name="espeak-ng", state="ok" if path else "note", found=path or "not installed", cure=cure)


def port(host: str, number: int) -> Finding:
    """Whether the server's port can be listened on."""
    if why := why_not_listen(host, number):
        cure = f"stop what listens there, or `multimoe serve --port {number + 1}`; fine if it is multimoe"
        return Finding(name="port", state="note", found=f"{host}:{number}: {why}", cure=cure)
    return Finding(name="port", state="ok", found=f"{host}:{number} is free")


def own_ray() -> Finding:
    """Who the cluster that would be started here takes orders from."""
    try:
        refuse_disabled_token()
    except BadConfig as error:
        return Finding(name="ray", state="missing", found="would take orders from anybody", cure=str(error))
    return Finding(name="ray", state="ok", found="one of its own: on loopback alone, a new token at each start")


def joined_ray(address: str) -> Finding:
    """Who the running cluster at `address` takes orders from."""
    try:
        gcs = cluster_address(address)
        if by_certificate():
            return Finding(name="ray", state="ok", found=f"{gcs} takes orders by certificate")
        believes_all = not asks_for_token(gcs)
        refuse_open_cluster(gcs)
    except Unavailable as error:
        return Finding(name="ray", state="missing", found=str(error), cure="start it, or leave --ray-address out")
    except BadConfig as error:
        return Finding(name="ray", state="missing", found=f"{gcs} takes orders from anybody", cure=str(error))
    if believes_all:
        cure = "let nobody else reach any port of its nodes, or start them with RAY_AUTH_MODE=token"
        return Finding(name="ray", state="note", found=f"{gcs} takes orders from anybody, as it was told", cure=cure)
    return Finding(name="ray", state="ok", found=f"{gcs} takes orders only with its token")


def disk(home: Path) -> Finding:
    free = shutil.disk_usage(_nearest_folder(home)).free
    cure = "" if free >= DISK_NEEDED else f"free {DISK_NEEDED / GIB:.0f} GiB, or set MULTIMOE_HOME to a larger disk"
    return Finding(name="disk", state="missing" if cure else "ok", found=f"{free / GIB:.1f} GiB free", cure=cure)


def memory() -> Finding:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (info := Path("/proc/meminfo")).exists():
        free = int(re.search(r"MemAvailable:\s+(\d+)", info.read_text())[1]) * 1024  # type: ignore[index]  # always listed
    cure = "" if free >= MEMORY_NEEDED else "close something, or leave experts out of the catalog"
    return Finding(name="memory", state="note" if cure else "ok", found=f"{free / GIB:.1f} GiB available", cure=cure)


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  # where Ray puts its objects on Linux
    if not folder.is_dir():
        return Finding(name=str(folder), state="ok", found="not used on this system")
    size = shutil.disk_usage(folder).total
    cure = "" if size >= SHM_NEEDED else "give the container more, such as `docker run --shm-size=1g`"
    return Finding(name=str(folder), state="note" if cure else "ok", found=f"{size / GIB:.2f} GiB", cure=cure)


def weights(catalog: Catalog) -> Finding:
    """Whether every weights URI of the catalog lies here, unharmed."""
    from multimoe.weights import Weights

    held, uris = Weights(catalog.weights), catalog.weight_uris()
    missing = held.missing(uris)
    damaged = [] if missing else held.verify(uris)
    cure = "multimoe weights pull" if missing or damaged else ""
    found = f"{len(uris) - len(missing)} of {len(uris)} present" + (f", {len(damaged)} damaged" if damaged else "")
    return Finding(name="weights", state="missing" if cure else "ok", found=found, cure=cure)


def store(catalog: Catalog) -> Finding:
    """Whether ratings can be kept: the folder takes a file, and its SQLite a safe journal."""
    if not catalog.store_url.startswith("sqlite"):
        return Finding(name="store", state="ok", found=catalog.store_url.split("://")[0] + ", by URL")
    folder = _nearest_folder(catalog.home)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as probe:
            found = f"{folder} writable, SQLite {sqlite3.sqlite_version}, {_journal(Path(probe))} journal"
    except OSError as error:
        cure = "make the folder writable, or set MULTIMOE_HOME"
        return Finding(name="store", state="missing", found=f"{folder}: {error.strerror}", cure=cure)
    return Finding(name="store", state="ok", found=found)


def _journal(folder: Path) -> str:
    connection = sqlite3.connect(folder / "probe.db")
    try:
        connection.execute("CREATE TABLE probe (x)")
        return f"{connection.execute('PRAGMA journal_mode').fetchone()[0]}"
    finally:
        connection.close()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _nearest_folder(path: Path) -> Path:
    """`path`, or the first folder above it that exists: where it would be made."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
