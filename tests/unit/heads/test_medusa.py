"""Medusa heads: what they begin as, what they learn, and how they are kept."""

import copy
import json

import pytest
import torch

from specstream.core.decode import decode
from specstream.core.policy.policy import Speculation
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import rank_rates
from specstream.drafters.medusa import MedusaDrafter
from specstream.errors import HeadMismatchError, UsageError
from specstream.heads.medusa import DECAY, MedusaHeads
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import FAMILIES, build, prompt
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def texts(rows=4, width=12, vocab=300):
    chance = torch.Generator().manual_seed(0)
    return torch.randint(2, vocab, (rows, width), generator=chance)


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_heads_say_what_the_base_says_next(family):
    """The blocks begin as the identity, the output matrices as the base's: of Phi without its bias."""
    model, tokens = build(family), torch.tensor([prompt(20)])
    heads = MedusaHeads(model, num_heads=2)
    with torch.no_grad():
        own, states = model(tokens).logits, heads.states_of(tokens)
        bias = getattr(model.get_output_embeddings(), "bias", None)
        for head in range(2):
            logits = heads.logits(states, head) + (0 if bias is None else bias)
            if family == "gemma2":  # caps its logits
                logits = torch.tanh(logits / 8) * 8
            torch.testing.assert_close(logits, own, rtol=1e-3, atol=1e-3)


def test_they_read_what_a_target_session_taps(model):
    heads, tokens = MedusaHeads(model, num_heads=1), prompt(20)
    session = HuggingFaceTarget(model).begin([[]])
    session.tap([heads.layer])
    session.score([TokenTree.chain(tokens)])
    tapped = session.states(heads.layer)[0, : len(tokens)]
    torch.testing.assert_close(tapped, heads.states_of(torch.tensor([tokens]))[0], rtol=1e-3, atol=1e-3)


def test_a_head_is_judged_by_the_token_it_looks_ahead_to(model):
    heads, tokens = MedusaHeads(model, num_heads=3), texts(2, 9)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[1, 5] = True
    states = heads.states_of(tokens)
    total, parts = heads.loss_of(states, tokens, mask)
    expected = 0.0
    for k in (1, 2, 3):  # head k says the token k + 1 places on
        logits = heads.logits(states[1, 5 - k - 1], k - 1)
        loss = -logits.log_softmax(-1)[tokens[1, 5]]
        torch.testing.assert_close(parts[f"head_{k}"], loss.detach())
        expected += DECAY**k * loss.item()
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_with_nothing_to_predict_has_no_loss(model):
    heads, tokens = MedusaHeads(model, num_heads=2), texts(1, 3)
    total, parts = heads.loss_of(heads.states_of(tokens), tokens, torch.zeros_like(tokens, dtype=torch.bool))
    assert total.item() == 0 == float(parts["head_2"])
    total.backward()


def test_the_base_learns_nothing(model):
    heads, tokens = MedusaHeads(model, num_heads=2), texts()
    heads.loss_of(heads.states_of(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool))[0].backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.grad is not None for weight in heads.parameters())
    own = {id(weight) for weight in model.parameters()}
    assert not any(id(weight) in own for weight in heads.parameters())


def test_what_they_add_is_counted(model):
    hidden, vocab = 48, 300
    heads = MedusaHeads(model, num_heads=3, num_layers=2)
    assert heads.extra_parameters == 3 * (2 * hidden**2 + vocab * hidden)
    assert heads.nbytes == 4 * heads.extra_parameters
    few = MedusaHeads(model, num_heads=3, token_map=range(50))
    assert few.extra_parameters == 3 * (hidden**2 + 50 * hidden)


def test_ranks_say_where_the_true_tokens_stood(model):
    heads, tokens = MedusaHeads(model, num_heads=2), texts(2, 8)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, 4:7] = True
    states = heads.states_of(tokens)
    ranks = heads.ranks(states, tokens, mask)
    assert ranks.shape == (2, 2)  # from positions 2 and 3: tokens 4, 5 and 5, 6
    for row, position in enumerate((2, 3)):
        for head in range(2):
            order = heads.logits(states[0, position], head).argsort(descending=True).tolist()
            assert ranks[row, head] == order.index(int(tokens[0, position + head + 2]))
    assert rank_rates(torch.tensor([[0, 1], [2, 1], [0, 9], [0, 0]]), 2) == [[0.75, 0.0], [0.25, 0.5]]


