"""What tests share: a gateway in one process, the catalog that ships, and its weights, fetched once where missing."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from gateway.deployment.perimeter import ON_LOOPBACK
from multimoe import config
from multimoe.config import Catalog
from multimoe.expert import FindWeights
from multimoe.weights import Weights

if TYPE_CHECKING:
    from api_world import World

ROOT = Path(__file__).parents[1]

# Ray reads these once in a process. A handle's thread, which outlives its cluster, would otherwise start one of its
# own; and of two clusters, one after the other, both must take the same token.
os.environ |= {"RAY_ENABLE_AUTO_CONNECT": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ |= ON_LOOPBACK


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return config.load(ROOT / "deploy" / "local.yaml")


@pytest.fixture(scope="session")
def weights(catalog: Catalog) -> FindWeights:
    """Finds every weight of the catalog. The first session on a machine downloads them (about 330 MB)."""
    store = Weights(catalog.weights)
    store.pull(catalog.weight_uris())
    return store.find


@pytest.fixture
def world(tmp_path: Path) -> "Iterator[World]":
    from api_world import World  # not for tests that need no gateway

    made = World(tmp_path / "home")
    yield made
    made.log.close()


@pytest.fixture
async def client(world: "World") -> AsyncIterator[httpx.AsyncClient]:
    async with world.client() as made:
        yield made
