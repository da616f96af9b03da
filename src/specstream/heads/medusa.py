"""Medusa-1 heads: each looks one token further ahead than the one before, from the target's last hidden state.

After Cai et al., "Medusa: simple LLM inference acceleration framework with multiple decoding heads" (arXiv 2401.10774).
Head k predicts the token k + 1 places on, where the language-model head predicts the next: a residual block of its own,
which begins as the identity, before an output matrix of its own, which begins as a copy of the target's. The target is
frozen and its output untouched.

A folder of heads is what vLLM loads: ``model.safetensors`` with ``blocks.I.layers.J.weight`` and ``lm_heads.I.weight``,
and ``config.json``, in which ours is under ``specstream``. With a truncated vocabulary ``token_map`` says which tokens
the rows of ``lm_heads`` are; vLLM 0.32 cannot load that together with output matrices for each head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from specstream.errors import UsageError, count_of, must_be, one_line
from specstream.heads.folder import TrainedHead, check_base, describe_base, drafted_tokens, located, save_head
from specstream.models.architecture.compat import text_config
from specstream.models.architecture.families import require_model
from specstream.models.hub.load import pick_dtype

WEIGHTS, CONFIG = "model.safetensors", "config.json"

DECAY = 0.8
"""The loss of head k counts ``DECAY ** k``."""

NOT_DRAFTED = -100
"""Stands for a token that a truncated vocabulary does not have; cross-entropy ignores it."""


class ResidualBlock(nn.Module):
    """``x + SiLU(linear(x))``, once for each layer; the identity before training."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(num_layers))
        for layer in self.layers:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        return x


