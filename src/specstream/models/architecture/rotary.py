"""Rotary positions that depend on the length of the text: Phi-3's two sets of factors, dynamic scaling.

Transformers takes the length from the largest position of a pass, so that rows of a batch, nodes of a tree and padding
decide about each other's rotations. What a text alone would get: while its prompt is read, the rotations of the
prompt's length, and after it, for each token, those of the length that the text has with this token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn

from specstream.errors import UnsupportedModelError
from specstream.models.architecture import compat
from specstream.models.architecture.code import is_original

_NEAR, _FAR = 8, 1 << 20
"""Positions that are asked for alone and beside one that is so far behind them."""

_PROMPT: ContextVar[int] = ContextVar("specstream_prompt_length", default=0)


@contextmanager
def reading_prompt(length: int) -> Iterator[None]:
    """Inside, passes read a prompt of so many tokens, be it in pieces."""
    token = _PROMPT.set(length)
    try:
        yield
    finally:
        _PROMPT.reset(token)


def rotate_by_own_length(view: Any) -> None:
    """Let the rotary modules of a view give every node the rotations of its own text."""
    for module in view.modules():
        if compat.keeps_length(module):
            module.__dict__["forward"] = _Lengths(module, module.forward)


def require_own_lengths(view: Any) -> None:
    """Refuse rotary modules of other makers that take the length of a text from the largest position of a pass.

    Raises:
        UnsupportedModelError: one does.
    """
    for module in view.modules():
        if "inv_freq" in module._buffers and not compat.keeps_length(module) and not is_original(module):
            near = torch.arange(_NEAR, device=module.inv_freq.device)[None]
            far = torch.cat([near, near[:, -1:] + _FAR], 1)
            try:
                pairs = zip(
                    *(module(torch.zeros(1, device=near.device), positions) for positions in (near, far)), strict=True
                )
                same = all(torch.equal(alone, beside[:, :_NEAR]) for alone, beside in pairs)
            except (TypeError, ValueError, IndexError, RuntimeError, AttributeError):  # it is called in another way
                continue
            if not same:
                raise UnsupportedModelError(
                    f"{view.config.model_type} cannot be a target: its rotations depend on the largest position of a "
                    "pass, so that rows and branches would decide about each other"
                )


class _Lengths:
    """Called as the forward of a rotary module.

    Args:
        module: whose.
        forward: its own, which takes the length from the largest position that it is given.
    """

    def __init__(self, module: nn.Module, forward: Any) -> None:
        self._module, self._forward = module, forward

    def __call__(self, x: Tensor, position_ids: Tensor, *kind: Any, **named: Any) -> tuple[Tensor, Tensor]:
        lengths = (position_ids + 1).clamp_min(_PROMPT.get())
        limit, by_length = compat.rotary_limit(self._module, *kind, **named)
        if limit is None:
            return cast(tuple[Tensor, Tensor], self._forward(x, position_ids, *kind, **named))
        lengths = torch.where(lengths <= limit, 1, lengths if by_length else limit + 1)
        cos, sin = x.new_empty(0), x.new_empty(0)
        for length in sorted(set(lengths.flatten().tolist())):
            # One more position, the last of a text of that length, says how long it is.
            last = position_ids.new_full((len(position_ids), 1), length - 1)
            here = lengths == length
            asked = torch.cat([position_ids.where(here, 0), last], 1)
            self._forward(x, torch.zeros_like(last), *kind, **named)  # forgets the longest text so far
            made = [part[:, :-1] for part in self._forward(x, asked, *kind, **named)]
            before = (cos, sin) if len(cos) else made
            cos, sin = (torch.where(here[..., None], new, old) for new, old in zip(made, before, strict=True))
        return cos, sin
