"""Ids of answers that only their asker can use: random, and signed for the tenant who asked."""

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from multimoe.errors import NotFound

FILE = "signing.key"  # in the catalog's home; without it every earlier answer can be rated by an admin alone
RANDOM_BYTES = 21  # 28 characters, 168 bits: where there are no keys, knowing the id is the right to rate
SIGNATURE_BYTES = 12  # 16 characters, 96 bits


class Signer:
    """All gateways of one installation share `secret`."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or secrets.token_bytes(32)

    @classmethod
    def of(cls, home: Path) -> "Signer":
        """With the secret in `home`, which the first to come makes; only its owner may read it."""
        home.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=home, prefix=f"{FILE}.") as made:  # mode 0600
            made.write(secrets.token_bytes(32))
            made.flush()
            os.fsync(made.fileno())
            with suppress(FileExistsError):
                os.link(made.name, home / FILE)  # whole, or not at all, and never over another's
        return cls((home / FILE).read_bytes())

    def new_id(self, tenant: str | None) -> str:
        random = secrets.token_urlsafe(RANDOM_BYTES)
        return f"chatcmpl-{random}{self._signature(random, tenant)}"

    def check(self, id: str, tenant: str | None) -> None:
        """Raises NotFound, as for an id that never was, where `id` is not one made for `tenant`."""
        signed = id.removeprefix("chatcmpl-")
        random, signature = signed[:-16], signed[-16:]
        if not hmac.compare_digest(signature.encode(), self._signature(random, tenant).encode()):
            raise NotFound(f"no completion {id!r} of yours", "completion_id", "completion_not_found")

    def _signature(self, random: str, tenant: str | None) -> str:
        mac = hmac.digest(self._secret, f"{tenant or ''}\n{random}".encode("utf-8", "surrogatepass"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac[:SIGNATURE_BYTES]).decode()
