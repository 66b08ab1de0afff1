"""What a key may still ask for, worked out from what was counted: pure rules, no clock, no store, no HTTP.

A minute slides: what was used in the minute before counts by the part of it that the last 60 seconds still hold. A day
is one of UTC. What is under way is counted by each gateway; one that has not been heard of for `ALIVE` seconds has
nothing under way. A clock that jumps opens or shuts a quota for one window at most: one that went back by less than a
window leaves it as it is, any other jump begins a new one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from multimoe.config import Limits
from multimoe.feedback import Quota
from multimoe.feedback.counters import Window, Windows

MINUTE, DAY = 60.0, 86_400.0
BACK = 7200.0  # seconds a clock may go back within a day without beginning another
ALIVE = 30.0
AT_ONCE = "at once by "  # and a gateway's name

Limit = Literal["requests_per_minute", "concurrent_requests", "tokens_per_day", "cost_per_day"]
LIMITS: tuple[Limit, ...] = ("requests_per_minute", "concurrent_requests", "tokens_per_day", "cost_per_day")
Allowance = Mapping[Limit, float]  # what is limited, and to how much


@dataclass
class Spent:
    """What one request has used; whoever answers it adds to it."""

    tokens: int = 0
    cost: float = 0.0

    def add(self, tokens: int, cost: float) -> None:
        self.tokens += tokens
        self.cost += cost


def tokens_in(*texts: str) -> int:
    """About as many as there are, where nobody counted: one for four characters."""
    return math.ceil(sum(map(len, texts)) / 4)


@dataclass(frozen=True)
class Level:
    """`reset` is in how many seconds a used-up limit has something left again, or else is full again at the latest."""

    limit: float
    used: float
    reset: float

    @property
    def remaining(self) -> float:
        return max(0.0, self.limit - self.used)


@dataclass(frozen=True)
class Standing:
    """How a key stands against its limits, and which of them refuses it."""

    levels: Mapping[Limit, Level] = field(default_factory=dict)
    refused: Limit | None = None

    @property
    def wait(self) -> float:
        return self.levels[self.refused].reset if self.refused else 0.0


def allowance(quota: Quota | None, limits: Limits) -> Allowance:
    """The key's own limits, and the catalog's for what it says nothing of."""
    own = {name: getattr(quota, name) if quota else None for name in LIMITS}
    amounts = {name: getattr(limits, name) if own[name] is None else own[name] for name in LIMITS}
    return {name: float(amount) for name, amount in amounts.items() if amount not in (None, "unlimited")}


def admit(windows: Windows, now: float, who: str, allowed: Allowance, gateway: str, under_way: int) -> Standing:
    """How `who` stands, with one more request counted unless it is refused. `under_way` on this `gateway`."""
    heartbeat(windows, now, who, gateway, under_way)
    standing = stand(windows, now, who, allowed)
    if standing.refused:
        return standing
    minute = _minute(windows.get((who, "requests")), now)
    windows[who, "requests"] = Window(minute.began, minute.used + 1, minute.earlier)
    heartbeat(windows, now, who, gateway, under_way + 1)
    return stand(windows, now, who, allowed, asking=0)


def stand(windows: Windows, now: float, who: str, allowed: Allowance, asking: int = 1) -> Standing:
    """How `who` stands, and what would refuse it that many more requests."""
    levels = {name: _level(name, limit, windows, now, who) for name, limit in allowed.items()}
    refused = next((name for name, level in levels.items() if asking and _is_used_up(name, level)), None)
    return Standing(levels, refused)


def settle(windows: Windows, now: float, who: str, spent: Spent) -> None:
    """What a request took is known at its end, so what is under way when a quota is used up is still answered."""
    for what, amount in (("tokens", float(spent.tokens)), ("cost", spent.cost)):
        if amount:
            day = _day(windows.get((who, what)), now)
            windows[who, what] = Window(day.began, day.used + amount)


def heartbeat(windows: Windows, now: float, who: str, gateway: str, under_way: int) -> None:
    """How much of `who` is under way on `gateway`; what other gateways left behind is forgotten."""
    for name in [name for name, window in windows.items() if name[0] == who and name[1].startswith(AT_ONCE)]:
        if abs(now - windows[name].began) > ALIVE:
            del windows[name]
    if under_way:
        windows[who, AT_ONCE + gateway] = Window(now, under_way)
    else:
        windows.pop((who, AT_ONCE + gateway), None)


def _is_used_up(name: Limit, level: Level) -> bool:
    if name in ("requests_per_minute", "concurrent_requests"):
        return level.used + 1 > level.limit + 1e-9
    return level.used >= level.limit


def _level(name: Limit, limit: float, windows: Windows, now: float, who: str) -> Level:
    if name == "requests_per_minute":
        return _requests(_minute(windows.get((who, "requests")), now), now, limit)
    if name == "concurrent_requests":
        theirs = [w.used for (owner, what), w in windows.items() if owner == who and what.startswith(AT_ONCE)]
        return Level(limit, sum(theirs), 1.0)
    day = _day(windows.get((who, name.removesuffix("_per_day"))), now)
    return Level(limit, day.used, max(1.0, day.began + DAY - now))


def _requests(minute: Window, now: float, limit: float) -> Level:
    elapsed = max(0.0, now - minute.began)
    used = minute.used + minute.earlier * (1 - elapsed / MINUTE)
    if used + 1 <= limit:
        return Level(limit, used, MINUTE - elapsed)
    if minute.used + 1 <= limit:  # once enough of the minute before has slid out
        return Level(limit, used, MINUTE * (1 - (limit - 1 - minute.used) / minute.earlier) - elapsed)
    return Level(limit, used, MINUTE - elapsed + MINUTE * (1 - (limit - 1) / minute.used))


def _minute(window: Window | None, now: float) -> Window:
    if window is None:
        return Window(now)
    passed = math.floor((now - window.began) / MINUTE)
    if passed in (-1, 0):
        return window
    if passed == 1:
        return Window(window.began + MINUTE, 0.0, window.used)
    return Window(now)


def _day(window: Window | None, now: float) -> Window:
    today = Window(math.floor(now / DAY) * DAY)
    return window if window is not None and window.began - BACK <= now < window.began + DAY else today
