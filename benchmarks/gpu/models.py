"""Models to measure with: real weights from a folder, or random ones of the same shape, made on the device."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from benchmarks.gpu.options import Options
from benchmarks.prompts import CHATS
from specstream.config import GenerationConfig
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.engine.generation import Generation, Parts
from specstream.models.hub.catalog import catalog
from specstream.models.hub.convert import gguf_to_folder
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target.hf import HuggingFaceTarget

NAMES = ("smollm2", "1.5b")
_untyped: Any = hf
QUIET, SPOILED = 0.1, 0.2
"""What the layers of a random model above its first quarter add, in comparison, and the share of tokens that its draft
takes for others."""

_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_SMOLLM2 = {
    **_ENDS,
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_LARGE = {
    **_ENDS,
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
_TINY = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
_TINY_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def as_folder(given: str | None, output: Path) -> str | None:
    """A folder as it is; of SmolLM2's GGUF file, what ``specstream models pull`` makes of it, in the output."""
    if given is None or not given.endswith(".gguf"):
        return given
    folder = output / Path(given).stem
    if not folder.exists():
        made = output / f".{folder.name}"
        made.mkdir(parents=True, exist_ok=True)
        gguf_to_folder(Path(given), made, catalog()["smollm2-135m"])
        made.rename(folder)
    return str(folder)


@cache
def load(name: str, options: Options, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model in eval mode on the device; it never ends by itself."""
    folder, kinds = options.smollm2 if name == "smollm2" else options.large, _untyped
    if folder is not None:
        model = kinds.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(options.device)
        model.generation_config = kinds.GenerationConfig(pad_token_id=0)
        return model.eval()
    small = {**_TINY, **_TINY_HEADS} if options.tiny else {}
    kind: Any
    kind, shape = (hf.LlamaConfig, _SMOLLM2) if name == "smollm2" else (hf.Qwen2Config, _LARGE)
    torch.manual_seed(0)
    with torch.device(options.device):
        model = kinds.AutoModelForCausalLM.from_config(kind(**{**shape, **small}), dtype=dtype).eval()
    with torch.no_grad():
        for layer in model.model.layers[quarter(model) :]:
            layer.self_attn.o_proj.weight.mul_(QUIET)
            layer.mlp.down_proj.weight.mul_(QUIET)
        _decide(model)
    return model


def _decide(model: Any) -> None:
    """Let a token decide the next by a wide margin: where margins are narrow, roundings change a random model's text,
    and an oracle of it has nothing to say from there on."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding.normal_()
    head[torch.randperm(len(head), device=head.device)] = embedding * 0.02


def quarter(model: Any) -> int:
    """How many layers the first quarter has."""
    return max(1, int(model.config.num_hidden_layers) // 4)


@cache
def draft_of(model: Any) -> Any:
    """A draft: the model's own first quarter of layers, its norm and its head, in which some tokens are mixed up."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = quarter(model)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    with torch.device(model.device):
        draft = _untyped.AutoModelForCausalLM.from_config(config, dtype=model.dtype).eval()
    draft.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        head = draft.get_output_embeddings().weight
        wrong = torch.randperm(len(head), device=head.device)[: int(SPOILED * len(head))]
        head[wrong] = head[wrong.roll(1)]
    return draft


def prompts_for(name: str, options: Options, rows: int, length: int) -> list[list[int]]:
    """Prompts of one length, so that nobody pads: random tokens, or text where the weights are real."""
    folder = options.smollm2 if name == "smollm2" else options.large
    if folder is None:
        chance = torch.Generator().manual_seed(1)
        tokens = torch.randint(2, load(name, options).config.vocab_size, (rows, length), generator=chance)
        found: list[list[int]] = tokens.tolist()
        return found
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    texts = [" ".join([*CHATS[at % len(CHATS) :], *CHATS, *CHATS]) for at in range(rows)]
    return [tokenizer(text)["input_ids"][at // len(CHATS) :][:length] for at, text in enumerate(texts)]


def target_of(model: Any, runtime: str, *, exact: bool = True) -> HuggingFaceTarget:
    name: RuntimeName = runtime  # type: ignore[assignment]
    return HuggingFaceTarget(model, runtime=name, exact=exact)


def parts_of(target: HuggingFaceTarget, drafter: Drafter, speculation: Speculation) -> Parts:
    return Parts(target=target, drafter=drafter, tokenizer=None, eos_token_ids=frozenset(), speculation=speculation)


def begin(
    target: HuggingFaceTarget, drafter: Drafter, prompts: list[list[int]], count: int, speculation: Speculation
) -> Generation:
    """Greedy decoding of a batch to ``count`` tokens each, still to be run."""
    return Generation(parts_of(target, drafter, speculation), prompts, GenerationConfig(max_new_tokens=count))


def reference(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What transformers' own ``generate`` says; the prompts are of one length."""
    ids = torch.tensor(prompts, device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return tokens
