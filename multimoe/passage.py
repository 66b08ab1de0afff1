"""The passage a question is about, told from the instruction around it. Plain text in, plain text out."""

import re

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
# words alone up to a question mark or "… this review:", so that a line of code is no instruction
_INSTRUCTION = re.compile(
    r"\A[\w\s,'’\"-]+(?:\?|\b(?:this|these|following|below|code|snippet|file|text|review|comment|message|sentence)\s*:)\s+(?=\S)",
    re.IGNORECASE,
)


def passage(text: str) -> str:
    """The fenced block in `text`; else what follows its opening instruction; else all of it."""
    fenced = _FENCE.search(text)
    if fenced and fenced[1].strip():
        return fenced[1]
    return _INSTRUCTION.sub("", text, count=1)
