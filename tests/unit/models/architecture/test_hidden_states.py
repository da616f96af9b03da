"""Hidden states of scored nodes: the model's own, in every runtime, and no bit of the logits changes for them."""

from __future__ import annotations

import pytest
import torch

from specstream.core.tree import TokenTree
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from tests.lossless.families import FAMILIES, build, prompt
from tests.tape import TapeCapture

TOKENS = prompt(30)
CHAIN = TokenTree.chain(TOKENS[20:24])
TREE = TokenTree.merge(TOKENS[20], [TOKENS[21:23], TOKENS[25:28]])


def own_states(model, tree, layer):
    """Of the last layer the model itself gives the normed state only, so that is asked of layers before it."""
    rows = []
    for node in range(len(tree)):
        path = [*TOKENS[:20], *(tree.tokens[at] for at in tree.path(node))]
        with torch.inference_mode():
            rows.append(model(torch.tensor([path]), output_hidden_states=True).hidden_states[layer][0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("runtime", ["auto", "eager", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_models_own_and_the_logits_keep_their_bits(family, runtime):
    model = build(family)
    target = HuggingFaceTarget(model, runtime=runtime)
    for tree in (CHAIN, TREE):
        plain = target.begin([TOKENS[:20]]).score([tree])
        session = target.begin([TOKENS[:20]])
        session.tap({1})
        session.tap({2})
        assert torch.equal(session.score([tree]), plain)
        for layer in (1, 2):
            states = session.states(layer)[0, : len(tree)]
            torch.testing.assert_close(states, own_states(model, tree, layer), rtol=1e-3, atol=1e-3)
        with torch.inference_mode():
            head = model.get_output_embeddings()(session.states(2))[:, : plain.shape[1]]
        if family != "gemma2":  # caps its logits
            torch.testing.assert_close(head, plain, rtol=1e-4, atol=1e-4)


def test_states_outlive_the_commit_and_are_those_of_the_last_pass():
    target = HuggingFaceTarget(build("llama"))
    session = target.begin([TOKENS[:20]])
    session.tap([1])
    session.score([TREE])
    before = session.states(1).clone()
    session.commit([[0, 3, 4]])
    assert torch.equal(session.states(1), before)
    session.score([TokenTree.chain([5])])
    assert not torch.equal(session.states(1)[0, 0], before[0, 0])


def test_a_layer_somebody_watches_does_not_hide_the_states():
    model = build.__wrapped__("llama")
    model.model.layers[0].register_forward_hook(lambda *given: None)
    session = HuggingFaceTarget(model).begin([TOKENS[:20]])
    session.tap([0, 1])
    session.score([CHAIN])
    for layer in (0, 1):
        torch.testing.assert_close(session.states(layer)[0], own_states(model, CHAIN, layer), rtol=1e-3, atol=1e-3)


def test_replayed_graphs_keep_states_too():
    target = HuggingFaceTarget(build("llama"), runtime="static")
    target.passes.capture = TapeCapture()
    captured, plain = (
        target.begin([TOKENS[:20]]),
        HuggingFaceTarget(build("llama"), runtime="static").begin([TOKENS[:20]]),
    )
    for session in (captured, plain):
        session.tap([1, 2])
    held = []
    for tree in (CHAIN, TokenTree.chain(TOKENS[2:6])):
        for session in (captured, plain):
            session.score([tree])
            session.commit([range(4)])
        for layer in (1, 2):
            assert torch.equal(captured.states(layer), plain.states(layer))
        held.append((captured.states(1), captured.states(1).clone()))
    assert all(torch.equal(kept, copy) for kept, copy in held), "a later pass wrote over what was handed out"
    assert target.passes.capture.replays > 0


def test_without_a_cache_there_are_states_too():
    target = HuggingFaceTarget(build("llama"))
    session, uncached = target.begin([TOKENS[:20]]), UncachedTarget(target).begin([TOKENS[:20]])
    for each in (session, uncached):
        each.tap([2])
        each.score([CHAIN])
    assert torch.equal(session.states(2), uncached.states(2))


def test_what_was_not_tapped_is_refused():
    target = HuggingFaceTarget(build("llama"))
    session = target.begin([TOKENS[:20]])
    with pytest.raises(ValueError, match="layer 1 was not tapped before the last pass"):
        session.states(1)
    with pytest.raises(ValueError, match="cannot tap layer 3 of a model of 2 layers"):
        session.tap([3])
    with pytest.raises(ValueError, match="layer 2 was not tapped before the last pass"):
        UncachedTarget(target).begin([TOKENS[:20]]).states(2)
