"""Sums over the whole log: how much there is, and how each expert has done."""

from sqlalchemy import Connection, case, func, select

from multimoe.feedback.records import ExpertStats, Stats
from multimoe.feedback.tables import interactions, outcomes, ratings


def stats_of(connection: Connection) -> Stats:
    count = connection.execute(select(func.count()).select_from(interactions)).scalar_one()
    liked = func.avg(case((ratings.c.score > 0.5, 1.0), (ratings.c.score.is_not(None), 0.0)))
    total, positive = connection.execute(select(func.count(), liked).select_from(ratings)).one()
    share = None if positive is None else float(positive)
    return Stats(interactions=count, ratings=total, positive=share, experts=_expert_stats(connection))


def _expert_stats(connection: Connection) -> dict[str, ExpertStats]:
    status = outcomes.c.status
    did = select(
        outcomes.c.expert,
        func.count().label("asked"),
        func.count(case((status == "ok", 1))).label("answered"),
        func.count(case((status.in_(("error", "timeout")), 1))).label("failed"),
        func.avg(outcomes.c.weight).label("mean_weight"),
        func.avg(case((status == "ok", outcomes.c.latency_ms))).label("mean_latency_ms"),
    )
    did = did.where(status != "skipped").group_by(outcomes.c.expert).order_by(outcomes.c.expert)
    judged = select(ratings.c.expert, func.count().label("ratings"), func.avg(ratings.c.score).label("mean_score"))
    judged = judged.where(ratings.c.target == "expert").group_by(ratings.c.expert)
    scores = {row["expert"]: dict(row) for row in connection.execute(judged).mappings()}
    rows = [dict(row) | scores.get(row["expert"], {}) for row in connection.execute(did).mappings()]
    return {row.pop("expert"): ExpertStats(**row) for row in rows}
