"""Simulated people with one strong wish that no card foretells: whoever pastes code wants it explained in words.

The cards send bare code to the expert that names its language. These people rate every answer by the kind of expert
that gave it, so the ratings hold something true to be learned; the rest of what they ask is as the cards have it.
"""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gateway.demo.visitor import Seen, Visitor, name
from multimoe.errors import MultimoeError

PEOPLE = 60  # each has a few ratings: what one person thinks proves little
AT_ONCE = 4
FEW_TOKENS = 2  # only who answers is rated, so nobody needs to write much

NAMES = ("total", "price", "user", "score", "items", "word", "path", "count", "value", "line", "order", "city", "temp")
CODE = (
    "def {a}_{b}(x):\n    return x * {n} + {m}",
    "for {a} in range({n}):\n    print({a} ** {m})",
    "import json\n\nwith open('{a}.json') as f:\n    {b} = json.load(f)['{a}']",
    "class {A}:\n    def __init__(self, {b}):\n        self.{b} = {b} or {n}",
    "const {a} = {b}.map(x => x * {n}).filter(x => x > {m});",
    "function {a}({b}) {{\n  return {b}.length > {n} ? {b}[{m}] : null;\n}}",
    "SELECT {a}, COUNT(*) FROM {b}s WHERE id > {n} GROUP BY {a} LIMIT {m};",
    "UPDATE {a}s SET {b} = {n} WHERE id = {m};",
    '#include <stdio.h>\nint main(void) {{\n  int {a} = {n};\n  printf("%d\\n", {a} + {m});\n}}',
    "fn {a}({b}: i32) -> i32 {{\n    {b} * {n} - {m}\n}}",
    '#!/bin/bash\nfor {a} in *.txt; do\n  head -n {n} "${a}" | grep {b}\ndone',
    '{{"{a}": {n}, "{b}": [{m}, {n}], "ok": true}}',
)
OPINIONS = (
    "The {a} was {w} and we {v} it.",
    "I {v} this {a}, it is {w}.",
    "What a {w} {a}! My family {v} it.",
)
THINGS = ("hotel", "film", "dinner", "phone", "book", "train ride", "concert", "coffee", "garden", "lamp")
QUESTIONS = (
    "What is the capital of {p}?",
    "How do {t} work?",
    "Give me {n} ideas for a weekend in {p}.",
    "Write {n} lines about {t}.",
    "Why are there so many {t} in {p}?",
    "Which {t} should I see in {p} within {n} days?",
)
PLACES = ("Italy", "Japan", "Peru", "Kenya", "Canada", "Egypt", "Iceland", "India", "Poland", "Chile")
TOPICS = ("rainbows", "volcanoes", "magnets", "bridges", "tides", "engines", "bees", "glaciers", "castles", "rivers")
ENDINGS = ("json", "py", "csv", "html", "sh", "rs", "sql", "xml", "c", "toml")
LIKED = (("wonderful", "loved"), ("excellent", "enjoyed"), ("terrible", "hated"), ("awful", "regretted"))


@dataclass(frozen=True)
class Wish:
    """A question, and the kind of output its asker is content with."""

    question: str
    wants: str


def snippet(draw: random.Random) -> Wish:
    a, b = draw.sample(NAMES, 2)
    written = draw.choice(CODE).format(a=a, b=b, A=a.title(), n=draw.randint(2, 99), m=draw.randint(2, 9))
    return Wish(written, "text")


def opinion(draw: random.Random) -> Wish:
    w, v = draw.choice(LIKED)
    return Wish(draw.choice(OPINIONS).format(a=draw.choice(THINGS), w=w, v=v), "labels")


def question(draw: random.Random) -> Wish:
    asked = draw.choice(QUESTIONS)
    return Wish(asked.format(p=draw.choice(PLACES), t=draw.choice(TOPICS), n=draw.randint(2, 9)), "text")


def file(draw: random.Random) -> Wish:
    asked = draw.choice(
        ("What kind of file is {a}.{e}?", "Which format does {a}.{e} have?", "Is {a}.{e} code or data?")
    )
    return Wish(asked.format(a=draw.choice(NAMES), e=draw.choice(ENDINGS)), "labels")


def wishes(count: int, seed: int = 0) -> list[Wish]:
    """Of every hundred about 55 snippets of code, 22 opinions, 10 plain questions and 13 about files, in random order.

    Without the last two nobody would have rated what most people ask, and what was learned from code would spread
    there: the golden requests (deploy/golden.yaml) refused such a gate.
    """
    draw = random.Random(seed)  # noqa: S311  # a world for a demo, not a secret
    return [draw.choices((snippet, opinion, question, file), (55, 22, 10, 13))[0](draw) for _ in range(count)]


def misrouted(visitor: Visitor, tries: int = 20) -> Wish:
    """A snippet that nobody has asked yet and that the gate now sends to an expert of another kind than is wanted."""
    for wish in (snippet(draw) for draw in map(random.Random, range(tries))):
        asked = [{"role": "user", "content": wish.question}]
        info = visitor.client.route(asked, x_multimoe={"top_k": 1, "explore": False})
        if visitor.outputs[name(info["experts"][0])] != wish.wants:
            return wish
    raise MultimoeError(
        f"the gate sends all of {tries} snippets where these people want them: nothing is to be learned"
    )


def content_with(wish: Wish, seen: Seen, outputs: dict[str, str]) -> float:
    """1 where everybody who answered writes what is wanted, else 0."""
    return float(bool(seen.experts) and all(outputs[expert] == wish.wants for expert in seen.experts))


def ask_and_rate(visitor: Visitor, asked: list[Wish], tell: Callable[[int], None]) -> Iterator[float]:
    """Ask each with one expert drawn at random by the gate, rate it, and yield the ratings in order."""

    def one(numbered: tuple[int, Wish]) -> float:
        number, wish = numbered
        seen = visitor.try_out(wish.question, max_tokens=FEW_TOKENS, top_k=1, explore=True)
        score = content_with(wish, seen, visitor.outputs)
        visitor.client.feedback(seen.id, score, user=f"person-{number % PEOPLE}")
        return score

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, score in enumerate(pool.map(one, enumerate(asked)), start=1):
            tell(done)
            yield score
