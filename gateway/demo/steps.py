"""The steps of the demo as data: what the visitor does, and what must be true of what came back.

A check says in a few words what is wrong, or nothing where all is well.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.demo import media
from gateway.demo.person import ask_and_rate, misrouted, wishes
from gateway.demo.visitor import Seen, Visitor
from multimoe.errors import MultimoeError

RATINGS = 300
POLL_SECONDS = 0.3

Tell = Callable[[str], None]
Check = Callable[[Seen], str]


@dataclass(frozen=True)
class Step:
    """`run` may tell how far it is; it is right when every check is content."""

    title: str
    run: Callable[[Visitor, Tell], Seen]
    checks: tuple[Check, ...]

    def wrong(self, seen: Seen) -> str:
        return "; ".join(complaint for check in self.checks if (complaint := check(seen)))


def says(*words: str) -> Check:
    def check(seen: Seen) -> str:
        said = "".join(seen.text.lower().split())
        missing = [word for word in words if "".join(word.lower().split()) not in said]
        return f"the answer lacks {', '.join(missing)}" if missing else ""

    return check


def streamed(seen: Seen) -> str:
    return "" if seen.facts.get("pieces", 0) > 1 else "it came in one piece"


def written_from_evidence(seen: Seen) -> str:
    """A text expert wrote, and another expert's output was handed to it."""
    roles = {part.get("role") for part in seen.parts if part.get("status", "ok") == "ok"}
    wrote = any(part.get("role") == "answer" and _kind(part) == "text" for part in seen.parts)
    return "" if wrote and "evidence" in roles else "no text expert wrote from evidence"


def routed(seen: Seen) -> str:
    """Every answer says who made it, weights that sum to one, and how likely that choice was."""
    if not seen.experts:
        return "nobody is named as its author"
    total = sum(float(part.get("weight") or 0.0) for part in seen.parts)
    return "" if abs(total - 1) < 0.02 else f"the weights sum to {total:.2f}"


def fact(name: str, wrong: str) -> Check:
    return lambda seen: "" if seen.facts.get(name) else wrong


def rate_everything(visitor: Visitor, tell: Tell) -> Seen:
    """Thumbs up for every answer so far, and one for each expert where several took part."""
    before, shared = int(visitor.client.stats()["ratings"]), 0
    for at, seen in enumerate(visitor.answers, start=1):
        tell(f"{at} of {len(visitor.answers)}")
        visitor.client.feedback(seen.id, 1.0)
        parts = seen.experts if len(seen.experts) > 1 else {}
        for expert in parts:
            visitor.client.feedback(seen.id, 1.0, expert=expert)
        shared += len(parts)
    counted = int(visitor.client.stats()["ratings"]) - before
    given = len(visitor.answers) + shared
    text = f"{len(visitor.answers)} answers and {shared} experts' parts rated"
    return Seen(text, facts={"counted": counted == given, "shared": shared})


def rate_and_retrain(visitor: Visitor, tell: Tell) -> Seen:
    """A few hundred rated questions of sixty people, then a retraining, followed to its end."""
    visitor.puzzle = misrouted(visitor)
    asked = wishes(RATINGS)
    scores = list(ask_and_rate(visitor, asked, lambda done: tell(f"{done} of {len(asked)} asked and rated")))
    result = follow(visitor, tell)
    pleased = sum(scores) / len(scores)
    text = f"{len(scores)} ratings, {pleased:.0%} up; gate {result.get('version')}: {result.get('reason', '')}"
    return Seen(text, facts={"promoted": result.get("promoted")})


def follow(visitor: Visitor, tell: Tell) -> dict[str, object]:
    """Start a retraining and wait for it. Raises MultimoeError where it fails."""
    job_id = visitor.client.train()
    while (job := visitor.client.job(job_id))["status"] == "running":
        tell(f"{job.get('progress', 0):.0%} {job.get('message', '')}")
        time.sleep(POLL_SECONDS)
    if job["status"] != "done":
        raise MultimoeError(str(job.get("error")))
    return dict(job["result"])


def ask_for_code(visitor: Visitor, tell: Tell) -> Seen:
    """Code that the old gate sent elsewhere: who answers now, by which gate, is what was learned."""
    if visitor.puzzle is None:
        raise MultimoeError("nobody has rated yet, so nothing is known to ask again")
    seen = visitor.try_out(visitor.puzzle.question, max_tokens=32, explore=False, top_k=1)
    serving = int(visitor.client.gate()["version"])
    kinds = {visitor.outputs[expert] for expert in seen.experts}
    facts = {"new": serving > 0 and seen.gate == serving, "old": seen.gate == serving == 0, "kinds": kinds}
    return Seen(
        f"gate {seen.gate}: {seen.text}",
        seen.info,
        seen.seconds,
        facts | {"explained": kinds == {visitor.puzzle.wants}},
    )


def roll_back(visitor: Visitor, tell: Tell) -> Seen:
    visitor.client.rollback()
    return ask_for_code(visitor, tell)


def _kind(part: dict[str, object]) -> str:
    output = part.get("output")
    return str(output.get("kind")) if isinstance(output, dict) else ""


STEPS = (
    Step(
        "a question, streamed",
        lambda v, _: v.ask("What is the capital of France?", stream=True),
        (says("Paris"), streamed, routed),
    ),
    Step("a photograph: what is it?", lambda v, _: v.ask("What is this?", media.CHEETAH), (says("cheetah"), routed)),
    Step(
        "a photograph of printed words",
        lambda v, _: v.ask("Read the words on this sign.", media.photograph_of_sign()),
        (says(*media.SIGN), routed),
    ),
    Step(
        "a photograph with a question about it",
        lambda v, _: v.ask("Is it dangerous, and why?", media.LION),
        (says("lion"), written_from_evidence, routed),
    ),
    Step("recorded speech, alone", lambda v, _: v.ask("", media.SPEECH), (says("good at something", "free"), routed)),
    Step("music, alone", lambda v, _: v.ask("", media.MUSIC), (says("music"), routed)),
    Step("a spoken question, answered", lambda v, _: v.ask("", media.QUESTION), (says("Paris"), written_from_evidence)),
    Step(
        "a rating for each answer",
        rate_everything,
        (fact("counted", "the store counts other ratings"), fact("shared", "no answer had several experts to rate")),
    ),
    Step("people who want code explained; retraining", rate_and_retrain, (fact("promoted", "nothing was promoted"),)),
    Step(
        "the new gate, asked about code",
        ask_for_code,
        (fact("new", "the new version does not serve"), fact("explained", "it is still not explained")),
    ),
    Step(
        "rolled back, asked the same",
        roll_back,
        (
            fact("old", "the old version does not serve"),
            lambda seen: "" if not seen.facts["explained"] else "unchanged",
        ),
    ),
)
