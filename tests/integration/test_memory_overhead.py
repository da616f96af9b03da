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
    assert engine.benchmark([PROMPT], num_runs=1, max_new_tokens=8)["memory_overhead"] == pytest.approx(
        counted / engine.target.runtime.nbytes, rel=0.05
    )


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
