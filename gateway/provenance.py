"""Where a request has been: an installation has a name, and hands it on with whatever it asks of others.

A gateway may be an expert of another one. Where two are experts of each other, directly or by way of a third, a request
would go round for ever; here the gateway that it comes back to refuses it. Who drops the header on the way is not seen.
"""

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from gateway.locks import lock
from multimoe.errors import LoopDetected

HEADER = "x-multimoe-via"
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


def installation(home: Path) -> str:
    """The name of the installation whose home this is, made up when it is first asked for.

    All its gateways share the home, so they share the name. A copied home has the same: delete `installation` in one.
    """
    file = home / "installation"
    if not file.exists():
        with lock(home / "installation.lock"):
            if not file.exists():
                draft = home / "installation.draft"
                draft.write_text(secrets.token_hex(8))
                os.replace(draft, file)  # so that nobody reads half a name
    return file.read_text().strip()


def came_through(sent: Iterable[str], here: str, hops: int) -> tuple[str, ...]:
    """The gateways that the headers `sent` name, then this one. Raises LoopDetected when it is one of them already.

    Also when there are more than `hops` of them: gateways that copied each other's homes, or lose names, end there.
    """
    before = [name.strip() for line in sent for name in line.split(",") if name.strip()]
    if here in before:
        raise LoopDetected(
            f"this request has been at this gateway ({here}) before: it is an expert of one of its own experts; remove "
            "one from the other's catalog, or exclude it from the request (x_multimoe.exclude)"
        )
    if len(before) > hops:
        raise LoopDetected(
            f"this request has come through {len(before)} gateways, more than limits.hops ({hops}) allows; ask one of "
            "them directly, or raise the limit"
        )
    return (*(name for name in before if NAME.fullmatch(name)), here)
