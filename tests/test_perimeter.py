"""Who can reach the Ray cluster beneath, and whom it believes; tests/drills/perimeter.py tries it as a stranger."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from drills.perimeter import refusals

from gateway import doctor
from gateway.deployment.launch import ENVIRONMENT
from gateway.deployment.perimeter import (
    ALIVE,
    asks_for_token,
    cluster_address,
    fresh_token,
    refuse_disabled_token,
    refuse_open_cluster,
)
from multimoe.errors import BadConfig, Unavailable

RIGHT = "right"
LISTENING = """
import tempfile, shutil, psutil, ray
temp = tempfile.mkdtemp(prefix="mm-")
ray.init(address="local", include_dashboard=False, _temp_dir=temp, num_cpus=1, log_to_driver=False)
first = psutil.Process()
for process in (first, *first.children(recursive=True)):
    for one in process.net_connections("inet"):
        if one.status == "LISTEN":
            print("listens", one.laddr.ip, one.laddr.port)
ray.shutdown()
shutil.rmtree(temp, ignore_errors=True)
"""


class Gcs(grpc.GenericRpcHandler):
    """Answers the one call that is asked, as Ray's does: with a token or without."""

    def __init__(self, believes_all: bool) -> None:
        self.believes_all = believes_all

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            sent = dict(context.invocation_metadata()).get("authorization")
            if not self.believes_all and sent != f"Bearer {RIGHT}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "token is missing or incorrect")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if details.method == ALIVE else None


@contextmanager
def gcs(believes_all: bool) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Gcs(believes_all)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.fixture
def no_ray_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stands for an address that others can reach."""
    monkeypatch.setattr("gateway.access.guard.is_loopback", lambda host: False)


def test_a_start_writes_a_token_of_its_own_that_only_its_owner_reads(
    tmp_path: Path, no_ray_settings: pytest.MonkeyPatch
) -> None:
    tokens = set()
    for _ in range(2):
        with fresh_token(tmp_path):
            (file,) = tmp_path.iterdir()
            assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert len(file.read_text()) == 64
            tokens.add(file.read_text())
        assert list(tmp_path.iterdir()) == []
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert len(tokens) == 2


def test_a_token_that_the_environment_names_is_kept(tmp_path: Path, no_ray_settings: pytest.MonkeyPatch) -> None:
    no_ray_settings.setenv("RAY_AUTH_TOKEN", RIGHT)
    with fresh_token(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert os.environ["RAY_AUTH_TOKEN"] == RIGHT


@pytest.mark.parametrize("mode", ["disabled", "", "k8s"])
def test_no_cluster_is_started_that_believes_everybody(mode: str, no_ray_settings: pytest.MonkeyPatch) -> None:
    refuse_disabled_token()
    no_ray_settings.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(BadConfig, match="unset it"):
        refuse_disabled_token()
    assert doctor.own_ray().state == "missing"


def test_a_cluster_is_known_by_whether_it_refuses_a_call_without_a_token() -> None:
    with gcs(believes_all=False) as port:
        assert asks_for_token(f"127.0.0.1:{port}")
    with gcs(believes_all=True) as port:
        assert not asks_for_token(f"127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="unavailable"):
        asks_for_token(f"127.0.0.1:{port}")


@pytest.mark.usefixtures("reachable")
def test_no_cluster_is_joined_that_others_reach_without_a_token(no_ray_settings: pytest.MonkeyPatch) -> None:
    with gcs(believes_all=False) as port:
        refuse_open_cluster(f"127.0.0.1:{port}")
        assert doctor.joined_ray(f"127.0.0.1:{port}").state == "ok"
    with gcs(believes_all=True) as port:
        with pytest.raises(BadConfig, match="takes no token"):
            refuse_open_cluster(f"127.0.0.1:{port}")
        found = doctor.joined_ray(f"127.0.0.1:{port}")
        assert (found.state, "RAY_AUTH_MODE=token" in found.cure) == ("missing", True)
        no_ray_settings.setenv("RAY_AUTH_MODE", "disabled")  # somebody means it
        refuse_open_cluster(f"127.0.0.1:{port}")
        assert doctor.joined_ray(f"127.0.0.1:{port}").state == "note"


@pytest.mark.usefixtures("reachable")
def test_a_cluster_that_takes_certificates_is_not_asked_for_tokens(no_ray_settings: pytest.MonkeyPatch) -> None:
    with gcs(believes_all=True) as port:
        no_ray_settings.setenv("RAY_USE_TLS", "1")
        refuse_open_cluster(f"127.0.0.1:{port}")
        assert doctor.joined_ray(f"127.0.0.1:{port}").state == "ok"


def test_a_cluster_that_only_this_machine_reaches_may_be_joined(no_ray_settings: pytest.MonkeyPatch) -> None:
    with gcs(believes_all=True) as port:
        refuse_open_cluster(f"127.0.0.1:{port}")


def test_the_doctor_says_where_no_cluster_answers() -> None:
    assert doctor.joined_ray("127.0.0.1:1024").state == "missing"


def test_an_address_is_its_own_gcs() -> None:
    assert cluster_address("192.0.2.7:6379") == "192.0.2.7:6379"


def test_a_start_that_would_leave_the_door_open_is_refused() -> None:
    rows = list(refusals("quick"))
    assert rows
    assert all(row.met for row in rows), rows


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("own", "everywhere"), [(ENVIRONMENT, False), (ENVIRONMENT | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}, True)]
)
def test_ray_listens_on_loopback_alone(own: dict[str, str], everywhere: bool) -> None:
    """As it does not without the setting."""
    done = subprocess.run([sys.executable, "-c", LISTENING], env=os.environ | own, capture_output=True, text=True)
    places = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")]
    assert len(places) > 5, done.stderr[-2000:]
    beyond = [place for place in places if place.removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
    assert bool(beyond) == everywhere, places
