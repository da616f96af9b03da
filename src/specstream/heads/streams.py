"""Speculative streams: a frozen model drafts for itself (Bhendawade et al., arXiv 2402.11131).

At the layer where the top ``layers`` begin, each position t starts gamma streams, copies of its hidden state with a
learned stream embedding added, S_tj = M_t + P_j. They run through the same layers as the main stream, with low-rank
changes to the linear layers that act on stream rows only, and stream j predicts y_{t+1+j} through the model's own head.

Left open by the paper, and decided here:

- Stream j at position t stands at position t + j, where y_{t+j} will stand: the main stream at t + j predicts what
  stream j predicts, y_{t+1+j}, so a stream starts out as a guess at it and the rotations mean what they always mean.
- With ``start: linear``, S_tj = c_j (A M_t + B e(y_{t+1})) + P_j, M_t and the token's embedding at unit size:
  when streams draft, the token behind the node is known. The paper's f is the identity in its experiments.
- ``up`` of every low-rank change starts at zero: untrained streams are the model's own layers.
- A stream does not see what the streams before it say. With ``chain_rank``, its final state is changed by a low-rank
  map of the token drafted before (``heads/token_map.py``; after Hydra's heads, Ankner et al., arXiv 2402.05109).
- The streams may predict a part of the vocabulary only, such as its most frequent tokens: a token they never draft
  costs acceptance, never the output.
- A round needs the streams of the last accepted node and of no other, and that node is known when its tree has been
  verified. So they are computed then, over the keys and values that the pass has just written, through the upper layers
  only. It is what the paper's streams of that node compute within the pass: they see the committed tokens, the node's
  ancestors, the node and each other. On a CPU rows are what costs, and rejected nodes' streams are not paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.core.ports import Adapter, HiddenStates
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates
from specstream.errors import UsageError, must_be
from specstream.heads.early_exit import EarlyExit
from specstream.heads.folder import drafted_tokens, load_head
from specstream.heads.multistream import MainStream, read_main, run_streams
from specstream.heads.parallel import ParallelHead
from specstream.heads.streams_config import StreamsConfig
from specstream.heads.token_map import Chain, TokenMap, unit
from specstream.models.architecture.compat import text_config
from specstream.models.architecture.hidden_states import decoder_layers
from specstream.models.architecture.partial_forward import FinalNorm, adapted, sizes, upper_linears
from specstream.models.runtime import quantized

KIND = "streams"


@dataclass(frozen=True)
class _Frozen:
    """What drafting reads, made of weights that stay as they are.

    Attributes:
        version: of the weights.
        adapter: the changes to linear layers, detached; the target's session prepares it once.
        start: ``Streams.start_of``.
        token_map: of the tokens that streams draft on each other; None without a chain.
    """

    version: int
    adapter: Adapter
    start: Callable[[Tensor, Tensor], Tensor]
    token_map: TokenMap | None


class Streams(ParallelHead):
    """The trainable part. The base is not one of its modules: ``parameters()`` are the streams' alone, in float32.

    Args:
        model: the base, a transformers causal language model in eval mode. Its weights are left as they are, and unless
            the mode is shared they ask for no gradients from here on.
        config: what to make.
        vocabulary: ids of the tokens that streams predict, in any order; None for all.

    Raises:
        UnsupportedModelError: a base that cannot be a target, or whose layers cannot be found.
        UsageError: more layers than the base has, or targets that it does not have.
    """

    kind = KIND

    def __init__(
        self, model: Any, config: StreamsConfig | None = None, vocabulary: Sequence[int] | Tensor | None = None
    ) -> None:
        super().__init__(model)
        self.config = config = config or StreamsConfig()
        must_be(isinstance(config, StreamsConfig), "config", config, "a StreamsConfig")
        if config.mode == "lossless":
            model.requires_grad_(False)
        self._layers = decoder_layers(model)
        if config.layers > len(self._layers):
            raise UsageError(f"layers is {config.layers} and the model has {len(self._layers)}; give at most that many")
        self.first = len(self._layers) - config.layers
        hidden, device = int(text_config(model).hidden_size), model.device
        self.embeddings = nn.Parameter(torch.randn(config.gamma, hidden, device=device) * 0.02)
        if config.start == "linear":
            self.from_state = nn.Parameter(torch.eye(hidden, device=device))
            self.from_token = nn.Parameter(torch.zeros(hidden, hidden, device=device))
            self.scales = nn.Parameter(torch.ones(config.gamma, hidden, device=device))
        self._linears = self._chosen(upper_linears(model, self.first))
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, linear in self._linears.items() if config.rank else ():
            inputs, outputs = sizes(linear)
            self.down[_key(name)] = nn.Parameter(torch.randn(config.rank, inputs, device=device) / inputs**0.5)
            self.up[_key(name)] = nn.Parameter(torch.zeros(outputs, config.rank, device=device))
        self.early_exit: EarlyExit | None = None
        self.chain = None
        size = len(model.get_output_embeddings().weight)
        self.register_buffer("vocabulary", drafted_tokens("vocabulary", vocabulary, size, device))
        self.details: dict[str, Any] = {}  # of a trained head: data, recipe, figures
        self._changing = list(self.parameters())  # a list: parameter dictionaries are slow to read
        self._frozen: _Frozen | None = None
        if config.pruning_rank:
            self.add_early_exit(config.pruning_rank)
        if config.chain_rank:
            self.add_chain(config.chain_rank)

    def adapter(self) -> Adapter:
        """The changes to linear layers, differentiable."""
        scale = self.config.alpha / max(1, self.config.rank)
        names = [name for name in self._linears if _key(name) in self.down]
        return Adapter({name: (self.down[_key(name)], self.up[_key(name)] * scale) for name in names})

    def final_states(self, main: MainStream, positions: Tensor, following: Tensor) -> Tensor:
        """Final, normed states of the streams of some positions, differentiable.

        Args:
            main: from ``read``.
            positions: ``[rows, count]`` int64.
            following: the token behind each of them, of the same shape.

        Returns:
            ``[rows, count, gamma, hidden]``; stream j is at ``[:, :, j - 1]``.
        """
        hidden = self.start_of(
            main.states.gather(1, positions[..., None].expand(-1, -1, main.states.shape[-1])), following
        )
        swaps = adapted(self._linears, self.adapter())
        return run_streams(self.model, self._family, self._layers, main, hidden, positions, swaps)

    def add_chain(self, rank: int) -> None:
        """Let what a stream says depend on the token drafted before it; at first it does not."""
        self.config = replace(self.config, chain_rank=rank)
        chain = Chain(self.embeddings.shape[1], rank, gated=self.config.chain_gate)
        self.chain = chain.to(self.embeddings.device)
        self._changing = list(self.parameters())

    def add_early_exit(self, rank: int) -> None:
        """Let drafts be pruned before the upper layers run; at first by the model's own head on the state as it is."""
        self.config = replace(self.config, pruning_rank=rank)
        device, hidden = self.embeddings.device, self.embeddings.shape[1]
        self.early_exit = EarlyExit(hidden, rank, FinalNorm(self.model)).to(device)
        self._changing = list(self.parameters())

    @torch.no_grad()
    def add_streams(self, gamma: int) -> None:
        """Go on with more streams than there are: each new one begins as the last of the old, a place further on."""
        if gamma < self.gamma:
            raise UsageError(f"gamma is {gamma} and these streams are {self.gamma}; give at least that many")
        more = gamma - self.gamma
        for name in ("embeddings", "scales") if self.config.start == "linear" else ("embeddings",):
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(torch.cat([old, old[-1:].expand(more, -1)])))
        self.config = replace(self.config, gamma=gamma)
        self._changing = list(self.parameters())

    def read(self, tokens: Tensor) -> MainStream:
        """The base's own pass over ``[rows, length]`` int64; with gradients only in the shared mode."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mode == "shared"):
            return read_main(self.model, tokens, self.first, len(self._layers))

    @torch.inference_mode()
    def candidates(
        self,
        target: HiddenStates,
        places: Sequence[tuple[int, int]],
        following: Sequence[int],
        count: int,
        rows: Sequence[int] | None = None,
        *,
        depth: int | None = None,
    ) -> list[Candidates]:
        """What the streams of some nodes draft.

        Args:
            target: whose last pass scored the nodes and has been committed; tapped at ``first``.
            places: for each of the rows, the row in that pass and its node there, the last one committed.
            following: the token of each that was emitted behind that node.
            count: candidates of each stream.
            rows: of its session, in increasing order; None for all.
            depth: streams to run, the first ones, 1 or more: they see none of the later ones. None, or more than there
                are, for all.

        Returns:
            For each of the rows what its streams draft, with the probabilities they give it.
        """
        states = target.states(self.first)
        at, nodes = zip(*places, strict=True)
        # In the precision of the weights: to round those takes longer than the sums.
        chosen = states[list(at), list(nodes)].float()
        frozen = self._freeze()
        started = frozen.start(chosen, torch.tensor(following, device=states.device))[:, :depth]
        hidden = started.to(states.dtype).contiguous()
        final = target.branch(hidden, self.first, frozen.adapter, rows)
        return self._candidates(final, count, frozen.token_map)

    @torch.inference_mode()
    def likelihoods(self, hidden: Tensor, trees: Sequence[TokenTree]) -> list[list[float]]:
        """What the early exit gives every drafted token after its parent.

        Args:
            hidden: what goes into the layer where streams start, at every node: ``[rows, width, hidden]``.
            trees: one per row.

        Returns:
            For every row and node a probability; 1 for the root.
        """
        assert self.early_exit is not None
        shares = self._logits(self.early_exit(hidden)).float().softmax(-1)
        found = []
        for own, tree in zip(shares, trees, strict=True):
            at = torch.tensor([max(0, parent) for parent in tree.parents], device=own.device)
            chances = own[at, self._places(torch.tensor(tree.tokens, device=own.device))].tolist()
            found.append([1.0, *chances[1:]])
        return found

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> Streams:
        """Streams that were trained for this model.

        Raises:
            ModelNotFoundError: there are none in the folder.
            HeadMismatchError: they were trained for another base.
            NumericalError: their weights hold NaN or infinity.
        """
        tensors, settings = load_head(folder, KIND, model)
        known = {field.name for field in fields(StreamsConfig)}
        given: Mapping[str, Any] = {name: value for name, value in settings["streams"].items() if name in known}
        config = StreamsConfig(**{**given, "targets": tuple(given.get("targets", ()))})
        streams = cls(model, config, tensors.pop("vocabulary", None))
        streams.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        fixed = ("kind", "base", "streams", "extra_parameters", "base_parameters")
        streams.details = {name: value for name, value in settings.items() if name not in fixed}
        return streams.requires_grad_(False)

    def start_of(self, states: Tensor, following: Tensor) -> Tensor:
        """Where streams start: ``[..., hidden]`` and the tokens behind, ``[...]`` -> ``[..., gamma, hidden]``."""
        if self.config.start == "linear":
            return self.linear_start(states, following)
        return states.unsqueeze(-2) + self.embeddings.to(states.dtype)

    def _chosen(self, linears: dict[str, Any]) -> dict[str, Any]:
        wanted = self.config.targets
        chosen = {name: each for name, each in linears.items() if not wanted or name.rpartition(".")[2] in wanted}
        if missing := [name for name in wanted if not any(each.endswith(f".{name}") for each in chosen)]:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            said = f"targets has {missing[0]!r} and the upper layers have no linear layer of that name"
            raise UsageError(f"{said}; give some of {names}")
        return chosen

    def _freeze(self) -> _Frozen:
        """The same object as long as the weights are the same: what is made of them is made once."""
        version = sum(parameter._version for parameter in self._changing)
        if self._frozen is None or self._frozen.version != version:
            changes = self.adapter().changes.items()
            adapter = Adapter({name: (a.detach(), b.detach()) for name, (a, b) in changes})
            self._frozen = _Frozen(version, adapter, self._quick_start(), self._token_map())
        return self._frozen

    def _quick_start(self) -> Callable[[Tensor, Tensor], Tensor]:
        """``start_of`` for a few rows; on our kernels the maps are read in bytes, and in one product."""
        if self.config.start != "linear" or not self._in_bytes():
            return self.start_of
        maps = torch.cat([self.from_state, self.from_token], 1).detach()
        product = quantized.linear(quantized.quantize(maps), None)

        def start(states: Tensor, following: Tensor) -> Tensor:
            return self._started(product(torch.cat([unit(states), self.token_states(following)], -1)))

        return start

    def _places(self, tokens: Tensor) -> Tensor:
        """Where tokens stand in the streams' vocabulary, 0 if they do not."""
        if self.vocabulary is None:
            return tokens
        return (tokens[:, None] == self.vocabulary).int().argmax(1)


def _key(name: str) -> str:
    """Of a parameter dictionary, which takes no dots."""
    return name.replace(".", "/")
