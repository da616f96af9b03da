"""What an EAGLE-3 head is trained on is what it drafts from, and what it drafts of a text depends on no other."""

from __future__ import annotations

import pytest
import torch

from specstream.drafters.eagle import EagleDrafter
from specstream.heads import published
from specstream.heads.eagle import EagleHead
from specstream.heads.eagle_loss import eagle_loss, eagle_ranks, unrolled
from specstream.models.target.hf import HuggingFaceTarget
from specstream.training.data import Batch
from specstream.training.recipes.block import TappedStates
from tests.lossless.decoding import run
from tests.lossless.families import VOCAB, build, prompt

pytestmark = pytest.mark.usefixtures("one_thread")

PART = torch.arange(0, VOCAB, 2)


def shaken(family: str = "llama", taps: tuple[int, ...] = (1, 0)) -> EagleHead:
    """A head whose every parameter matters."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        head = EagleHead.fresh(build(family), taps, 3, PART)
        for parameter in head.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return head.train()


def batch(*rows: list[int], start: int = 4) -> Batch:
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    at = torch.arange(width)
    mask = (at >= start) & (at < torch.tensor([len(row) for row in rows])[:, None])
    return Batch(tokens=tokens, mask=mask, size=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@torch.no_grad()
def test_training_unrolls_what_drafting_does(family, monkeypatch) -> None:
    """Each round of a real generation again: the same taps, tokens, positions and keys, in each step."""
    monkeypatch.setattr(published, "in_bytes", lambda model: False)
    head, rounds = shaken(family), []

    class Noted(EagleDrafter):
        def candidates(self, session, places, requests, rows):
            found = super().candidates(session, places, requests, rows)
            rounds.append((list(requests[0].tokens), found[0]))
            return found

    run(HuggingFaceTarget(build(family)), Noted(head.eval(), nodes=4, most=4, ranks=4), [prompt(12)], 24)
    assert sum(len(drafted.tokens) == head.gamma for _, drafted in rounds) >= 6
    head.train()
    for text, drafted in rounds:
        whole = batch(text + [own[0] for own in drafted.tokens])
        states = TappedStates(head.model, head.taps).of(whole)
        states.taps[:, len(text) - 1 :] = 1e3  # a draft knows none of the target's there
        outputs = unrolled(head, states.taps, whole.tokens, torch.tensor([[len(text) - 2]]))
        for output, tokens, chances in zip(outputs, drafted.tokens, drafted.chances, strict=False):
            best = head.logits(output[0]).softmax(-1).topk(4)
            assert PART[best.indices[0]].tolist() == tokens
            torch.testing.assert_close(best.values[0], torch.tensor(chances), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_rows_are_judged_as_if_alone() -> None:
    head = shaken()
    states = TappedStates(head.model, head.taps)
    rows = [prompt(30), prompt(19, seed=1)]
    together = batch(*rows)
    found = eagle_ranks(head, states.of(together), together.tokens, together.mask)
    alone = [eagle_ranks(head, states.of(own), own.tokens, own.mask) for own in map(batch, rows)]
    assert torch.equal(found, torch.cat(alone))
    assert [len(each) for each in alone] == [30 - 4 - 3, 19 - 4 - 3], "not the answer's first, nor of the last depths"
    lacking = [[token % 2 for token in row[5:]] for row in rows]
    for own, odd in zip(alone, lacking, strict=True):
        assert [[rank == len(PART) for rank in ranks] for ranks in own.tolist()] == [
            [bool(odd[at + depth]) for depth in range(3)] for at in range(len(own))
        ]


def test_the_loss_is_the_targets_own_where_the_draft_says_the_same() -> None:
    """A distribution's cross-entropy to itself is its entropy; tokens that are not drafted have no part in it."""
    head = shaken().requires_grad_(True)
    own = batch(prompt(20))
    states = TappedStates(head.model, head.taps).of(own)
    total, parts = eagle_loss(head, states, own.tokens, own.mask)
    assert set(parts) == {"accepted_1", "accepted_2", "accepted_3"}
    outputs = unrolled(head, states.taps, own.tokens, torch.arange(3, 18)[None])
    expected = torch.zeros(())
    for step, output in enumerate(outputs):
        count = 15 - step
        logs = head.logits(output[0, :count]).log_softmax(-1)
        logits = head.model(own.tokens).logits[0, 4 + step : 4 + step + count].float()
        chances, tokens = logits.softmax(-1).topk(64)
        even = tokens % 2 == 0
        said = logs.gather(1, tokens // 2) * even
        expected = expected - 0.8**step / (1 + 0.8 + 0.64) * (chances * said).sum(1).mean()
    torch.testing.assert_close(total, expected)
    head.model.zero_grad()
    total.backward()
    assert all(each.grad is None for each in head.model.parameters())
