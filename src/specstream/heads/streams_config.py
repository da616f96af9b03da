"""What streams are made of; its fields are in a head's config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from specstream.errors import count_of, is_number, must_be


@dataclass(frozen=True, kw_only=True)
class StreamsConfig:
    """What streams are made of.

    Attributes:
        gamma: streams of a position: the deepest draft.
        layers: at the top of the model, that streams run through (the paper's N_s).
        rank: of the changes to linear layers; 0 for none.
        alpha: the changes are scaled by ``alpha / rank``.
        targets: names of the linear layers to change, such as ``q_proj``; none for all of them.
        pruning_rank: of the early exit's adapter (section 3.1.3); 0 for none.
        start: what streams start from: the ``identity`` is the main stream's state as it is, ``linear`` a learned map
            of it and of the token behind it.
        chain_rank: of the map by which the token that the stream before drafted changes what streams behind the first
            say; 0 for none.
        chain_gate: whether a stream's state decides how much each rank of that map counts.
        weight: of each stream's loss beside the next token's, the paper's alpha_j.
        mode: ``lossless`` streams leave the base alone. ``shared`` ones were trained together with a base that was
            fine-tuned for it, which is a new model.

    Raises:
        UsageError: a value out of range.
    """

    gamma: int = 4
    layers: int = 6
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    pruning_rank: int = 0
    start: Literal["identity", "linear"] = "identity"
    chain_rank: int = 0
    chain_gate: bool = False
    weight: float = 0.1
    mode: Literal["lossless", "shared"] = "lossless"

    def __post_init__(self) -> None:
        for name, least in (("gamma", 1), ("layers", 1), ("rank", 0), ("pruning_rank", 0), ("chain_rank", 0)):
            object.__setattr__(self, name, count_of(name, getattr(self, name), least))
        for name in ("alpha", "weight"):
            must_be(is_number(getattr(self, name)), name, getattr(self, name), "a number")
        for name, known in (("start", ("identity", "linear")), ("mode", ("lossless", "shared"))):
            must_be(getattr(self, name) in known, name, getattr(self, name), " or ".join(map(repr, known)))
        given: Any = self.targets
        names = isinstance(given, list | tuple) and all(isinstance(each, str) for each in given)
        must_be(names, "targets", given, "a list of the names of linear layers")
        object.__setattr__(self, "targets", tuple(given))
