"""What drafters see of prompts: the inputs of tapped layers at every token, however the prompt is read."""

from __future__ import annotations

import pytest
import torch

from specstream.core.prefix_cache import PrefixCache
from specstream.core.tree import TokenTree
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import build, prompt

PROMPTS = (prompt(17), prompt(6, seed=1))


@pytest.fixture(scope="module")
def target() -> HuggingFaceTarget:
    return HuggingFaceTarget(build("llama"))


def whole(target: HuggingFaceTarget, tokens: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    """By one pass of the model."""
    with torch.no_grad():
        states = target.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.stack([states[layer][0] for layer in layers], 1)


def read(target, prefixes=None, layers=(0, 1), prompts=PROMPTS, most=5):
    session = target.begin_reading(prompts)
    if prefixes is not None:
        session.reuse(prefixes)
    session.tap_prompts(layers)
    while session.read(most):
        pass
    return session


def test_states_are_those_of_one_pass_until_the_first_of_the_answer(target) -> None:
    session = read(target)
    for row, tokens in enumerate(PROMPTS):
        assert torch.allclose(session.prompt_states(row, (0, 1)), whole(target, tokens, (0, 1)), atol=1e-5)
        assert torch.allclose(session.prompt_states(row, (1,)), whole(target, tokens, (1,)), atol=1e-5)
    session.keep([1])
    assert torch.allclose(session.prompt_states(0, (0, 1)), whole(target, PROMPTS[1], (0, 1)), atol=1e-5)
    session.score([TokenTree.chain([5])])
    assert session.prompt_states(0, (0, 1)).shape == (0, 2, 64)


def test_nothing_is_kept_for_nobody(target) -> None:
    assert target.begin(PROMPTS).prompt_states(0, (1,)).shape == (0, 1, 64)
    assert read(target, layers=(1,)).prompt_states(0, (0, 1)).shape == (0, 2, 64), "another layer was asked for"
    with pytest.raises(ValueError, match="cannot tap layer 2 of a model of 2 layers"):
        target.begin_reading(PROMPTS).tap_prompts((0, 2))


def test_a_prefix_that_is_reused_has_its_states_too(target) -> None:
    if not target.invariant:
        pytest.skip("prefixes are reused on our own kernels alone")
    prefixes, long = PrefixCache(10**8), [*PROMPTS[0], *prompt(8, seed=3)]
    read(target, prefixes)
    session = read(target, prefixes, prompts=[long, PROMPTS[0][:9]])
    assert session.cached(0) == len(PROMPTS[0]) - 1 and session.cached(1) == 8
    assert torch.allclose(session.prompt_states(0, (0, 1)), whole(target, long, (0, 1)), atol=1e-5)
    assert torch.allclose(session.prompt_states(1, (0, 1)), whole(target, PROMPTS[0][:9], (0, 1)), atol=1e-5)
    other = read(target, prefixes, layers=(1,), prompts=[long])  # whose states are not there
    assert other.cached(0) == 0
    assert torch.allclose(other.prompt_states(0, (1,)), whole(target, long, (1,)), atol=1e-5)
    session.score([TokenTree.chain([5]), TokenTree.chain([6])])
    session.commit([(0,), (0,)])
    session.retain(0, [*long, 5])  # of the answer there are no states: it is left out
    again = read(target, prefixes, prompts=[[*long, 5, 7, 8]])
    assert again.cached(0) == len(long) - 1
    assert torch.allclose(again.prompt_states(0, (0, 1)), whole(target, [*long, 5, 7, 8], (0, 1)), atol=1e-5)
