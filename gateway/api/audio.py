"""POST /v1/audio/transcriptions: what is said in a recording, by the expert that writes transcripts."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gateway.api.chat import CLIENT_GONE, unless_gone
from gateway.api.exchange import Exchange
from gateway.api.policies import MODEL, Asked, pinned
from gateway.api.replies import headers, planned
from gateway.services import Asking, Product, RequestId, Spending, Via
from multimoe.config import BlendSpec, Catalog, ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import ExpertFailed, NoExpert, UnknownModel
from multimoe.messages import AudioPart, ChatRequest, Message
from multimoe.outputs import Transcript

router = APIRouter(tags=["audio"])

FOREIGN_NAME = "whisper-1"  # what clients send that know no other


@router.post("/v1/audio/transcriptions")
async def transcribe(
    request: Request,
    services: Product,
    request_id: RequestId,
    via: Via,
    caller: Asking,
    spent: Spending,
    file: Annotated[UploadFile, File(description="wav, mp3, flac, ogg, webm or m4a")],
    model: Annotated[str, Form()] = MODEL,
    response_format: Annotated[Literal["json", "text", "verbose_json"], Form()] = "json",
) -> Response:
    """`model` is `multimoe` (or `whisper-1`), or one expert `multimoe/NAME` that writes transcripts."""
    expert = _transcriber(model, services.catalog, await services.cluster.roster())
    heard = await services.decoder.audio(await file.read(), "file")
    question = ChatRequest(services.signer.new_id(caller.tenant), (Message("user", (heard,)),), via=via)
    asked = Asked(model, expert, Policy(), BlendSpec(combine="best"), include_outputs=False, gate_alias=None)
    exchange = Exchange(services, asked, question, request_id, spent, tenant=caller.tenant)
    reply = await unless_gone(request, exchange.answer())
    if reply is None:
        return Response(status_code=CLIENT_GONE)
    if not isinstance(reply.output, Transcript):
        raise ExpertFailed(f"expert {expert!r} gave no transcript; try again")
    return _said(reply.output, heard, response_format, headers(planned(asked, question, None, question.id)))


def _transcriber(model: str, catalog: Catalog, roster: tuple[ExpertSpec, ...]) -> str:
    able = [spec.name for spec in roster if spec.output == "transcript"]
    if not able:
        raise NoExpert("no expert here writes transcripts; add one to the catalog", "model")
    named = None if model == FOREIGN_NAME else pinned(model, catalog, roster)
    if named is not None and named not in able:
        raise UnknownModel(f"expert {named!r} writes no transcripts; there are: {', '.join(able)}", "model")
    return named or able[0]


def _said(heard: Transcript, sound: AudioPart, form: str, headers: Any) -> Response:
    if form == "text":
        return PlainTextResponse(heard.text + "\n", headers=headers)
    if form == "json":
        return JSONResponse({"text": heard.text}, headers=headers)
    segments = [{"id": i, **segment.model_dump()} for i, segment in enumerate(heard.segments)]
    whole = {
        "task": "transcribe",
        "language": heard.language,
        "duration": round(sound.seconds, 3),
        "text": heard.text,
        "segments": segments,
    }
    return JSONResponse(whole, headers=headers)
