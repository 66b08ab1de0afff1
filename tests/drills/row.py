"""One line of the table that drills end in."""

from dataclasses import dataclass
from typing import Literal

Scale = Literal["quick", "long"]  # quick: seconds, in everyday tests; long: minutes, in `make drill`


@dataclass(frozen=True)
class Row:
    """`test` is a number of the list of tests ("T31"), `tried` says what and how often, `figure` what came out.

    A negative control is a row of its own, `control` True: there `met` says that the detector did go off.
    """

    test: str
    what: str
    tried: str
    figure: str
    goal: str
    met: bool
    control: bool = False
