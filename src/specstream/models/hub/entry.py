"""What the catalog says of one named model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One named model.

    `sha256` is of the GGUF file that the wheels carry, their parts joined in order; `hub_id` names the original, which
    it was made from. The last three fields hold what is true of the original and lost on the way through that file, or
    through transformers' reading of it.
    """

    name: str
    summary: str
    parameters: int
    download_bytes: int
    hub_id: str
    wheels: tuple[str, ...]
    member_suffix: str
    sha256: str
    licence: str
    stop_tokens: tuple[str, ...]
    plain_tokens: tuple[str, ...] = ()
    splits_digits: bool = False
