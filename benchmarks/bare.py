"""The floor: a Serve composition of two no-op hops behind FastAPI, with no gate, no blending and no store."""

from typing import Any

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle

api = FastAPI()


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Last:
    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"message": {"role": "assistant", "content": body["messages"][0]["content"]}}]}


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Middle:
    def __init__(self, last: DeploymentHandle[Any]) -> None:
        self.last = last

    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await self.last.answer.remote(body)
        return answer


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Ingress:
    def __init__(self, middle: DeploymentHandle[Any]) -> None:
        self.middle = middle

    @api.post("/chat/completions")
    async def chat(self, request: Request) -> dict[str, Any]:
        answer: dict[str, Any] = await self.middle.answer.remote(await request.json())
        return answer


app = Ingress.bind(Middle.bind(Last.bind()))
