"""The losses of distillation against their definitions."""

from __future__ import annotations

import pytest
import torch

from specstream.training.distillation import LOSSES, Said, distance

VOCAB, TOP = 7, 3


def case(temperature=1.0):
    """Logits of both, what is kept of the target's, and where the draft has those tokens."""
    chance = torch.Generator().manual_seed(4)
    target, draft = (torch.randn(5, VOCAB, generator=chance) for _ in range(2))
    top = (target / temperature).softmax(-1).topk(TOP)
    rest = 1 - top.values.sum(-1)
    return target, draft, Said(tokens=top.indices, probabilities=top.values, softened=top.values, rest=rest)


def classes(logits, said, temperature=1.0):
    """The distribution over the kept tokens and one class for the others."""
    kept = (logits / temperature).softmax(-1).gather(1, said.tokens)
    return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)


DEFINITIONS = {
    "forward_kl": lambda p, q: (p * (p / q).log()).sum(-1),
    "reverse_kl": lambda p, q: (q * (q / p).log()).sum(-1),
    "jsd": lambda p, q: ((p * (2 * p / (p + q)).log()).sum(-1) + (q * (2 * q / (p + q)).log()).sum(-1)) / 2,
    "tv": lambda p, q: (p - q).abs().sum(-1) / 2,
}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_is_its_definition_over_the_kept_tokens(name, temperature):
    target, draft, said = case(temperature)
    got = distance(name, draft, said, said.tokens, temperature)
    p, q = classes(target, said, temperature), classes(draft, said, temperature)
    torch.testing.assert_close(got, DEFINITIONS[name](p, q).mean() * temperature**2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_is_nothing_for_the_target_itself_and_falls_on_the_way_there(name):
    target, draft, said = case()
    assert float(distance(name, target, said, said.tokens, 1.0)) == pytest.approx(0, abs=1e-5)
    logits = draft.clone().requires_grad_()
    first = distance(name, logits, said, said.tokens, 1.0)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(distance(name, logits, said, said.tokens, 1.0), logits)
        logits = (logits - 2 * gradient).detach().requires_grad_()
    last = distance(name, logits, said, said.tokens, 1.0)
    assert float(last.detach()) < 0.3 * float(first.detach())


@pytest.mark.parametrize("name", LOSSES)
def test_of_tokens_that_the_draft_has_not_nothing_is_asked(name):
    """A draft that says the others in the target's own proportions cannot do better."""
    target, _, said = case()
    places = said.tokens.clone()
    places[:, 0] = -1  # the likeliest one
    logits = target.scatter(1, said.tokens[:, :1], -30.0).requires_grad_()
    (gradient,) = torch.autograd.grad(distance(name, logits, said, places, 1.0), logits)
    assert float(gradient.abs().max()) < (0.2 if name == "tv" else 1e-4)
    if name == "tv":  # it accepts all that can be
        assert float(distance(name, logits.detach(), said, places, 1.0)) == pytest.approx(0, abs=1e-5)
