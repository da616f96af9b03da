"""The instrument: what it notes, what it adds up to, and that it leaves no trace."""

from __future__ import annotations

import time

import pytest
import torch

from specstream.config import GenerationConfig, engine_config
from specstream.core import decode as loop
from specstream.core import verify as rules
from specstream.engine.build import build_parts
from specstream.engine.generation import Generation
from specstream.evaluation import bottleneck
from specstream.evaluation.bottleneck import Memory, sentence, weights_of_a_pass
from specstream.evaluation.profile import PARTS, Instrument, Pass, Profile, profile
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.target.hf import HuggingFaceTarget
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9, 8, 7, 6]]


@pytest.fixture(scope="module")
def target():
    return HuggingFaceTarget(tiny_model(), runtime="eager")


def parts_of(target, draft=None, **settings):
    return build_parts(target, tiny_tokenizer(), draft, engine_config(settings))


def test_what_is_inside_is_not_counted_twice(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    instrument = Instrument()
    instrument.call("outer", "draft", lambda: instrument.call("inner", "target pass", lambda: None))
    inner, outer = instrument.spans
    assert (inner.own, outer.own) == (2.0, 8.0)
    assert (outer.start, outer.end) == (0.0, 10.0)


def test_a_call_that_fails_is_noted_and_fails(monkeypatch):
    instrument = Instrument()
    with pytest.raises(ZeroDivisionError):
        instrument.call("outer", "draft", lambda: 1 // 0)
    assert [span.name for span in instrument.spans] == ["outer"]


@pytest.mark.parametrize(
    "settings", [{"drafter": "none"}, {"drafter": "lookup"}, {"drafter": "lookup", "adaptive": False}]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_output_is_that_without_the_instrument(target, settings, temperature):
    config = GenerationConfig(max_new_tokens=12, temperature=temperature, seed=3, ignore_eos=True)
    (found,) = profile({"it": parts_of(target, **settings)}, PROMPTS, config).values()
    plain = [Generation(parts_of(target, **settings), [each], config).run() for each in PROMPTS]
    assert found.tokens == sum(each.new_tokens for each in plain) == 24
    passes = sum(each.rows[0].stats.target_passes for each in plain)
    if "adaptive" in settings or settings["drafter"] == "none" or temperature:
        assert len(found.passes) == passes, "how deep drafts go does not depend on times here"
    assert {part for part in ("target pass", "verify", "sample", "cache") if found.of(part) <= 0} == set()
    for each in found.passes:
        assert sum(each.parts.values()) == pytest.approx(each.seconds)
        assert set(each.parts) <= set(PARTS)
    assert sum(found.of(part) for part in PARTS) == pytest.approx(found.seconds)


def test_the_functions_are_put_back(target):
    before = loop.verify_each, rules.choose, rules.draw
    with pytest.raises(ZeroDivisionError), Instrument().on():
        assert loop.verify_each is not before[0]
        _ = 1 // 0
    assert (loop.verify_each, rules.choose, rules.draw) == before


def test_a_draft_model_and_streams_draft_through_stand_ins(target):
    config = GenerationConfig(max_new_tokens=10, ignore_eos=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        streams = Streams(target.model, StreamsConfig(gamma=2, layers=1, rank=2))
    from specstream.drafters.streams import StreamsDrafter

    headed = parts_of(target, drafter="none", adaptive=True)
    headed = headed.with_drafter(StreamsDrafter(streams, nodes=3, most=3))
    for parts in (parts_of(target, tiny_model(noise=0.02), adaptive=False), headed):
        (found,) = profile({"it": parts}, PROMPTS, config).values()
        plain = Generation(parts_of(target, drafter="none"), [PROMPTS[1]], config).run()
        again = Generation(parts, [PROMPTS[1]], config).run()
        assert plain.rows[0].emitted == again.rows[0].emitted
        assert found.of("draft") > 0
        assert max(found.widths) > 1
        # Passes on the target's hidden states are drafting, and noted as that.
        assert any(span.name == "branch" for span in found.spans) is (parts is headed)


def test_the_controller_is_noted(target):
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True)
    (found,) = profile({"it": parts_of(target, drafter="lookup")}, PROMPTS, config).values()
    assert found.of("controller") > 0
    assert {span.name for span in found.spans if span.part == "controller"} == {"pauses", "choose", "cut", "observe"}


def test_the_trace_holds_every_round_and_every_note_in_order(target):
    (found,) = profile({"it": parts_of(target, drafter="lookup")}, PROMPTS, GenerationConfig(max_new_tokens=8)).values()
    events = found.trace()["traceEvents"]
    complete = [each for each in events if each["ph"] == "X"]
    assert len(complete) == len(found.passes) + len(found.spans)
    assert all(each["dur"] >= 0 and each["ts"] >= -1e-3 and {"pid", "tid", "name"} <= set(each) for each in complete)
    inside = [each for each in complete if each["tid"] == 2]
    assert inside == sorted(inside, key=lambda each: each["ts"])
    assert any(each["args"].get("width", 0) >= 1 for each in inside)


def made(seconds, **shares):
    parts = {name.replace("_", " "): seconds * share for name, share in shares.items()}
    passes = [Pass(start=0.0, end=seconds, tokens=2, width=4, parts=parts) for _ in range(3)]
    return Profile(name="made", passes=passes)


def test_the_sentence_says_memory_only_if_both_sides_say_so():
    """1 GB in 80 ms is 12.5 GB/s."""
    whole = made(0.1, target_pass=0.8, draft=0.1, other=0.1)
    fast, slow = Memory(speeds=(15e9,), weights=10**9), Memory(speeds=(40e9,), weights=10**9)
    assert sentence(whole, fast) == (
        "memory bandwidth of the target's weights: 80% of the time is in target passes, most of it at width 4, which "
        "read 12.5 of the 15.0 GB/s measured here"
    )
    assert sentence(whole, slow).startswith("arithmetic and overhead of the target's passes, not memory bandwidth: 80%")
    assert "may stay in caches" in sentence(whole, Memory(speeds=(15e9,), weights=10**6))
    assert "mixture of experts" in sentence(whole, Memory(speeds=(15e9,), weights=None))


def test_nothing_is_said_of_memory_on_a_machine_that_is_uneven():
    whole = made(0.1, target_pass=0.8, other=0.2)
    assert not Memory(speeds=(15e9, 6e9, 5e9), weights=10**9).steady
    assert "too uneven to say what they wait for (80.0 to 80.0 ms each)" in sentence(
        whole, Memory(speeds=(15e9, 6e9, 5e9), weights=10**9)
    )
    passes = [
        Pass(start=0, end=1, tokens=1, width=1, parts={"target pass": seconds}) for seconds in (0.5, 0.6, 0.9, 1.0)
    ]
    uneven = Profile(name="made", passes=passes)
    assert uneven.middle_half(1) == (0.6, 1.0)
    assert "too uneven" in sentence(uneven, Memory(speeds=(15e9,), weights=10**10))


def test_arms_generate_in_turn(target, monkeypatch):
    order, done = [], []
    monkeypatch.setattr(
        "specstream.evaluation.profile.add", lambda found, parts, prompt, *_: order.append((found.name, prompt[0]))
    )
    arms = {"a": parts_of(target, drafter="none"), "b": parts_of(target, drafter="lookup")}
    profile(arms, PROMPTS, GenerationConfig(max_new_tokens=2), on_prompt=done.append)
    assert order == [("none", 5), ("lookup", 5), ("lookup", 9), ("none", 9)]
    assert done == [0, 1, 2]


@pytest.mark.parametrize(("part", "cause"), list(bottleneck.CAUSES.items()))
def test_the_sentence_names_what_takes_most(part, cause):
    shares = {part.replace(" ", "_"): 0.7, "target_pass": 0.3}
    said = sentence(made(0.01, **shares), Memory(speeds=(1e10,), weights=10**9))
    assert said == f"{cause}: 70% of the time, 7.00 ms a round, and target passes 30%; a round emits 2.00 tokens"


def test_the_usual_width_is_where_the_time_is():
    passes = [
        Pass(start=0, end=1, tokens=1, width=width, parts={"target pass": seconds})
        for width, seconds in ((1, 0.1), (1, 0.1), (8, 0.5), (1, 0.2))
    ]
    found = Profile(name="made", passes=passes)
    assert found.usual_width == 8
    assert found.widths == {1: 0.1, 8: 0.5}


def test_an_embedding_that_is_only_looked_up_is_not_read():
    model = tiny_model()
    target = HuggingFaceTarget(model, runtime="eager", exact=False)
    whole = sum(weight.numel() for weight in model.parameters()) * 4
    assert weights_of_a_pass(target) == whole - 300 * 48 * 4
    model.set_output_embeddings(model.get_output_embeddings())
    model.lm_head.weight = model.get_input_embeddings().weight
    assert weights_of_a_pass(target) == sum(weight.numel() for weight in model.parameters()) * 4
