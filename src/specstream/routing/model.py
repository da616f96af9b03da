"""The table behind a router: features of a prompt to the speed of each drafter over that of plain decoding.

An embedding is projected to its main directions among the prompts that were trained on, everything is standardised,
and one hidden layer goes to the log of each drafter's ratio. Plain decoding's own is 0 by definition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from specstream.errors import HeadMismatchError, ModelNotFoundError, NumericalError, SpecStreamError, reason_of
from specstream.files.yaml_file import validated
from specstream.heads.folder import describe_base, read_settings, save_head
from specstream.routing.config import NONE, DrafterSpec, check_drafters
from specstream.routing.features import HINTS, Features, make_embedding

WEIGHTS, KIND = "router.safetensors", "router"

LIMIT = 6.0
"""Standardised features beyond this many deviations are cut: a prompt unlike all others is no reason to be certain."""


class Network(nn.Module):
    """Standardised features through one hidden layer.

    Args:
        embedding: size of the embedding.
        reduced: directions that are kept of it.
        hidden: width of the hidden layer.
        outputs: drafters besides plain decoding.
    """

    mean: Tensor
    basis: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, *, embedding: int, reduced: int, hidden: int, outputs: int) -> None:
        super().__init__()
        inputs = len(HINTS) + reduced
        self.register_buffer("mean", torch.zeros(embedding))
        self.register_buffer("basis", torch.zeros(embedding, reduced))
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.hidden, self.output = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def standardise(self, features: Tensor) -> Tensor:
        """Hints and the embedding's main directions, ``[n, inputs]``, from ``[n, features]``."""
        hints, embedding = features[:, : len(HINTS)], features[:, len(HINTS) :]
        inputs = torch.cat([hints, (embedding - self.mean) @ self.basis], dim=1)
        return ((inputs - self.centre) / self.scale).clamp(-LIMIT, LIMIT)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Log ratios ``[n, outputs]`` and the hidden layer ``[n, hidden]``, each of its values within 1 of 0."""
        hidden = torch.tanh(self.hidden(inputs))
        return self.output(hidden), hidden


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterModel:
    """A trained router.

    Attributes:
        network: from features to log ratios.
        table: of the vocabulary; see ``token_table``.
        drafters: what is chosen from, by name; ``none`` among them.
        noise: how far a measured log ratio is from the table's on prompts that were not trained on, as a standard
            deviation, of each drafter but ``none``.
        base: of which target: ``name`` and ``fingerprint``.
        embedding: its ``name`` and, for mpnet, ``model``.
        plain_tokens_per_second: of plain decoding where it was trained: what is believed until it is measured.
        details: further plain values: data, figures, provenance.
    """

    network: Network
    table: Tensor
    drafters: Mapping[str, DrafterSpec]
    noise: Mapping[str, float]
    base: Mapping[str, str]
    embedding: Mapping[str, Any]
    plain_tokens_per_second: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The drafters; ``none`` comes first."""
        return [NONE, *(name for name in self.drafters if name != NONE)]

    @cached_property
    def fingerprint(self) -> str:
        """What tells one trained table from another."""
        digest = hashlib.sha256(", ".join(self.names).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The table's log ratios ``[n, drafters]`` in the order of ``names``, and the hidden layer ``[n, hidden]``.

        Args:
            features: ``[n, features]`` float32.
        """
        ratios, hidden = self.network(self.network.standardise(features))
        return torch.cat([ratios.new_zeros(len(ratios), 1), ratios], dim=1), hidden

    def features(self, target: Any, tokenizer: Any = None) -> Features:
        """What turns the target's prompts into features.

        Raises:
            HeadMismatchError: the router was trained for another target.
        """
        own = describe_base(target)
        if own["fingerprint"] != self.base["fingerprint"]:
            raise HeadMismatchError(
                f"the router belongs to {self.base['name']} ({self.base['fingerprint']}) and the model is "
                f"{own['name']} ({own['fingerprint']}); give that model, or train a router for this one"
            )
        embedding = make_embedding(self.embedding["name"], self.embedding.get("model"), target, tokenizer)
        return Features(self.table, embedding)

    def save(self, folder: str | Path) -> None:
        """Write it into a folder; each file is whole or as it was."""
        tensors = {**self.network.state_dict(), "table": self.table}
        settings = {
            "kind": KIND,
            "base": dict(self.base),
            "drafters": {name: spec.model_dump(exclude_defaults=True) for name, spec in self.drafters.items()},
            "embedding": dict(self.embedding),
            "hints": list(HINTS),
            "noise": dict(self.noise),
            "plain_tokens_per_second": self.plain_tokens_per_second,
            "details": dict(self.details),
        }
        save_head(folder, tensors, settings, weights=WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> RouterModel:
        """The router in a folder.

        Raises:
            ModelNotFoundError: there is none, or it cannot be read, or another version wrote it.
            NumericalError: its weights hold NaN or infinity.
            UsageError: fewer than two drafters, or a drafter that is described wrongly.
        """
        settings = read_settings(folder, "router")
        if settings.get("kind") != KIND:
            kind = settings.get("kind", settings.get("model_type"))
            raise ModelNotFoundError(
                f"{str(folder)!r} holds {kind!r}; give a folder that specstream router train wrote"
            )
        try:
            tensors = load_file(Path(folder) / WEIGHTS)
            check_drafters(settings["drafters"])
            specs = settings["drafters"].items()
            drafters = {name: validated(DrafterSpec, spec, f"drafters.{name}.") for name, spec in specs}
            network = _network(tensors, settings["hints"], list(drafters))
            model = cls(
                network=network,
                table=tensors["table"],
                drafters=drafters,
                noise={name: float(settings["noise"][name]) for name in drafters if name != NONE},
                base={name: str(settings["base"][name]) for name in ("name", "fingerprint")},
                embedding={"name": settings["embedding"]["name"], "model": settings["embedding"].get("model")},
                plain_tokens_per_second=float(settings["plain_tokens_per_second"]),
                details=settings.get("details", {}),
            )
        except SpecStreamError:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ModelNotFoundError(
                f"the router in {str(folder)!r} cannot be read: {reason_of(error)}; train it again"
            ) from error
        if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
            raise NumericalError(f"the weights in {str(folder)!r} hold NaN or infinity; train the router again")
        return model


def _network(tensors: Mapping[str, Tensor], hints: Sequence[str], drafters: Sequence[str]) -> Network:
    if list(hints) != list(HINTS):
        raise KeyError(f"hints {list(hints)}, and this version has {list(HINTS)}")
    if NONE not in drafters:
        raise KeyError(f"no drafter {NONE!r}")
    embedding, reduced = tensors["basis"].shape
    network = Network(
        embedding=embedding, reduced=reduced, hidden=len(tensors["hidden.weight"]), outputs=len(drafters) - 1
    )
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "table"})
    return network.eval()
