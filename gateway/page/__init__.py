"""The page: a chat and the gate's own tab, in the browser. A client of the REST API and of nothing else.

`build_page` makes it, `mount_page` puts it beside the API on the same port. It can as well run alone, elsewhere.
"""

from typing import cast

import gradio as gr
from fastapi import FastAPI, Response

from gateway.page import look
from gateway.page.chat import Chat, plain
from gateway.page.door import Door, Sessions
from gateway.page.gate import Gate

STATUS_SECONDS = 30
SWEPT = (3600, 12 * 3600)  # seconds: how often uploads are looked through, and how old they may become
UPLOAD = "25mb"  # per file, before the API's own and finer limits
IDLE_SECONDS = 0.02  # between two looks for something to do; Gradio's millisecond takes 6 % of a core for nothing
CONCURRENT = 32  # answers that stream at once; Gradio's default is one

BRAND = f'<div class="mm-brand">{look.MARK}<b>multimoe</b><span>one question, the right experts</span></div>'


def build_page(sessions: Sessions) -> gr.Blocks:
    """The page as a client of the API. Nothing is asked of the API before a browser opens the page."""
    with gr.Blocks(title="multimoe", analytics_enabled=False, fill_width=True, delete_cache=SWEPT) as page:
        with gr.Row(elem_classes="mm-head"):
            plain(BRAND)
            status = plain("")
        with gr.Tab("Chat"):
            chat = Chat(sessions)
        with gr.Tab("Gate") as tab:
            gate = Gate(sessions, chat.bridge)
        tab.select(gate.show, None, [gate.cards, gate.job, gate.versions], api_visibility="private")
        page.load(chat.status, None, status, show_progress="hidden", api_visibility="private")
        page.load(chat.greet, None, [chat.preset, chat.without], show_progress="hidden", api_visibility="private")
        for change in gate.changes:
            change.then(chat.status, None, status, show_progress="hidden", api_visibility="private")
        gr.Timer(STATUS_SECONDS).tick(chat.status, None, status, show_progress="hidden", api_visibility="private")
    page.queue(default_concurrency_limit=CONCURRENT)
    page._queue.sleep_when_free = IDLE_SECONDS
    return cast(gr.Blocks, page)


def mount_page(app: FastAPI, api_url: str, path: str = "/ui") -> FastAPI:
    """Serve the page under `path` of `app`, with its look and without anything that asks other hosts.

    Where the API asks for keys, a browser has to show one before anything but the door is served.
    """
    sessions = Sessions(api_url)
    app.add_middleware(Door, sessions=sessions, path=path)
    app.get("/favicon.ico", include_in_schema=False)(_icon)  # browsers ask for it at the root, whatever the page says
    app.add_middleware(look.Policy, path=path)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        build_page(sessions),
        path=path,
        theme=look.theme(),
        css_paths=[look.STYLE],
        head=look.HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=UPLOAD,
        show_error=False,
        enable_monitoring=False,
    )
    return mounted


def _icon() -> Response:
    return Response(look.ICON, media_type="image/svg+xml")
