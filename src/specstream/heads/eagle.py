"""An EAGLE-3 head: one decoder layer drafts token by token, from states of three of the target's.

After Li et al., "EAGLE-3" (arXiv 2503.01840). What goes into some of the target's layers (the taps) at a position is
made one state by ``fc``. The layer reads it beside the embedding of the token behind the position, sees all positions
before, and its output says the token after that. Drafting goes on with that output in place of the target's states.
Folders: ``published.py``; the authors call the layer ``midlayer``. What is trained here is saved as speculators lays it
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specstream.errors import UnsupportedModelError, UsageError
from specstream.heads.folder import check_base, describe_base, save_head
from specstream.heads.parallel import layer_sizes
from specstream.heads.published import (
    GAMMA,
    LINEARS,
    Memory,
    PublishedHead,
    depth_of,
    read_weights,
    settings_of,
)
from specstream.models.architecture.compat import rope_theta_of, text_config
from specstream.models.architecture.hidden_states import decoder_layers

KIND = "eagle3"

NORMS = {
    "token_norm": "input_layernorm",
    "state_norm": "hidden_norm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm?",
    "key_norm": "self_attn.k_norm?",
}

WEIGHTS = "model.safetensors"

NOISE = 0.02
"""Size of fresh weights: transformers' own."""

_LAYER = "layers.0"


