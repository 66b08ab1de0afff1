"""The store's address on its way to the gateways, where it holds a password.

Serve writes what its applications are built with into Ray's logs. So there the password is left out, and the whole
address goes by way of the cluster's own key-value store, which only those with Ray's token read and nobody logs.
"""

from ray.experimental import internal_kv
from sqlalchemy import make_url

from multimoe.config import Catalog

KEY = b"multimoe:store"


def without_password(catalog: Catalog) -> Catalog:
    """The same where the address has none."""
    url = make_url(catalog.store.url)
    return _with(catalog, url.render_as_string(hide_password=True)) if url.password else catalog


def deposit(catalog: Catalog) -> None:
    """Before anything is deployed from `without_password`."""
    if without_password(catalog) is not catalog:
        internal_kv._internal_kv_put(KEY, catalog.store.url.encode())


def whole(catalog: Catalog) -> Catalog:
    """What `without_password` was made from."""
    if not make_url(catalog.store.url).password:
        return catalog
    url: bytes = internal_kv._internal_kv_get(KEY)
    return _with(catalog, url.decode())


def _with(catalog: Catalog, url: str) -> Catalog:
    return catalog.model_copy(update={"store": catalog.store.model_copy(update={"url": url})})
