"""A tiny random model and a tokenizer that need no download."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = [
    "the cat sat on the mat and the dog sat on the cat",
    "one two three four five six seven eight nine ten",
    "a ünïcode line with € and 日本語 and emoji 🙂 in it",
    "def add(a, b):\n    return a + b\n",
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over a handful of lines: one character may span several tokens, as in real ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(
    seed: int = 0, noise: float = 0.0, vocab_size: int = 300, context: int = 512, **more: Any
) -> LlamaForCausalLM:
    """A random Llama whose greedy text varies. With ``noise`` it agrees with the noiseless one only partly."""
    config = LlamaConfig(
        **{"hidden_size": 48, "intermediate_size": 96, **more},
        vocab_size=vocab_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        if noise:
            torch.manual_seed(seed + 1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(noise * torch.randn_like(parameter))
    model.generation_config.eos_token_id = 0
    model.generation_config.pad_token_id = 1
    return model
