"""What heads have in common that draft all depths at once: streams, and a block head.

Their queries start from a guess at the state that the model will have at the next token. The model's own head makes
logits of what becomes of them, over a part of the vocabulary, and a low-rank map lets each depth know the token that
was drafted before it (``token_map.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream.core.tree_shapes import Candidates
from specstream.heads.folder import TrainedHead, describe_base, save_head
from specstream.heads.token_map import CHAINED_FROM, Chain, Chained, TokenMap, unit
from specstream.models.architecture.compat import text_config
from specstream.models.hub.load import pick_dtype
from specstream.models.runtime import quantized
from specstream.models.runtime.capabilities import capabilities

Multiply = Callable[[nn.Linear, Tensor], Tensor]


def plainly(linear: nn.Linear, x: Tensor) -> Tensor:
    """The layer's own product, in its weight's dtype."""
    result: Tensor = linear(x.to(linear.weight.dtype))
    return result


def layer_sizes(model: Any) -> tuple[int, int, int, int]:
    """Of a draft layer that is like the model's own: heads, those of keys and values, their size, that of the MLP."""
    text = text_config(model)
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    return (
        heads,
        int(getattr(text, "num_key_value_heads", None) or heads),
        int(getattr(text, "head_dim", None) or hidden // heads),
        int(getattr(text, "intermediate_size", None) or 3 * hidden),
    )


def in_bytes(model: Any) -> bool:
    """Whether weights that draft for this model are faster as bytes."""
    found = capabilities(model.device, model.dtype, keep_dtype=True)
    return found.quantization.value != "none"


def multiply_of(linears: Iterable[nn.Linear], *, quantize: bool) -> Multiply:
    """What runs linear layers that draft: from bytes, to which they are rounded here, or as they are."""
    if not quantize:
        return plainly
    quick = {each: quantized.linear(quantized.quantize(each.weight), each.bias) for each in linears}
    return lambda linear, x: quick[linear](x)


class ParallelHead(TrainedHead):
    """Of one base; the argument is ``TrainedHead``'s.

    Attributes:
        kind: what its folder says it holds.
        config: what it is made of, a dataclass.
        details: what else its folder says.
        embeddings: ``[gamma, hidden]``, what tells the depths apart.
        from_state: of the linear start, ``[hidden, hidden]``; what it makes of a state.
        from_token: of the same shape; what it makes of the token behind.
        scales: ``[gamma, hidden]``, how much of the guess each depth starts with.
        vocabulary: ids of the tokens that are drafted, ``[n]`` int64; None for all.
        chain: the token-to-token map, if there is one.
    """

    kind: str
    config: Any
    details: dict[str, Any]
    embeddings: nn.Parameter
    from_state: nn.Parameter
    from_token: nn.Parameter
    scales: nn.Parameter
    vocabulary: Tensor | None
    chain: Chain | None

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._drafting: tuple[Tensor, Any] | None = None

    @property
    def gamma(self) -> int:
        """The deepest draft."""
        return len(self.embeddings)

    def save(self, folder: str | Path, *, dtype: str | torch.dtype = torch.bfloat16, **details: Any) -> None:
        """Write a folder that ``from_pretrained`` reads.

        Args:
            folder: where to.
            dtype: of the weights on disk, or its name; the vocabulary stays in integers.
            **details: kept in its config.json: ``data``, ``recipe``, ``figures``; what JSON can hold.

        Raises:
            UsageError: a folder that cannot be, or holds something else; a dtype that weights cannot have.
        """
        wanted = pick_dtype(dtype)
        tensors = {name: parameter.to(wanted or parameter.dtype) for name, parameter in self.named_parameters()}
        if self.vocabulary is not None:
            tensors["vocabulary"] = self.vocabulary.int()
        base = describe_base(self.model)
        extra = {"extra_parameters": self.extra_parameters, "base_parameters": int(self.model.num_parameters())}
        settings = {"kind": self.kind, "base": base, self.kind: asdict(self.config), **extra, **self.details, **details}
        save_head(folder, tensors, settings)

    def chained(self, final: Tensor, before: Tensor) -> Tensor:
        """Final states behind the tokens that were drafted before, differentiable.

        Args:
            final: ``[rows, count, gamma, hidden]``.
            before: for the depths behind the first, what the one before them drafts: ``[rows, count, gamma - 1]``.
        """
        return final if self.chain is None else self.chain(final, self.token_states(before))

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the model's own head, over the tokens that are drafted."""
        own = self.model.get_output_embeddings()
        weight, bias = own.weight, own.bias
        if self.vocabulary is None:
            return weight, bias
        return weight[self.vocabulary], None if bias is None else bias[self.vocabulary]

    def token_states(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens at unit size, float32: ``[...]`` -> ``[..., hidden]``."""
        return unit(self.model.get_input_embeddings()(tokens).detach())

    def linear_start(self, states: Tensor, following: Tensor) -> Tensor:
        """Where queries start: ``[..., hidden]`` and the tokens behind, ``[...]`` -> ``[..., gamma, hidden]``."""
        token = self.token_states(following).to(states.dtype)
        from_state, from_token = self.from_state.to(states.dtype), self.from_token.to(states.dtype)
        here = unit(states).to(states.dtype)
        return self._started(functional.linear(here, from_state) + functional.linear(token, from_token))

    def _started(self, guess: Tensor) -> Tensor:
        """What the depths make of the linear start's guess: ``[..., hidden]`` -> ``[..., gamma, hidden]``."""
        return guess.unsqueeze(-2) * self.scales.to(guess.dtype) + self.embeddings.to(guess.dtype)

    def _candidates(self, final: Tensor, count: int, token_map: TokenMap | None) -> list[Candidates]:
        """What rows draft.

        Args:
            final: what goes into the model's head, ``[rows, depth, hidden]``.
            count: candidates of each depth.
            token_map: of the tokens that are drafted on each other, if there is one.
        """
        chained = token_map is not None and final.shape[1] > 1  # the first depth is behind no drafted token
        most = count * CHAINED_FROM if chained else count
        shares = self._logits(final).float().softmax(-1)
        best = shares.topk(min(most, shares.shape[-1]), -1)
        chances = best.values
        tokens = best.indices if self.vocabulary is None else self.vocabulary[best.indices]
        found = zip(tokens.tolist(), chances.tolist(), strict=True)
        if token_map is None or not chained:
            return [Candidates(own, likely) for own, likely in found]
        assert self.chain is not None
        gates = self.chain.gates(final[:, 1:])
        opened = None if gates is None else gates.cpu().numpy()
        behind = token_map.behind(best.indices.cpu().numpy(), chances.cpu().numpy(), opened)
        return [Chained(*own, each, count) for own, each in zip(found, behind, strict=True)]

    def _token_map(self) -> TokenMap | None:
        if self.chain is None:
            return None
        weight, _ = self.head()
        drafted = torch.arange(len(weight), device=weight.device) if self.vocabulary is None else self.vocabulary
        return self.chain.token_map(weight, self.token_states(drafted))

    def _in_bytes(self) -> bool:
        return in_bytes(self.model)

    def _logits(self, final: Tensor) -> Tensor:
        """Over the tokens that are drafted. On our kernels from bytes: to round a draft is to lose acceptance."""
        own = self.model.get_output_embeddings().weight
        if self._drafting is None or self._drafting[0] is not own:
            weight, bias = self.head()
            if self._in_bytes():
                self._drafting = own, quantized.linear(quantized.quantize(weight), bias)
            else:
                self._drafting = own, lambda x: functional.linear(x.to(weight.dtype), weight, bias)
        logits: Tensor = self._drafting[1](final)
        return logits
