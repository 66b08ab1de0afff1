"""The feedback log itself: record an interaction, rate it, read both back in the order of time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exc,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from multimoe.errors import BadInput, NotFound
from multimoe.feedback import export as exports
from multimoe.feedback.database import Database
from multimoe.feedback.jobs import JobLog
from multimoe.feedback.keys import KeyLog
from multimoe.feedback.records import Interaction, Rated, Rating, Stats, Target
from multimoe.feedback.rows import interaction_row, load, outcome_rows, rating_row, ratings_of
from multimoe.feedback.stats import stats_of
from multimoe.feedback.tables import RATING_KEY, history, interactions, outcomes, ratings

MOST_RATINGS = 64  # of one answer by one user, under different names or of different experts
CHUNK = 200  # interactions read in one transaction: about 1 MB with their embeddings


def _utc_now() -> datetime:
    return datetime.now(UTC)


class FeedbackLog(JobLog, KeyLog):
    """Synchronous and safe to use from many threads. Every method raises Unavailable when the store is not there.

    What a method has returned from is on disk.
    """

    @classmethod
    def open(
        cls, url: str, *, now: Callable[[], datetime] = _utc_now, timeout_s: float = 5.0, at_once: bool = True
    ) -> "FeedbackLog":
        """Opens or creates the store at an SQLAlchemy URL and brings its schema up to date.

        A locked store is waited for `timeout_s`. Raises BadConfig for a URL that is none of ours or a newer schema.
        """
        return cls(Database(url, timeout_s, at_once), now)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> "FeedbackLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def record(self, *answered: Interaction) -> None:
        """All of them in one commit, or none. The first record under an id stays; a second is ignored, so that a retry
        does no harm.
        """
        try:
            with self.database.writing() as connection:
                for interaction in answered:
                    if not _exists(connection, interaction.id):
                        connection.execute(insert(interactions).values(interaction_row(interaction)))
                        if interaction.outcomes:
                            connection.execute(insert(outcomes), outcome_rows(interaction))
        except exc.IntegrityError:
            with self.database.reading() as connection:
                if not all(_exists(connection, one.id) for one in answered):  # else somebody was faster with the same
                    raise

    def interaction(self, id: str) -> Interaction:
        """Raises NotFound (`completion_not_found`)."""
        with self.database.reading() as connection:
            found = load(connection, select(interactions).where(interactions.c.id == id))
        if not found:
            raise _not_found(id)
        return found[0]

    def interactions(
        self,
        limit: int = 50,
        before: str | None = None,
        expert: str | None = None,
        since: datetime | None = None,
    ) -> tuple[Interaction, ...]:
        """Newest first, older than the interaction `before`, with `expert` among those chosen. Raises NotFound."""
        query = select(interactions).order_by(interactions.c.created.desc(), interactions.c.id.desc()).limit(limit)
        if expert is not None:
            query = query.where(
                exists().where((outcomes.c.interaction_id == interactions.c.id) & (outcomes.c.expert == expert))
            )
        if since is not None:
            query = query.where(interactions.c.created >= since)
        with self.database.reading() as connection:
            if before is not None:
                query = query.where(_before(_place(connection, before)))
            return tuple(load(connection, query))

    def rate(self, rating: Rating) -> bool:
        """True when the rating is new, False when it replaced one with the same key. On disk on return.

        Raises NotFound (`completion_not_found`), and BadInput for an expert that took no part in that answer or a user
        who has rated it `MOST_RATINGS` times.
        """
        row = rating_row(rating)
        with self.database.writing() as connection:
            if not _lock(connection, rating.completion_id):
                raise _not_found(rating.completion_id)
            _check_parties(connection, rating)
            mine = _same_key(row)
            created = connection.execute(select(ratings.c.completion_id).where(mine)).first() is None
            if created:
                _check_few(connection, row)
            connection.execute(insert(ratings).values(row) if created else update(ratings).where(mine).values(row))
            connection.execute(insert(history).values(**row, at=self.now(), action="rated"))
        return created

    def withdraw(
        self,
        completion_id: str,
        target: Target = "answer",
        expert: str | None = None,
        name: str = "user_rating",
        user: str | None = None,
    ) -> bool:
        """Takes a rating back; the history keeps it. False when there was none."""
        mine = _same_key(dict(zip(RATING_KEY, (completion_id, target, expert or "", name, user or ""), strict=True)))
        with self.database.writing() as connection:
            found = _lock(connection, completion_id)
            row = connection.execute(select(ratings).where(mine)).mappings().first() if found else None
            if row is None:
                return False
            connection.execute(delete(ratings).where(mine))
            connection.execute(insert(history).values(**row, at=self.now(), action="withdrawn"))
        return True

    def ratings(self, completion_id: str) -> tuple[Rating, ...]:
        """Oldest first."""
        with self.database.reading() as connection:
            return ratings_of(connection, [completion_id]).get(completion_id, ())

    def rated(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Rated]:
        """Interactions with at least one rating, by time of the interaction, from `since` until before `until`."""
        query = (
            select(interactions)
            .where(exists().where(ratings.c.completion_id == interactions.c.id))
            .order_by(interactions.c.created, interactions.c.id)
            .limit(CHUNK)
        )
        if since is not None:
            query = query.where(interactions.c.created >= since)
        if until is not None:
            query = query.where(interactions.c.created < until)
        chunk = self._rated_chunk(query)
        while chunk:
            yield from chunk
            last = chunk[-1].interaction
            chunk = self._rated_chunk(query.where(_after((last.created, last.id))))

    def rating_count(self, since: datetime | None = None) -> int:
        """How many ratings there are, or were given or changed since."""
        query = select(func.count()).select_from(ratings)
        if since is not None:
            query = query.where(ratings.c.created >= since)
        with self.database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def last_rated(self) -> datetime | None:
        """When a rating was last given or changed; None before the first."""
        with self.database.reading() as connection:
            found: datetime | None = connection.execute(select(func.max(ratings.c.created))).scalar_one()
        return found

    def stats(self) -> Stats:
        with self.database.reading() as connection:
            return stats_of(connection)

    def export(self, format: exports.Format) -> Iterator[str]:
        """Every rating as lines without line ends. Raises BadInput for an unknown format."""
        return exports.lines(format, self.rated(), self.interaction)

    def _rated_chunk(self, query: Select[Any]) -> list[Rated]:
        with self.database.reading() as connection:
            found = load(connection, query)
            theirs = ratings_of(connection, [interaction.id for interaction in found])
        return [Rated(interaction=i, ratings=theirs[i.id]) for i in found if i.id in theirs]


Place = tuple[datetime, str]  # of an interaction in time; the id decides between two of one moment


def _before(place: Place) -> ColumnElement[bool]:
    return tuple_(interactions.c.created, interactions.c.id) < place


def _after(place: Place) -> ColumnElement[bool]:
    return tuple_(interactions.c.created, interactions.c.id) > place


def _place(connection: Connection, id: str) -> Place:
    row = connection.execute(select(interactions.c.created, interactions.c.id).where(interactions.c.id == id)).first()
    if row is None:
        raise _not_found(id)
    return row.created, row.id


def _not_found(id: str) -> NotFound:
    return NotFound(
        f"no completion {id!r} in the store; use the id of an answer of this installation",
        "completion_id",
        "completion_not_found",
    )


def _check_parties(connection: Connection, rating: Rating) -> None:
    took_part = (outcomes.c.interaction_id == rating.completion_id) & (outcomes.c.status != "skipped")
    parties = list(connection.execute(select(outcomes.c.expert).where(took_part).distinct()).scalars())
    if rating.target == "expert" and rating.expert not in parties:
        raise _took_no_part(str(rating.expert), parties, "expert")
    if rating.target == "comparison":
        for name in (str(rating.preferred), *rating.rejected):
            if name not in parties and not _exists(connection, name):
                raise _took_no_part(name, parties, "preferred" if name == rating.preferred else "rejected")


def _check_few(connection: Connection, row: Mapping[str, Any]) -> None:
    theirs = (ratings.c.completion_id == row["completion_id"]) & (ratings.c.user_id == row["user_id"])
    if connection.execute(select(func.count()).where(theirs)).scalar_one() >= MOST_RATINGS:
        raise BadInput(f"this user has rated this answer {MOST_RATINGS} times; change one of those", "name")


def _took_no_part(name: str, parties: Sequence[str], param: Literal["expert", "preferred", "rejected"]) -> BadInput:
    those = ", ".join(sorted(parties)) or "nobody"
    return BadInput(f"{name!r} took no part in this answer; those who did: {those}", param)


def _exists(connection: Connection, id: str) -> bool:
    return connection.execute(select(interactions.c.id).where(interactions.c.id == id)).first() is not None


def _same_key(row: Mapping[str, Any]) -> ColumnElement[bool]:
    return and_(*(ratings.c[name] == row[name] for name in RATING_KEY))


def _lock(connection: Connection, id: str) -> bool:
    """Whether there is such an interaction. Raters of one answer take turns, on PostgreSQL too."""
    query = select(interactions.c.id).where(interactions.c.id == id).with_for_update(key_share=True)
    return connection.execute(query).first() is not None
