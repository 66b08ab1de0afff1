"""The feedback log: every answer with the decision behind it, what people made of it, and the jobs that learn from it.

It keeps what it is told and gives it back in order. It knows nothing of HTTP, of gates or of what a rating is good for.
"""

from multimoe.feedback.database import Database
from multimoe.feedback.export import Format
from multimoe.feedback.log import FeedbackLog
from multimoe.feedback.records import (
    ExpertStats,
    Interaction,
    Job,
    Key,
    Outcome,
    Quota,
    Rated,
    Rating,
    Scope,
    Stats,
    Target,
)

__all__ = [
    "Database",
    "ExpertStats",
    "FeedbackLog",
    "Format",
    "Interaction",
    "Job",
    "Key",
    "Outcome",
    "Quota",
    "Rated",
    "Rating",
    "Scope",
    "Stats",
    "Target",
]
