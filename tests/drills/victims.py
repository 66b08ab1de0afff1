"""An expert that does, from one question to the next, what a file says: answer, fail, hang, lie. It logs what it began.

Its replicas are processes of their own, so a file is how a drill changes its mood without replacing any of them.
"""

import asyncio
import json
import math
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from multimoe.config import ExpertSpec
from multimoe.errors import ExpertFailed
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.messages import ChatRequest
from multimoe.outputs import Label, Labels, Usage

LIES = ("nan", "surrogate", "huge", "endless", "kind", "labels", "bytes", "crash")
HUGE = 100 * 2**20


class Victim(Expert):
    """Echoes the question, word by word. Options: `folder`, of the mood file `NAME.json` and the log; `delay_s`.

    A mood has a `mode` ("ok", "slow", "errs", "hangs", "wrong", one of LIES, or "lies" for any of them), the `share` of
    questions it is for, and `seconds`.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        options: dict[str, Any] = dict(spec.options)
        self.folder = Path(options["folder"])
        self.delay = float(options.get("delay_s", 0.0))
        self.edition = str(options.get("edition", ""))
        self.log = self.folder / f"{spec.name}-{os.getpid()}.log"

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        self.note("began", request)
        try:
            mood = self.mood()
            mode = mood["mode"] if random.random() < mood.get("share", 1.0) else "ok"  # chance, no secret
            if mode == "lies":
                mode = random.choice(LIES)
            async for delta in self.acted(mode, mood, request):
                yield delta
        finally:
            self.note("ended", request)

    async def acted(self, mode: str, mood: dict[str, Any], request: ChatRequest) -> AsyncIterator[Delta]:
        words = request.text.split(" ")
        match mode:
            case "slow":
                await asyncio.sleep(mood["seconds"])
            case "hangs":
                await asyncio.sleep(mood.get("seconds", math.inf))
            case "errs":
                raise ExpertFailed("it fails because it was told to")
            case "crash":
                raise RuntimeError("sk-secret-canary in /usr/lib/secret.py")
            case "wrong":
                words = ["something", "else"]
            case "surrogate":
                words = ["half \ud83d a character"]
            case "huge":
                words = ["x" * HUGE]
            case "endless":
                while True:
                    yield Delta()
            case "kind" | "nan" | "labels":
                many = 1_000_000 if mode == "labels" else 1
                one = Label.model_construct(name="n", probability=math.nan if mode == "nan" else 1 / many)
                yield Delta(output=Labels.model_construct(space="s", labels=(one,) * many, each=()))
            case "bytes":
                yield Delta(text=b"\xff\xfe")  # type: ignore[arg-type]  # that is the lie
        for at, word in enumerate(words):
            if self.delay:
                await asyncio.sleep(self.delay)
            yield Delta(text=" " * (at > 0) + word)
        yield Delta(usage=Usage(prompt_tokens=len(words), completion_tokens=len(words)), finish="stop")

    def mood(self) -> dict[str, Any]:
        path = self.folder / f"{self.spec.name}.json"
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return {"mode": "ok"}

    def note(self, what: str, request: ChatRequest) -> None:
        with self.log.open("a") as log:
            log.write(f"{what} {request.text.split(' ')[0]}\n")
