"""What tests share: the catalog that ships, and its weights, fetched once where they are missing."""

import os
import secrets
from pathlib import Path

import pytest

from gateway.deployment.perimeter import ON_LOOPBACK
from multimoe import config
from multimoe.config import Catalog
from multimoe.expert import FindWeights
from multimoe.weights import Weights

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
