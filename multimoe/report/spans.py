"""Time cut into equal spans, for plots over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

MOST = 24
EACH = 10  # events that a span should have on average

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Spans:
    """`count` spans of `length`, one after the other from `start`."""

    start: datetime
    length: timedelta
    count: int

    @classmethod
    def over(cls, moments: Sequence[datetime]) -> "Spans":
        """From the first to the last of at least one."""
        first, last = min(moments), max(moments)
        count = int(np.clip(len(moments) // EACH, 1, MOST))
        return cls(first, max(last - first, timedelta(seconds=1)) / count, count)

    @property
    def starts(self) -> list[datetime]:
        return [self.start + i * self.length for i in range(self.count)]

    @property
    def end(self) -> datetime:
        return self.start + self.count * self.length

    def of(self, moment: datetime) -> int:
        return min(self.count - 1, max(0, int((moment - self.start) / self.length)))

    def edges(self) -> Numbers:
        """(count + 1,) as matplotlib counts time."""
        return as_numbers([*self.starts, self.end])


def as_numbers(moments: Sequence[datetime]) -> Numbers:
    numbers: Numbers = np.asarray(matplotlib.dates.date2num(list(moments)), np.float64)  # type: ignore[no-untyped-call]  # matplotlib's
    return numbers


def time_axis(axes: Axes) -> None:
    """Dates and times in UTC, as few words as do."""
    where = matplotlib.dates.AutoDateLocator(tz=UTC, minticks=3, maxticks=8)  # type: ignore[no-untyped-call]  # as above
    axes.xaxis.set_major_locator(where)
    words = matplotlib.dates.ConciseDateFormatter(where, tz=UTC)  # type: ignore[no-untyped-call]  # as above
    axes.xaxis.set_major_formatter(words)
