"""What a call of generate says beside the prompt: followed, or refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf

import specstream
from specstream.engine.call_arguments import FOLLOWED, WITHOUT_EFFECT
from specstream.errors import UsageError
from specstream.models.architecture.compat import with_cache
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[30, 40, 50, 30, 40, 50, 30]])


def gpt2():
    config = hf.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=None, bos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return hf.GPT2LMHeadModel(config).eval()


def call(model, ids=IDS, speculation=None, **settings):
    settings.setdefault("pad_token_id", 1)
    settings.setdefault("max_new_tokens", 6)
    return model.generate(ids, custom_generate=speculation or specstream.custom_generate(), **settings)


def test_input_embeddings_are_refused(model):
    embeddings = model.get_input_embeddings()(IDS).detach()
    with pytest.raises(UsageError, match="inputs_embeds is given"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=5, custom_generate=specstream.custom_generate())


def test_token_types_are_refused_where_the_model_reads_them():
    with pytest.raises(UsageError, match="token_type_ids is given"):
        call(gpt2(), token_type_ids=torch.zeros_like(IDS))


def test_a_cache_of_the_caller_is_refused(model):
    cache = hf.DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :3], **with_cache(model, cache))
    (name,) = with_cache(model, cache)
    with pytest.raises(UsageError, match=f"{name} is given"):
        call(model, **{name: cache})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("constraints", [object()]),
        ("force_words_ids", [[5]]),
        ("num_beams", 4),
        ("output_scores", True),
        ("output_logits", True),
        ("output_attentions", True),
        ("prompt_lookup_num_tokens", 3),
        ("prefill_chunk_size", 4),
        ("output_router_logits", True),
    ],
)
def test_a_setting_that_is_not_followed_is_refused_by_name(name, value):
    eager = tiny_model()
    eager.set_attn_implementation("eager")  # transformers refuses attentions of another by itself
    with pytest.raises(UsageError, match=f"^{name} is .*leave it out|^num_beams is 4"):
        call(eager, **{name: value})


@pytest.mark.parametrize("cache", ["dynamic", "static", "hybrid"])
def test_a_checkpoint_may_say_how_its_cache_is_laid_out(cache):
    model = tiny_model()
    expected = model.generate(IDS, max_new_tokens=6, do_sample=False)
    model.generation_config.cache_implementation = cache
    assert torch.equal(call(model), expected)


def test_every_setting_of_transformers_is_known_or_refused():
    """With a value of a type that nobody expects, each is refused, or stands in a list with what is done with it."""
    for name in vars(hf.GenerationConfig()):
        if name.startswith("_") or name in FOLLOWED | WITHOUT_EFFECT or name == "num_beams":
            continue
        config = hf.GenerationConfig(do_sample=False, max_length=20)
        setattr(config, name, "wanted")
        with pytest.raises(UsageError, match=f"^{name} is"):
            specstream.custom_generate()(tiny_model(), IDS, [], [], config)


def test_what_a_checkpoint_adds_of_its_own_is_ignored_as_in_transformers():
    model = tiny_model()
    expected = model.generate(IDS, max_new_tokens=6, do_sample=False)
    model.generation_config.chat_format = "chatml"
    assert torch.equal(call(model), expected)


def test_positions_of_the_callers_own_are_refused(model):
    assert torch.equal(call(model, position_ids=torch.arange(7)[None]), call(model))
    with pytest.raises(UsageError, match="position_ids"):
        call(model, position_ids=torch.arange(3, 10)[None])


def test_padding_on_the_right_is_refused(model):
    with pytest.raises(UsageError, match=r"attention_mask.*left"):
        call(model, IDS.expand(2, -1), attention_mask=torch.tensor([[1] * 7, [1] * 5 + [0] * 2]))


def test_more_tokens_than_the_context_holds_are_refused():
    model = tiny_model(context=32)
    with pytest.raises(UsageError, match=r"max_new_tokens is 40.*7 tokens.*context holds 32; give 25 or fewer"):
        call(model, max_new_tokens=40)
    assert call(model, max_new_tokens=25, eos_token_id=None).shape[1] == 32


# PEFT asks transformers for an attribute by the name that 5.23 calls deprecated.
PEFT_OF_ITS_TIME = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@PEFT_OF_ITS_TIME
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_of_peft_are_refused(kind):
    peft = pytest.importorskip("peft")
    configs = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    tuned = peft.get_peft_model(tiny_model(), configs[kind](task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with pytest.raises(UsageError, match=f"{kind.upper()}_TUNING"):
        tuned.generate(
            input_ids=IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=5,
            custom_generate=specstream.custom_generate(),
        )


@PEFT_OF_ITS_TIME
def test_an_adapter_of_peft_is_followed():
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    with torch.no_grad():
        for name, weights in tuned.named_parameters():
            if "lora_B" in name:
                weights.normal_(generator=torch.Generator().manual_seed(0))
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 12, "do_sample": False}
    expected = tuned.generate(**given)
    assert torch.equal(tuned.generate(**given, custom_generate=specstream.custom_generate()), expected)
    assert not torch.equal(tiny_model().generate(**given), expected)


@PEFT_OF_ITS_TIME
@pytest.mark.parametrize("where", [{"target_modules": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [30]}])
def test_an_adapter_of_the_embedding_is_followed(where):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **where})
    tuned = peft.get_peft_model(tiny_model(), config).eval()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in tuned.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                weights.normal_(std=0.3, generator=chance)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 12, "do_sample": False}
    expected = tuned.generate(**given)
    assert torch.equal(tuned.generate(**given, custom_generate=specstream.custom_generate()), expected)
    assert not torch.equal(tiny_model().generate(**given), expected)


@PEFT_OF_ITS_TIME
@pytest.mark.parametrize("names", [["default"], ["default", "__base__"]])
def test_an_adapter_for_each_row_is_refused(names):
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    ids = IDS.expand(len(names), -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 5}
    with pytest.raises(UsageError, match=r"adapter_names.*set_adapter"):
        tuned.generate(**given, adapter_names=names, custom_generate=specstream.custom_generate())


@PEFT_OF_ITS_TIME
def test_an_adapter_that_is_invoked_in_the_text_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[40, 50])
    tuned = peft.get_peft_model(tiny_model(), config).eval()
    with pytest.raises(UsageError, match="aLoRA"):
        tuned.generate(
            input_ids=IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=5,
            custom_generate=specstream.custom_generate(),
        )


@pytest.mark.parametrize("setting", ["max_new_tokens", "temperature", "top_k", "seed", "repetition_penalty"])
def test_settings_of_the_generate_call_are_refused_where_the_callable_is_made(setting):
    with pytest.raises(UsageError, match=f"{setting} is 3; .*generate"):
        specstream.custom_generate(**{setting: 3})


def test_stop_strings_need_the_tokenizer_and_end_the_text(model):
    tokenizer = tiny_tokenizer()
    with pytest.raises(UsageError, match=r"stop.*tokenizer"):
        specstream.custom_generate(stop="x")
    free = call(model, max_new_tokens=20, eos_token_id=None)[0, 7:].tolist()
    stop = tokenizer.decode(free[8:10])
    settings = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 1}
    expected = model.generate(IDS, stop_strings=[stop], tokenizer=tokenizer, do_sample=False, **settings)
    assert expected.shape[1] < 7 + 20
    speculation = specstream.custom_generate(tokenizer=tokenizer, stop=[stop])
    assert torch.equal(call(model, speculation=speculation, **settings), expected)


class Collector:
    def __init__(self) -> None:
        self.put_tokens: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.put_tokens += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_what_transformers_gives_one(model):
    theirs, ours = Collector(), Collector()
    expected = model.generate(IDS, max_new_tokens=15, do_sample=False, streamer=theirs)
    got = call(model, speculation=specstream.custom_generate(streamer=ours), max_new_tokens=15)
    assert torch.equal(got, expected)
    assert (ours.put_tokens, ours.ended) == (theirs.put_tokens, theirs.ended)


def test_a_streamer_ends_although_the_call_fails(model):
    streamer = Collector()

    def fails(ids, scores):
        raise RuntimeError("the criterion is broken")

    with pytest.raises(RuntimeError, match="the criterion is broken"):
        call(model, speculation=specstream.custom_generate(streamer=streamer), stopping_criteria=[fails])
    assert streamer.ended == 1


def test_a_streamer_of_several_rows_is_refused(model):
    with pytest.raises(UsageError, match=r"streamer.*2 rows"):
        streamer = SimpleNamespace(put=print, end=print)
        call(model, IDS.expand(2, -1), speculation=specstream.custom_generate(streamer=streamer))
