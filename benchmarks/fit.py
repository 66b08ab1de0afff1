"""How long does learning take, and does it grow linearly? The gate's fit beside scikit-learn's, on the same ratings.

    python benchmarks/fit.py [--ratings 100000] [--experts 10]

Random requests of text features and one rating each, of one of the experts. The reference is one logistic regression an
expert on the same projected features, without what makes ours a gate: a part all experts share, variances learned from
the data, and the posterior's covariance.
"""

import argparse
import time

import numpy as np
from sklearn.linear_model import LogisticRegression

from multimoe.embedding import CONCEPT
from multimoe.encoder.prompt import PROMPT
from multimoe.posterior import fit, labels, sigmoid
from multimoe.quality import text_vectors
from multimoe.training import principal, prior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=100_000)
    parser.add_argument("--experts", type=int, default=10)
    asked = parser.parse_args()
    print("| ratings | axes | fit | in all | scikit-learn | ratio |\n|---|---|---|---|---|---|")
    for ratings in (asked.ratings // 10, asked.ratings // 3, asked.ratings):
        print("| " + " | ".join(timed(ratings, asked.experts)) + " |", flush=True)


def timed(ratings: int, experts: int) -> list[str]:
    features, expert, score = rated(ratings, experts)
    began = time.perf_counter()
    axes = principal(features)
    z = text_vectors(features, {"text": axes})
    projected = time.perf_counter()
    fit(labels(z, np.arange(ratings), expert, score, experts), prior({"text": axes}))
    fitted = time.perf_counter()
    for i in range(experts):
        LogisticRegression(C=0.1).fit(z[expert == i, 1:], score[expert == i])
    reference = time.perf_counter() - fitted
    seconds = projected - began, fitted - projected, fitted - began, reference
    return [f"{ratings:,}", *(f"{s:.2f} s" for s in seconds), f"{(fitted - projected) / reference:.2f}"]


def rated(ratings: int, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(ratings, CONCEPT + PROMPT)).astype(np.float32) / 20
    features[:, :40] *= np.linspace(6, 1, 40)  # some directions matter more, as in an encoder's space
    expert = draw.integers(experts, size=ratings)
    taste = draw.normal(size=(experts, 40)) / 2
    score = (draw.random(ratings) < sigmoid((features[:, :40] * taste[expert]).sum(axis=1) * 3)).astype(float)
    return features, expert, score


if __name__ == "__main__":
    main()
