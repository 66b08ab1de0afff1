"""The past of an installation, as a command reads it: the catalog's store and gate versions, whether or not it runs.

Where the product is up, its roster counts instead of the catalog's: experts may have been added since it started.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.cli.session import Session
from multimoe.config import Catalog, ExpertSpec, validate
from multimoe.errors import MultimoeError

if TYPE_CHECKING:
    from multimoe.report.history import History


def history(asked: Session, since: datetime | None = None) -> "History":
    """Raises BadConfig, Unavailable without a store, WeightsError without the text encoder's weights."""
    from gateway.change.offline import cards_gate
    from multimoe.checkpoint import Registry
    from multimoe.feedback import FeedbackLog
    from multimoe.report.history import read_history

    catalog = asked.catalog()
    cards = cards_gate(catalog, roster(asked, catalog))
    with FeedbackLog.open(catalog.store_url) as log:
        return read_history(log, Registry(catalog.gates), cards, now=datetime.now(UTC), since=since)


def roster(asked: Session, catalog: Catalog) -> tuple[ExpertSpec, ...]:
    """Who answers in the running product; the catalog's experts where none runs."""
    known = {spec.name: spec for spec in catalog.experts}
    try:
        with asked.client() as client:
            names = [str(one["name"]) for one in client.experts()]
            added = {name: client.expert(name)["spec"] for name in names if name not in known}
    except MultimoeError:
        return catalog.experts
    return tuple(known.get(name) or validate(ExpertSpec, added[name], f"expert {name!r}") for name in names)
