"""A model that is changed, or used by others, while an engine has it: the text is that of the model as it is now."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

import peft
import pytest
import torch
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama

from specstream import SpeculativeEngine, custom_generate
from specstream.errors import UnsupportedModelError, UsageError
from specstream.models.architecture.view import view_of
from specstream.models.runtime.capabilities import capabilities
from tests.lossless.families import build, generated, prompt
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:the runtime native does not fit"),  # a patch that calls the model's own parts
]

IDS, MORE = prompt(9), 24


class Numbers:
    """A tokenizer of texts that are token ids already."""

    eos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def own_text(model: Any, ids: list[int] = IDS, **settings: Any) -> list[int]:
    return generated(model, ids, MORE, **settings)


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


def hooked_layer(model: Any) -> Any:
    in_place(model)
    return layers(model)[0]


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


def wrapped_forward(model: Any) -> None:
    """As tools do that watch a model: a function around the forward, which closes over it."""
    before = model.forward
    model.forward = functools.wraps(before)(lambda *given, **named: before(*given, **named))
    within = layers(model)[0].forward
    layers(model)[0].forward = lambda *given, **named: within(*given, **named) * -1


def strange_weight(model: Any) -> None:
    module = layers(model)[1].mlp
    module = module.c_fc if hasattr(module, "c_fc") else module.up_proj
    module.weight = torch.nn.Parameter(module.weight.detach().as_subclass(Doubled), requires_grad=False)


class Doubled(torch.Tensor):
    """A weight that is more than its numbers, as those of quantised models are."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        made = super().__torch_function__(function, types, given, named or {})
        return made.as_subclass(torch.Tensor) * -2 if function in (torch.nn.functional.linear, torch.addmm) else made


def strided_bias(model: Any) -> None:
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data = torch.stack([module.bias.data] * 2, 1)[:, 0]
            noisy = noise(module.bias) + 1
            SpeculativeEngine(model, Numbers(), exact="rounding").generate(text(), max_new_tokens=2)
            with torch.no_grad():
                module.bias.copy_(noisy)
    in_place(model)


def replaced(name: str, module: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda model: setattr(layers(model)[0], name if hasattr(layers(model)[0], name) else "mlp", module())


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
    "wrapped forward": wrapped_forward,
    "strange weight": strange_weight,
    "strided bias": strided_bias,
    "no mlp": replaced("mlp", torch.nn.Identity),
    "no norm": replaced("input_layernorm", torch.nn.Identity),
    "another norm": replaced("input_layernorm", lambda: torch.nn.LayerNorm(64, bias=False)),
    "compiled layer": lambda model: layers(model).__setitem__(0, torch.compile(hooked_layer(model), backend="eager")),
    "compiled": lambda model: (in_place(model), model.compile(backend="eager")),
}


# What notices a change is the runtime's, so each change has each of them, with the families in turn; of the eager one,
# which passes the model's own modules, one family is enough.
@pytest.mark.parametrize(
    ("family", "runtime", "change"),
    [
        (("llama", "gpt2")[(at + (runtime == "packed")) % 2] if runtime != "eager" else "llama", runtime, change)
        for at, change in enumerate(CHANGES)
        for runtime in ("auto", "packed", "eager")
    ],
)
def test_the_text_is_that_of_the_model_as_it_is(family: str, runtime: Any, change: str) -> None:
    model = build.__wrapped__(family)
    changed_to = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(change, torch.float32)
    if runtime in capabilities(model.device, changed_to, keep_dtype=True).refused:
        runtime = "auto"
    engine = SpeculativeEngine(model, Numbers(), runtime=runtime, exact="rounding")
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
        assert pieces.generation.rows[0].emitted == before
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


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.share_memory(),
        lambda model: [weight.untyped_storage().resize_(0) for weight in weights(model)],
        lambda model: model.to("meta"),
        lambda model: model.resize_token_embeddings(10),
    ],
    ids=["shared", "emptied", "meta", "resized"],
)
@pytest.mark.parametrize("runtime", ["auto", "packed"])
def test_weights_that_move_within_a_text_end_it_in_words(move: Any, runtime: Any) -> None:
    """What lies at their old addresses is not ours to read."""
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding", runtime=runtime)
    begun = iter(engine.stream(text(), max_new_tokens=200))
    next(begun)
    move(model)
    with pytest.raises(UsageError, match="the model was changed while it generated"):
        list(begun)


