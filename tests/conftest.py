"""What tests share: the catalog that ships, and its weights, fetched once where they are missing."""

from pathlib import Path

import pytest

from multimoe import config
from multimoe.config import Catalog
from multimoe.expert import FindWeights
from multimoe.weights import Weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return config.load(ROOT / "deploy" / "local.yaml")


@pytest.fixture(scope="session")
def weights(catalog: Catalog) -> FindWeights:
    """Finds every weight of the catalog. The first session on a machine downloads them (about 330 MB)."""
    store = Weights(catalog.weights)
    store.pull(catalog.weight_uris())
    return store.find
