"""What became of a gate version, in words that command line and page share. It reads only what the API answers."""

from collections.abc import Mapping

BECAME = {  # a version that is better, by the stage it entered
    "shadow": "is better and decides beside the champion first, answering nothing",
    "canary": "is better and answers a share of requests first",
    "candidate": "is better and kept, but was not put on trial",
}
LEFT = ("withdrawn", "rolled back")  # stages of a version whose trial said more than its judgement


def became(version: Mapping[str, object], otherwise: str) -> str:
    """What follows on "gate 7"; `otherwise` for one that is not better or went no way of its own."""
    return BECAME.get(str(version.get("stage")), otherwise) if version.get("proven") else otherwise


def why(version: Mapping[str, object]) -> object:
    """Why it stands where it stands."""
    return version.get("stage_reason") if version.get("stage") in LEFT else version.get("reason")
