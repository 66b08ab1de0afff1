"""Which experts are not to be asked for now, because they keep failing, and how often a lost question is repeated.

Each gateway learns it from its own questions alone; nothing here asks anybody anything, or knows of replicas.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from multimoe.config import ExpertSpec, FaultSpec
from multimoe.messages import ChatRequest

LONGEST = 12  # times `eject_seconds` an expert is passed over at most
REMEMBERED = 32  # answers that say what is usual
ENOUGH = 12  # of them at least say how often it fails
WAKING_SECONDS = 30.0  # that an expert which may be asleep has on top, before others stop waiting for it

Notice = Callable[[str, str], None]  # an expert, and what has become of it: "ejected", "restored", ...


def unnoticed(expert: str, what: str) -> None:
    """Nobody counts."""


@dataclass
class Breaker:
    """What one expert has done lately. Closed it is asked; open it is passed over until `due`, then tried by one.

    It closes when `to_pass` trials in a row went well.
    """

    failures: int = 0  # in a row
    ended: deque[bool] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # how, the last ones while closed
    ejections: int = 0
    open: bool = False
    why: str = ""
    due: float = 0.0
    trying: bool = False
    passed: int = 0
    to_pass: int = 1
    usual: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Attempt:
    """One question to one expert: it ends well, badly, or, where nobody waited for the end, in neither way."""

    def __init__(self, breakers: "Breakers", spec: ExpertSpec, pool: int, resort: bool) -> None:
        self.breakers = breakers
        self.spec = spec
        self.pool = pool
        self.trial = breakers.try_out(spec.name, resort)
        self.late = False
        self._ended = False

    def overdue(self) -> None:
        """It should have said something by now. It may still, but that makes nothing good."""
        if not (self.late or self._ended or may_sleep(self.spec)):
            self.late = True
            self.breakers.failed(self.spec.name, self.pool, "was far slower than usual", self.trial)

    def succeeded(self, seconds: float | None = None) -> None:
        """`seconds` to its first word, where that is to count as usual."""
        self._ended = True
        if self.late:
            self.breakers.took(self.spec.name, seconds)  # or what is usual for it would never be learned
        else:
            self.breakers.succeeded(self.spec.name, seconds, self.trial)

    def failed(self, why: str) -> None:
        self._ended = True
        if not self.late:
            self.breakers.failed(self.spec.name, self.pool, why, self.trial)


class Breakers:
    """A breaker for every expert. Of `pool` experts at most a share is passed over at once, and of one none."""

    def __init__(self, spec: FaultSpec, clock: Callable[[], float], notice: Notice = unnoticed) -> None:
        self.spec = spec
        self.clock = clock
        self.notice = notice
        self._all: dict[str, Breaker] = {}

    def due(self, name: str) -> bool:
        """Whether an expert that is passed over may be tried now, and nobody is at it."""
        breaker = self._all.get(name)
        return breaker is not None and breaker.open and not breaker.trying and breaker.due <= self.clock()

    def why_not(self, name: str, others: bool = False) -> str:
        """Why this expert is to be passed over; "" where it may be asked, as it may once it is due, if not `others` can
        answer meanwhile.
        """
        breaker = self._all.get(name)
        if breaker is None or not breaker.open or (self.due(name) and not others):
            return ""
        wait = breaker.due - self.clock()
        next_try = f"it is tried again in {wait:.0f} s" if wait > 0 else "it is being tried out"
        return f"passed over after {breaker.why}; {next_try}"

    def patience(self, spec: ExpertSpec, request: ChatRequest) -> float:
        """Seconds to its first word beyond which this expert is slow; each picture takes them, and sound its length."""
        usual = self._all[spec.name].usual if spec.name in self._all else ()
        seconds = max(spec.latency_ms / 1000, statistics.median(usual) if usual else 0.0)
        seconds *= max(1, len(request.images)) if "image" in spec.inputs else 1
        listening = sum(audio.seconds for audio in request.audios)
        waking = WAKING_SECONDS if may_sleep(spec) else 0.0
        return max(self.spec.slow_seconds, self.spec.slow_factor * seconds) + listening + waking

    @contextmanager
    def attempt(self, spec: ExpertSpec, pool: int, resort: bool = False) -> Iterator[Attempt]:
        """While one question is with an expert, the last `resort` or not. Left without a result (who asked hung up) it
        says nothing of it.
        """
        attempt = Attempt(self, spec, pool, resort)
        try:
            yield attempt
        finally:
            if attempt.trial:
                self._of(spec.name).trying = False

    def try_out(self, name: str, resort: bool = False) -> bool:
        """Whether a question now is the one that tries whether an expert is well again, due or the last `resort`."""
        breaker = self._of(name)
        if not breaker.open or breaker.trying or not (resort or self.due(name)):
            return False
        breaker.trying = True
        return True

    def took(self, name: str, seconds: float | None) -> None:
        """An answer came, after so long to its first word; whether that is good is another matter."""
        if seconds is not None:
            self._of(name).usual.append(seconds)

    def succeeded(self, name: str, seconds: float | None, trial: bool) -> None:
        self.took(name, seconds)
        breaker = self._of(name)
        breaker.failures = 0
        if not breaker.open:
            breaker.ended.append(True)
            breaker.ejections = max(breaker.ejections - 1, 0)  # slowly forgotten: the next time soon is for longer
        elif trial:
            breaker.passed += 1
            if breaker.passed >= breaker.to_pass:
                breaker.open = False
                breaker.ended.clear()
                self.notice(name, "restored")

    def failed(self, name: str, pool: int, why: str, trial: bool) -> None:
        breaker = self._of(name)
        breaker.failures += 1
        if breaker.open:
            if trial and breaker.due <= self.clock():
                self._eject(breaker)
            return
        breaker.ended.append(False)
        often, of = breaker.ended.count(False), len(breaker.ended)
        in_a_row = breaker.failures >= self.spec.eject_after
        if (in_a_row or (of >= ENOUGH and often >= self.spec.eject_share * of)) and self._room(pool):
            breaker.open = True
            breaker.to_pass = 1 if in_a_row else self.spec.eject_after
            many = f"{breaker.failures} failures in a row" if in_a_row else f"{often} failures in {of} answers"
            breaker.why = f"{many} (it {why})"
            self._eject(breaker)
            self.notice(name, "ejected")

    def ejected(self) -> list[str]:
        return [name for name, breaker in self._all.items() if breaker.open]

    def _eject(self, breaker: Breaker) -> None:
        breaker.passed = 0
        breaker.ejections = min(breaker.ejections + 1, LONGEST)
        breaker.due = self.clock() + self.spec.eject_seconds * breaker.ejections

    def _room(self, pool: int) -> bool:
        most = min(max(1, int(pool * self.spec.most_ejected)), pool - 1) if self.spec.most_ejected else 0
        return len(self.ejected()) < most

    def _of(self, name: str) -> Breaker:
        return self._all.setdefault(name, Breaker())


class RetryBudget:
    """A question asked again costs one token; every question earns `share` of one. `burst` are there from the start."""

    def __init__(self, share: float, burst: float = 10.0) -> None:
        self.share = share
        self.burst = burst if share else 0.0
        self._tokens = self.burst

    def earn(self) -> None:
        self._tokens = min(self._tokens + self.share, max(self.burst, 1.0))

    def take(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def may_sleep(spec: ExpertSpec) -> bool:
    """Whether it may have to be woken first, which takes as long as it takes."""
    return spec.serve.num_replicas is None and spec.serve.autoscaling_config.min_replicas == 0
