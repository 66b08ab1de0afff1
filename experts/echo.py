"""Says back what it was sent. It needs no weights, so demonstrations and tests use it in place of any expert."""

import asyncio
from collections.abc import AsyncIterator

from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig, ExpertFailed
from multimoe.expert import Delta, FindWeights, NextToken, Token, TokenExpert
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Part
from multimoe.outputs import Label, Labels, Usage

END = 256  # the token after the last byte


class Echo(TokenExpert):
    """Token by token it writes bytes, and is sure of each.

    Options: `words_per_delta` (1); `delay_s` (0) before each delta; `labels`, a mapping of names to probabilities,
    answers with these in the space `space` ("echo") in place of the words; `fail` raises ExpertFailed, after the first
    delta where it is "midway" and at once where it is true.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        options = dict(spec.options)
        self._step = int(options.pop("words_per_delta", 1))
        self._delay = float(options.pop("delay_s", 0.0))
        self._fail = options.pop("fail", False)
        self._space = str(options.pop("space", "echo"))
        self._labels: dict[str, float] = options.pop("labels", {})
        if options or self._step < 1:
            raise BadConfig(f"expert {spec.name!r}: unknown or impossible options {dict(spec.options)!r}")

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if self._fail and self._fail != "midway":
            raise ExpertFailed(f"expert {self.spec.name!r} fails because its options say so")
        words = [word for part in request.question.parts for word in _said(part)] or ["[nothing]"]
        for delta in [self._chosen()] if self._labels else self._spoken(words, request.max_tokens):
            await asyncio.sleep(self._delay)
            yield delta
            if self._fail:
                raise ExpertFailed(f"expert {self.spec.name!r} fails midway because its options say so")
        read, written = len(words), 0 if self._labels else min(len(words), request.max_tokens)
        cut = not self._labels and written < read
        yield Delta(usage=Usage(prompt_tokens=read, completion_tokens=written), finish="length" if cut else "stop")

    async def next_tokens(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        if self._fail and (written or self._fail != "midway"):
            raise ExpertFailed(f"expert {self.spec.name!r} fails because its options say so")
        await asyncio.sleep(self._delay)
        words = [word for part in request.question.parts for word in _said(part)]
        said = " ".join(words).encode()[len(written) :]
        following = Token(said[0], 0.0, said[:1]) if said else Token(END, 0.0, b"", ends=True)
        return NextToken((following,), "bytes", prompt_tokens=len(words))

    def _spoken(self, words: list[str], max_tokens: int) -> list[Delta]:
        words = words[:max_tokens]  # a word is this expert's token
        starts = range(0, len(words), self._step)
        return [Delta(text=" " * (at > 0) + " ".join(words[at : at + self._step])) for at in starts]

    def _chosen(self) -> Delta:
        ranked = sorted(self._labels.items(), key=lambda item: -item[1])
        labels = tuple(Label(name=name, probability=probability) for name, probability in ranked)
        return Delta(output=Labels(space=self._space, labels=labels))


def _said(part: Part) -> list[str]:
    if isinstance(part, ImagePart):
        height, width, _ = part.pixels.shape
        return [f"[image {width}x{height}]"]
    if isinstance(part, AudioPart):
        return [f"[audio {part.seconds:.1f} s]"]
    return part.text.split()
