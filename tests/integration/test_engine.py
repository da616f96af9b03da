"""The engine as its users call it, on a tiny model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LogitsProcessor

from specstream import SpeculativeEngine
from specstream.engine.inventory import draft_bytes
from specstream.errors import NumericalError, UnsupportedModelError, UsageError, VocabularyMismatchError
from specstream.models.target.hf import HuggingFaceSession
from tests.tiny import tiny_model

PROMPTS = ["the cat sat on the", "one two three one two three one", "def add(a, b):"]


@pytest.fixture(scope="module")
def draft():
    return tiny_model(noise=0.02)


def reference(model, tokenizer, prompt, tokens, **settings):
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **settings)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("drafter", ["none", "lookup", "lookahead", "draft_model", "mixed"])
def test_generate_equals_transformers(model, draft, tokenizer, drafter):
    drafts = draft if drafter in ("draft_model", "mixed") else None
    engine = SpeculativeEngine(model, tokenizer, drafts, drafter=drafter)
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=30)
        assert result["token_ids"] == reference(model, tokenizer, prompt, 30)
        assert result["text"] == tokenizer.decode(result["token_ids"], skip_special_tokens=True)
        assert result["drafter"] == drafter
        assert result.new_tokens == len(result.token_ids)


def test_a_batch_is_its_prompts_one_by_one(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft)
    results = engine.generate(PROMPTS, max_new_tokens=25)
    assert [result.token_ids for result in results] == [reference(model, tokenizer, p, 25) for p in PROMPTS]


def test_passes_of_fixed_shape_give_the_same_text_and_are_named(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft, runtime="static")
    for result, prompt in zip(engine.generate(PROMPTS, max_new_tokens=25), PROMPTS, strict=True):
        assert result.token_ids == reference(model, tokenizer, prompt, 25)
        assert result.runtime == "static"


def test_the_result_reads_as_a_mapping_and_as_json(model, tokenizer):
    result = SpeculativeEngine(model, tokenizer).generate(PROMPTS[0], max_new_tokens=5)
    decoded = json.loads(json.dumps(dict(result)))
    wanted = "text token_ids new_tokens seconds tokens_per_second acceptance_rate mean_accepted_length target_passes"
    for key in [*wanted.split(), "speedup", "finish_reason", "drafter", "model", "dtype", "exact"]:
        assert decoded[key] == result[key] == getattr(result, key)
    with pytest.raises(KeyError):
        result["nothing"]


def test_plain_decoding_is_the_ruler(model, tokenizer):
    result = SpeculativeEngine(model, tokenizer, drafter="none").generate(PROMPTS[0], max_new_tokens=20)
    assert result.mean_accepted_length == 1.0
    assert result.target_passes == result.new_tokens
    assert result.acceptance_rate == 0.0


def test_stream_joins_to_the_result(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft)
    pieces = engine.stream(PROMPTS[1], max_new_tokens=40)
    with pytest.raises(UsageError, match="not ended"):
        _ = pieces.result
    parts = list(pieces)
    assert len(parts) > 1
    assert "".join(parts) == pieces.result.text == engine.generate(PROMPTS[1], max_new_tokens=40).text


def test_stop_string_ends_the_text_and_is_left_out(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft)
    whole = engine.generate(PROMPTS[0], max_new_tokens=40)
    stop = whole.text[10:13]
    for result in (engine.generate(PROMPTS[0], max_new_tokens=40, stop=stop), _streamed(engine, stop)):
        assert result.text == whole.text[: whole.text.index(stop)]
        assert result.finish_reason == "stop"
        assert stop in tokenizer.decode(result.token_ids)
        assert stop not in tokenizer.decode(result.token_ids[:-1])


def _streamed(engine, stop):
    pieces = engine.stream(PROMPTS[0], max_new_tokens=40, stop=[stop])
    text = "".join(pieces)
    assert text == pieces.result.text
    return pieces.result


def test_end_of_sequence_is_the_last_token(model, draft, tokenizer):
    whole = SpeculativeEngine(model, tokenizer, draft).generate(PROMPTS[2], max_new_tokens=20, ignore_eos=True)
    other = tiny_model()
    other.generation_config.eos_token_id = [whole.token_ids[7], 299]
    result = SpeculativeEngine(other, tokenizer, draft).generate(PROMPTS[2], max_new_tokens=20)
    first = whole.token_ids.index(whole.token_ids[7])
    assert result.token_ids == whole.token_ids[: first + 1]
    assert result.finish_reason == "stop"


def test_a_seed_repeats_and_seeds_differ(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft, temperature=1.0)
    one, again, other = (engine.generate(PROMPTS[0], max_new_tokens=20, seed=seed).token_ids for seed in (1, 1, 2))
    assert one == again != other
    assert engine.parts.speculation.controller is not None  # on by default, off where a seed must repeat
    torch.manual_seed(0)
    before = torch.get_rng_state()
    engine.generate(PROMPTS[0], max_new_tokens=5)
    assert torch.equal(before, torch.get_rng_state())  # chance is the row's own, never global


class Only(LogitsProcessor):
    """Allows one token, and counts."""

    def __init__(self, token):
        self.token, self.calls = token, []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids[0].tolist())
        kept = scores.new_full(scores.shape, float("-inf"))
        kept[:, self.token] = 0
        return kept


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logits_processor_rules_and_sees_each_token_once(model, draft, tokenizer, temperature):
    only = Only(77)
    engine = SpeculativeEngine(model, tokenizer, draft, temperature=temperature)
    result = engine.generate(PROMPTS[0], max_new_tokens=6, logits_processor=[only])
    assert result.token_ids == [77] * 6
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    assert only.calls == [prompt + [77] * count for count in range(6)]


def test_repetition_penalty_equals_transformers(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft, repetition_penalty=1.3)
    for prompt in PROMPTS:
        expected = reference(model, tokenizer, prompt, 30, repetition_penalty=1.3)
        assert engine.generate(prompt, max_new_tokens=30).token_ids == expected


def test_use_cache_false_gives_the_same_tokens(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft, use_cache=False)
    assert engine.generate(PROMPTS[0], max_new_tokens=12).token_ids == reference(model, tokenizer, PROMPTS[0], 12)


def test_chat_and_batches_of_chats(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer)
    chat = [{"role": "user", "content": "one two"}]
    alone = engine.generate(chat, max_new_tokens=8)
    assert alone.token_ids == engine.generate("<user>one two<assistant>", max_new_tokens=8).token_ids
    assert [r.token_ids for r in engine.generate([chat, chat], max_new_tokens=8)] == [alone.token_ids] * 2


def test_typical_acceptance_is_called_lossy(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft, temperature=0.8, acceptance_threshold=0.1, seed=0)
    assert engine.generate(PROMPTS[0], max_new_tokens=10).lossless is False
    assert engine.generate(PROMPTS[0], max_new_tokens=10, temperature=0.0).lossless is True


def test_benchmark_and_metrics(model, draft, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, draft, adaptive=False)
    report = engine.benchmark(test_prompts=PROMPTS[:2], num_runs=2, max_new_tokens=10)
    assert len(report["runs"]) == 2
    assert 0 < report["speculation_accuracy"] <= 1
    assert report["average_speedup"] > 0
    assert report["memory_overhead"] == pytest.approx(1.0)  # the draft is as large as the target
    assert report["provenance"]["torch"] == torch.__version__
    result = engine.generate(PROMPTS[0], max_new_tokens=10)
    metrics = engine.get_metrics()
    assert (metrics["requests"], metrics["new_tokens"]) == (1, result.new_tokens)
    assert metrics["mean_accepted_length"] == result.mean_accepted_length


def test_its_own_draft_is_never_rejected(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, model, temperature=0.9, seed=3)
    assert engine.benchmark([PROMPTS[0]], num_runs=1, max_new_tokens=20, ignore_eos=True)["rejected"] == 0


def test_nan_logits_are_an_error_not_a_token(tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(NumericalError, match=r"NaN|nan"):
            SpeculativeEngine(model, tokenizer, temperature=temperature).generate("one", max_new_tokens=3)


def test_after_a_failure_the_engine_goes_on(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer)
    before = engine.generate(PROMPTS[0], max_new_tokens=8).token_ids

    def fail(input_ids, scores):
        raise RuntimeError("from the caller's processor")

    with pytest.raises(RuntimeError):
        engine.generate(PROMPTS[0], max_new_tokens=8, logits_processor=[fail])
    assert engine.generate(PROMPTS[0], max_new_tokens=8).token_ids == before


def test_the_model_is_left_as_it_was(tokenizer):
    model = tiny_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    SpeculativeEngine(model, tokenizer).generate(PROMPTS[0], max_new_tokens=8)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_what_cannot_work_is_refused(model, draft, tokenizer):
    with pytest.raises(VocabularyMismatchError, match=r"200 tokens.*300 tokens"):
        SpeculativeEngine(model, tokenizer, tiny_model(vocab_size=200))
    for drafter in ("draft_model", "mixed"):
        with pytest.raises(UsageError, match=f"drafter is '{drafter}' and there is no draft_model"):
            SpeculativeEngine(model, tokenizer, drafter=drafter)
    with pytest.raises(UsageError, match="there is a draft_model"):
        SpeculativeEngine(model, tokenizer, draft, drafter="lookup")
    with pytest.raises(UsageError, match="tokenizer is missing"):
        SpeculativeEngine(model)
    with pytest.raises(UsageError, match="list of prompts is empty"):
        SpeculativeEngine(model, tokenizer).generate([])
    with pytest.raises(UsageError, match="empty"):
        SpeculativeEngine(model, tokenizer).generate("")
    with pytest.raises(UnsupportedModelError, match="training mode"):
        SpeculativeEngine(tiny_model().train(), tokenizer)


def test_a_prompt_longer_than_the_context_and_a_text_that_fills_it(tokenizer):
    model = tiny_model(context=64)
    engine = SpeculativeEngine(model, tokenizer)
    with pytest.raises(UsageError, match="context holds 64"):
        engine.generate("one two three " * 60)
    result = engine.generate("one two three four", max_new_tokens=500, ignore_eos=True)
    prompt = len(tokenizer("one two three four")["input_ids"])
    assert prompt + result.new_tokens == 64
    assert result.finish_reason == "length"


def test_the_target_drafts_for_itself_in_fewer_bits(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, "self:int8", adaptive=False)
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=30)
        assert result.token_ids == reference(model, tokenizer, prompt, 30)
    assert result.drafter == "draft_model"
    assert engine.get_metrics()["acceptance_rate"] > 0.5
    with pytest.raises(UsageError, match="draft_model is 'self:int3'; the target drafts for itself as self:int8"):
        SpeculativeEngine(model, tokenizer, "self:int3")


@pytest.mark.parametrize("drafter", ["draft_model", "mixed"])
def test_a_target_that_drafts_for_itself_reads_no_prompt_twice(model, tokenizer, drafter, monkeypatch):
    engine, read = SpeculativeEngine(model, tokenizer, "self:int8", drafter=drafter, adaptive=False), []
    engine.generate(PROMPTS[0], max_new_tokens=2)  # the draft's self-test reads as well
    read_on = HuggingFaceSession.read

    def noted(session: HuggingFaceSession, most: int) -> bool:
        if session._unread:
            read.append(session._target)
        return read_on(session, most)

    monkeypatch.setattr(HuggingFaceSession, "read", noted)
    results = engine.generate(PROMPTS, max_new_tokens=30)
    assert set(read) == {engine.parts.target}
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.token_ids == reference(model, tokenizer, prompt, 30)
    assert engine.get_metrics()["acceptance_rate"] > 0.5 or drafter == "mixed"


def test_a_draft_given_by_name_gives_its_weights_back_once_they_are_quantised(model, draft, tokenizer, tmp_path):
    draft.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    overhead = {}
    for quantization in ("none", "int8"):
        engine = SpeculativeEngine(model, tokenizer, str(tmp_path), draft_quantization=quantization, adaptive=False)
        report = engine.benchmark(PROMPTS[:1], num_runs=1, max_new_tokens=20)
        overhead[quantization] = draft_bytes(engine.parts.drafter, engine.target) / engine.target.nbytes
        assert report["provenance"]["draft_quantization"] == quantization
        assert engine.generate(PROMPTS[0], max_new_tokens=20).token_ids == reference(model, tokenizer, PROMPTS[0], 20)
    assert overhead["none"] == pytest.approx(1.0)
    assert overhead["int8"] < 0.6  # a quarter, and the embedding
