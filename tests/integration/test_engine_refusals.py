"""What cannot work is one line with the value and the remedy, whoever's error it would have been."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import transformers as hf

import specstream
from specstream import SpeculativeEngine
from specstream.errors import SpecStreamError, UnsupportedModelError, UsageError, VocabularyMismatchError
from specstream.heads.medusa import MedusaHeads
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return SpeculativeEngine(model, tokenizer)


def one_line(error):
    assert isinstance(error.value, SpecStreamError)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def said(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{% if %}", "{{ messages[5].content.foo }}", "{{ 1 / 0 }}"],
)
def test_a_chat_template_that_raises(model, template):
    told = "chat template is damaged" if template == "{% if %}" else "do not fit the model's chat template"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=told) as error:
        SpeculativeEngine(model, tokenizer).generate(said("one"))
    one_line(error)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "video"},
    ],
)
def test_images_and_sound_in_a_chat(engine, part):
    with pytest.raises(UsageError, match=f"{part['type']}.*only text is read") as error:
        engine.generate(said([{"type": "text", "text": "one"}, part]))
    one_line(error)


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": None}, {"type": None, "text": "a"}, 5])
def test_a_part_without_its_text(engine, part):
    with pytest.raises(UsageError, match=r"a part of the type .*only text is read") as error:
        engine.generate(said([part]))
    one_line(error)


def test_parts_of_text_are_the_text(engine):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    wanted = engine.generate(said("one two"), max_new_tokens=8)
    assert engine.generate(said(parts), max_new_tokens=8).token_ids == wanted.token_ids


@pytest.mark.parametrize(
    "chat",
    [said(5), said(None), said([5]), [{"content": "one"}], [{"role": "user"}], [{"role": "user", "content": "a"}, 5]],
    ids=repr,
)
def test_a_chat_that_is_none(engine, chat):
    with pytest.raises(UsageError, match=r"role|content|turn") as error:
        engine.generate(chat)
    one_line(error)


def test_a_turn_that_calls_a_tool_may_have_no_content(engine):
    chat = [*said("one"), {"role": "assistant", "content": None, "tool_calls": []}, *said("two")]
    assert engine.generate(chat, max_new_tokens=2).new_tokens == 2


@pytest.mark.parametrize(
    "prompt", ["a\ud800b", said("a\ud800b"), said([{"type": "text", "text": "\udfff"}])], ids=ascii
)
def test_half_a_character(engine, prompt):
    with pytest.raises(UsageError, match="half a character") as error:
        engine.generate(prompt)
    one_line(error)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        b"abc",
        {"a"},
        {"role": "user", "content": "a"},
        {"prompt": "a"},
        {"input_ids": [[1, 2]], "pixel_values": [0]},
        {"input_ids": [[1, 2]], "attention_mask": [[1]]},
        {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]},
        {"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]},
        torch.tensor([1.5, 2]),
        torch.tensor(3),
        torch.ones(1, 1, 3, dtype=torch.long),
        torch.tensor([True]),
        [True],
        [1, "a"],
        ["a", None],
        [[]],
        [b"a"],
        Path("a.txt"),
    ],
    ids=repr,
)
def test_a_prompt_that_is_none(engine, prompt):
    for call in (engine.generate, engine.stream):
        with pytest.raises(UsageError, match="prompt") as error:
            call(prompt)
        one_line(error)


@pytest.mark.parametrize("prompts", [None, "abc", said("one"), [1, 2], torch.tensor([1, 2])], ids=repr)
def test_prompts_to_measure_that_are_no_list(engine, prompts):
    with pytest.raises(UsageError, match="test_prompts") as error:
        engine.benchmark(prompts, num_runs=1, max_new_tokens=2)
    one_line(error)


@pytest.mark.parametrize("seed", [2**63, 2**64, 2**100])
def test_a_seed_beyond_what_a_generator_takes(engine, seed):
    with pytest.raises(UsageError, match=f"seed is {seed}") as error:
        engine.generate("a", seed=seed, temperature=1.0)
    one_line(error)
    assert engine.generate(["a", "b"], seed=2**63 - 1, temperature=1.0, max_new_tokens=2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("processor", "words"),
    [
        (lambda ids, scores: torch.cat([scores, scores], 1), r"\(1, 600\)"),
        (lambda ids, scores: scores[:, :10], r"\(1, 10\)"),
        (lambda ids, scores: scores[0], r"\(300,\)"),
        (lambda ids, scores: None, "None"),
        (lambda ids, scores: scores.numpy(), "array"),
    ],
)
def test_a_processor_that_returns_something_else(engine, processor, words, temperature):
    with pytest.raises(UsageError, match=f"logits processor.*{words}.*300") as error:
        engine.generate("a", logits_processor=[processor], temperature=temperature)
    one_line(error)


@pytest.mark.parametrize("stop", [5, [5], ["a", 5]], ids=repr)
def test_a_stop_string_that_is_none(engine, tokenizer, stop):
    with pytest.raises(UsageError, match=r"^stop is ") as error:
        engine.generate("a", stop=stop)
    one_line(error)
    with pytest.raises(UsageError, match=r"^stop is "):
        specstream.custom_generate(stop=stop, tokenizer=tokenizer)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_model_whose_weights_are_elsewhere(model, tokenizer, role):
    with torch.device("meta"):
        nowhere = type(model)(model.config).eval()
    with pytest.raises(UnsupportedModelError, match=r"not in memory.*without offloading") as error:
        SpeculativeEngine(*((nowhere, tokenizer) if role == "target" else (model, tokenizer, nowhere)))
    one_line(error)


def test_a_processor_that_cannot_be_called(engine):
    with pytest.raises(UsageError, match="logits_processor") as error:
        engine.generate("a", logits_processor=[5])
    one_line(error)


@pytest.mark.parametrize(
    "ids",
    [
        "abc",
        None,
        ["a"],
        [[1, "a"]],
        [[[1]]],
        5,
        torch.tensor([[1.5]]),
        torch.zeros(1, 1, 3, dtype=torch.long),
        [[True]],
    ],
    ids=repr,
)
def test_token_ids_that_are_none(model, ids):
    with pytest.raises(UsageError, match="input_ids") as error:
        specstream.speculative_decode(model, None, ids)
    one_line(error)


@pytest.mark.parametrize("token", [-1, 300])
def test_a_token_beyond_the_embedding(model, token):
    with pytest.raises(UsageError, match=f"the token {token}; the vocabulary is 0 to 299"):
        specstream.speculative_decode(model, None, [[1, 2, token]])


def test_a_tokenizer_with_more_tokens_than_the_model(model):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(UsageError, match="the token 300"):
        SpeculativeEngine(model, tokenizer).generate("a zebra")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_model_in_a_wrapper_is_named_with_what_to_give_instead(model, tokenizer, role):
    peft = pytest.importorskip("peft")
    wrapped = {
        "get_base_model": peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])).eval(),
        "_orig_mod": torch.compile(tiny_model()),
        "module": torch.nn.DataParallel(tiny_model()),
    }
    for words, wrapper in wrapped.items():
        given = (wrapper, tokenizer) if role == "target" else (model, tokenizer, wrapper)
        with pytest.raises(UnsupportedModelError, match=words) as error:
            SpeculativeEngine(*given)
        one_line(error)
    adapted = SpeculativeEngine(wrapped["get_base_model"].get_base_model(), tokenizer)
    assert adapted.generate("a", max_new_tokens=3).new_tokens == 3


@pytest.mark.parametrize("thing", [None, 5, torch.nn.Linear(2, 2)], ids=repr)
def test_a_model_that_is_none(model, tokenizer, thing):
    with pytest.raises(SpecStreamError, match="no transformers model") as error:
        SpeculativeEngine(thing, tokenizer)
    one_line(error)
    with pytest.raises(SpecStreamError, match="no transformers model"):
        specstream.speculative_decode(thing, None, [[1]])
    if thing is not None:
        with pytest.raises(SpecStreamError, match="no transformers model"):
            SpeculativeEngine(model, tokenizer, thing)


def test_a_folder_given_as_a_path(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert SpeculativeEngine(tmp_path, draft_model=tmp_path).model_name == str(tmp_path)
    for name, said in (("/nowhere", "there is no folder"), ("a" * 5000, "model 'aaa.* is neither a local folder nor")):
        with pytest.raises(SpecStreamError, match=said) as error:
            SpeculativeEngine(Path(name))
        one_line(error)


def test_a_tokenizer_that_is_none(model):
    with pytest.raises(UsageError, match="tokenizer is 'gpt2'; give the tokenizer itself"):
        SpeculativeEngine(model, "gpt2")


@pytest.mark.parametrize("copying", [pickle.dumps, copy.deepcopy])
def test_an_engine_is_neither_pickled_nor_copied(engine, copying):
    with pytest.raises(UsageError, match=r"an engine cannot be pickled or copied.*make one") as error:
        copying(engine)
    one_line(error)


def test_what_custom_generate_makes_is_pickled_without_the_model(model):
    speculation = specstream.custom_generate(gamma=2)
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=4, custom_generate=speculation)
    other = pickle.loads(pickle.dumps(speculation))
    assert torch.equal(model.generate(ids, max_new_tokens=4, custom_generate=other), expected)


def test_a_processor_of_generate_of_another_width(model):
    class Narrow(hf.LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores[:, :10]

    with pytest.raises(UsageError, match="logits processor"):
        model.generate(
            torch.tensor([[5, 6, 7]]),
            max_new_tokens=4,
            logits_processor=[Narrow()],
            custom_generate=specstream.custom_generate(),
        )


def calls_with_a_model(model, tokenizer, settings):
    ids = torch.tensor([[5, 6, 7]])
    return [
        lambda: SpeculativeEngine(model, tokenizer, **settings),
        lambda: SpeculativeEngine(model, tokenizer, "self:int8", **settings),
        lambda: SpeculativeEngine(model, tokenizer, tiny_model(seed=1), **settings),
        lambda: specstream.speculative_decode(model, None, ids, **settings),
        lambda: model.generate(ids, max_new_tokens=4, custom_generate=specstream.custom_generate(**settings)),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "banana"}, "device is 'banana', which is not available"),
        ({"device": "cuda:7"}, "device is 'cuda:7'"),
        ({"device": "meta"}, r"device is 'meta' and the model is on cpu; move it: model.to\('meta'\)"),
        ({"device": torch.device("meta")}, "device is 'meta' and the model is on cpu"),
        ({"device": 5}, "device is '5'"),
        ({"dtype": "bfloat16"}, "dtype is torch.bfloat16 and the model is torch.float32; cast it"),
        ({"dtype": torch.float16}, "dtype is torch.float16 and the model is torch.float32"),
        ({"torch_dtype": "bfloat16"}, "dtype is torch.bfloat16 and the model is torch.float32"),
        ({"dtype": "float31"}, "dtype is 'float31'; give auto, float32"),
        ({"dtype": 5}, "dtype is 5; give auto, float32"),
        ({"dtype": torch.int8}, "dtype is torch.int8; give auto, float32"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "dtype is 'float32' and torch_dtype is 'float16'; give one"),
    ],
    ids=str,
)
def test_a_device_or_dtype_that_the_model_at_hand_has_not(model, tokenizer, settings, words):
    for call in calls_with_a_model(model, tokenizer, settings):
        with pytest.raises(UsageError, match=words) as error:
            call()
        one_line(error)


@pytest.mark.parametrize(
    "settings",
    [{"device": "cpu"}, {"device": torch.device("cpu")}, {"dtype": "float32"}, {"torch_dtype": torch.float32}],
    ids=str,
)
def test_the_device_and_the_dtype_that_the_model_has(model, tokenizer, settings):
    for call in calls_with_a_model(model, tokenizer, settings):
        call()


def test_dtype_is_of_the_draft_that_is_loaded_by_name(model, tokenizer, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = SpeculativeEngine(model, tokenizer, str(tmp_path), dtype="bfloat16")
    assert engine.parts.drafter.model.model.dtype == torch.bfloat16
    assert engine.model.dtype == torch.float32


def calls_with_a_draft(model, tokenizer, draft, **settings):
    ids = torch.tensor([[5, 6, 7]])
    return [
        lambda: SpeculativeEngine(model, tokenizer, draft, **settings),
        lambda: SpeculativeEngine(model, tokenizer, draft, drafter="mixed", **settings),
        lambda: specstream.speculative_decode(model, draft, ids, **settings),
        lambda: model.generate(ids, max_new_tokens=4, custom_generate=specstream.custom_generate(draft, **settings)),
    ]


class Elsewhere(hf.LlamaForCausalLM):
    """Says that it is on a GPU, which a machine of the tests may not have."""

    @property
    def device(self):
        return torch.device("cuda:1")


def test_a_draft_at_hand_that_is_on_another_device(model, tokenizer):
    draft = tiny_model(seed=1)
    draft.__class__ = Elsewhere
    words = r"the draft is on cuda:1 and the target on cpu; move it: draft.to\('cpu'\)"
    for call in calls_with_a_draft(model, tokenizer, draft):
        with pytest.raises(UsageError, match=words) as error:
            call()
        one_line(error)


def test_a_draft_at_hand_of_another_dtype_than_is_asked_for(model, tokenizer):
    draft = tiny_model(seed=1).to(torch.bfloat16)
    words = r"dtype is torch.float32 and the draft is torch.bfloat16; cast it: draft.to\(torch.float32\)"
    for call in calls_with_a_draft(model, tokenizer, draft, dtype="float32"):
        with pytest.raises(UsageError, match=words) as error:
            call()
        one_line(error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_dtype_of_a_draft_at_hand_changes_no_token(model, tokenizer, dtype, temperature):
    draft = tiny_model(noise=0.02).to(dtype)
    settings = {"max_new_tokens": 16, "temperature": temperature, "seed": 3}
    plain = SpeculativeEngine(model, tokenizer, drafter="none").generate("one two", **settings)
    own = SpeculativeEngine(model, tokenizer, draft, adaptive=False, gamma=3).generate("one two", **settings)
    assert own.drafts and own.lossless
    assert temperature or own.token_ids == plain.token_ids


def test_a_draft_at_hand_of_another_vocabulary(model, tokenizer):
    for call in calls_with_a_draft(model, tokenizer, tiny_model(vocab_size=256)):
        with pytest.raises(VocabularyMismatchError, match="another vocabulary") as error:
            call()
        one_line(error)


def test_heads_at_hand_are_saved_first(model, tokenizer):
    with pytest.raises(UsageError, match=r"heads is MedusaHeads.*heads.save\(FOLDER\), then heads=FOLDER") as error:
        SpeculativeEngine(model, tokenizer, heads=MedusaHeads(model, num_heads=1))
    one_line(error)


@pytest.mark.parametrize("said", [[[1, 2]], "2", ["a"], 1.5, {"a": 1}], ids=repr)
def test_an_end_of_sequence_that_is_no_token(tokenizer, said):
    model = tiny_model()
    model.generation_config.eos_token_id = said
    engine = SpeculativeEngine(tiny_model(), tokenizer)
    engine.model.generation_config.eos_token_id = said
    for call in (
        lambda: SpeculativeEngine(model, tokenizer),
        lambda: specstream.speculative_decode(model, None, [[5, 6]], max_new_tokens=2),
        lambda: engine.generate("one", max_new_tokens=2),
    ):
        with pytest.raises(
            UsageError, match=r"the model's generation_config has eos_token_id .*give a token id"
        ) as error:
            call()
        one_line(error)


@pytest.mark.parametrize("said", [7, [7], (7,), torch.tensor([7]), torch.tensor(7)], ids=repr)
def test_an_end_of_sequence_in_any_form(tokenizer, said):
    model = tiny_model()
    model.generation_config.eos_token_id = said
    assert SpeculativeEngine(model, tokenizer).parts.eos_token_ids == {7}


@pytest.mark.parametrize("window", ["x", -1, 2.5, [3]], ids=repr)
def test_a_sliding_window_that_is_no_number(tokenizer, window):
    model = tiny_model()
    model.config.sliding_window = window
    with pytest.raises(UnsupportedModelError, match=r"sliding_window .*; give a number of tokens") as error:
        SpeculativeEngine(model, tokenizer)
    one_line(error)


@pytest.mark.parametrize("said", ["x", [[1, 2]], {"a": 1}], ids=repr)
def test_padding_that_is_no_token(said):
    target = tiny_model()
    target.generation_config.pad_token_id = said
    with pytest.raises(UsageError, match=r"the model's configuration has pad_token_id .*; give a token id") as error:
        specstream.speculative_decode(target, None, [[5, 6]], max_new_tokens=2)
    one_line(error)


def test_a_checkpoint_whose_end_of_sequence_is_no_token(tokenizer, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [[1, 2]]}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"generation_config has eos_token_id \[\[1, 2\]\]") as error:
        SpeculativeEngine(str(tmp_path))
    one_line(error)


def test_a_draft_with_fewer_rows_than_its_tokenizer_has_tokens(model, tokenizer, tmp_path):
    tiny_model(vocab_size=200).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        VocabularyMismatchError, match="has 200 rows of embeddings and its tokenizer 300 tokens"
    ) as error:
        SpeculativeEngine(model, tokenizer, draft_model=str(tmp_path))
    one_line(error)


@pytest.mark.parametrize("settings", [{"gamma": True}, {"max_new_tokens": True}, {"seed": False}])
def test_yes_and_no_are_no_numbers(model, tokenizer, settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))} is (True|False); give a number, or leave it out"):
        SpeculativeEngine(model, tokenizer, **settings)


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (3, "draft_model is a int: it is no transformers model"),
        (tiny_tokenizer(), "draft_model is a .*: it is no transformers model"),
    ],
)
def test_a_draft_that_is_no_model_is_called_one(model, tokenizer, draft, words):
    with pytest.raises(UnsupportedModelError, match=words) as error:
        SpeculativeEngine(model, tokenizer, draft_model=draft)
    one_line(error)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: specstream.speculative_decode("gpt2", None, [1, 2]),
        lambda model: specstream.LoRAAdapter("gpt2"),
        lambda model: specstream.LoRAAdapter(model, 8),
        lambda model: specstream.LoRAAdapter(model, "adapter.yaml"),
        lambda model: specstream.create_backend(model),
        lambda model: specstream.AdaptiveRouter(model, {}, None),
        lambda model: specstream.MultiStreamAttention("64", 4, 4),
        lambda model: specstream.MultiStreamAttention(64, 4, 4.5),
        lambda model: setattr(specstream.DeploymentConfig(), "port", 9),
    ],
)
def test_a_thing_of_another_kind(model, call):
    with pytest.raises(SpecStreamError, match=r"; (give|load) ") as error:
        call(model)
    one_line(error)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_a_second_adapter_on_the_same_model():
    model = tiny_model()
    specstream.LoRAAdapter(model, {"r": 2})
    with pytest.raises(UsageError, match="has adapters in it already; give one without"):
        specstream.LoRAAdapter(model, {"r": 2})


def test_what_a_result_does_not_have(engine):
    result = engine.generate("one", max_new_tokens=1)
    with pytest.raises(AttributeError, match=r"a result has no 'sequences'; .*did you mean 'token_ids'"):
        _ = result.sequences
    with pytest.raises(KeyError, match="did you mean 'text'"):
        result["generated_text"]
    with pytest.raises(KeyError, match=r"there is no figure 'acceptance'; .*did you mean 'acceptance_rate'"):
        engine.get_metrics()["acceptance"]
    assert copy.deepcopy(result) == result
    assert pickle.loads(pickle.dumps(result)) == result
