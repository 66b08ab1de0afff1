"""One retraining, from the log of ratings to a gate version that may serve only if later ratings say it is better.

    rated interactions ──┬─ fit on 30 % ── judge on the next 14 % ─┐
     in order of time    ├─ fit on 44 % ── judge on the next 14 % ─┤
                         ├─ ...                                    ├── verdict ── write: it may serve, or why not
                         └─ fit on 86 % ── judge on the last ──────┤
                                └─ the candidate ── checks ────────┘

It knows the log as an iterator of rated interactions, and nothing of HTTP or Ray.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from multimoe import training
from multimoe.checkpoint import Manifest, Registry
from multimoe.checks import refusals
from multimoe.errors import CheckpointError, TooLittleData
from multimoe.examples import Example, label_votes, largest_share, read, revisions, votes, without
from multimoe.feedback import Rated
from multimoe.gate import Gate
from multimoe.golden import Golden, kept_apart
from multimoe.holdouts import learn_in_turn
from multimoe.judge import Holdout, judge
from multimoe.quality import FEATURE_VARIANCE, Learned
from multimoe.screen import screen
from multimoe.verdict import Check, Verdict

Progress = Callable[[float, str], None]  # a share from 0 to 1, and what is being done

FEWEST_RATERS = 3  # with fewer, one person's taste is what there is to learn


class RatingLog(Protocol):
    def rated(self) -> Iterator[Rated]: ...


def retrain(
    log: RatingLog, registry: Registry, gate: Gate, *, now: datetime, seed: int, progress: Progress,
    min_ratings: int = 30, golden: Sequence[Golden] = (),
) -> Manifest:  # fmt: skip
    """Fit on the past, judge on what came later, write the version: `proven` in its manifest says that it may serve.

    Of `gate` roster, cards and settings count. `seed` is recorded; nothing here is random. The last candidate that was
    judged is the one that serves: it is not fitted again on all ratings. Ratings of `golden` requests are not used, nor
    those that `screen` leaves out. Raises TooLittleData below `min_ratings`, and CheckpointError for a fit that gave no
    numbers.
    """
    progress(0.0, "reading ratings")
    there = read(log.rated())
    apart = kept_apart(there, golden)
    screened = screen(apart)
    examples = screened.examples
    _check_enough(examples, min_ratings)
    champion = _champion(registry, gate, examples)
    since = registry.manifest(champion.version).learned_until

    def learned(some: Sequence[Example], begun: float, ended: float) -> list[Holdout]:
        tell = _within(progress, begun, ended)
        return learn_in_turn(some, gate, champion.version + 1, since, tell)

    holdouts = learned(examples, 0.1, 0.6)
    progress(0.6, f"judging on {sum(len(holdout.rows) for holdout in holdouts)} later ones")
    verdict = judge(holdouts, champion).weighed(refusals(holdouts, champion, examples, golden))
    rest = without_heaviest(examples) if verdict.better else None
    if rest is not None:
        verdict = _still(verdict, judge(learned(rest, 0.7, 0.9), champion))
    progress(0.9, "writing the version")
    quarantined = {f"quarantined: {reason}": count for reason, count in screened.quarantined.items()}
    left_out = {"golden": len(there) - len(apart), **quarantined}
    told = _manifest(examples, holdouts, champion, verdict, now, seed, left_out)
    manifest = registry.write(holdouts[-1].candidate.learned, told)
    progress(1.0, verdict.reason)
    return manifest


def without_heaviest(examples: Sequence[Example]) -> list[Example] | None:
    """Without everything of the rater with the most weight; None where people are too few to do without one."""
    raters = [example.rater for example in examples]
    weight: Counter[str] = Counter()
    for rater, counted in zip(raters, votes(raters).tolist(), strict=True):
        if rater is not None:
            weight[rater] += counted
    if not weight or len(weight) + raters.count(None) < FEWEST_RATERS:
        return None
    heaviest = max(weight, key=weight.__getitem__)
    return [left for example in examples if (left := without(example, {heaviest})) is not None]


def _still(verdict: Verdict, again: Verdict) -> Verdict:
    """Held for a person where one rater alone makes the difference."""
    check = Check(name="raters", passed=again.better, reason=f"without the heaviest rater it is {again.reason}")
    return verdict.weighed([check]) if check.passed else verdict.held(check)


def _within(progress: Progress, begun: float, ended: float) -> Progress:
    return lambda share, doing: progress(begun + share * (ended - begun), doing)


def _check_enough(examples: Sequence[Example], min_ratings: int) -> None:
    there = sum(example.ratings for example in examples)
    if there < min_ratings:
        raise TooLittleData(
            f"{there} ratings can be learned from, {min_ratings} are needed: {min_ratings - there} more, please"
        )


def _champion(registry: Registry, gate: Gate, examples: Sequence[Example]) -> Gate:
    """What serves now; the cards alone where that one learned from encoders that are gone."""
    version = registry.sound_champion()
    try:
        learned = registry.load(version, revisions(example.embedding for example in examples))
    except CheckpointError:
        return gate.with_learned(Learned(), 0)
    return gate.with_learned(learned, version)


def _manifest(
    examples: Sequence[Example], holdouts: Sequence[Holdout], champion: Gate, verdict: Verdict, now: datetime,
    seed: int, left_out: Mapping[str, int],
) -> Manifest:  # fmt: skip
    """`left_out` counts ratings that were not used, by reason."""
    labels = [label for example in examples for label in example.labels]
    raters = [label.rater for label in labels]
    fitted = examples[: len(examples) - len(holdouts[-1].rows)]
    return Manifest(
        parent=champion.version,
        created=now,
        since=examples[0].created,
        until=examples[-1].created,
        learned_until=fitted[-1].created,
        ratings=sum(example.ratings for example in examples),
        counts={
            "answers": len(examples),
            "fitted": len(fitted),
            "judged": verdict.judged,
            "raters": len(set(raters)),
            **left_out,
        },
        metrics=verdict.metrics,
        scores={
            **{name: value for check in verdict.checks for name, value in check.figures.items()},
            "largest_rater_share": largest_share(raters, label_votes(labels)),
        },
        settings={
            "seed": seed,
            "rank": training.RANK,
            "feature_variance": FEATURE_VARIANCE,
        },
        proven=verdict.better,
        outcome=verdict.outcome,
        reason=verdict.reason,
        checks=verdict.checks,
    )
