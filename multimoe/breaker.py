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
WAKING_SECONDS = 30.0  # that an expert which may be asleep has on top, before others stop waiting for it

Notice = Callable[[str, str], None]  # an expert, and what has become of it: "ejected", "restored", ...


def unnoticed(expert: str, what: str) -> None:
    """Nobody counts."""


@dataclass
class Breaker:
    """What one expert has done lately. Closed it is asked; open it is passed over until `due`, then tried by one."""

    failures: int = 0
    ejections: int = 0
    open: bool = False
    due: float = 0.0
    trying: bool = False
    last: str = ""
    usual: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Attempt:
    """One question to one expert: it ends well, badly, or, where nobody waited for the end, in neither way."""

    def __init__(self, breakers: "Breakers", spec: ExpertSpec, pool: int) -> None:
        self.breakers = breakers
        self.spec = spec
        self.pool = pool
        self.trial = breakers.try_out(spec.name)
        self.late = False
        self._ended = False

    def overdue(self) -> None:
        """It should have said something by now. It may still, but that makes nothing good."""
        if not (self.late or self._ended or may_sleep(self.spec)):
            self.late = True
            self.breakers.failed(self.spec.name, self.pool, "was far slower than usual")

    def succeeded(self, seconds: float | None = None) -> None:
        """`seconds` to its first word, where that is to count as usual."""
        self._ended = True
        if self.late:
            self.breakers.took(self.spec.name, seconds)  # or what is usual for it would never be learned
        else:
            self.breakers.succeeded(self.spec.name, seconds)

    def failed(self, why: str) -> None:
        self._ended = True
        if not self.late:
            self.breakers.failed(self.spec.name, self.pool, why)


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
        return f"passed over after {breaker.failures} failures in a row (it {breaker.last}); {next_try}"

    def patience(self, spec: ExpertSpec, request: ChatRequest) -> float:
        """Seconds to its first word beyond which this expert is slow; each picture takes them, and sound its length."""
        usual = self._all[spec.name].usual if spec.name in self._all else ()
        seconds = max(spec.latency_ms / 1000, statistics.median(usual) if usual else 0.0)
        seconds *= max(1, len(request.images)) if "image" in spec.inputs else 1
        listening = sum(audio.seconds for audio in request.audios)
        waking = WAKING_SECONDS if may_sleep(spec) else 0.0
        return max(self.spec.slow_seconds, self.spec.slow_factor * seconds) + listening + waking

    @contextmanager
    def attempt(self, spec: ExpertSpec, pool: int) -> Iterator[Attempt]:
        """While one question is with an expert. Left without a result (who asked hung up) it says nothing of it."""
        attempt = Attempt(self, spec, pool)
        try:
            yield attempt
        finally:
            if attempt.trial:
                self._of(spec.name).trying = False

    def try_out(self, name: str) -> bool:
        """Whether a question now is the one that tries whether an expert is well again."""
        if not self.due(name):
            return False
        self._of(name).trying = True
        return True

    def took(self, name: str, seconds: float | None) -> None:
        """An answer came, after so long to its first word; whether that is good is another matter."""
        if seconds is not None:
            self._of(name).usual.append(seconds)

    def succeeded(self, name: str, seconds: float | None) -> None:
        self.took(name, seconds)
        breaker = self._of(name)
        breaker.failures = 0
        if breaker.open:
            breaker.open = False
            self.notice(name, "restored")
        elif breaker.ejections:
            breaker.ejections -= 1  # slowly forgotten: one that fails again soon is passed over for longer

    def failed(self, name: str, pool: int, why: str) -> None:
        breaker = self._of(name)
        breaker.failures += 1
        breaker.last = why
        if breaker.open:
            if breaker.trying:
                self._eject(breaker)
        elif breaker.failures >= self.spec.eject_after and self._room(pool):
            breaker.open = True
            self._eject(breaker)
            self.notice(name, "ejected")

    def ejected(self) -> list[str]:
        return [name for name, breaker in self._all.items() if breaker.open]

    def _eject(self, breaker: Breaker) -> None:
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
