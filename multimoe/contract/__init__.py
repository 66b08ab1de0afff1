"""The contract of `multimoe.expert`, put to the test: one examination for every backend, ours or anybody's.

`examine` asks an expert ordinary, absurd, simultaneous and abandoned questions and tells of each promise whether it was
kept and, if not, what to do. `promises` says what they are, `soundness` when an output makes sense.
"""

from multimoe.contract.examination import Examination, Finding, State, examine
from multimoe.contract.probes import Probes, probes_for

__all__ = ["Examination", "Finding", "Probes", "State", "examine", "probes_for"]
