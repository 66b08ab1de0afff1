"""What every command shares: which catalog, which server. Both are found only when a command asks for them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import gateway
from multimoe.errors import BadConfig

if TYPE_CHECKING:
    from gateway.client import Client
    from multimoe.config import Catalog

USUAL_PLACES = (
    Path("multimoe.yaml"),
    Path("deploy/local.yaml"),
    Path(gateway.__file__).parents[1] / "deploy/local.yaml",  # a checkout, entered from another folder
)


@dataclass(frozen=True)
class Session:
    """The options that stand before or after any command; `None` means the usual place."""

    given_catalog: Path | None = None
    given_url: str | None = None
    debug: bool = False

    @property
    def catalog_path(self) -> Path:
        """Raises BadConfig where there is no catalog."""
        if self.given_catalog is not None:
            return self.given_catalog
        for path in USUAL_PLACES:
            if path.is_file():
                return path
        raise BadConfig("no catalog found; name one with --catalog FILE or put it into ./multimoe.yaml")

    def catalog(self) -> "Catalog":
        from multimoe.config import load

        return load(self.catalog_path)

    @property
    def url(self) -> str:
        """Where the product answers. A server that listens on every address is asked on this machine's own."""
        if self.given_url is not None:
            return self.given_url.rstrip("/")
        return self.catalog().server.url

    def client(self) -> "Client":
        from gateway.client import Client

        return Client(self.url, os.environ.get("MULTIMOE_API_KEY"))


def session(ctx: typer.Context) -> Session:
    found = ctx.find_object(Session)
    assert found is not None  # noqa: S101  # the root callback always runs first
    return found
