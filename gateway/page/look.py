"""How the page looks and what it may load: theme, style, and a policy that lets the browser ask only this host."""

import secrets
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STYLE = Path(__file__).with_name("page.css")

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Menlo", "Consolas", "monospace")

MARK = (
    '<svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true" fill="none" stroke-linecap="round">'
    '<path d="M6 7c8 0 8 9 14 9" stroke="#2F6DB5" stroke-width="3"/>'
    '<path d="M6 16h14" stroke="#D9822B" stroke-width="3"/>'
    '<path d="M6 25c8 0 8-9 14-9" stroke="#1E8E6E" stroke-width="3"/>'
    '<circle cx="24" cy="16" r="4.5" fill="currentColor"/></svg>'
)
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" stroke-linecap="round" stroke-width="3.5">'
    '<path d="M4 6c9 0 9 10 16 10" stroke="#2F6DB5"/><path d="M4 16h16" stroke="#D9822B"/>'
    '<path d="M4 26c9 0 9-10 16-10" stroke="#1E8E6E"/><circle cx="24" cy="16" r="5" fill="#1F6F5C"/></svg>'
)
# An answer may contain a picture's address; the browser must not fetch it and so tell somebody what was asked. No
# script runs but this host's files and those in the page as it was served. Gradio makes functions of text.
POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self' data: blob:; frame-src 'none'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"  # of what was uploaded: shown, never run
SHUT = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none at all a form of our own would come from "null"
    "permissions-policy": "microphone=(self), camera=(), geolocation=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif", "audio/", "video/")  # the rest is downloaded, not opened
HEAD = f'<link rel="icon" href="data:image/svg+xml,{quote(ICON)}">'

# One listener for every button made by `html.py`; it lives as long as the page.
BRIDGE = """
document.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const data = {...button.dataset};
  if (data.do === 'copy') {
    navigator.clipboard?.writeText(data.text);
    button.textContent = 'Copied';
    return;
  }
  if (data.do === 'inspect')
    document.querySelector('#mm-inspector')?.scrollIntoView({behavior: 'smooth', block: 'nearest'});
  ({rate: () => trigger('rate', data), inspect: () => trigger('inspect', data),
    example: () => trigger('example', data), promote: () => trigger('promote', data)})[data.do]?.();
});
"""


class Policy:
    """ASGI middleware: what is served under `path` says what a browser may do with it.

    The scripts of a page get a word that is drawn anew each time and stands in its `POLICY` too, so that no other runs.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(self.path):
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, Marked(send, scope).send)


class Marked:
    """One response on its way out. A page is held back until it is whole; everything else goes on as it comes."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self._file = "/gradio_api/file=" in scope["path"]
        self._secure = scope.get("scheme") == "https"
        self._nonce = secrets.token_urlsafe(16)
        self._page: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._page is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._whole(self._page)

    async def _begin(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        kind = headers.get("content-type", "")
        for name, value in SHUT.items():
            headers[name] = value
        if self._secure:
            headers["strict-transport-security"] = "max-age=31536000"
        headers["content-security-policy"] = FILE_POLICY if self._file else POLICY.format(nonce=self._nonce)
        if self._file and not kind.startswith(SHOWN):
            headers["content-disposition"] = "attachment"
        if kind.startswith("text/html") and not self._file and "content-encoding" not in headers:
            self._page = message
        else:
            await self._send(message)

    async def _whole(self, start: Message) -> None:
        body = self._body.replace(b"<script", f'<script nonce="{self._nonce}"'.encode())
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def theme() -> gr.themes.Base:
    paper = gr.themes.Color(
        "#FCFBF8", "#F7F5F0", "#EFECE4", "#E3DFD5", "#C9C4B8", "#979185", "#6F6A60", "#524E46", "#35322D", "#211F1C",
        "#171614", name="paper",
    )  # fmt: skip
    pine = gr.themes.Color(
        "#EFF7F4", "#DCEFE8", "#BCDFD2", "#8FC7B3", "#5CAB91", "#388C72", "#1F6F5C", "#1A5B4C", "#174A3F", "#123B32",
        "#0A2620", name="pine",
    )  # fmt: skip
    base = gr.themes.Base(
        primary_hue=pine,
        secondary_hue=pine,
        neutral_hue=paper,
        radius_size=gr.themes.sizes.radius_lg,
        font=[gr.themes.Font(name) for name in SANS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        block_background_fill="#FFFFFF",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#FFFFFF",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_secondary_background_fill="#FFFFFF",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_border_color="*neutral_300",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        input_background_fill="#FFFFFF",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_200",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        checkbox_label_background_fill="transparent",
        checkbox_background_color_selected="*primary_600",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
    )
