"""Between tokens and text: what a token's ids spell so far, and which token is drawn where each request has a seed.

It knows tokenizers' backend and tensors, and no model.
"""

import hashlib
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from multimoe.stops import Stops

_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of splitmix64 (Steele et al. 2014), as signed 64-bit
_GOLDEN = -0x61C8864680B583EB


class Spelling:
    """Token ids, as they come, into the text that may be shown: whole characters, and nothing of a stop sequence.

    `stopped` once a stop sequence is complete; what might still become one is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = Stops(stop)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def write(self, ids: Sequence[int]) -> str:
        text = ""
        for id in ids:
            if self.stopped:
                break
            text += self._stops.add(self._stream.step(self._tokenizer, id) or "")
        return text

    def rest(self) -> str:
        """What was held back, once no token follows."""
        return self._stops.rest()


def key(seed: int, position: int) -> int:
    """What `gumbel` is to draw with for the token at `position`: in [1, 2^31)."""
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % (2**31 - 1) + 1


def gumbel(keys: Tensor, width: int) -> Tensor:
    """Standard Gumbel noise, (n, width) float32, the same for the same key on any device; none where a key is 0.

    The likeliest token after adding it to log-probabilities is a fair draw (Gumbel 1954). Keys come in as a tensor and
    there is no generator with a state, so it can be recorded in a CUDA graph. `keys` is (n,), of integers.
    """
    counters = torch.arange(width, device=keys.device)
    mixed = _mixed(_mixed(keys.long()[:, None] * _GOLDEN) + counters[None, :] * _GOLDEN)  # (n, width)
    uniform = ((mixed >> 40) & 0xFFFFFF).float().add_(0.5).div_(2**24)  # in (0, 1)
    return torch.where(keys[:, None] == 0, 0.0, -torch.log(-torch.log(uniform)))


def _mixed(numbers: Tensor) -> Tensor:
    """The finalizer of splitmix64; products wrap around."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        numbers = (numbers ^ _shifted(numbers, shift)) * multiplier
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    return (numbers >> by) & ((1 << (64 - by)) - 1)  # without the sign that >> brings in
