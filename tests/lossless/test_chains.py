"""Models that keep a state, or another cache that no rejected draft is cut off: transformers' own greedy tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf

import specstream
from specstream import SpeculativeEngine
from specstream.core.prefix_cache import PrefixCache
from specstream.core.tree import TokenTree
from specstream.errors import UnsupportedModelError, UsageError
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams
from specstream.models.architecture.compat import FEW
from specstream.models.invariance.tolerance import relative_errors, tolerance
from specstream.models.target.chains import SPACING, ChainSession
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import WINDOW, generated, prompt
from tests.lossless.wrappers import disturbed
from tests.tiny import tiny_model, tiny_tokenizer

VOCAB = 300
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}

CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(**_TEXT, **_DELTA),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **_TEXT, **_DELTA, **_EXPERTS, shared_expert_intermediate_size=32, decoder_sparse_step=1
    ),
    "olmo_hybrid": lambda: hf.OlmoHybridConfig(**{**_TEXT, "pad_token_id": 0}, **_DELTA),
    "lfm2": lambda: hf.Lfm2Config(**_TEXT, layer_types=["conv", "full_attention"] * 2),
    "falcon_h1": lambda: hf.FalconH1Config(**_TEXT, **_SSM, mamba_d_ssm=128),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        **_TEXT, **_SSM, layer_types=["mamba", "attention"] * 2, num_local_experts=4, shared_intermediate_size=32
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        **_TEXT,
        layers_block_type=["mamba", "mlp", "attention", "mlp"],
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=1,
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        **_TEXT, head_dim=16, num_local_experts=2, intermediate_size_mlp=96, attention_chunk_size=WINDOW
    ),
}
PROMPTS = [prompt(12), prompt(37, seed=1), prompt(9, seed=2)]
NEW = 40


@cache
def model_of(name: str, noise: float = 0.0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(CONFIGURATIONS[name]()).eval()
    model = disturbed(model, 0.15, seed=1)
    return disturbed(model, noise, seed=2) if noise else model


@cache
def expected(name: str) -> list[list[int]]:
    return [generated(model_of(name), tokens, NEW, eos_token_id=None, pad_token_id=0) for tokens in PROMPTS]


def texts(output: torch.Tensor) -> list[list[int]]:
    return [row[len(tokens) :][:NEW] for row, tokens in zip(output.tolist(), PROMPTS, strict=True)]


SETTINGS = {"max_new_tokens": NEW, "ignore_eos": True, "adaptive": False}


@pytest.mark.parametrize("runtime", ["auto", "eager"])
@pytest.mark.parametrize("gamma", [1, 3, 6])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_draft_changes_no_token(name, gamma, runtime):
    """Of a batch whose prompts have different lengths; branches are left out."""
    draft = model_of(name, 0.02)
    output, metrics = specstream.speculative_decode(
        model_of(name), draft, PROMPTS, branches=2, gamma=gamma, runtime=runtime, **SETTINGS
    )
    assert texts(output) == expected(name)
    assert 1 < metrics["mean_accepted_length"] < gamma + 1
    assert metrics["exact"] == "rounding"


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "falcon_h1", "llama4"])
@pytest.mark.parametrize("drafter", ["none", "lookup", "recycling", "auto"])
def test_no_drafter_changes_a_token(name, drafter):
    engine = SpeculativeEngine(model=model_of(name), tokenizer=tiny_tokenizer(), drafter=drafter, adaptive=False)
    results = engine.generate(PROMPTS, max_new_tokens=NEW, ignore_eos=True)
    assert [result["token_ids"] for result in results] == expected(name)


def test_a_model_with_a_state_drafts_for_one_without():
    target, draft = tiny_model(), model_of("qwen3_5")
    output, _ = specstream.speculative_decode(target, draft, PROMPTS, gamma=3, **SETTINGS)
    assert texts(output) == [generated(target, tokens, NEW) for tokens in PROMPTS]


def test_one_without_a_state_drafts_for_one_with_it():
    output, _ = specstream.speculative_decode(model_of("qwen3_5"), tiny_model(), PROMPTS, gamma=3, **SETTINGS)
    assert texts(output) == expected("qwen3_5")


def test_generate_of_transformers_takes_it():
    ids = torch.tensor([PROMPTS[1]])
    given = {"attention_mask": torch.ones_like(ids), "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": NEW}
    for use_cache in (True, False):
        speculate = specstream.custom_generate(model_of("qwen3_5", 0.02))
        got = model_of("qwen3_5").generate(
            ids, **given, do_sample=False, use_cache=use_cache, custom_generate=speculate
        )
        assert got[0, ids.shape[1] :].tolist() == expected("qwen3_5")[1]


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("runtime", ["native", "eager"])
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "granitemoehybrid", "llama4"])
def test_a_session_goes_back_keeps_and_joins(name, runtime):
    """Logits behind every way of forgetting are those of the text as it is then, whichever rows came and went."""
    model = model_of(name)
    target = HuggingFaceTarget(model, runtime=runtime)
    session, other = target.begin([PROMPTS[0], PROMPTS[1]]), target.begin_reading([PROMPTS[2]])
    rows = [list(PROMPTS[0]), list(PROMPTS[1])]
    while other.read(5):
        pass
    wrong = [7, 8, 9, 10]

    def scored(drafts: list[list[int]], accepted: list[int]) -> None:
        logits = session.score([TokenTree.chain(draft) for draft in drafts])
        for row, (text, draft) in enumerate(zip(rows, drafts, strict=True)):
            own = logits_of(model, [*text, *draft])[len(text) :]
            torch.testing.assert_close(logits[row, : len(draft)], own, atol=2e-3, rtol=1e-3)
        session.commit([list(range(count)) for count in accepted])
        for text, draft, count in zip(rows, drafts, accepted, strict=True):
            text.extend(draft[:count])

    scored([wrong, wrong[:2]], [1, 2])
    scored([wrong[:3], wrong], [3, 2])
    for count in range(SPACING + 2):  # more than are read again
        scored([[20 + count, 3, 4], [40 + count]], [1, 1])
    session.rollback([len(rows[0]) - 2, len(rows[1])])
    del rows[0][-2:]
    scored([wrong, wrong], [2, 1])
    session.join(other)
    rows.append(list(PROMPTS[2]))
    scored([wrong, wrong[:1], wrong[:2]], [1, 1, 2])
    session.keep([0, 2])
    del rows[1]
    scored([wrong[:2], wrong], [2, 4])
    session.rollback([3, len(rows[1])])  # before all that was copied
    del rows[0][3:]
    scored([wrong, wrong], [1, 1])


LONG = [token for seed in range(8) for token in prompt(40, seed=seed)]


def read(target: HuggingFaceTarget, tokens: list[int], known: PrefixCache | None, most: int = 512) -> ChainSession:
    session = target.begin_reading([tokens])
    assert isinstance(session, ChainSession)
    if known is not None:
        session.reuse(known)
    while session.read(most):
        pass
    return session


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_prompt_goes_on_where_another_was_to_the_bit(name, dtype):
    """Behind what two have in common, in steps of 64, whatever happened to the row that read it first."""
    target, known = HuggingFaceTarget(copy.deepcopy(model_of(name)).to(dtype)), PrefixCache(1 << 30)
    chain = [TokenTree.chain([7, 8, 9])]
    first = read(target, LONG[:200], known)
    first.score(chain)
    first.commit([[0]])
    asked = [LONG[:70], [9, *LONG[:150]], LONG[:200] + LONG[:90], LONG[:150] + LONG[:100], LONG[:150] + LONG[:20]]
    # Where the fourth began to differ from others the fifth does too.
    for cached in ([0, 0, 192, 64, 128], [64, 128, 256, 192, 128]):
        for tokens, count in zip(asked, cached, strict=True):
            session, alone = read(target, tokens, known), read(target, tokens, None)
            assert session.cached(0) == count
            for _ in range(2):
                torch.testing.assert_close(session.score(chain), alone.score(chain), atol=0, rtol=0)
                for each in (session, alone):
                    each.commit([[0, 1]])


def test_states_are_none_of_a_model_that_was_changed():
    model, known = copy.deepcopy(model_of("qwen3_5")), PrefixCache(1 << 30)
    target = HuggingFaceTarget(model)
    read(target, LONG, known)
    assert read(target, LONG, known).cached(0) == len(LONG) // 64 * 64
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(1.5)  # counted nowhere
    assert read(target, LONG, known).cached(0) == 0


def test_passes_of_another_width_leave_no_states():
    target, known = HuggingFaceTarget(model_of("qwen3_5")), PrefixCache(1 << 30)
    read(target, LONG, known, most=40)
    assert known.nbytes == 0
    read(target, LONG, known, most=100)
    assert read(target, LONG, known).cached(0) == len(LONG) // 64 * 64


def test_a_conversation_is_not_read_again():
    engine = SpeculativeEngine(model=model_of("qwen3_5"), tokenizer=tiny_tokenizer(), drafter="lookup", adaptive=False)
    turn, cached = LONG[:150], []
    for _ in range(3):
        result = engine.generate([turn], max_new_tokens=NEW, ignore_eos=True)[0]
        cached.append(result["cached_tokens"])
        assert result["token_ids"] == generated(model_of("qwen3_5"), turn, NEW, eos_token_id=None, pad_token_id=0)
        turn = [*turn, *result["token_ids"], *LONG[:30]]
    assert cached == [0, 128, 192]


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "olmo_hybrid"])
def test_in_half_precision_our_passes_are_the_models_but_for_rounding(name):
    """Wide and narrow passes and those over one token, one behind the other, in float32 and rounded where ours are."""
    model = copy.deepcopy(model_of(name)).to(torch.bfloat16)
    text = prompt(40, seed=4)
    own = logits_of(model, text).float()
    session = HuggingFaceTarget(model, runtime="native").begin([text[:9]])
    found, at = [], 9
    for width in (1, 1, 3, FEW, FEW + 1, 1):
        found.append(session.score([TokenTree.chain(text[at : at + width])])[0])
        session.commit([list(range(width))])
        at += width
    assert relative_errors(torch.cat(found), own[9:at]).max() < tolerance(torch.bfloat16)


def test_what_a_pass_may_cost_is_measured_without_reading_each_row():
    session = HuggingFaceTarget(model_of("qwen3_5"), runtime="eager").begin_idle(3, 20)
    assert isinstance(session, ChainSession)
    first = session.score([TokenTree.chain([5, 6])] * 3)
    torch.testing.assert_close(first[0], first[2])


def test_a_tree_is_no_chain():
    session = HuggingFaceTarget(model_of("qwen3_5"), runtime="eager").begin([PROMPTS[0]])
    with pytest.raises(ValueError, match="chains only"):
        session.score([TokenTree.merge(5, [[6], [7]])])


def test_samples_repeat_with_their_seed_and_follow_the_model():
    engine = SpeculativeEngine(
        model=model_of("qwen3_5"), tokenizer=tiny_tokenizer(), draft_model=model_of("qwen3_5", 0.02), adaptive=False
    )
    chosen = [engine.generate(PROMPTS[0], max_new_tokens=20, temperature=1.0, seed=5) for _ in range(2)]
    assert chosen[0]["token_ids"] == chosen[1]["token_ids"]
    assert chosen[0]["mean_accepted_length"] > 1
    # So little chance is left that every sample is the likeliest token.
    cold = engine.generate(PROMPTS[0], max_new_tokens=20, temperature=1e-4, seed=5, ignore_eos=True)
    assert cold["token_ids"] == expected("qwen3_5")[0][:20]


@pytest.mark.parametrize(
    "make", [lambda model: Streams(model), lambda model: MedusaHeads(model)], ids=["streams", "medusa"]
)
def test_heads_are_refused_in_words(make):
    with pytest.raises(UnsupportedModelError, match=r"qwen3_5_text cannot have heads: .*; give it a draft model"):
        make(model_of("qwen3_5"))


def test_guesses_that_are_branches_are_refused_in_words():
    engine = SpeculativeEngine(model=model_of("qwen3_5"), tokenizer=tiny_tokenizer(), drafter="lookahead")
    with pytest.raises(UsageError, match=r"drafter is 'lookahead', .* chains only; give 'lookup'"):
        engine.generate(PROMPTS[0], max_new_tokens=4)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: hf.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=VOCAB), "off by"),
        (lambda: hf.BambaConfig(**_TEXT, **_SSM, attn_layer_indices=[1, 3]), "off by"),
        (lambda: hf.MiniMaxConfig(**{**_TEXT, "layer_types": ["linear_attention", "full_attention"] * 2}), "own"),
    ],
    ids=["mamba", "bamba", "minimax"],
)
def test_layers_that_do_not_go_on_from_a_state_are_refused_in_words(make, why):
    model = disturbed(hf.AutoModelForCausalLM.from_config(make()).eval(), 0.15, seed=1)
    with pytest.raises(UnsupportedModelError, match=f"do not go on from the state before a rejected draft: .*{why}"):
        specstream.speculative_decode(model, None, [PROMPTS[0]], max_new_tokens=4)
