"""One retraining, from the log of ratings to a gate version that serves only if later ratings say it is better.

    rated interactions ─┬─ the first 70 % ── fit ── candidate ─┐
                        └─ the last 30 % ──────────────────── judge ── write ── promote, or say why not

It knows the log as an iterator of rated interactions, and nothing of HTTP or Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Protocol

from multimoe import training
from multimoe.checkpoint import Manifest, Registry
from multimoe.errors import CheckpointError, TooLittleData
from multimoe.examples import Example, largest_share, read, revisions, split, votes
from multimoe.feedback import Rated
from multimoe.gate import Gate, Learned
from multimoe.judge import Verdict, judge
from multimoe.training import Fitted, fit

Progress = Callable[[float, str], None]  # a share from 0 to 1, and what is being done

FITTED_SHARE = 0.7


class RatingLog(Protocol):
    def rated(self) -> Iterator[Rated]: ...


def retrain(
    log: RatingLog, registry: Registry, gate: Gate, *, now: datetime, seed: int, progress: Progress,
    promote: bool = True, min_ratings: int = 30,
) -> Manifest:  # fmt: skip
    """Fit on the past, judge on what came later, write the version, promote it where it is proven better.

    Of `gate` roster, cards and settings count. `seed` is recorded; nothing here is random. The candidate that was
    judged is the one that serves: it is not fitted again on all ratings. Raises TooLittleData below `min_ratings`, and
    Conflict when another version became champion meanwhile (the new one is kept).
    """
    progress(0.0, "reading ratings")
    examples = read(log.rated())
    _check_enough(examples, min_ratings)
    past, later = split(examples, FITTED_SHARE)
    serving, champion = registry.champion(), _champion(registry, gate, examples)
    progress(0.2, f"fitting {len(past)} rated answers")
    fitted = fit(past, gate)
    candidate = gate.with_learned(fitted.learned, champion.version + 1)
    progress(0.7, f"judging on {len(later)} later ones")
    verdict = judge(later, candidate, champion)
    progress(0.9, "writing the version")
    manifest = registry.write(fitted.learned, _manifest(examples, later, gate, champion, fitted, verdict, now, seed))
    if verdict.better and promote:
        registry.promote(manifest.version, now, expected=serving)
    progress(1.0, verdict.reason)
    return registry.manifest(manifest.version)


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
    examples: Sequence[Example], later: Sequence[Example], gate: Gate, champion: Gate, fitted: Fitted,
    verdict: Verdict, now: datetime, seed: int,
) -> Manifest:  # fmt: skip
    raters = [label.rater for example in examples for label in example.labels]
    return Manifest(
        parent=champion.version,
        created=now,
        since=examples[0].created,
        until=examples[-1].created,
        ratings=sum(example.ratings for example in examples),
        counts={
            "answers": len(examples),
            "fitted": len(examples) - len(later),
            "judged": verdict.judged,
            "raters": len(set(raters)),
        },
        metrics=verdict.metrics,
        scores={**_calibration(later, gate, fitted), "largest_rater_share": largest_share(raters, votes(raters))},
        settings={
            "seed": seed,
            "ridge": training.RIDGE,
            "bias_ridge": training.BIAS_RIDGE,
            "presence_ridge": training.PRESENCE_RIDGE,
            "slope_ridge": training.SLOPE_RIDGE,
            "weight_cap": training.WEIGHT_CAP,
            "calibration_scale": fitted.scale,
            "calibration_shift": fitted.shift,
        },
        reason=verdict.reason,
    )


def _calibration(later: Sequence[Example], gate: Gate, fitted: Fitted) -> dict[str, float]:
    """Expected calibration error on later labels, before and after calibration."""
    stages = {"calibration_error_before": fitted.uncalibrated, "calibration_error": fitted.learned}
    return {
        name: training.calibration_error(*training.predictions(later, gate.with_learned(learned, -1)))
        for name, learned in stages.items()
    }
