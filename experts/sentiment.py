"""How a text feels: VADER's rules and lexicon (Hutto & Gilbert 2014), for English opinions of a few sentences."""

import re
from collections.abc import Sequence
from math import exp

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped]  # no types

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import ChatRequest
from multimoe.outputs import Label, Labels
from multimoe.passage import passage

# An ordered logit over VADER's compound score, which lies in [-1, 1]: beyond ±BOUNDARY a text is likelier opinionated
# than neutral; SPREAD keeps weak scores unsure (0 -> 68 % neutral, 0.44, one "good", -> 78 % positive).
BOUNDARY = 0.25
SPREAD = 0.15

_QUOTED = re.compile(r"[\"“«](.+?)[\"”»]", re.DOTALL)


class Sentiment(BatchExpert):
    """It takes no weights and no options: the lexicon is part of the engine."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.options(Settings)
        self._analyzer = SentimentIntensityAnalyzer()

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(self.feel(opinion(request.text))) for request in requests]

    def feel(self, text: str) -> Labels:
        """A distribution over positive, neutral and negative that sums to 1."""
        compound = float(self._analyzer.polarity_scores(text)["compound"])
        positive, negative = (_logistic((sign * compound - BOUNDARY) / SPREAD) for sign in (1, -1))
        found = {"positive": positive, "neutral": 1 - positive - negative, "negative": negative}
        ranked = sorted(found.items(), key=lambda item: -item[1])
        return Labels(space="sentiment", labels=tuple(Label(name=n, id=n, probability=p) for n, p in ranked))


def opinion(text: str) -> str:
    """The opinion itself: "is this review positive?" would else be scored for its own "positive"."""
    quoted = [quote for quote in _QUOTED.findall(text) if len(quote.split()) > 2]
    return " ".join(quoted) or passage(text)


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x))
