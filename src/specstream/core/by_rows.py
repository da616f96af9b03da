"""Drafters whose rows have nothing to do with each other: a session that asks each of them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specstream.core.ports import DraftRequest, DraftSession, Offer, Verdict
from specstream.core.tree import TokenTree


class RowDrafts(Protocol):
    """What one row drafts from: the methods of a ``DraftSession``, of that row."""

    def offers(self, request: DraftRequest) -> list[Offer]: ...

    def propose(self, request: DraftRequest) -> TokenTree: ...

    def observe(self, verdict: Verdict) -> None: ...


class SessionByRows(DraftSession):
    """One ``RowDrafts`` for every row."""

    def __init__(self, rows: Sequence[RowDrafts]) -> None:
        self._rows = list(rows)

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return [row.offers(request) for row, request in zip(self._rows, requests, strict=True)]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [row.propose(request) for row, request in zip(self._rows, requests, strict=True)]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        for row, verdict in zip(self._rows, verdicts, strict=True):
            row.observe(verdict)

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def join(self, other: SessionByRows) -> None:
        self._rows.extend(other._rows)
