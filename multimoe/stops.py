"""Text as it comes, up to a stop sequence: what might still become one is held back."""

from collections.abc import Sequence


class Stops:
    """`stopped` once a stop sequence is complete; of it, and of what follows, nothing is said."""

    def __init__(self, sequences: Sequence[str] = ()) -> None:
        self.stopped = False
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def add(self, text: str) -> str:
        """What can be said now."""
        self._held += text
        found = [at for sequence in self._sequences if (at := self._held.find(sequence)) >= 0]
        if found:
            self.stopped, said, self._held = True, self._held[: min(found)], ""
            return said
        shown = len(self._held) - max((_overlap(self._held, sequence) for sequence in self._sequences), default=0)
        said, self._held = self._held[:shown], self._held[shown:]
        return said

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        said, self._held = self._held, ""
        return said


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
