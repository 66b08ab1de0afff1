"""Weights of a model hub, through the hub's own client, from a hub of one repository on this machine."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from multimoe.errors import WeightsError
from multimoe.weights import Weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"safe" * 1000,
    "pytorch_model.bin": b"pickled",
    "onnx/model.onnx": b"onnx",
    "sub/tokenizer.json": b"{}",
}


class Hub(http.server.ThreadingHTTPServer):
    """Serves FILES as owner/repo at COMMIT, and writes down what was fetched."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fetched: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._reply()

    def do_HEAD(self) -> None:
        self._reply()

    def _reply(self) -> None:
        path = self.path.split("?")[0]
        at, about = f"/owner/repo/resolve/{COMMIT}/", "/api/models/owner/repo"
        if path == f"{about}/revision/{COMMIT}":
            siblings = [{"rfilename": name} for name in FILES]
            return self._send(json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": siblings}).encode())
        if path == f"{about}/tree/{COMMIT}":
            files = [{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in FILES.items()]
            return self._send(json.dumps(files).encode())
        body = FILES.get(path.removeprefix(at)) if path.startswith(at) else None
        if body is None:
            return self.send_error(404)
        if self.command == "GET":
            self.server.fetched.append(path.removeprefix(at))
        self._send(body)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = huggingface_hub.constants
    with Hub() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template[template.index("/{repo_id}") :])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_repository_is_fetched_once_without_repeats_and_found_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, uri = Weights(tmp_path), f"hf://owner/repo@{COMMIT}"
    with pytest.raises(WeightsError, match="weights pull"):
        store.find(uri)
    store.pull([uri, f"{uri}/"])
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "sub/tokenizer.json"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    store.pull([uri])
    folder = store.find(uri)
    assert {name: (folder / name).read_bytes() for name in hub.fetched} == {name: FILES[name] for name in hub.fetched}
    assert store.verify([uri]) == []
    (folder / "model.safetensors").write_bytes(b"evil" * 1000)
    assert ["model.safetensors is damaged" in problem for problem in store.verify([uri])] == [True]


def test_one_file_and_a_folder_can_be_had_alone_and_repeats_by_name(hub: Hub, tmp_path: Path) -> None:
    store, uri = Weights(tmp_path), f"hf://owner/repo@{COMMIT}"
    sha256 = hashlib.sha256(FILES["pytorch_model.bin"]).hexdigest()
    store.pull([f"{uri}/sub/", f"{uri}/pytorch_model.bin?sha256={sha256}"])
    assert sorted(hub.fetched) == ["pytorch_model.bin", "sub/tokenizer.json"]
    with pytest.raises(WeightsError, match="sha256"):
        Weights(tmp_path / "other").pull([f"{uri}/config.json?sha256={sha256}"])


def test_a_commit_or_file_that_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    for uri in (f"hf://owner/repo@{'f' * 40}", f"hf://owner/repo@{COMMIT}/no.txt", f"hf://owner/none@{COMMIT}"):
        with pytest.raises(WeightsError, match="from the hub"):
            Weights(tmp_path).pull([uri])


def test_a_hub_out_of_reach_is_said(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="It needs the network, and HF_HUB_OFFLINE unset"):
        Weights(tmp_path).pull([f"hf://owner/repo@{COMMIT}"])
