"""The loss: what it is made of, and that it teaches."""

from __future__ import annotations

import pytest
import torch

from specstream.heads.stream_loss import early_exit_chances, early_exit_loss, stream_loss, stream_ranks
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.architecture.partial_forward import upper_linears
from tests.lossless.families import VOCAB, WINDOW, build, prompt

pytestmark = pytest.mark.usefixtures("one_thread")


def made(family="llama", vocabulary=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Streams(build(family), StreamsConfig(**{"gamma": 3, "layers": 1, "rank": 4, **settings}), vocabulary)


BATCH = torch.tensor([prompt(24), prompt(24, seed=1)])


@pytest.mark.parametrize(
    ("vocabulary", "chain_rank"), [(None, 0), (list(range(0, VOCAB, 2)), 0), (list(range(0, VOCAB, 2)), 4)]
)
def test_it_is_the_cross_entropy_of_each_stream(vocabulary, chain_rank, monkeypatch):
    monkeypatch.setattr("specstream.heads.stream_loss.LOGITS_AT_ONCE", 7 * VOCAB)  # chunks of odd sizes
    streams = made(vocabulary=vocabulary, chain_rank=chain_rank)
    if streams.chain is not None:
        torch.nn.init.normal_(streams.chain.up, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros_like(BATCH, dtype=torch.bool)
    mask[0, 10:20], mask[1, 5:] = True, True
    total, parts = stream_loss(streams, BATCH, mask)
    known = list(range(VOCAB)) if vocabulary is None else vocabulary
    own = streams.model.get_output_embeddings().weight[known]
    for j in (1, 2, 3):
        losses = []
        for row, at in mask.nonzero().tolist():
            start = at - 1 - j
            if start < 0 or not mask[row, start + 2] or int(BATCH[row, at]) not in known:
                continue  # positions whose first stream predicts nothing are left out
            with torch.no_grad():
                main = streams.read(BATCH[row : row + 1, : start + 1])
                final = streams.final_states(main, torch.tensor([[start]]), BATCH[row, start + 1].view(1, 1))[
                    0, 0, j - 1
                ]
                if chain_rank and j > 1:  # behind the true token of the stream before
                    token = streams.token_states(BATCH[row, at - 1])
                    final = final + streams.chain.up @ (streams.chain.down @ token)
            losses.append(-(own @ final).log_softmax(0)[known.index(int(BATCH[row, at]))])
        torch.testing.assert_close(parts[f"stream_{j}"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total.detach(), 0.1 * sum(parts.values()))


@pytest.mark.parametrize("soften", [0.0, 0.4, 1.0])
def test_a_softened_target_is_partly_what_the_base_says_there_and_the_gradient_is_that_of_it(soften, monkeypatch):
    monkeypatch.setattr("specstream.heads.stream_loss.LOGITS_AT_ONCE", 7 * VOCAB)
    vocabulary = list(range(0, VOCAB, 2))
    streams, mask = made(vocabulary=vocabulary, start="linear"), torch.zeros_like(BATCH, dtype=torch.bool)
    mask[:, 6:20] = True
    total, parts = stream_loss(streams, BATCH, mask, soften=soften)
    total.backward()
    got = {name: parameter.grad.clone() for name, parameter in streams.named_parameters()}
    streams.zero_grad()
    main, at = streams.read(BATCH), torch.arange(4, 18).expand(2, -1)
    final, own = (
        streams.final_states(main, at, BATCH[:, 5:19]),
        streams.model.get_output_embeddings().weight[vocabulary],
    )
    expected = 0
    for j in (1, 2, 3):
        losses = []
        for row in range(2):
            for place, start in enumerate(range(4, 19 - j)):
                token = int(BATCH[row, start + 1 + j])
                if token % 2 == 0:
                    target = soften * (own @ main.final[row, start + j]).softmax(0)
                    target[token // 2] += 1 - soften
                    losses.append(-(target * (own @ final[row, place, j - 1]).log_softmax(0)).sum())
        mean = torch.stack(losses).mean()
        torch.testing.assert_close(parts[f"stream_{j}"], mean.detach(), rtol=1e-4, atol=1e-4)
        expected = expected + 0.1 * mean
    expected.backward()
    for name, parameter in streams.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_head_that_is_trained_gets_its_gradient_too():
    streams, mask = made(mode="shared"), torch.ones_like(BATCH, dtype=torch.bool)
    head = streams.model.get_output_embeddings().weight.requires_grad_(True)
    total, _ = stream_loss(streams, BATCH, mask)
    (gradient,) = torch.autograd.grad(total, head)
    head.requires_grad_(False)
    assert float(gradient.abs().sum()) > 0


def test_what_comes_behind_a_position_is_not_seen():
    streams, mask = made("mistral"), torch.ones_like(BATCH, dtype=torch.bool)
    other = BATCH.clone()
    other[:, 15:] = 7
    at = torch.tensor([[3, 14]] * 2)
    with torch.no_grad():
        states = [streams.final_states(streams.read(tokens), at, at) for tokens in (BATCH, other)]
    assert BATCH.shape[1] > 2 * WINDOW
    torch.testing.assert_close(*states)
    assert mask.all()


def test_where_nothing_is_to_be_predicted_the_loss_is_nothing():
    streams = made(pruning_rank=2)
    total, _ = stream_loss(streams, BATCH, torch.zeros_like(BATCH, dtype=torch.bool))
    total.backward()
    assert total.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in streams.parameters())


def test_the_shared_mode_trains_the_base_too():
    model = build.__wrapped__("llama")
    streams = Streams(model, StreamsConfig(gamma=2, layers=1, rank=4, mode="shared"))
    total, parts = stream_loss(streams, BATCH, torch.ones_like(BATCH, dtype=torch.bool))
    assert list(parts) == ["stream_1", "stream_2", "next"]
    torch.testing.assert_close(total.detach(), parts["next"] + 0.1 * (parts["stream_1"] + parts["stream_2"]))
    total.backward()
    embedding = model.model.embed_tokens.weight
    assert embedding.grad is not None
    assert embedding.grad.any(), "through the main states that streams start from"
    assert all(parameter.grad is not None for parameter in streams.parameters())
    with torch.no_grad():
        own = model(BATCH, labels=BATCH).loss
    torch.testing.assert_close(parts["next"], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "target"), [("llama", "q_proj"), ("gpt2", "c_attn")])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_base_that_peft_is_fine_tuning_shares_its_layers_with_the_streams(family, target):
    peft = pytest.importorskip("peft")
    model = build.__wrapped__(family)
    plain = set(upper_linears(model, 1))
    settings = peft.LoraConfig(r=2, target_modules=[target], fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, settings)
    assert set(upper_linears(model, 1)) == plain, "a wrapped layer is one layer, under its own name"
    streams = Streams(model, StreamsConfig(gamma=2, layers=1, rank=4, mode="shared"))
    total, _ = stream_loss(streams, BATCH, torch.ones_like(BATCH, dtype=torch.bool))
    total.backward()
    learning = {name: each for name, each in tuned.named_parameters() if each.requires_grad}
    assert all("lora_" in name for name in learning)
    assert all(each.grad is not None for each in learning.values())
    assert all(parameter.grad is not None for parameter in streams.parameters())
    merged = tuned.merge_and_unload()
    assert fingerprint(merged) == fingerprint(build(family)), "PEFT's changes begin as none"
    assert set(Streams(merged, streams.config).state_dict()) == set(streams.state_dict())


def test_the_early_exit_learns_the_next_token():
    streams = made(pruning_rank=4)
    with torch.no_grad():
        main = streams.read(BATCH)
        norm = streams.model.model.norm
        torch.testing.assert_close(streams.early_exit(main.states)[:, 4], norm(main.states[:, 4]))
    _, parts = stream_loss(streams, BATCH, torch.ones_like(BATCH, dtype=torch.bool))
    assert list(parts) == ["stream_1", "stream_2", "stream_3", "early"]
    logits = (norm(main.states[:, :-1]) @ streams.head()[0].T).log_softmax(-1)
    losses = -logits.gather(2, BATCH[:, 1:, None])[..., 0]
    whole = torch.ones_like(BATCH, dtype=torch.bool)
    torch.testing.assert_close(early_exit_loss(streams, BATCH, whole), losses.mean(), rtol=1e-4, atol=1e-4)
    some = whole.clone()
    some[:, :9] = False
    chances = early_exit_chances(streams, BATCH, some)
    torch.testing.assert_close(chances, (-losses[:, 8:]).exp().flatten(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        said = model_says(streams)[:, :-1]
    softened = early_exit_loss(streams, BATCH, whole, soften=1.0)
    torch.testing.assert_close(softened, -(said * logits).sum(-1).mean(), rtol=1e-4, atol=1e-4)


def model_says(streams):
    return streams.model(BATCH).logits.softmax(-1)


def test_ranks_are_those_of_the_true_tokens():
    vocabulary = list(range(0, VOCAB, 2))
    streams, mask = made(vocabulary=vocabulary), torch.zeros_like(BATCH, dtype=torch.bool)
    mask[:, 6:20] = True
    ranks = stream_ranks(streams, BATCH, mask)
    assert ranks.shape == (2 * 12, 3), "positions 4 to 15: all three streams predict a wanted token"
    with torch.no_grad():
        at = torch.arange(4, 16).expand(2, -1)
        final = streams.final_states(streams.read(BATCH), at, BATCH[:, 5:17])
    logits = final @ streams.model.get_output_embeddings().weight[vocabulary].T
    for row in range(2):
        for place, start in enumerate(range(4, 16)):
            for j in (1, 2, 3):
                token, own = int(BATCH[row, start + 1 + j]), logits[row, place, j - 1]
                wanted = int((own > own[token // 2]).sum()) if token % 2 == 0 else len(vocabulary)
                assert int(ranks[row * 12 + place, j - 1]) == wanted


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi"])
def test_streams_learn(family):
    """A few tokens that follow each other in circles: the streams of a random model find out in a few dozen steps."""
    streams = made(family, layers=2, rank=8)
    circle = torch.tensor([5, 90, 33, 7, 120, 64, 18])
    tokens = torch.stack([circle.roll(shift).repeat(4)[:24] for shift in range(7)])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    optimizer = torch.optim.Adam(streams.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        total, _ = stream_loss(streams, tokens, mask)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0] / 4
    assert float((stream_ranks(streams, tokens, mask) == 0).float().mean()) > 0.8
