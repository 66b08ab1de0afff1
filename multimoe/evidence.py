"""What the log says of a gate version on trial: what both gates would have done, and what their answers earned.

Everything comes from the log of answers and ratings, so that every gateway sees the same. It takes no step.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from multimoe.config import RolloutSpec
from multimoe.decision import Contest, Decision
from multimoe.feedback import Interaction, Rated
from multimoe.journal import Standing
from multimoe.outputs import Frozen
from multimoe.sequential import Bounds, bounds, passes

Float = NDArray[np.float64]

PER_RATER = 25  # ratings of one person that count in a stage: nobody decides alone, however loud
NEWEST = {"shadow": 1000, "canary": 200}  # decisions that are looked at; a canary is known by its ratings


class Log(Protocol):
    def rated(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Rated]: ...

    def interactions(
        self, limit: int = 50, before: str | None = None, expert: str | None = None, since: datetime | None = None
    ) -> Sequence[Interaction]: ...


class Pair(Frozen):
    """The same figure of the champion and of the challenger."""

    champion: float
    challenger: float


class Seen(Frozen):
    """Both gates on the same requests, whoever answered; means over `requests`, 0 where there are none.

    `agreement` is the share on which both chose the same; `shares` are of first choices, by expert; `cost` in US$ a
    request; `gain` is the quality the challenger predicts of its own choices less that of the champion's. `errors`
    counts requests on which the challenger could not decide, `error` is one of them in words.
    """

    requests: int = 0
    errors: int = 0
    error: str | None = None
    agreement: float = 0.0
    shares: dict[str, Pair] = {}
    cost: Pair = Pair(champion=0.0, challenger=0.0)
    gain: float = 0.0


class Earned(Frozen):
    """What ratings say of one version against another: `gain` in mean rating from `ratings` answers, with its standard

    `error`. `worse` and `no_worse` (by the margin) are proven at 95 %, however often one looks.
    """

    ratings: int
    gain: Bounds
    error: float
    worse: bool
    no_worse: bool = False


class Look(Frozen):
    """How things stand, and what is known: `seen` and `canary` of the version on trial, `watch` of a new champion.

    `enough` ratings end the watch.
    """

    standing: Standing
    seen: Seen | None = None
    canary: Earned | None = None
    watch: Earned | None = None
    enough: int = 0


class Reward(Frozen):
    """A rated answer: its decision, its mean score, and when it was first rated by whom."""

    decision: Decision
    score: float
    at: datetime
    rater: str | None


def look(log: Log, standing: Standing, spec: RolloutSpec, costs: Mapping[str, float], before: Sequence[Reward]) -> Look:
    """What the log knows of those on trial and on probation. `before` is what `earned_before` gives; `costs` in US$."""
    both, canary, watch = None, None, None
    enough = min(spec.watch_ratings, len(before))
    if (trial := standing.trial) is not None:
        both = seen(_contests(log.interactions(limit=NEWEST[trial.stage], since=trial.since), standing), costs)
        if trial.share > 0:
            canary = earned(rewards(log.rated(since=trial.since)), standing, spec.margin)
    if standing.watched is not None:
        now = heard(_served_by(standing.champion, rewards(log.rated(since=standing.watched))))
        watch = watched(now[:enough], before)
    return Look(standing=standing, seen=both, canary=canary, watch=watch, enough=enough)


def earned_before(log: Log, standing: Standing, since: timedelta) -> list[Reward]:
    """What the champion before this one earned until it went, newest first; empty where nothing is watched."""
    if standing.watched is None or len(standing.champions) < 2:
        return []
    rated = log.rated(since=standing.watched - since, until=standing.watched)
    known = [reward for reward in rewards(rated) if reward.at < standing.watched]
    return heard(_served_by(standing.champions[-2], known[::-1]))


def seen(contests: Sequence[Contest], costs: Mapping[str, float]) -> Seen:
    """Costs are by expert, in US$; one that is gone costs nothing."""
    errors = [contest.error for contest in contests if contest.error is not None]
    both = [contest for contest in contests if contest.error is None]
    if not both:
        return Seen(errors=len(errors), error=next(iter(errors), None))
    first = {"champion": Counter[str](), "challenger": Counter[str]()}
    for contest in both:
        first["champion"][contest.champion_choice[0]] += 1
        first["challenger"][contest.challenger_choice[0]] += 1
    names = sorted(first["champion"].keys() | first["challenger"].keys())
    return Seen(
        requests=len(both),
        errors=len(errors),
        error=next(iter(errors), None),
        agreement=_mean(c.champion_choice == c.challenger_choice for c in both),
        shares={n: Pair(**{who: first[who][n] / len(both) for who in first}) for n in names},
        cost=Pair(
            champion=_mean(sum(costs.get(name, 0.0) for name in c.champion_choice) for c in both),
            challenger=_mean(sum(costs.get(name, 0.0) for name in c.challenger_choice) for c in both),
        ),
        gain=_mean(contest.gain for contest in both),
    )


def rewards(rated: Iterable[Rated]) -> list[Reward]:
    """The answers that were rated as a whole, in the order of their first rating."""
    return sorted(filter(None, map(_reward, rated)), key=lambda reward: reward.at)


def heard(rewards: Iterable[Reward]) -> list[Reward]:
    """Of each rater the first `PER_RATER` of them.

    Only of those that can count: ratings of other versions take nobody's place. While a stage goes on they are its
    oldest: what was counted at an earlier look is never taken out again, as the bounds of `sequential` require.
    """
    counts: Counter[str] = Counter()
    kept = []
    for reward in rewards:
        if reward.rater is not None:
            counts[reward.rater] += 1
            if counts[reward.rater] > PER_RATER:
                continue
        kept.append(reward)
    return kept


def earned(rewards: Sequence[Reward], standing: Standing, margin: float) -> Earned:
    """What the challenger earns more than the champion, from all answers to requests that both contested."""
    contests = ((reward, _contest(reward.decision, standing)) for reward in rewards)
    kept = heard(reward for reward, contest in contests if contest is not None and contest.error is None)
    terms, floors, ceilings = advantage(
        np.array([reward.score for reward in kept], dtype=np.float64),
        np.array([_ratio(reward.decision) for reward in kept], dtype=np.float64),
        standing.trial.share if standing.trial else 0.5,
    )
    return compared(terms, floors, ceilings, margin)


def advantage(scores: Float, ratios: Float, share: float) -> tuple[Float, Float, Float]:
    """Terms whose means are the challenger's gain, with what bounds each from below and above, all (n,).

    `scores` are in [0, 1]; `ratios` are (challenger's chance - champion's) / propensity, in [-1 / (1 - share), 1 /
    share]. Every rating counts for both by how likely each was to make that choice, so requests on which they agree add
    no noise (Waudby-Smith et al. 2022, "Anytime-valid off-policy inference for contextual bandits"). Scores count from
    the mean of those before, which takes away what all answers have in common.
    """
    usual = (0.5 + np.concatenate([[0.0], np.cumsum(scores)])[: len(scores)]) / np.arange(1, len(scores) + 1)
    floors = -np.maximum(usual / share, (1 - usual) / (1 - share))
    ceilings = np.maximum((1 - usual) / share, usual / (1 - share))
    return (scores - usual) * ratios, floors, ceilings


def watched(now: Sequence[Reward], before: Sequence[Reward]) -> Earned:
    """The new champion's answers, one by one against the newest of the one before.

    They are of different days: a change of the world in between counts as if the gate had made it.
    """
    n = min(len(now), len(before))
    terms = np.array([new.score - old.score for new, old in zip(now[:n], before[:n], strict=True)], dtype=np.float64)
    return compared(terms, -np.ones(n), np.ones(n), margin=0.0)


def compared(terms: Float, floors: Float, ceilings: Float, margin: float) -> Earned:
    """Of differences `terms` (n,) that lie between `floors` and `ceilings` (n,)."""
    n = len(terms)
    squares = float(((terms - terms.mean()) ** 2).sum()) if n else 0.0
    return Earned(
        ratings=n,
        gain=bounds(terms, floors, ceilings),
        error=((1 + squares) / (n + 1) / max(n, 1)) ** 0.5,  # one more of variance 1: three alike prove nothing
        worse=passes(-terms, -ceilings, 0.0),
        no_worse=passes(terms, floors, -margin),
    )


def _contests(interactions: Iterable[Interaction], standing: Standing) -> list[Contest]:
    decisions = (interaction.decision for interaction in interactions if interaction.decision is not None)
    return [contest for decision in decisions if (contest := _contest(decision, standing)) is not None]


def _contest(decision: Decision, standing: Standing) -> Contest | None:
    """The decision's contest where it is the one that is on; gates of before may go on serving for a moment."""
    contest, trial = decision.contest, standing.trial
    if contest is None or trial is None:
        return None
    now = (standing.champion, trial.version, trial.share)
    return contest if (contest.champion, contest.challenger, contest.share) == now else None


def _ratio(decision: Decision) -> float:
    """How much likelier the challenger made the choice than the champion, over the chance it was made with."""
    both = decision.contest
    return (both.challenger_chance - both.champion_chance) / decision.propensity if both else 0.0


def _served_by(version: int, rewards: Iterable[Reward]) -> list[Reward]:
    """Those where nobody asked for a version by number."""
    return [r for r in rewards if r.decision.gate_version == version and r.decision.policy.gate is None]


def _reward(rated: Rated) -> Reward | None:
    """None where the asker named the expert, or nobody rated the whole answer."""
    whole = [(r, r.score) for r in rated.ratings if r.target == "answer" and r.score is not None]
    decision = rated.interaction.decision
    if decision is None or not whole:
        return None
    first, _ = min(whole, key=lambda one: one[0].created)
    return Reward(decision=decision, score=_mean(s for _, s in whole), at=first.created, rater=first.user)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