class MedusaHeads(TrainedHead):
    """Heads of one model.

    Args:
        model: a transformers causal language model, the base; it is neither changed nor part of this module.
        num_heads: how many tokens are drafted beyond the next.
        num_layers: layers of each residual block.
        token_map: ids of the tokens that are drafted at all, the most frequent ones; None for the whole vocabulary.
        dtype: of the heads, or its name; float32 to train them, ``auto`` is the base's.

    Attributes:
        layer: what the heads read, as ``HiddenStates.tap`` counts: what goes into the language-model head.
        rates: ``rates[k - 1][rank]``: how often head k's candidate of that rank was right; empty if nobody measured.
        record: data, recipe and figures, as saved; plain values.
    """

    token_map: Tensor | None

    def __init__(
        self,
        model: Any,
        *,
        num_heads: int = 4,
        num_layers: int = 1,
        token_map: Sequence[int] | Tensor | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model)
        num_heads, num_layers = count_of("num_heads", num_heads), count_of("num_layers", num_layers)
        output: Any = model.get_output_embeddings()
        self.vocab_size, hidden_size = output.weight.shape
        mapped = drafted_tokens("token_map", token_map, self.vocab_size, model.device)
        self.register_buffer("token_map", mapped)
        weight = output.weight.detach() if mapped is None else output.weight.detach()[mapped]
        self.blocks = nn.ModuleList(ResidualBlock(hidden_size, num_layers) for _ in range(num_heads))
        self.lm_heads = nn.ModuleList(nn.Linear(hidden_size, len(weight), bias=False) for _ in range(num_heads))
        with torch.no_grad():
            for head in self.lm_heads:
                head.weight.copy_(weight)  # type: ignore[operator]
        self.to(device=model.device, dtype=pick_dtype(dtype) or model.dtype)
        self.layer = int(text_config(model).num_hidden_layers)
        self.rates: list[list[float]] = []
        self.record: dict[str, Any] = {}

    @property
    def depth(self) -> int:
        """How many heads there are."""
        return len(self.blocks)

    def logits(self, states: Tensor, head: int) -> Tensor:
        """Of head ``head``, from 0: ``[..., hidden]`` -> ``[..., vocab]`` of the tokens that are drafted.

        Raises:
            UsageError: there is no such head, or the states are of another width.
        """
        must_be(0 <= count_of("head", head, 0) < self.depth, "head", head, f"a whole number below {self.depth}")
        width = self._output.in_features
        if states.shape[-1:] != (width,):
            raise UsageError(f"states are {list(states.shape)}; give [..., {width}], of states_of(tokens)")
        result: Tensor = self.lm_heads[head](self.blocks[head](states))
        return result

    @property
    def _output(self) -> nn.Linear:
        output = self.lm_heads[0]
        assert isinstance(output, nn.Linear)
        return output

    @torch.inference_mode()
    def draft(self, states: Tensor, depth: int, ranks: int) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of the first ``depth`` heads.

        Args:
            states: ``[n, hidden]``, what went into the language-model head at the last accepted node.
            depth: heads to ask.
            ranks: tokens of each.

        Returns:
            ``[n, depth, ranks]`` int64, the likeliest first, and their probabilities in float32; fewer ranks if no more
            tokens are drafted.

        Raises:
            UsageError: more heads than there are, or states of another width.
        """
        must_be(count_of("depth", depth) <= self.depth, "depth", depth, f"a whole number from 1 to {self.depth}")
        ranks = count_of("ranks", ranks)
        states = states.to(self._output.weight.dtype)
        logits = torch.stack([self.logits(states, head) for head in range(depth)], 1)
        chances, chosen = logits.float().softmax(-1).topk(min(ranks, self._output.out_features), -1)
        return chosen if self.token_map is None else self.token_map[chosen], chances

    @torch.no_grad()
    def states_of(self, tokens: Tensor) -> Tensor:
        """What goes into the language-model head of the frozen base: ``[rows, width]`` -> ``[rows, width, hidden]``."""
        output: Tensor = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return output

    def loss_of(self, states: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the heads of ``DECAY ** k`` times the mean cross-entropy of head k.

        Args:
            states: ``[rows, width, hidden]`` of ``states_of``.
            tokens: ``[rows, width]`` int64, padded on the right.
            mask: ``[rows, width]`` bool: which of them are to be predicted.

        Returns:
            The total, and each head's own mean as ``head_1``, ``head_2``, ...; 0 where nothing is to be predicted.
        """
        total, parts = states.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
        for head in range(self.depth):
            own, wanted = self._pairs(states, tokens, mask, head)
            losses = functional.cross_entropy(self.logits(own, head).float(), wanted, reduction="sum")
            mean = losses / (wanted != NOT_DRAFTED).sum().clamp_min(1)
            total = total + DECAY ** (head + 1) * mean
            parts[f"head_{head + 1}"] = mean.detach()
        return total, parts

    @torch.no_grad()
    def ranks(self, states: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Where the true tokens stood among each head's candidates, where all of them are to be predicted.

        Returns:
            ``[positions, heads]`` int64, 0 the likeliest; the vocabulary's size for a token that is not drafted.
        """
        reach = self.depth + 1
        rows = max(0, tokens.shape[1] - reach)
        every = torch.stack([mask[:, head + 2 : head + 2 + rows] for head in range(self.depth)]).all(0)
        ranks = []
        for head in range(self.depth):
            wanted = self._indices(tokens[:, head + 2 : head + 2 + rows][every])
            logits = self.logits(states[:, :rows][every].to(self._output.weight.dtype), head)
            own = logits.gather(1, wanted.clamp_min(0)[:, None])
            ranks.append((logits > own).sum(1).masked_fill(wanted == NOT_DRAFTED, self.vocab_size))
        return torch.stack(ranks, 1)

    def save(self, folder: str | Path) -> None:
        """Write the heads in the base's dtype; a reader finds them whole or as they were."""
        tensors = {name: weight.detach().to("cpu", self.model.dtype) for name, weight in self.named_parameters()}
        if self.token_map is not None:
            tensors["token_map"] = self.token_map
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "num_heads": self.depth,
            "num_hidden_layers": len(self.blocks[0].layers),  # type: ignore[arg-type]
            "hidden_size": self._output.in_features,
            "vocab_size": self.vocab_size,
            "truncated_vocab_size": self._output.out_features,
            "specstream": {
                "base": describe_base(self.model),
                "rates": self.rates,
                "record": self.record,
            },
        }
        save_head(folder, tensors, config, weights=WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> MedusaHeads:
        """Heads that were saved, in the dtype of their base.

        Args:
            folder: where.
            model: their base.

        Raises:
            UsageError: no heads there, or not whole.
            HeadMismatchError: heads of another base.
        """
        path = located(folder, "Medusa heads, and the model behind it")
        require_model(model)
        config, tensors = read_heads(path)
        ours = config.get("specstream", {})
        if (base := ours.get("base")) is not None:  # heads of other makers do not say
            check_base("Medusa heads", folder, base, model)
        try:
            heads = cls(
                model,
                num_heads=config["num_heads"],
                num_layers=config["num_hidden_layers"],
                token_map=tensors.pop("token_map", None),
                dtype=model.dtype,
            )
            heads.load_state_dict(tensors, strict=False)
            missing = set(dict(heads.named_parameters())) ^ set(tensors)
        except (KeyError, IndexError, RuntimeError) as error:
            raise UsageError(
                f"{folder} holds no Medusa heads for {describe_base(model)['name']}: {one_line(error)}"
            ) from error
        if missing:
            raise UsageError(f"{folder} holds other weights than its config says: {min(missing)}; fetch it again")
        heads.rates, heads.record = ours.get("rates", []), ours.get("record", {})
        return heads

    def _pairs(self, states: Tensor, tokens: Tensor, mask: Tensor, head: int) -> tuple[Tensor, Tensor]:
        """The states ``[n, hidden]`` that head ``head`` predicts from, and what ``[n]``."""
        ahead = head + 2
        wanted = mask[:, ahead:]
        own = states[:, : max(0, states.shape[1] - ahead)][wanted]
        return own.to(self._output.weight.dtype), self._indices(tokens[:, ahead:][wanted])

    def _indices(self, tokens: Tensor) -> Tensor:
        """Tokens as rows of the output matrices."""
        if self.token_map is None:
            return tokens
        index = torch.full((self.vocab_size,), NOT_DRAFTED, device=tokens.device)
        index[self.token_map] = torch.arange(len(self.token_map), device=tokens.device)
        return index[tokens]


def read_heads(folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a folder of Medusa heads, on the CPU.

    Raises:
        UsageError: no heads there.
    """
    try:
        config: Mapping[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("kind", config.get("model_type"))
        tensors = load_file(folder / WEIGHTS) if kind == "medusa" else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"heads in {str(folder)!r} cannot be read ({one_line(error)}); give a folder of heads"
        ) from error
    if kind != "medusa":
        raise UsageError(f"heads in {str(folder)!r} are {kind!r}, not 'medusa'; give Medusa heads")
    return config, tensors
