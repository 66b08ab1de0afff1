"""API keys as rows. A key reads `mm-ID-SECRET`; the store has its id and a digest of its secret, so that a copy of the
store opens nothing.

The secret is 256 random bits: a plain digest is enough where nothing can be guessed.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from multimoe.errors import BadInput, NotFound
from multimoe.feedback.database import Database
from multimoe.feedback.records import NAME_CHARS, Key, Quota, Scope
from multimoe.feedback.rows import key_of, key_row
from multimoe.feedback.tables import keys

PREFIX = "mm"
ID_BYTES, SECRET_BYTES = 6, 32


class KeyLog:
    """The keys half of the log."""

    database: Database
    now: Callable[[], datetime]

    def create_key(
        self,
        name: str,
        scopes: Sequence[Scope],
        tenant: str | None = None,
        expires: datetime | None = None,
        quota: Quota | None = None,
    ) -> tuple[Key, str]:
        """The key and, this once, what its holder has to send. Without a tenant it is one of its own.

        Raises BadInput.
        """
        if not 0 < len(name) <= NAME_CHARS or not scopes:
            raise BadInput(f"a key needs a name of 1 to {NAME_CHARS} characters and at least one scope", "name")
        now = self.now()
        if expires is not None and expires <= now:
            raise BadInput(f"the key would expire before it is made ({expires:%Y-%m-%d %H:%M} UTC)", "expires")
        id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        key = Key(
            id=id,
            name=name,
            tenant=tenant or id,
            scopes=frozenset(scopes),
            digest=_digest(secret),
            created=now,
            expires=expires,
            quota=quota or Quota(),
        )
        with self.database.writing() as connection:
            connection.execute(insert(keys).values(key_row(key)))
        return key, f"{PREFIX}-{id}-{secret}"

    def all_keys(self) -> tuple[Key, ...]:
        """Oldest first, revoked and expired ones too."""
        with self.database.reading() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created, keys.c.id)).mappings()
            return tuple(key_of(row) for row in rows)

    def revoke_key(self, id: str) -> None:
        """Revoking again does no harm. Raises NotFound (`key_not_found`)."""
        with self.database.writing() as connection:
            if _found(connection, id).revoked is None:
                connection.execute(update(keys).where(keys.c.id == id).values(revoked=self.now()))

    def limit_key(self, id: str, change: Callable[[Quota], Quota]) -> Key:
        """The key with its quota changed. Raises NotFound (`key_not_found`)."""
        with self.database.writing() as connection:
            key = _found(connection, id)
            changed = key.model_copy(update={"quota": change(key.quota)})
            connection.execute(update(keys).where(keys.c.id == id).values(quota=key_row(changed)["quota"]))
        return changed


def _found(connection: Connection, id: str) -> Key:
    row = connection.execute(select(keys).where(keys.c.id == id)).mappings().first()
    if row is None:
        raise NotFound(f"no key {id!r}; `multimoe keys list` shows them", "id", "key_not_found")
    return key_of(row)


def matching(sent: str, known: Mapping[str, Key]) -> Key | None:
    """The key whose secret was `sent`, among `known` by digest; whether it still holds is for the caller to say.

    It is looked up by what nobody can choose, so the time it takes says neither how much of a secret is right nor
    whether there is such an id.
    """
    prefix, _, rest = sent.partition("-")
    id, _, secret = rest.partition("-")
    digest = _digest(secret)
    key = known.get(digest)
    if key is None or not hmac.compare_digest(digest, key.digest):
        return None
    return key if key.id == id and prefix == PREFIX else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
