"""Who can reach the Ray cluster beneath: whoever speaks to one of its ports, and is believed, runs code here.

A cluster that this product starts listens on loopback alone and believes nobody without the token of that start. One
that it joins is its owner's affair; only, where it believes everybody and others can reach it, that must be meant.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from multimoe.errors import BadConfig, Unavailable

# Ray's own switch for laptops, in its words for Windows and macOS; off, a node's address is 127.0.0.1 on Linux too, and
# its processes listen there instead of everywhere
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TLS = "RAY_USE_TLS"
OWN_TOKEN = "ray-token-"  # noqa: S105  # how the file's name begins, in the product's home
PROBE_SECONDS = 5.0
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # changes nothing, and takes a token where any call does


def refuse_disabled_token() -> None:
    """Raises BadConfig where the environment says that the cluster to be started shall believe everybody."""
    if (mode := os.environ.get(MODE, "token")) != "token":
        raise BadConfig(
            f"{MODE} is {mode!r}, and without a token any program or web page here could have Ray run code: unset it",
            MODE,
        )


@contextmanager
def fresh_token(home: Path) -> Iterator[None]:
    """A token for this start alone, in a file that only its owner can read; one that the environment names is kept.

    Left to itself Ray writes one for good into ~/.ray, readable by everybody.
    """
    if TOKEN in os.environ or TOKEN_FILE in os.environ:
        yield
        return
    descriptor, path = tempfile.mkstemp(prefix=OWN_TOKEN, dir=home)  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    os.environ[TOKEN_FILE] = path
    _forget_token()
    try:
        yield
    finally:
        del os.environ[TOKEN_FILE]
        Path(path).unlink(missing_ok=True)


def refuse_open_cluster(address: str) -> None:
    """Raises BadConfig where others can reach the cluster at `address` (of its GCS) and need no token.

    Not where the environment says RAY_AUTH_MODE=disabled: then somebody means it, as on a network of its own; and with
    Ray's TLS nobody gets as far as a token without a certificate.
    """
    from gateway.access.guard import is_loopback

    host = address.rpartition(":")[0].strip("[]")
    if os.environ.get(MODE) == "disabled" or by_certificate() or is_loopback(host) or asks_for_token(address):
        return
    raise BadConfig(
        f"the Ray cluster at {address} takes no token, so whoever reaches it runs code on it: start its nodes with "
        f"{MODE}=token, or set {MODE}=disabled here if nobody else can reach them",
        MODE,
    )


def by_certificate() -> bool:
    """Whether Ray speaks TLS, by the environment; both sides then show one."""
    return os.environ.get(TLS, "0").lower() in ("1", "true")


def asks_for_token(address: str) -> bool:
    """Whether the GCS at `address` refuses a call without a token. Raises Unavailable where it does not answer."""
    import grpc  # type: ignore[import-untyped]  # ships no types

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise Unavailable(f"no Ray cluster answers at {address} ({error.code().name.lower()})") from error
    return False


def cluster_address(address: str) -> str:
    """The GCS that `address`, such as "auto", stands for. Raises Unavailable where there is none."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:
        raise Unavailable(f"no Ray cluster at {address!r}: {error}") from error
    if not found:
        raise Unavailable(f"no Ray cluster found for {address!r}")
    return str(found)


def listen_with_the_node() -> None:
    """In a replica: take calls of other deployments on loopback alone, where that is all the node listens on.

    Serve opens that port on every address, whatever the node's is; it asks for the token, too.
    """
    import ray
    from ray.serve._private import replica

    serve: Any = replica
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray ships it without types
    if ip_address(host).is_loopback and not isinstance(serve.add_port_to_grpc_server, partial):
        serve.add_port_to_grpc_server = partial(_listen, serve.add_port_to_grpc_server, host)


def _listen(add_port: Any, host: str, server: Any, address: str) -> Any:
    return add_port(server, address.replace("[::]", f"[{host}]" if ":" in host else host))


def _forget_token() -> None:
    """Ray keeps the first token it read for as long as the process lives."""
    from ray import _raylet

    own: Any = _raylet
    own.AuthenticationTokenLoader.instance().reset_cache()
