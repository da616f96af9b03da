"""A model that is changed, or used by others, while an engine has it: the text is that of the model as it is now."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

import peft
import pytest
import torch
from transformers.models.llama import modeling_llama

from specstream import SpeculativeEngine, custom_generate
from specstream.errors import UnsupportedModelError, UsageError
from tests.lossless.families import build, prompt

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:the runtime native does not fit"),  # a patch that calls the model's own parts
]

IDS, MORE = prompt(9), 24
KINDS = [("llama", "auto"), ("gpt2", "auto"), ("llama", "packed"), ("gpt2", "packed"), ("llama", "eager")]


class Numbers:
    """A tokenizer of texts that are token ids already."""

    eos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def own_text(model: Any, ids: list[int] = IDS, **settings: Any) -> list[int]:
    given = torch.tensor([ids])
    settings |= {"attention_mask": torch.ones_like(given), "max_new_tokens": MORE, "do_sample": False}
    found = model.generate(given, **settings)
    return found[0, len(ids) :].tolist()


def text(ids: list[int] = IDS) -> str:
    return " ".join(map(str, ids))


def layers(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def attention(model: Any) -> Any:
    layer = layers(model)[0]
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


def output(model: Any) -> Any:
    module = attention(model)
    return module.c_proj if hasattr(module, "c_proj") else module.o_proj


def first_norm(model: Any) -> Any:
    layer = layers(model)[0]
    return layer.ln_1 if hasattr(layer, "ln_1") else layer.input_layernorm


def weights(model: Any) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.ndim == 2]


def noise(weight: torch.Tensor) -> torch.Tensor:
    return weight + weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(
        weight.dtype
    )


def wrapped(model: Any) -> Any:
    other_way = hasattr(model, "transformer")
    names = ["c_attn", "c_proj"] if other_way else ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(
        r=4, lora_alpha=64, target_modules=names, init_lora_weights=False, fan_in_fan_out=other_way
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return peft.get_peft_model(model, settings)


@torch.no_grad()
def in_place(model: Any) -> None:
    for weight in weights(model):
        weight.copy_(noise(weight))


def through_data(model: Any) -> None:
    for weight in weights(model):
        weight.data += noise(weight.data) - weight.data


def other_data(model: Any) -> None:
    for weight in weights(model):
        weight.data = noise(weight.data)


def loaded(model: Any) -> None:
    model.load_state_dict({name: noise(weight) for name, weight in model.state_dict().items()})


def assigned(model: Any) -> None:
    model.load_state_dict({name: noise(weight) for name, weight in model.state_dict().items()}, assign=True)


def other_module(model: Any) -> None:
    old = output(model)
    layer = type(old)(*old.weight.shape) if type(old).__name__ == "Conv1D" else torch.nn.Linear(*old.weight.shape[::-1])
    parent = attention(model)
    setattr(parent, "c_proj" if hasattr(parent, "c_proj") else "o_proj", layer.requires_grad_(False))


def hooked(part: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        def scale(module: Any, given: Any, made: Any) -> Any:
            return (made[0] * -2, *made[1:]) if isinstance(made, tuple) else made * -2

        part(model).register_forward_hook(scale)

    return change


def patched(model: Any) -> None:
    """As Liger patches a single model: a bound method in the place of the forward."""
    module = first_norm(model)
    module.forward = MethodType(lambda self, x: type(self).forward(self, x).roll(1, -1), module)


def patched_layer(model: Any) -> None:
    layer = layers(model)[0]
    layer.forward = lambda *given, **named: type(layer).forward(layer, *given, **named) * -1


def attribute(model: Any) -> None:
    attention(model).scaling *= 8


CHANGES: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "get_peft_model": wrapped,
    "merge_adapter": lambda model: wrapped(model).merge_adapter(),
    "merge_adapter safely": lambda model: wrapped(model).merge_adapter(safe_merge=True),
    "merge_and_unload": lambda model: wrapped(model).merge_and_unload(),
    "in place": in_place,
    "through data": through_data,
    "other data": other_data,
    "load_state_dict": loaded,
    "load_state_dict assigned": assigned,
    "another module": other_module,
    "hook on attention": hooked(attention),
    "hook on mlp": hooked(lambda model: layers(model)[0].mlp),
    "hook on output": hooked(output),
    "hook on norm": hooked(first_norm),
    "hook on layer": hooked(lambda model: layers(model)[0]),
    "patched forward": patched,
    "patched layer": patched_layer,
    "attribute": attribute,
}


@pytest.mark.parametrize(("family", "runtime"), KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_text_is_that_of_the_model_as_it_is(family: str, runtime: Any, change: str) -> None:
    model = build.__wrapped__(family)
    engine = SpeculativeEngine(model, Numbers(), runtime=runtime if change != "half" else "auto", exact="rounding")
    called = custom_generate(runtime=engine.config.runtime, exact="rounding")
    before = own_text(model)
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == before
    assert own_text(model, custom_generate=called) == before
    CHANGES[change](model)
    changed = own_text(model)
    if change in ("half", "bfloat16"):  # transformers' own passes may part from ours in the last bits
        fresh = SpeculativeEngine(model, Numbers(), runtime=engine.config.runtime, exact="rounding")
        changed = fresh.generate(text(), max_new_tokens=MORE).token_ids
    else:
        assert changed != before, "the change shows"
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == changed
    assert own_text(model, custom_generate=called) == changed


def test_an_adapter_that_is_turned_off_is_off() -> None:
    model = build.__wrapped__("llama")
    tuned = wrapped(model)
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    on = own_text(model)
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == on
    with tuned.disable_adapter():
        off = own_text(model)
        assert off != on
        assert engine.generate(text(), max_new_tokens=MORE).token_ids == off
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == on


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_in_training_is_refused_until_it_is_not(family: str) -> None:
    model = build.__wrapped__(family)
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    before = engine.generate(text(), max_new_tokens=MORE).token_ids
    model.train()
    with pytest.raises(UnsupportedModelError, match=r"call model\.eval"):
        engine.generate(text(), max_new_tokens=MORE)
    model.eval()
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == before


def test_dropout_in_one_module_is_refused() -> None:
    model = build.__wrapped__("gpt2")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    model.transformer.h[1].mlp.train()
    with pytest.raises(UnsupportedModelError, match=r"call model\.eval"):
        engine.generate(text(), max_new_tokens=MORE)


def test_a_new_end_of_text_ends_the_next_text() -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    before = engine.generate(text(), max_new_tokens=MORE).token_ids
    model.generation_config.eos_token_id = before[5]
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == before[: before.index(before[5]) + 1]


def test_the_attention_that_the_user_sets_stays() -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    engine.generate(text(), max_new_tokens=4)
    stream = iter(engine.stream(text(), max_new_tokens=4))
    next(stream)
    model.set_attn_implementation("eager")
    list(stream)
    assert model.config._attn_implementation == "eager"
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == own_text(model)


@pytest.mark.parametrize("change", ["half", "get_peft_model", "hook on attention"])
def test_a_change_between_two_pieces_of_a_stream_ends_it_in_words_or_is_not_seen(change: str) -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    before = engine.generate(text(), max_new_tokens=MORE).token_ids
    pieces = engine.stream(text(), max_new_tokens=MORE)
    begun = iter(pieces)
    next(begun)
    CHANGES[change](model)
    if change == "half":
        with pytest.raises(UsageError, match="the model was changed while it generated"):
            list(begun)
    else:
        list(begun)
        assert pieces._generation.rows[0].emitted == before
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == own_text(model)


def test_a_stream_that_another_generation_found_changed_ends_in_words() -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    begun = iter(engine.stream(text(), max_new_tokens=MORE))
    next(begun)
    other_data(model)
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == own_text(model)
    with pytest.raises(UsageError, match="the model was changed while it generated"):
        list(begun)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("draft", [None, "self:int8"])
def test_threads_share_an_engine_and_the_user_has_the_model_beside_them(family: str, draft: str | None) -> None:
    model = build.__wrapped__(family)
    engine = SpeculativeEngine(model, Numbers(), draft)
    prompts = [prompt(length, seed=length) for length in range(5, 17)]
    expected = [own_text(model, ids) for ids in prompts]

    def ours(ids: list[int]) -> list[int]:
        return engine.generate(text(ids), max_new_tokens=MORE).token_ids

    def users(ids: list[int]) -> list[int]:
        return own_text(model, ids)

    with ThreadPoolExecutor(5) as threads:
        found = [(threads.submit(ours, ids), threads.submit(users, ids)) for ids in prompts]
        pairs = [(ours.result(), users.result()) for ours, users in found]
    assert pairs == [(each, each) for each in expected]


@pytest.mark.parametrize("draft", [None, "self:int8"])
def test_batches_of_several_threads_share_an_engine(draft: str | None) -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), draft)
    batches = [[prompt(length, seed=length) for length in range(5, 5 + rows)] for rows in (1, 2, 3, 4)] * 6
    expected = {rows: [own_text(model, ids) for ids in batches[rows - 1]] for rows in (1, 2, 3, 4)}

    def ours(batch: list[list[int]]) -> list[list[int]]:
        return [each.token_ids for each in engine.generate([text(ids) for ids in batch], max_new_tokens=MORE)]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ours, batches)) == [expected[len(batch)] for batch in batches]


def test_a_class_that_is_patched_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Liger patches a family: the forward of a class, or a function of its file."""
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    plain = own_text(model)
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == plain
    norm, rotate = modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb
    for where, name, patch in [
        (modeling_llama.LlamaRMSNorm, "forward", lambda self, x: norm(self, x) * 1.5),
        (modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: rotate(q, k, cos, -sin)),
        (modeling_llama.LlamaDecoderLayer, "forward", lambda self, x, **named: x),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(where, name, patch)
            changed = own_text(model)
            assert changed != plain
            assert engine.generate(text(), max_new_tokens=MORE).token_ids == changed
            fresh = SpeculativeEngine(model, Numbers(), exact="rounding")
            assert fresh.generate(text(), max_new_tokens=MORE).token_ids == changed
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == plain