@pytest.mark.parametrize("change", ["resize_token_embeddings", "set_input_embeddings"])
def test_an_embedding_that_shrinks_is_seen_before_the_next_text(change: str) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    engine = SpeculativeEngine(model, tokenizer)
    whole = engine.generate([250, 3], max_new_tokens=4).token_ids
    before = copy.deepcopy((model.get_input_embeddings(), model.get_output_embeddings()))
    if change == "resize_token_embeddings":
        model.resize_token_embeddings(200)
    else:
        model.set_input_embeddings(torch.nn.Embedding(200, 48))
    for given in ([250, 3], [3], "one two"):
        with pytest.raises(UsageError, match="the tokenizer has 300 tokens and the model's vocabulary is 0 to 199"):
            engine.generate(given, max_new_tokens=4)
    model.set_input_embeddings(before[0])
    model.set_output_embeddings(before[1])
    model.config.vocab_size = 300
    assert engine.generate([250, 3], max_new_tokens=4).token_ids == whole


def test_an_embedding_that_grows_or_shrinks_within_its_padding_says_its_own_range() -> None:
    model = tiny_model(vocab_size=310)
    engine = SpeculativeEngine(model, tiny_tokenizer())
    for size in (304, 320):
        model.resize_token_embeddings(size, mean_resizing=False)
        engine.generate([size - 1], max_new_tokens=2)
        with pytest.raises(UsageError, match=rf"has the token {size}; the vocabulary is 0 to {size - 1}"):
            engine.generate([size], max_new_tokens=2)


def test_weights_of_a_draft_that_move_within_a_text_end_it_in_words() -> None:
    model, draft = build.__wrapped__("llama"), build.__wrapped__("llama", noise=0.01)
    engine = SpeculativeEngine(model, Numbers(), draft, exact="rounding", adaptive=False)
    begun = iter(engine.stream(text(), max_new_tokens=200))
    next(begun)
    draft.share_memory()
    with pytest.raises(UsageError, match="the model was changed while it generated"):
        list(begun)


def test_hidden_states_of_the_users_end_no_text() -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    begun = iter(engine.stream(text(), max_new_tokens=MORE))
    next(begun)
    model(torch.tensor([IDS]), output_hidden_states=True)
    engine.generate(text(), max_new_tokens=2)
    list(begun)


@pytest.mark.parametrize("adaptive", [True, False])
def test_threads_ask_an_engine_for_batches_of_different_sizes(adaptive: bool) -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), adaptive=adaptive)
    prompts = [prompt(length, seed=length) for length in range(5, 11)]
    expected = [own_text(model, ids) for ids in prompts]

    def ask(rows: int) -> list[list[int]]:
        found = [engine.generate([text(ids)] * rows, max_new_tokens=MORE) for ids in prompts]
        return [row.token_ids for results in found for row in results[-1:]]

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ask, (1, 2, 3))) == [expected] * 3


def silent(function: Any) -> Any:
    return lambda *given, **named: function(*given, **named) * -1


