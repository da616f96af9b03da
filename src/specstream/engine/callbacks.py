"""The logits processors and stopping criteria of transformers' ``generate``, for rows at their own pace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, StoppingCriteriaList

from specstream.core.sampling import LogitsProcessor
from specstream.core.stopping import StopCheck
from specstream.models.architecture import compat


def row_processor(processors: Sequence[Any], row: int, rows: int, padding: Tensor) -> LogitsProcessor:
    """The processors of a batch for one of its rows, which they see behind its own padding, as in ``generate``.

    Args:
        processors: of the call.
        row: its index in the batch.
        rows: how many there are.
        padding: ``[n]`` ids before its prompt.

    Raises:
        UsageError: a processor whose share of one row is not known.
    """
    own = [compat.processor_of_row(processor, row, rows) if rows > 1 else processor for processor in processors]

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        padded = torch.cat([padding[None].to(ids), ids], dim=1)
        for processor in own:
            scores = processor(padded, scores)
        return scores

    return process


class Columns:
    """Stopping criteria that see the batch as in ``generate``: whole, padded, one more token of every row at a time.

    A column is looked at once, when every row that goes on has a token for it. So a row that is ahead waits with its
    end, not with its tokens; what it has too many is dropped.

    Args:
        criteria: of the call.
        input_ids: ``[rows, width]``, padded on the left.
        pad: stands behind the end of a row.

    Attributes:
        ids: the columns that were looked at, prompts included: in the end, what ``generate`` returns.
    """

    def __init__(self, criteria: Sequence[Any], input_ids: Tensor, pad: int) -> None:
        self._criteria, self._pad, self._width = StoppingCriteriaList(criteria), pad, input_ids.shape[1]
        # Without a criterion that knows the end of sequence, generate pads nothing: rows go on until all have ended.
        self._pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self._emitted: list[Sequence[int]] = [() for _ in input_ids]
        self._ends: list[int | None] = [None for _ in input_ids]
        self.ids = input_ids

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a row, whatever its neighbours do: it need not wait for them."""
        known = [each.eos_token_id for each in self._criteria if isinstance(each, EosTokenCriteria)]
        return frozenset(token for ids in known for token in torch.as_tensor(ids).reshape(-1).tolist())

    def check(self, row: int) -> StopCheck:
        """The stopping rule of one row."""

        def look(emitted: Sequence[int], new: int) -> int | None:
            self._emitted[row] = emitted
            while self._complete():
                self._look()
            if self._pads:
                return self._ends[row]
            return None if None in self._ends else self._count

        return look

    @property
    def _count(self) -> int:
        return self.ids.shape[1] - self._width

    def _complete(self) -> bool:
        """Whether the next column can be looked at, and has to be."""
        waiting = [emitted for emitted, end in zip(self._emitted, self._ends, strict=True) if self._goes_on(end)]
        return None in self._ends and all(len(emitted) > self._count for emitted in waiting)

    def _goes_on(self, end: int | None) -> bool:
        return end is None or not self._pads

    def _look(self) -> None:
        at = self._count
        column = [
            emitted[at] if self._goes_on(end) else self._pad
            for emitted, end in zip(self._emitted, self._ends, strict=True)
        ]
        self.ids = torch.cat([self.ids, torch.tensor(column).to(self.ids)[:, None]], dim=1)
        ended = self._criteria(self.ids, None).tolist()
        self._ends = [at + 1 if end is None and now else end for end, now in zip(self._ends, ended, strict=True)]
