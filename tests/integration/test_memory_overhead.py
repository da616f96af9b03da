"""What benchmark calls memory_overhead is what there is in memory: copies of weights too."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest
import torch

from specstream import SpeculativeEngine
from specstream.engine.inventory import draft_bytes
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams, StreamsConfig
from specstream.models.architecture.memory import held_bytes
from specstream.models.cache import capacity_for, token_bytes
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import FAMILIES, build
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = "one two three four five one two three four five one two three"


def live_bytes():
    """Of all tensors that there are, each memory once."""
    gc.collect()
    places = {}
    for each in gc.get_objects():
        # Not isinstance, which asks some objects of torch for a class that they warn of.
        if issubclass(type(each), torch.Tensor) and each.layout == torch.strided:
            storage = each.untyped_storage()
            with suppress(RuntimeError):  # a tensor of torch's compiler, which has no memory
                places[storage.data_ptr()] = storage.nbytes()
    return sum(places.values())


def grown(model, **settings):
    """The engine, and what memory grows by from before it to after its first generation."""
    before = live_bytes()
    engine = SpeculativeEngine(model, tiny_tokenizer(), adaptive=False, **settings)
    engine.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    return engine, live_bytes() - before


def cache_of(target, tokens=13):
    """Bytes of the keys and values of a session over so many tokens."""
    kept = target.begin([list(range(1, tokens + 1))]).cache
    return sum(each.nbytes for each in kept._buffers.values())


@pytest.fixture(autouse=True, scope="module")
def a_model_is_tested_once():
    """Not here: what the self-test of a model leaves in memory would count for the first engine alone."""


@pytest.fixture(autouse=True)
def _what_was_there_before_is_not_looked_at():
    """A process of many tests has millions of objects, and none of them changes here."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_of_a_family_takes_what_is_said(family):
    target = HuggingFaceTarget(build(family), runtime="eager", exact=False)
    assert token_bytes(target.model.config, target.model.dtype) * capacity_for(13) == cache_of(target)


def test_a_drafts_cache_counts():
    model, draft = tiny_model(), tiny_model(seed=1)
    engine = SpeculativeEngine(model, tiny_tokenizer(), draft, adaptive=False)
    report = engine.benchmark([PROMPT], num_runs=1, max_new_tokens=8)
    assert report["memory_overhead"] == pytest.approx(1.0)  # as large as the target, in weights and in cache
    own = SpeculativeEngine(model, tiny_tokenizer(), "self:int8", adaptive=False)
    counted = draft_bytes(own.parts.drafter, own.target) + cache_of(own.target)
    report = own.benchmark([PROMPT], num_runs=1, max_new_tokens=8)
    assert report["memory_overhead"] == pytest.approx(counted / (own.target.nbytes + cache_of(own.target)))


@pytest.mark.parametrize("kind", ["streams", "medusa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_count_with_the_copies_that_they_draft_with(kind, dtype, tmp_path):
    model = tiny_model().to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "streams":
            Streams(model, StreamsConfig(gamma=3, layers=1, rank=2)).save(tmp_path)
        else:
            MedusaHeads(model, num_heads=2).save(tmp_path)
    plain, without = grown(model, drafter="none")
    engine, with_heads = grown(model, drafter=kind, heads=str(tmp_path))
    counted = draft_bytes(engine.parts.drafter, engine.target)
    assert plain.parts.drafter.name == "none"
    assert counted == pytest.approx(with_heads - without, rel=0.1)  # states of the last pass
    report = engine.benchmark([PROMPT], num_runs=1, max_new_tokens=8)
    whole = engine.target.nbytes + cache_of(engine.target)
    assert report["memory_overhead"] == pytest.approx(counted / whole, rel=0.05)


def test_the_weights_that_the_model_has_anyway_do_not_count():
    model = tiny_model()
    engine = SpeculativeEngine(model, tiny_tokenizer(), "self:int8", adaptive=False)
    own = sum(each.nbytes for each in model.parameters())
    counted = draft_bytes(engine.parts.drafter, engine.target)
    assert 0 < counted == engine.parts.drafter.model.runtime.nbytes - own


def test_memory_is_found_in_closures_and_counted_once():
    weight = torch.zeros(100, 10)
    view = weight[:5]

    def product(x):
        return x @ view

    holder = {"first": [weight, view], "second": (product,), "third": lambda x, w=weight: x @ w}
    assert held_bytes([holder], without=torch.nn.Linear(1, 1)) == weight.nbytes
