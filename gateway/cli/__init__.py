"""The command line. It speaks to a running product over HTTP, or reads catalog, weights and store by itself.

It loads neither torch nor Ray nor Gradio before a command needs them, so that `multimoe --help` is quick.
"""

from gateway.cli.app import app

__all__ = ["app"]
