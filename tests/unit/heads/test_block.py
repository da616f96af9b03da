"""A block head: what a decoding round computes from windows is what training computes over the whole sequence."""

from __future__ import annotations

import pytest
import torch

from specstream.errors import HeadMismatchError, UsageError
from specstream.heads.block import BlockConfig, BlockHead
from specstream.heads.block_loss import block_loss, block_ranks
from specstream.heads.depths import TargetStates
from specstream.models.architecture.hidden_states import decoder_layers
from tests.lossless.families import FAMILIES, VOCAB, build, prompt

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = torch.tensor([prompt(30)])
MASK = (torch.arange(30) >= 8)[None]


def shaken(family: str = "llama", **settings) -> BlockHead:
    """A head whose every parameter matters."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        head = BlockHead(build(family), BlockConfig(**{"gamma": 3, "layers": 2, "chain_rank": 4, **settings}))
        for parameter in head.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return head.requires_grad_(False)


def states_at(head: BlockHead, length: int = 30, seed: int = 3) -> torch.Tensor:
    hidden = head.embeddings.shape[1]
    return torch.randn(1, length, len(head.config.taps), hidden, generator=torch.Generator().manual_seed(seed))


def one_hot(tokens: torch.Tensor, chance: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a target that says at every position the token that follows."""
    return tokens.roll(-1, 1)[..., None], torch.full((*tokens.shape, 1), chance)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_draft_what_the_whole_sequence_does(family, monkeypatch):
    monkeypatch.setattr(BlockHead, "_in_bytes", lambda head: False)  # rounding would move candidates that are close
    head = shaken(family, window=6)
    states, rows = states_at(head), [(20, 77), (9, 5)]
    positions = torch.tensor([[at for at, _ in rows]])
    following = torch.tensor([[token for _, token in rows]])
    final = head.final_states(states, positions, following)[0]
    memory = []
    for at, _ in rows:
        seen = torch.arange(at - 5, at + 1)
        memory.append(head.memory(states[0, seen], seen))
    drafted = head.candidates(
        states[0, positions[0], -1], positions[0], following[0], tuple(zip(*memory, strict=True)), 4, 3
    )
    weight, bias = head.head()
    for own, candidates in zip(final, drafted, strict=True):
        expected = torch.nn.functional.linear(own, weight, bias)
        assert candidates.tokens[0][0] == expected[0].argmax()
        best = expected.softmax(-1).amax(-1).tolist()
        assert [each[0] for each in candidates.chances] == pytest.approx(best, abs=1e-3)


def test_no_position_behind_the_window_or_ahead_is_seen():
    head = shaken(window=6)
    states, at = states_at(head), torch.tensor([[20]])

    def final(changed: int | None) -> torch.Tensor:
        other = states.clone()
        if changed is not None:
            other[0, changed] += 1
        return head.final_states(other, at, torch.tensor([[7]]))

    seen = [each for each in range(30) if not torch.equal(final(each), final(None))]
    assert seen == [15, 16, 17, 18, 19, 20]


def test_a_depth_sees_those_before_it_and_is_its_own():
    head = shaken(gamma=4)
    states, at, token = states_at(head), torch.tensor([[20]]), torch.tensor([[7]])
    before = head.final_states(states, at, token)
    head.embeddings[2] += 1
    after = head.final_states(states, at, token)
    same = [torch.equal(a, b) for a, b in zip(before[0, 0], after[0, 0], strict=True)]
    assert same == [True, True, False, False]


def test_an_untrained_head_of_a_llama_is_the_targets_top():
    """With the true state to start from, and the whole text in its window, the first query says what that says."""
    model = build("llama")
    head = BlockHead(model, BlockConfig(gamma=1, layers=1, window=64, chain_rank=0))
    kept = {}
    hook = decoder_layers(model)[-1].register_forward_pre_hook(lambda _, given: kept.setdefault("in", given[0]))
    with torch.no_grad():
        expected = model(TOKENS).logits[0, 21]
        hook.remove()
        head.linear_start = lambda states, following: kept["in"][:, 21:22, None]
        states = kept["in"][:, :, None].expand(-1, -1, len(head.config.taps), -1)
        final = head.final_states(states, torch.tensor([[20]]), TOKENS[:, 21:22])
        logits = torch.nn.functional.linear(final, *head.head())[0, 0, 0]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_the_loss_falls_to_what_the_target_itself_would_pay():
    """Of a target that is sure of every token of its answer; nothing of the prompt is asked for."""
    head = shaken().requires_grad_(True)
    states = TargetStates(states_at(head), *one_hot(TOKENS))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, parts = block_loss(head, states, TOKENS, MASK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert min(float(parts[f"accepted_{depth}"]) for depth in (1, 2, 3)) > 0.9
    ranks = block_ranks(head, states, TOKENS, MASK)
    assert ranks.shape == (30 - 8 - 3, 3), (
        "behind the first token, which is no draft, as long as the last depth has one"
    )
    assert not ranks.any()


@pytest.mark.parametrize(("chance", "accepted"), [(1.0, 1 / VOCAB), (0.25, 0.75 + 1 / VOCAB)])
def test_acceptance_is_the_mass_that_draft_and_target_share(chance, accepted):
    """A draft that is sure of nothing; the target's other tokens count as one."""
    head = shaken()
    head.norm.weight.zero_()
    _, parts = block_loss(head, TargetStates(states_at(head), *one_hot(TOKENS, chance)), TOKENS, MASK)
    assert float(parts["accepted_1"]) == pytest.approx(accepted, rel=1e-4)


def test_anchors_are_drawn_among_those_that_have_something_to_learn():
    head, tokens, mask = shaken(), TOKENS.expand(2, -1), MASK.expand(2, -1).clone()
    mask[1, 15:] = False
    states = TargetStates(states_at(head).expand(2, -1, -1, -1), *one_hot(tokens))
    every, _ = block_loss(head, states, tokens, mask, anchors=1000)
    assert torch.equal(every, block_loss(head, states, tokens, mask)[0])
    losses = set()
    for seed in range(4):
        torch.manual_seed(seed)
        losses.add(float(block_loss(head, states, tokens, mask, anchors=3)[0]))
    assert len(losses) == 4


def test_a_folder_brings_back_the_same_drafts(tmp_path):
    head = shaken(window=6)
    head.save(tmp_path, dtype="float32", figures={"a": 1})
    again = BlockHead.from_pretrained(tmp_path, build("llama"))
    assert (again.config, again.details) == (head.config, {"figures": {"a": 1}})
    given = states_at(head), torch.tensor([[20]]), torch.tensor([[7]])
    assert torch.equal(again.final_states(*given), head.final_states(*given))
    with pytest.raises(HeadMismatchError, match=r"block.* belong to llama"):
        BlockHead.from_pretrained(tmp_path, build("llama", noise=0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0}, "gamma is 0; give"),
        ({"taps": [3, 1]}, r"taps is \[3, 1\]; give layers in increasing order"),
        ({"taps": [1, 99]}, "taps has 99 and the model has"),
        ({"layers": 99}, "layers is 99 and the model has"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        BlockHead(build("llama"), BlockConfig(**settings))