@pytest.mark.parametrize(
    "where",
    ["rotate_half", "silu", "linear", "__call__", "sdpa", "global hook", "global pre-hook"],
)
def test_what_all_models_run_is_looked_at_too(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    plain, hook = own_text(model), None
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == plain
    if where in ("silu", "linear"):
        monkeypatch.setattr(torch.nn.functional, where, silent(getattr(torch.nn.functional, where)))
    elif where == "rotate_half":
        monkeypatch.setattr(modeling_llama, where, silent(modeling_llama.rotate_half))
    elif where == "__call__":
        monkeypatch.setattr(modeling_llama.LlamaMLP, where, silent(modeling_llama.LlamaMLP.__call__))
    elif where == "sdpa":
        own = AttentionInterface._global_mapping["sdpa"]
        changed = lambda *given, **named: (own(*given, **named)[0] * -1, None)  # noqa: E731
        monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", changed)
    elif where == "global hook":
        negate = lambda module, given, made: -made if isinstance(module, modeling_llama.LlamaMLP) else None  # noqa: E731
        hook = torch.nn.modules.module.register_module_forward_hook(negate)
    else:
        negate = lambda module, given: (-given[0],) if isinstance(module, modeling_llama.LlamaMLP) else None  # noqa: E731
        hook = torch.nn.modules.module.register_module_forward_pre_hook(negate)
    try:
        changed = own_text(model)
        assert changed != plain
        assert engine.generate(text(), max_new_tokens=MORE).token_ids == changed
        fresh = SpeculativeEngine(model, Numbers(), exact="rounding")
        assert fresh.generate(text(), max_new_tokens=MORE).token_ids == changed
    finally:
        if hook is not None:
            hook.remove()


def test_rotations_that_are_changed_through_data_are_followed() -> None:
    model = build.__wrapped__("llama")
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    engine.generate(text(), max_new_tokens=4)
    model.model.rotary_emb.inv_freq.data.mul_(0.3)
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == own_text(model)


def test_rotations_of_others_that_follow_the_largest_position_are_refused() -> None:
    model = build.__wrapped__("llama")
    rotary = model.model.rotary_emb

    def stretched(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        angles = position_ids[..., None] / (position_ids.max() + 1).clamp_min(32) * rotary.inv_freq
        return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    rotary.forward = stretched
    with pytest.raises(UnsupportedModelError, match="depend on the largest position"):
        SpeculativeEngine(model, Numbers())


@pytest.mark.parametrize(("family", "draft"), [("llama", "self:int8"), ("bloom", None), ("phi3-64", None)])
def test_a_wrapped_forward_runs_on_the_view(family: str, draft: str | None) -> None:
    model, ids = build.__wrapped__(family), prompt(50)
    before = model.forward
    model.forward = functools.wraps(before)(lambda *given, **named: before(*given, **named))
    results = SpeculativeEngine(model, Numbers(), draft).generate([text(), text(ids)], max_new_tokens=MORE)
    assert [row.token_ids for row in results] == [own_text(model), own_text(model, ids)]


def test_forwards_that_close_over_each_other_end() -> None:
    model = build.__wrapped__("llama")
    before = model.forward

    def outer(*given: Any, again: bool = False, **named: Any) -> Any:
        return before(*given, **named) if again else inner(*given, **named)

    def inner(*given: Any, **named: Any) -> Any:
        return outer(*given, again=True, **named)

    model.forward = functools.wraps(before)(outer)
    engine = SpeculativeEngine(model, Numbers(), "self:int8", exact="rounding")
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == own_text(model)


def test_a_model_of_accelerate_is_a_target() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build.__wrapped__("llama")
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    engine = SpeculativeEngine(model, Numbers(), exact="rounding")
    assert engine.generate(text(), max_new_tokens=MORE).token_ids == own_text(model)


def test_a_view_shares_weights_and_nothing_else() -> None:
    model = build.__wrapped__("llama")
    view = view_of(model)
    assert not set(map(id, view.modules())) & set(map(id, model.modules()))
    assert list(map(id, view.parameters())) == list(map(id, model.parameters()))
    assert view.config is not model.config
    assert all(module.config is view.config for module in view.modules() if hasattr(module, "config"))
    with torch.inference_mode():
        assert torch.equal(view(torch.tensor([IDS])).logits, model(torch.tensor([IDS])).logits)
