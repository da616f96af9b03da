"""How the engine ends a text and chooses its tokens: stop ids, the checkpoint's own settings, the measured baseline."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import specstream
from specstream import SpeculativeEngine
from specstream.cli.generate import _summary
from specstream.core.policy.policy import Speculation
from specstream.engine.generation import Generation
from specstream.errors import NumericalError, UsageError
from specstream.models.architecture import compat
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = "one two three one two three one"
PROMPTS = ["the cat sat on the", PROMPT, "def add(a, b):"]


def reference(model, tokenizer, prompt, **settings):
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    settings = {"max_new_tokens": 30, "do_sample": False, **settings}
    return model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return SpeculativeEngine(model, tokenizer)


def test_stop_token_ids_end_a_text_as_an_end_of_sequence_does(engine, model, tokenizer):
    free = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True).token_ids
    stop = free[12]
    kept = free[: free.index(stop) + 1]
    for settings in ({}, {"ignore_eos": True}):
        result = engine.generate(PROMPT, max_new_tokens=30, stop_token_ids=[stop, 299], **settings)
        assert result.token_ids == kept == reference(model, tokenizer, PROMPT, eos_token_id=[stop, 299])
        assert result.finish_reason == "stop"
        assert result.text == tokenizer.decode(kept[:-1], skip_special_tokens=True)
    stream = engine.stream(PROMPT, max_new_tokens=30, stop_token_ids=[stop])
    assert "".join(stream) == stream.result.text


def test_a_token_that_stops_and_completes_a_stop_string(engine, tokenizer):
    free = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True).token_ids
    before, text = tokenizer.decode(free[:3]), tokenizer.decode(free[3:6])
    for settings in ({"stop_token_ids": [free[5]]}, {}):
        result = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True, stop=text, **settings)
        assert (result.text, result.token_ids) == (before, free[:6])


@pytest.mark.parametrize("token", [-1, 300])
def test_a_stop_token_that_is_none_is_refused(engine, token):
    with pytest.raises(UsageError, match="stop_token_ids"):
        engine.generate(PROMPT, stop_token_ids=[token])


def test_a_special_token_as_a_stop_string(engine, model):
    tokenizer = tiny_tokenizer()
    free = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True).token_ids
    names = tokenizer.convert_ids_to_tokens(free)
    special = next(name for name in names[4:] if name.isascii() and name not in PROMPT and names.index(name) > 3)
    tokenizer.add_special_tokens({"additional_special_tokens": [special]})
    marked = SpeculativeEngine(model, tokenizer)
    prompt_ids = reference(model, tokenizer, PROMPT, max_new_tokens=1)  # the prompt reads the same with it
    assert prompt_ids == free[:1]
    result = marked.generate(PROMPT, max_new_tokens=30, ignore_eos=True, stop=special)
    end = names.index(special) + 1
    assert result.token_ids == free[:end] and result.finish_reason == "stop"
    stream = marked.stream(PROMPT, max_new_tokens=30, ignore_eos=True, stop=special)
    assert "".join(stream) == stream.result.text == tokenizer.decode(free[: end - 1])


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [10, 255, 278]},
        {"bad_words_ids": [[10], [64, 40]]},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_the_checkpoints_own_rules_hold_as_in_transformers(tokenizer, settings):
    model = tiny_model()
    plain = [reference(model, tokenizer, prompt) for prompt in PROMPTS]
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    expected = [reference(model, tokenizer, prompt) for prompt in PROMPTS]
    assert expected != plain
    engine = SpeculativeEngine(model, tokenizer, tiny_model(noise=0.02))
    assert [result.token_ids for result in engine.generate(PROMPTS, max_new_tokens=30)] == expected
    ids = tokenizer(PROMPT)["input_ids"]
    output, _ = specstream.speculative_decode(model, None, ids, max_new_tokens=30)
    assert output[0, len(ids) :].tolist() == expected[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_new_tokens", 9), ("sequence_bias", [[[10], -9.0]]), ("num_beams", 3), ("stop_strings", ["o"])],
)
def test_a_rule_of_the_checkpoint_that_is_not_followed_is_said(tokenizer, name, value):
    model = tiny_model()
    setattr(model.generation_config, name, value)
    compat.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=f"the checkpoint's {name} is .*which an engine does not follow"):
        SpeculativeEngine(model, tokenizer).generate(PROMPT, max_new_tokens=2)


@pytest.mark.filterwarnings("error")
def test_custom_generate_warns_of_no_rule(tokenizer):
    model = tiny_model()
    model.generation_config.update(min_new_tokens=9, top_k=-1)
    compat.warn_once.cache_clear()
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    model.generate(**inputs, max_new_tokens=9, do_sample=False, custom_generate=specstream.custom_generate())


@pytest.mark.filterwarnings("error")
def test_rules_without_effect_are_not_spoken_of(tokenizer):
    model = tiny_model()
    neutral = {"min_length": 0, "num_beams": 1, "typical_p": 1.0, "encoder_repetition_penalty": 1.0, "eta_cutoff": 0.0}
    model.generation_config.update(**neutral, no_repeat_ngram_size=-1)
    expected = reference(tiny_model(), tokenizer, PROMPT)
    assert SpeculativeEngine(model, tokenizer).generate(PROMPT, max_new_tokens=30).token_ids == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", "y"), ("repetition_penalty", "x"), ("no_repeat_ngram_size", "x"), ("top_k", -1), ("bad_words_ids", 5)],
)
def test_a_rule_of_the_checkpoint_without_meaning_is_one_line(tokenizer, name, value):
    model = tiny_model()
    setattr(model.generation_config, name, value)
    with pytest.raises(UsageError, match="the model's generation_config") as error:
        SpeculativeEngine(model, tokenizer).generate(PROMPT)
    assert "\n" not in str(error.value)


def test_what_is_given_goes_before_the_checkpoints_own(tokenizer):
    model = tiny_model()
    expected = reference(model, tokenizer, PROMPT)
    model.generation_config.repetition_penalty = 1.7
    assert SpeculativeEngine(model, tokenizer, repetition_penalty=1.0).generate(
        PROMPT, max_new_tokens=30
    ).token_ids == expected  # fmt: skip
    engine = SpeculativeEngine(model, tokenizer)
    assert engine.generate(PROMPT, max_new_tokens=30, repetition_penalty=1.0).token_ids == expected
    assert engine.generate(PROMPT, max_new_tokens=30).token_ids != expected


def test_the_checkpoints_rules_are_read_anew_for_each_text(tokenizer):
    model = tiny_model()
    engine = SpeculativeEngine(model, tokenizer)
    for penalty in (1.0, 1.7, 1.05):
        model.generation_config.repetition_penalty = penalty
        expected = reference(model, tokenizer, PROMPT)
        assert engine.generate(PROMPT, max_new_tokens=30).token_ids == expected


def test_sampling_cuts_the_distribution_as_the_checkpoint_says(tokenizer):
    model = tiny_model()
    model.generation_config.top_k = 1
    greedy = reference(model, tokenizer, PROMPT)
    engine = SpeculativeEngine(model, tokenizer, temperature=1.5, seed=3)
    assert engine.generate(PROMPT, max_new_tokens=30).token_ids == greedy
    assert engine.generate(PROMPT, max_new_tokens=30, top_k=0).token_ids != greedy


@pytest.mark.parametrize("penalty", [1.05, 1.2])  # 1.05 twice gives another text
def test_custom_generate_applies_them_once(tokenizer, penalty):
    model = tiny_model()
    model.generation_config.repetition_penalty = penalty
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    expected = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    got = model.generate(**inputs, max_new_tokens=30, custom_generate=specstream.custom_generate())
    assert torch.equal(got, expected)


class Cleans(hf.LogitsProcessor):
    """The model says nothing but NaN, and this makes something of it."""

    def __call__(self, input_ids, scores):
        return torch.where(torch.arange(scores.shape[-1]) == input_ids[0, -1] + 1, 1.0, 0.0)[None]


def test_nothing_is_decoded_for_the_speedup_alone(engine, monkeypatch):
    run, drafters = Generation.run, []
    monkeypatch.setattr(Generation, "run", lambda self: (drafters.append(self.parts.drafter.name), run(self))[1])
    monkeypatch.setattr(Speculation, "plain_seconds", lambda self, rows: 1e-9)  # the machine may be in a slow spell
    result = engine.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert drafters == [engine.parts.drafter.name]
    assert result.speedup > 0 and "estimated" in result.baseline["method"] and "tokens" not in result.baseline
    engine.generate([PROMPT, "one"], max_new_tokens=20, ignore_eos=True)
    assert len(drafters) == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_a_speedup_beyond_the_tokens_per_pass_is_none(engine, monkeypatch, rows):
    """Plain passes were timed in a slow spell of the machine: the figure would not add up."""
    monkeypatch.setattr(Speculation, "plain_seconds", lambda self, rows: 1e3)
    for result in engine.generate([PROMPT] * rows, max_new_tokens=20, ignore_eos=True):
        assert result.speedup is None and "was slower; measure_baseline=True" in result.baseline["error"]
    monkeypatch.setattr(Speculation, "plain_seconds", lambda self, rows: 1e-9)
    for result in engine.generate([PROMPT] * rows, max_new_tokens=20, ignore_eos=True):
        assert 0 < result.speedup < result.mean_accepted_length


def test_a_speedup_that_is_not_known_is_none(tokenizer):
    engine = SpeculativeEngine(tiny_model(), tokenizer, drafter="lookup", adaptive=False)
    result = engine.generate(PROMPT, max_new_tokens=20)
    assert result.speedup is None and "measure_baseline=True" in result.baseline["error"]
    assert engine.get_metrics()["average_speedup"] == 0.0
    plain = SpeculativeEngine(tiny_model(), tokenizer, drafter="none").generate(PROMPT, max_new_tokens=20)
    assert plain.speedup == 1.0


def test_why_the_measurement_failed_is_one_line(tokenizer, monkeypatch):
    engine = SpeculativeEngine(tiny_model(), tokenizer, drafter="lookup", measure_baseline=True)
    assert engine.generate(PROMPT, max_new_tokens=3).baseline["tokens"] == 16
    run = Generation.run

    def fails(generation):
        if generation.parts.drafter.name == "none":
            raise RuntimeError("one\n  two")
        return run(generation)

    monkeypatch.setattr(Generation, "run", fails)
    engine._baselines.clear()
    result = engine.generate(PROMPT, max_new_tokens=3)
    assert result.speedup is None and result.baseline["error"] == "RuntimeError: one two"


def test_the_measurement_cannot_fail_the_call(tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    engine = SpeculativeEngine(model, tokenizer, drafter="lookup", measure_baseline=True)
    result = engine.generate("a", max_new_tokens=5, ignore_eos=True, logits_processor=[Cleans()])
    first = tokenizer("a")["input_ids"][-1]
    assert result.token_ids == [first + at for at in range(1, 6)]
    assert result.speedup is None and "NaN" in result.baseline["error"]
    assert engine.get_metrics()["average_speedup"] == 0.0
    assert "not known: the model's logits hold NaN" in _summary(result)
    stream = engine.stream("a", max_new_tokens=5, ignore_eos=True, logits_processor=[Cleans()])
    assert "".join(stream) and stream.result.token_ids == result.token_ids
    with pytest.raises(NumericalError):
        engine.generate("a", max_new_tokens=5)