class TestATruncatedVocabulary:
    def test_drafts_its_own_tokens_only(self, model):
        kept = [5, 299, 17, 40]
        heads = MedusaHeads(model, num_heads=2, token_map=kept)
        drafted, chances = heads.draft(torch.randn(3, 48), 2, 8)
        assert drafted.shape == (3, 2, 4)
        assert torch.allclose(chances.sum(-1), torch.ones(3, 2))
        assert set(drafted.flatten().tolist()) == set(kept)

    def test_learns_nothing_of_others(self, model):
        heads = MedusaHeads(model, num_heads=1, token_map=[5, 6, 7])
        tokens = torch.tensor([[9, 9, 9, 5, 9]])
        total, _ = heads.loss_of(heads.states_of(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool))
        logits = heads.logits(heads.states_of(tokens)[0, 1], 0)
        assert total.item() == pytest.approx(-DECAY * logits.log_softmax(-1)[0].item(), rel=1e-5)
        ranks = heads.ranks(heads.states_of(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert (ranks == 300).sum() == 2 and (ranks < 3).sum() == 1


class TestAFolder:
    def test_gives_back_what_was_saved(self, model, tmp_path):
        heads = MedusaHeads(model, num_heads=2, num_layers=2, token_map=range(40))
        with torch.no_grad():
            for weight in heads.parameters():
                weight.add_(torch.randn_like(weight))
        heads.rates, heads.record = [[0.5, 0.1], [0.25, 0.1]], {"data": "some", "figures": {"top1_1": 0.5}}
        heads.save(tmp_path / "new" / "heads")
        again = MedusaHeads.from_pretrained(tmp_path / "new" / "heads", model)
        states = torch.randn(2, 48)
        assert all(torch.equal(heads.logits(states, head), again.logits(states, head)) for head in range(2))
        assert all(map(torch.equal, heads.draft(states, 2, 3), again.draft(states, 2, 3)))
        assert (again.rates, again.record) == (heads.rates, heads.record)
        assert sorted(path.name for path in (tmp_path / "new" / "heads").iterdir()) == [
            "config.json",
            "model.safetensors",
        ]

    def test_is_what_vllm_loads(self, model, tmp_path):
        from safetensors.torch import load_file

        MedusaHeads(model, num_heads=2).save(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        names = ["model_type", "num_heads", "num_hidden_layers", "hidden_size", "vocab_size", "truncated_vocab_size"]
        assert [config[name] for name in names] == ["medusa", 2, 1, 48, 300, 300]
        # vLLM takes any other key that speaks of a number of heads or layers for these two.
        assert [name for name in config if "num" in name] == ["num_heads", "num_hidden_layers"]
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
        assert shapes == {f"blocks.{i}.layers.0.weight": (48, 48) for i in range(2)} | {
            f"lm_heads.{i}.weight": (300, 48) for i in range(2)
        }

    def test_keeps_the_dtype_of_the_base(self, tmp_path):
        model = build("llama", torch.bfloat16)
        MedusaHeads(model).save(tmp_path)
        heads = MedusaHeads.from_pretrained(tmp_path, model)
        assert {weight.dtype for weight in heads.parameters()} == {torch.bfloat16}
        # The same checkpoint in float32 is the same base.
        assert MedusaHeads.from_pretrained(tmp_path, copy.deepcopy(model).float()).depth == 4

    def test_of_another_base_is_refused_by_name(self, model, tmp_path):
        model.config._name_or_path = "the-first"
        MedusaHeads(model).save(tmp_path)
        other = tiny_model(noise=0.01)
        other.config._name_or_path = "the-second"
        with pytest.raises(HeadMismatchError) as error:
            MedusaHeads.from_pretrained(tmp_path, other)
        message = str(error.value)
        assert "the-first" in message and "the-second" in message and "\n" not in message

    def test_of_another_maker_is_taken_if_it_fits(self, model, tmp_path):
        MedusaHeads(model).save(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["specstream"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert MedusaHeads.from_pretrained(tmp_path, model).rates == []
        with pytest.raises(UsageError, match="holds no Medusa heads for"):
            MedusaHeads.from_pretrained(tmp_path, build("llama"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read"),
            (lambda folder: edit(folder, model_type="eagle"), "are 'eagle', not 'medusa'"),
            (lambda folder: edit(folder, num_heads=5), "holds other weights than its config says: blocks.4"),
            (lambda folder: edit(folder, num_heads=0), "num_heads is 0"),
        ],
        ids=["no config", "half a file", "another kind", "heads missing", "no heads"],
    )
    def test_that_is_not_whole_is_refused(self, model, tmp_path, change, message):
        MedusaHeads(model).save(tmp_path)
        change(tmp_path)
        with pytest.raises(UsageError, match=message) as error:
            MedusaHeads.from_pretrained(tmp_path, model)
        assert "\n" not in str(error.value)


def edit(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_heads_of_a_tiny_model_learn_in_a_few_seconds():
    """On what the model itself says; then they draft it, and the output is what it was."""
    model = tiny_model(seed=3)
    prompts = texts(24, 4)
    with torch.inference_mode():
        answers = model.generate(prompts, max_new_tokens=24, do_sample=False, eos_token_id=None)
    tokens, mask = answers.clone(), torch.ones_like(answers, dtype=torch.bool)
    mask[:, :4] = False
    heads = MedusaHeads(model, num_heads=3)
    states = heads.states_of(tokens)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2)
    before = heads.loss_of(states, tokens, mask)[0].item()
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = heads.loss_of(states, tokens, mask)
        loss.backward()
        optimizer.step()
    assert loss.item() < before / 3
    heads.rates = rank_rates(heads.ranks(states, tokens, mask), 4)
    assert min(rates[0] for rates in heads.rates) > 0.6
    rows = start_rows(prompts[:4].tolist(), range(4), None, sampling=Sampling(), stopping=Stopping(max_new_tokens=24))
    for _ in decode(
        HuggingFaceTarget(model),
        MedusaDrafter(heads),
        rows,
        speculation=Speculation(max_depth=5),
        timings=Timings(),
    ):
        pass
    assert [row.emitted for row in rows] == answers[:4, 4:].tolist()
    assert min(row.stats.mean_accepted_length for row in rows) > 2
