"""Fetch one file over HTTP so that a cut connection costs only what had not arrived yet.

What has arrived lies in the target itself; whoever calls again goes on from there, in this process or another. Only a
file with the pinned hash survives. It knows nothing of packages or weights.
"""

import hashlib
import os
import shutil
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from multimoe.errors import WeightsError

PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further attempt
TIMEOUT = 30.0  # seconds without a byte before a connection counts as cut

Report = Callable[[int, int | None], None]  # bytes there, bytes in all where the server says


class Stopped(Exception):
    """The caller no longer wants the file. What has arrived is kept."""


def download(
    url: str,
    target: Path,
    sha256: str,
    report: Report,
    stop: threading.Event | None = None,
    pauses: tuple[float, ...] = PAUSES,
) -> None:
    """Bring `target` to the whole file at `url` (http, https or file), resuming what is there.

    Raises WeightsError when it cannot be had, or is not the pinned one (then nothing is left); Stopped once `stop` is
    set.
    """
    stop = stop or threading.Event()
    target.parent.mkdir(parents=True, exist_ok=True)
    if urlsplit(url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(url).path), target)
    else:
        with httpx.Client(verify=_trust(), follow_redirects=True, timeout=TIMEOUT) as client:
            _fetch(client, url, target, report, stop, pauses)
    check(target, sha256)


def check(path: Path, sha256: str) -> None:
    """Raises WeightsError and deletes the file unless it is the pinned one."""
    found = digest(path)
    if found != sha256:
        path.unlink()
        raise WeightsError(
            f"{path.name} has sha256 {found}, but {sha256} is pinned. It was deleted; try again, and if it stays so, "
            "the file at the source is not the one this catalog was made with"
        )


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(
    client: httpx.Client, url: str, target: Path, report: Report, stop: threading.Event, pauses: tuple[float, ...]
) -> None:
    for pause in (*pauses, None):
        try:
            return _fetch_rest(client, url, target, report, stop)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if pause is None or refused:
                raise WeightsError(
                    f"cannot fetch {_filename(url)}: {error or type(error).__name__}. Check the network and try again; "
                    "what has arrived is kept"
                ) from error
            stop.wait(pause)


def _fetch_rest(client: httpx.Client, url: str, target: Path, report: Report, stop: threading.Event) -> None:
    there = target.stat().st_size if target.exists() else 0
    # a compressed transfer would make byte positions meaningless
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    with client.stream("GET", url, headers=headers) as response:
        if there and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the hash says whether what is there is right
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {there}-")
        there = there if resumed else 0
        length = response.headers.get("Content-Length")
        total = there + int(length) if length else None
        with target.open("ab" if resumed else "wb") as file:
            report(there, total)
            for chunk in response.iter_raw():  # as it arrives: a larger chunk would be lost with its connection
                if stop.is_set():
                    raise Stopped
                file.write(chunk)
                there += len(chunk)
                report(there, total)


def _trust() -> ssl.SSLContext:
    """The system's certificate authorities, which SSL_CERT_FILE replaces, and those other clients here trust."""
    context = ssl.create_default_context()
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        bundle = Path(os.environ.get(variable) or os.devnull)
        if bundle.is_file():
            context.load_verify_locations(bundle)
    return context


def _filename(url: str) -> str:
    return urlsplit(url).path.rsplit("/", 1)[-1]