class EagleHead(PublishedHead):
    """The head; see ``PublishedHead`` for the errors.

    Args:
        model: its base.
        settings: of its folder, in either layout.
        weights: likewise.

    Attributes:
        gamma: the deepest draft.
        details: of a head that was trained here: data, recipe, figures, and how often the candidate of each rank was
            right at each depth, ``rates[depth - 1][rank]``.
    """

    kind = KIND

    def __init__(self, model: Any, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self._before, self._normed = bool(settings.get("norm_before_residual")), bool(settings.get("norm_output"))
        written = settings.get("eagle_config") or {}
        taps = settings.get("eagle_aux_hidden_state_layer_ids") or written.get("eagle_aux_hidden_state_layer_ids")
        inner = settings.get("transformer_layer_config", settings)
        super().__init__(model, weights, taps or usual_taps(model), inner, NORMS)
        self.gamma = depth_of(settings, GAMMA)
        ours = settings.get("specstream", {})
        self.details = {name: value for name, value in ours.items() if name not in ("base", "own_embeddings")}
        self._settings = settings

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> EagleHead:
        """The head in a folder, for this model.

        Raises:
            ModelNotFoundError: there is no such head, or it cannot be read.
            UnsupportedModelError: a head with parts that are not read.
            HeadMismatchError: it was trained here for another base.
            NumericalError: its weights hold NaN or infinity.
        """
        settings, inner = settings_of(folder, KIND, ("fc_norm",))
        if (count := int(inner.get("num_hidden_layers", 1))) != 1:
            raise UnsupportedModelError(f"the head in {str(folder)!r} has {count} layers; give one of one layer")
        ours, weights = settings.get("specstream", {}), read_weights(folder)
        if (base := ours.get("base")) is not None:  # heads of other makers do not say
            check_base("EAGLE-3 head", folder, base, model)
        if not ours.get("own_embeddings", True):
            weights.pop("embed_tokens.weight", None)
        return cls(model, settings, weights)

    @classmethod
    def fresh(cls, model: Any, taps: Sequence[int], gamma: int, vocabulary: Tensor | None) -> EagleHead:
        """A head to be trained, in float32.

        ``fc`` takes the last tap as it is, and output and final norm are the model's, so that all states are in its
        own basis; the layer between them is noise.

        Args:
            model: its base.
            taps: the model's layers whose inputs are read, from 0; none for the usual ones.
            gamma: the deepest draft.
            vocabulary: ids of the tokens that are drafted, rising, ``[n]`` int64; None for all.

        Raises:
            UsageError: a tap that the model does not have, or one twice.
            UnsupportedModelError: a base whose embeddings are not of its states' size.
        """
        layers = len(decoder_layers(model))
        taps = tuple(taps) or sorted({min(max(tap, 0), layers - 1) for tap in usual_taps(model)})
        hidden, embedding = int(text_config(model).hidden_size), model.get_input_embeddings().weight
        if not set(taps) <= set(range(layers)) or len(set(taps)) < len(taps):
            raise UsageError(f"taps is {list(taps)} and the model has layers 0 to {layers - 1}; give some, each once")
        if embedding.shape[1] != hidden:
            raise UnsupportedModelError(
                f"{model.config.model_type} has embeddings of {embedding.shape[1]} and states of {hidden}, which an "
                "EAGLE-3 head reads side by side; give another model"
            )
        (heads, kv_heads, dim, inner), output = layer_sizes(model), model.get_output_embeddings().weight.detach()
        shapes = {
            f"{_LAYER}.self_attn.q_proj": (heads * dim, 2 * hidden),
            f"{_LAYER}.self_attn.k_proj": (kv_heads * dim, 2 * hidden),
            f"{_LAYER}.self_attn.v_proj": (kv_heads * dim, 2 * hidden),
            f"{_LAYER}.self_attn.o_proj": (hidden, heads * dim),
            f"{_LAYER}.mlp.gate_proj": (inner, hidden),
            f"{_LAYER}.mlp.up_proj": (inner, hidden),
            f"{_LAYER}.mlp.down_proj": (hidden, inner),
        }
        weights = {f"{name}.weight": NOISE * torch.randn(shape) for name, shape in shapes.items()}
        weights["fc.weight"] = torch.eye(len(taps) * hidden)[-hidden:]
        weights |= {f"{_LAYER}.{name}.weight": torch.ones(hidden) for name in NORMS.values() if not name.endswith("?")}
        final = getattr(getattr(model.base_model, "norm", None), "weight", None)
        weights["norm.weight"] = torch.ones(hidden) if final is None or final.shape != (hidden,) else final.detach()
        drafted = torch.arange(len(output)) if vocabulary is None else vocabulary.cpu()
        weights["lm_head.weight"] = output[drafted.to(output.device)]
        weights["d2t"] = drafted - torch.arange(len(drafted))
        settings = _settings_of(model, taps, gamma, len(drafted))
        return cls(model, settings, {name: each.clone() for name, each in weights.items()}).float()

    def save(self, folder: str | Path) -> None:
        """Write a folder as speculators lays it out, weights in bfloat16.

        The model's embeddings go along where it has none of its own: speculators does not take them from the model.

        Raises:
            UsageError: a folder that cannot be, or holds something else.
        """
        layer = {**LINEARS, **{name: theirs.removesuffix("?") for name, theirs in NORMS.items()}}
        modules = {f"{_LAYER}.{theirs}": getattr(self.layers[0], name, None) for name, theirs in layer.items()}
        modules |= {"fc": self.combine, "norm": self.final_norm, "lm_head": self.own_head}
        modules["input_norm"] = getattr(self, "taps_norm", None)
        tensors = {
            f"{name}.{part}": tensor.to(torch.bfloat16)
            for name, module in modules.items()
            if module is not None
            for part, tensor in module.named_parameters()
        }
        own, table = self.embeddings, self.model.get_input_embeddings().weight
        tensors["embed_tokens.weight"] = (table if own is None else own).to(torch.bfloat16)
        size = len(table)
        if len(drafted := self.vocabulary.cpu()) < size:
            tensors["d2t"] = drafted - torch.arange(len(drafted))
            tensors["t2d"] = torch.isin(torch.arange(size), drafted)
        ours = {"base": describe_base(self.model), "own_embeddings": own is not None, **self.details}
        save_head(folder, tensors, {**self._settings, "specstream": ours}, weights=WEIGHTS)

    def take_rest(self, left: dict[str, Tensor]) -> None:
        self._take_norm(self, "taps_norm", left, "input_norm?")

    def combined(self, states: Tensor) -> Tensor:
        """One state of those at the taps: ``[n, taps, hidden]`` -> ``[n, width]``, float32."""
        joined, norm = states.float().flatten(1), getattr(self, "taps_norm", None)
        return self.run(self.combine, joined if norm is None else norm(joined))

    def step(self, hidden: Tensor, tokens: Tensor, positions: Tensor, memories: Sequence[tuple[Memory, int]]) -> Tensor:
        """The layer over nodes of several rows, one row behind the other.

        Args:
            hidden: of each node, ``combined`` or what ``fed_back`` makes of an output: ``[n, width]``.
            tokens: the token behind each, ``[n]`` int64.
            positions: ``[n]`` int64.
            memories: of each row, and how many of the nodes are its; they are appended.

        Returns:
            Outputs ``[n, width]``, not normed.
        """
        residual, query, key, value = self.queried(hidden, tokens, positions)
        counts, seen = [count for _, count in memories], list[Tensor]()
        parts = zip(memories, *(torch.split(each, counts) for each in (query, key, value)), strict=True)
        for (memory, _), *own in parts:
            memory.append(*own[1:])
            seen.append(memory.attend(own[0], causal=True))
        return self.finished(residual, torch.cat(seen))

    def queried(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The layer up to its attention, over nodes as ``step`` takes them.

        Returns:
            What the attention's output is added to, ``[n, width]``, and queries, keys and values, ``[n, heads, dim]``.
        """
        layer: Any = self.layers[0]
        normed = layer.state_norm(hidden)
        x = torch.cat([layer.token_norm(self.embedded(tokens)), normed], -1)
        query, key, value = (self.parted(self.run(each, x)) for each in (layer.query, layer.key, layer.value))
        query, key = (
            self.turned(layer.norm(name, each), positions) for name, each in (("query_norm", query), ("key_norm", key))
        )
        return normed if self._before else hidden, query, key, value

    def finished(self, residual: Tensor, seen: Tensor) -> Tensor:
        """The layer from its attention on: ``[n, width]`` and ``[n, heads * dim]`` -> outputs ``[n, width]``."""
        layer: Any = self.layers[0]
        hidden = residual + self.run(layer.output, seen)
        return hidden + self.mlp(layer, layer.mlp_norm(hidden))

    def logits(self, output: Tensor) -> Tensor:
        """Over the tokens of ``vocabulary``: ``[n, width]`` -> ``[n, drafted]``, float32."""
        return self.logits_of(output)

    def fed_back(self, output: Tensor) -> Tensor:
        """What the next step reads in place of the target's states."""
        fed: Tensor = self.final_norm(output) if self._normed else output
        return fed


def usual_taps(model: Any) -> tuple[int, ...]:
    """The authors' choice, and vLLM's where a folder names none."""
    layers = len(decoder_layers(model))
    return 2, layers // 2, layers - 3


def _settings_of(model: Any, taps: Sequence[int], gamma: int, drafted: int) -> dict[str, Any]:
    """What speculators writes of a head with a layer of the Llama kind, of the model's sizes."""
    text, (heads, kv_heads, dim, inner) = text_config(model), layer_sizes(model)
    return {
        "speculators_model_type": KIND,
        "architectures": ["Eagle3DraftModel"],
        "draft_vocab_size": drafted,
        "norm_before_residual": True,
        "eagle_aux_hidden_state_layer_ids": list(taps),
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "speculators_config": {
            "algorithm": KIND,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": gamma}],
            "verifier": {
                "name_or_path": model.config.name_or_path or None,
                "architectures": model.config.architectures or [type(model).__name__],
            },
        },
        "transformer_layer_config": {
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": len(model.get_input_embeddings().weight),
            "hidden_size": int(text.hidden_size),
            "intermediate_size": inner,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": dim,
            "rms_norm_eps": float(getattr(text, "rms_norm_eps", None) or 1e-5),
            "max_position_embeddings": int(getattr(text, "max_position_embeddings", None) or 2048),
            "rope_theta": rope_theta_of(text),
            "tie_word_embeddings": False,
        },
    }
