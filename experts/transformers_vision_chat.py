"""Answers questions about pictures with any image-text-to-text model of a hub, in transformers.

It sees the pictures of the whole conversation, scaled down to what it can afford. Requests that wait are written side
by side; each is streamed, cut and closed for itself.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from multimoe import hub, tokens
from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig, ExpertFailed
from multimoe.expert import Answer, BatchExpert, Delta, FindWeights, FinishReason
from multimoe.messages import ChatRequest, ImagePart, Message, Part
from multimoe.outputs import Text, Usage
from multimoe.turns import conversation, fitted

SLENDER = 100  # times longer than wide: processors refuse such a picture, so it is made wider


class VisionChatOptions(hub.HubOptions):
    """`system` is the prompt where the conversation brings none; `context`, tokens of one conversation, pictures and
    answer included; `max_tokens`, above which no answer goes; `image_side`, pixels: larger pictures are scaled down.
    """

    system: str = ""
    context: int = Field(default=8192, ge=64)
    max_tokens: int = Field(default=1024, ge=1)
    image_side: int = Field(default=1024, ge=16)


class VisionChat(BatchExpert):
    """Weights: `model`, a folder with safetensors, a processor and a chat template."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._options = self.options(VisionChatOptions)
        folder = self.weight("model")
        self._processor = hub.load_beside(AutoProcessor, folder)
        if not getattr(self._processor, "chat_template", None):
            raise BadConfig(f"expert {spec.name!r}: its processor has no chat template")
        self._network = hub.load(AutoModelForImageTextToText, folder, spec, self._options)
        self._ends = hub.end_tokens(self._network, self._processor.tokenizer)
        self._tokens_per_image = self._measured_image()
        self._writing: dict[ChatRequest, Writing] = {}

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        request = replace(request)  # the same one may be asked twice at once
        writing = await asyncio.to_thread(self._begun, request)
        writing.loop = asyncio.get_running_loop()
        self._writing[request] = writing
        whole = asyncio.ensure_future(self._whole(request))
        whole.add_done_callback(lambda _: writing.pieces.put_nowait(None))
        try:
            while (text := await writing.pieces.get()) is not None:
                yield Delta(text=text)
            yield replace(whole.result(), output=None)
        finally:
            writing.closed = True
            whole.cancel()
            del self._writing[request]

    async def _whole(self, request: ChatRequest) -> Delta:
        async for delta in super().answer(request):
            return delta
        raise ExpertFailed(f"expert {self.spec.name!r} gave no answer")

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        rows = [self._writing.get(request) or self._begun(request) for request in requests]
        with hub.running(self.spec.name):
            self._write(rows)
        usages = [Usage(prompt_tokens=row.read, completion_tokens=row.written) for row in rows]
        return [Answer(Text(text=row.text), usage, row.finish) for row, usage in zip(rows, usages, strict=True)]

    @torch.inference_mode()
    def _write(self, rows: "list[Writing]") -> None:
        inputs = self._inputs([row.turns for row in rows])
        for row, mask in zip(rows, inputs["attention_mask"], strict=True):
            row.read = int(mask.sum())
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(row.room for row in rows),
            eos_token_id=sorted(self._ends),
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        self._network.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Draw(rows)]),
            stopping_criteria=StoppingCriteriaList([_HandOut(rows, self._ends)]),
        )

    def _inputs(self, conversations: Sequence[Sequence[Message]]) -> Any:
        inputs = self._processor.apply_chat_template(
            [self._turns(turns) for turns in conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return inputs.to(self._network.device, self._network.dtype)

    def _turns(self, turns: Sequence[Message]) -> list[dict[str, Any]]:
        return [{"role": turn.role, "content": [self._part(part) for part in turn.parts]} for turn in turns]

    def _part(self, part: Part) -> dict[str, Any]:
        if not isinstance(part, ImagePart):
            return {"type": "text", "text": getattr(part, "text", "")}
        picture = Image.fromarray(part.pixels)
        picture.thumbnail((self._options.image_side, self._options.image_side))
        thinnest = -(-max(picture.size) // SLENDER)
        width, height = (max(side, thinnest) for side in picture.size)
        return {"type": "image", "image": picture.resize((width, height))}

    def _begun(self, request: ChatRequest) -> "Writing":
        """The conversation, as much of it as fits, and room for its answer (a quarter of the context is enough)."""
        wanted, context = min(request.max_tokens, self._options.max_tokens), self._options.context
        turns = conversation(request, frozenset(("text", "image")), self._options.system)
        turns = fitted(turns, context - min(wanted, context // 4), self._count)
        spelling = tokens.Spelling(self._processor.tokenizer.backend_tokenizer, request.stop)
        return Writing(request, turns, min(wanted, context - self._count(turns)), spelling)

    def _count(self, turns: Sequence[Message]) -> int:
        """At most so many tokens: pictures count as the largest."""
        prompt = self._processor.apply_chat_template(self._turns(turns), add_generation_prompt=True, tokenize=False)
        images = sum(isinstance(part, ImagePart) for turn in turns for part in turn.parts)
        return len(self._processor.tokenizer(prompt)["input_ids"]) + images * self._tokens_per_image

    def _measured_image(self) -> int:
        side = self._options.image_side
        blank = torch.zeros(side, side, 3, dtype=torch.uint8).numpy()
        alone = [Message("user", (ImagePart(blank),))]
        return int(self._inputs([alone])["input_ids"].shape[1])


@dataclass(eq=False)
class Writing:
    """One answer on its way: what it answers, the tokens it may have, and where its reader waits."""

    request: ChatRequest
    turns: list[Message]
    room: int
    spelling: tokens.Spelling
    closed: bool = False
    read: int = 0
    written: int = 0
    text: str = ""
    finish: FinishReason = "length"

    def __post_init__(self) -> None:
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.seed = secrets.randbits(62) if self.request.seed is None else self.request.seed

    def take(self, id: int, ends: frozenset[int]) -> bool:
        """One more token; whether it was the last."""
        self.written += 1
        text = self.spelling.write([id])
        done = id in ends or self.spelling.stopped
        if done:
            self.finish = "stop"
        self.closed = self.closed or done or self.written >= self.room
        self._hand(text + self.spelling.rest() if self.closed else text)
        return self.closed

    def _hand(self, text: str) -> None:
        self.text += text
        if text and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, text)


class _HandOut(StoppingCriteria):
    """Hands each row's newest token to its reader, and says which rows are done."""

    def __init__(self, rows: list[Writing], ends: frozenset[int]) -> None:
        self._rows, self._ends = rows, ends

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        newest = input_ids[:, -1].tolist()
        done = [row.closed or row.take(id, self._ends) for row, id in zip(self._rows, newest, strict=True)]
        return torch.tensor(done, device=input_ids.device)


class _Draw(LogitsProcessor):
    """Makes the argmax of generate() a draw for the rows that ask for one, each by its own temperature and seed."""

    def __init__(self, rows: list[Writing]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().clone()  # (rows, vocabulary)
        for at, row in enumerate(self._rows):
            if row.request.temperature > 0 and not row.closed:
                warped = scores[at : at + 1] / row.request.temperature
                if row.request.top_p < 1:
                    warped = TopPLogitsWarper(row.request.top_p)(input_ids, warped)
                key = torch.tensor([tokens.key(row.seed, row.written)], device=scores.device)
                scores[at] = (warped + tokens.gumbel(key, scores.shape[1]))[0]
        return scores
