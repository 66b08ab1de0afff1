"""The store's password takes its own way to the gateways: what Serve is told does not hold it."""

import json
from typing import Any

import pytest
from api_world import CATALOG

from multimoe.config import Catalog, parse

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, on import
DSN = "postgresql+psycopg://moe:hunter22@db.example/moe?sslmode=require"


def catalog_on(url: str) -> Catalog:
    return parse({**CATALOG, "store": {"url": url}})


def test_what_serve_is_told_holds_no_password_and_a_gateway_gets_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.deployment import store_address
    from gateway.deployment.render import serve_config

    kept: dict[bytes, bytes] = {}
    monkeypatch.setattr(store_address.internal_kv, "_internal_kv_put", kept.__setitem__)
    monkeypatch.setattr(store_address.internal_kv, "_internal_kv_get", kept.get)
    catalog = catalog_on(DSN)
    store_address.deposit(catalog)
    config: dict[str, Any] = serve_config(catalog, 0, catalog.experts)
    assert "hunter22" not in json.dumps(config)
    (gateway,) = [app for app in config["applications"] if app["name"] == "gateway"]
    told = Catalog.model_validate(gateway["args"]["catalog"])
    assert told.store.url == DSN.replace("hunter22", "***")
    assert store_address.whole(told).store_url == DSN


def test_an_address_without_a_password_is_told_as_it_is() -> None:
    from gateway.deployment.store_address import whole, without_password

    catalog = catalog_on("sqlite:///{home}/multimoe.db")
    assert whole(without_password(catalog)) is catalog
