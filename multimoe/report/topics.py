"""What people ask about, found in the embeddings: clusters of questions, named by the words that set them apart."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multimoe.report.history import Request
from multimoe.topics import k_means

Int = NDArray[np.intp]

MOST = 6
EACH = 40  # questions that a topic should have on average
WORDS = 3  # of a topic's name
WORD = re.compile(r"[^\W\d_]{3,}")


def topics(requests: Sequence[Request]) -> tuple[list[str], Int]:
    """Names of topics, and each request's (n,), -1 where it has no words. No topics where requests are few."""
    worded = [i for i, request in enumerate(requests) if "text" in request.embedding.vectors]
    count = min(MOST, len(worded) // EACH)
    of_request = np.full(len(requests), -1, dtype=np.intp)
    if count < 2:
        return [], of_request
    points = np.stack([requests[i].embedding.vectors["text"].concept for i in worded])
    cluster = k_means(points, count, np.random.default_rng(0))
    said = [set(WORD.findall((requests[i].interaction.question or "").lower())) for i in worded]
    named = names(said, cluster, count)
    kept = list(dict.fromkeys(named[i] for i in np.unique(cluster)))  # two clusters of one name are one topic
    of_request[worded] = [kept.index(named[i]) for i in cluster]
    return kept, of_request


def names(said: Sequence[set[str]], cluster: Int, count: int) -> list[str]:
    """For each cluster the words that are in more of its questions than of the others'; a number where none is."""
    everywhere = Counter(word for words in said for word in words)
    found = []
    for i in range(count):
        here = Counter(word for words, of in zip(said, cluster, strict=True) if of == i for word in words)
        size = int((cluster == i).sum())
        rest = max(1, len(cluster) - size)
        lead = {word: n / size - (everywhere[word] - n) / rest for word, n in here.items()}
        telling = sorted((word for word in lead if lead[word] > 0), key=lambda word: (-lead[word], word))
        found.append(" ".join(sorted(telling[:WORDS])) or f"topic {i + 1}")
    return found
