"""Several experts' outputs become one answer, by kind: distributions are mixed, the rest is said in words.

It only transforms what experts said. Who is asked, in which order and what happens on failure is `mixture`'s.
"""

from multimoe.blend.evidence import Evidence, caveat, hand_over
from multimoe.blend.kinds import Weighted, blend, say_all
from multimoe.blend.labels import mix_labels
from multimoe.blend.say import is_empty, say, sureness

__all__ = [
    "Evidence",
    "Weighted",
    "blend",
    "caveat",
    "hand_over",
    "is_empty",
    "mix_labels",
    "say",
    "say_all",
    "sureness",
]
