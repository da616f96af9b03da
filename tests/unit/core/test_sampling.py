"""Logits become probabilities as transformers' generate makes them; draws follow them."""

import math

import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specstream.core.sampling import NO_CHOICE, Sampling, draw, greedy_choices, probabilities, process
from specstream.errors import NumericalError, UsageError

CONTEXT = [3, 1, 1, 4, 0, 3]


def random_logits(seed, vocab, kind):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab, generator=generator) * 3
    if kind == "ties":
        logits = logits.round()
    if kind == "all equal":
        logits = torch.zeros(vocab)
    if kind == "gaps":
        logits[torch.rand(vocab, generator=generator) < 0.3] = -math.inf
        logits[seed % vocab] = 1.0
    return logits


def reference(logits, processors):
    return LogitsProcessorList(processors)(torch.tensor([CONTEXT]), logits[None].clone())[0].softmax(-1)


def assert_same(actual, expected, logits=None):
    """Equal; or, if ``logits`` are given, up to which of several equal logits top-p cuts at its edge.

    That choice is the sorting routine's (transformers' own differs between a CPU and a GPU).
    """
    if logits is not None:
        moved = (actual > 0) != (expected > 0)
        assert len(logits[moved].unique()) <= 1, "another support"
        actual, expected = actual.sort().values, expected.sort().values
    assert torch.equal(actual > 0, expected > 0), "another support"
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)


RULES = {
    "temperature": (Sampling(temperature=0.37), [TemperatureLogitsWarper(0.37)]),
    "hot": (Sampling(temperature=2.5), [TemperatureLogitsWarper(2.5)]),
    "top-k 1": (Sampling(temperature=1.0, top_k=1), [TopKLogitsWarper(1)]),
    "top-k 3": (Sampling(temperature=1.0, top_k=3), [TopKLogitsWarper(3)]),
    "top-k beyond the vocabulary": (Sampling(temperature=1.0, top_k=10**6), [TopKLogitsWarper(10**6)]),
    "top-p 0.5": (Sampling(temperature=1.0, top_p=0.5), [TopPLogitsWarper(0.5)]),
    "top-p 0.75": (Sampling(temperature=1.0, top_p=0.75), [TopPLogitsWarper(0.75)]),
    "top-p 0.95": (Sampling(temperature=1.0, top_p=0.95), [TopPLogitsWarper(0.95)]),
    "top-p tiny": (Sampling(temperature=1.0, top_p=1e-9), [TopPLogitsWarper(1e-9)]),
    "min-p 0.1": (Sampling(temperature=1.0, min_p=0.1), [MinPLogitsWarper(0.1)]),
    "min-p 1": (Sampling(temperature=1.0, min_p=1.0), [MinPLogitsWarper(1.0)]),
    "penalty": (Sampling(temperature=1.0, repetition_penalty=1.3), [RepetitionPenaltyLogitsProcessor(1.3)]),
    "reward": (Sampling(temperature=1.0, repetition_penalty=0.7), [RepetitionPenaltyLogitsProcessor(0.7)]),
    "processors": (
        Sampling(temperature=1.0, processors=(SuppressTokensLogitsProcessor([2]), NoRepeatNGramLogitsProcessor(2))),
        [SuppressTokensLogitsProcessor([2]), NoRepeatNGramLogitsProcessor(2)],
    ),
    "top-k and top-p": (
        Sampling(temperature=0.6, top_k=4, top_p=0.9),
        [TemperatureLogitsWarper(0.6), TopKLogitsWarper(4), TopPLogitsWarper(0.9)],
    ),
    "top-p and min-p": (
        Sampling(temperature=1.5, top_p=0.8, min_p=0.2),
        [TemperatureLogitsWarper(1.5), TopPLogitsWarper(0.8), MinPLogitsWarper(0.2)],
    ),
    "all": (
        Sampling(
            temperature=1.4,
            top_k=6,
            top_p=0.9,
            min_p=0.05,
            repetition_penalty=1.2,
            processors=(NoRepeatNGramLogitsProcessor(2),),
        ),
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            NoRepeatNGramLogitsProcessor(2),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(6),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ],
    ),
}


@pytest.mark.parametrize("kind", ["spread", "ties", "all equal", "gaps"])
@pytest.mark.parametrize(("sampling", "processors"), RULES.values(), ids=RULES)
def test_probabilities_are_transformers_own(sampling, processors, kind):
    for vocab in (5, 8, 50, 1000):
        for seed in range(5):
            logits = random_logits(seed, vocab, kind)
            scores = process(logits, sampling, CONTEXT) if kind in ("ties", "all equal") else None
            assert_same(probabilities(logits, sampling, CONTEXT), reference(logits, processors), scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    sampling, processors = RULES["all"]
    logits = random_logits(0, 50, "spread").to(dtype)
    assert_same(probabilities(logits, sampling, CONTEXT), reference(logits.float(), processors))


def test_order_is_that_of_generate():
    """End to end: what a sampled `generate` reports as its scores."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    sampling = Sampling(
        temperature=0.7,
        top_k=12,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.4,
        processors=(SuppressTokensLogitsProcessor([5, 6]),),
    )
    output = model.generate(
        torch.tensor([[1, 2, 3, 2]]),
        do_sample=True,
        temperature=0.7,
        top_k=12,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.4,
        logits_processor=LogitsProcessorList(sampling.processors),
        max_new_tokens=12,
        min_new_tokens=12,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    tokens = output.sequences[0].tolist()
    for step, (logits, scores) in enumerate(zip(output.logits, output.scores, strict=True)):
        assert_same(probabilities(logits[0], sampling, tokens[: 4 + step]), scores[0].softmax(-1))


def test_temperature_0_is_a_point_mass_on_the_argmax():
    logits = torch.tensor([1.0, 3.0, 3.0, -2.0])
    assert probabilities(logits, Sampling()).tolist() == [0, 1, 0, 0]
    assert probabilities(logits, Sampling(repetition_penalty=2.0), [1]).tolist() == [0, 0, 1, 0]


def test_a_low_temperature_approaches_it():
    logits = torch.tensor([1.0, 3.0, 2.9, -2.0])
    assert probabilities(logits, Sampling(temperature=1e-4)).tolist() == [0, 1, 0, 0]


def test_logits_are_left_as_they_were():
    def spoil(input_ids, scores):
        return scores.fill_(0.0)

    logits = torch.tensor([1.0, -3.0, 2.0])
    process(logits, Sampling(repetition_penalty=1.5, processors=(spoil,)), [0, 1])
    assert logits.tolist() == [1.0, -3.0, 2.0]


def test_processors_see_the_context_and_each_others_scores():
    seen = []

    def record(input_ids, scores):
        seen.append((input_ids.tolist(), input_ids.dtype, scores.tolist()))
        return scores + 1

    process(torch.tensor([1.0, 2.0]), Sampling(processors=(record, record)), [1, 0, 1])
    assert seen == [([[1, 0, 1]], torch.int64, [[1.0, 2.0]]), ([[1, 0, 1]], torch.int64, [[2.0, 3.0]])]


def test_only_processors_and_penalties_need_the_context():
    assert not Sampling(temperature=1.0, top_k=2, top_p=0.5, min_p=0.1).needs_context
    assert Sampling(repetition_penalty=1.1).needs_context
    assert Sampling(processors=(NoRepeatNGramLogitsProcessor(2),)).needs_context


def test_without_processors_keeps_all_else():
    sampling, _ = RULES["all"]
    draft = sampling.without_processors()
    assert draft.processors == ()
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert getattr(draft, name) == getattr(sampling, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.inf),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is {value}; give a value .+$"):
        Sampling(**{name: value})


BAD = {
    "nan": [0.0, math.nan, 1.0],
    "infinity": [0.0, math.inf, 1.0],
    "nothing possible": [-math.inf] * 3,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", BAD.values(), ids=BAD)
def test_bad_logits_are_a_numerical_error(logits, temperature):
    with pytest.raises(NumericalError, match="check the weights and the dtype"):
        probabilities(torch.tensor(logits), Sampling(temperature=temperature))


def test_a_processor_that_leaves_nothing_is_a_numerical_error():
    sampling = Sampling(temperature=1.0, processors=(lambda input_ids, scores: scores - math.inf,))
    with pytest.raises(NumericalError):
        probabilities(torch.zeros(3), sampling, [0])


def test_a_temperature_that_overflows_is_a_numerical_error():
    with pytest.raises(NumericalError):
        probabilities(torch.tensor([1.0, 50.0]), Sampling(temperature=1e-38))


def test_minus_infinity_is_a_token_that_never_comes():
    distribution = probabilities(torch.tensor([-math.inf, 0.0, 0.0]), Sampling(temperature=1.0))
    assert distribution.tolist() == [0.0, 0.5, 0.5]


def test_greedy_choices_are_the_first_of_equals():
    logits = torch.tensor([[[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]], [[1.0, 1.0, 1.0], [0.0, -1.0, 4.0]]])
    assert greedy_choices(logits).tolist() == [[1, 0], [0, 2]]
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        tied = torch.randint(0, 3, (4, 3, 5000), generator=generator).to(dtype)
        assert greedy_choices(tied).tolist() == tied.argmax(-1).tolist()


def test_draws_follow_the_distribution():
    distribution = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    generator = torch.Generator().manual_seed(7)
    counts = torch.bincount(torch.tensor([draw(distribution, generator) for _ in range(8000)]), minlength=7)
    support = distribution > 0
    assert counts[~support].sum() == 0
    expected = distribution[support].double() * 8000
    assert stats.chisquare(counts[support], expected / expected.sum() * 8000).pvalue > 1e-4


def test_weights_need_not_sum_to_1():
    weights = torch.tensor([0.0, 0.03, 0.01])
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert [draw(weights, first) for _ in range(50)] == [draw(weights * 25, second) for _ in range(50)]


def test_draws_are_the_generators_own():
    distribution = torch.full((50,), 0.02)
    draws = [[draw(distribution, torch.Generator().manual_seed(seed)) for _ in range(1)] for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(map(tuple, draws))) > 1


@pytest.mark.parametrize(("point", "token"), [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3), (1.0, 3)])
def test_the_ends_of_the_support(monkeypatch, point, token):
    """Whatever the uniform draw, a token without probability is not chosen."""
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.tensor(point, dtype=torch.float64))
    assert draw(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), torch.Generator()) == token


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, -0x40])
def test_what_is_no_number_is_no_choice(bits: int) -> None:
    """NaN, plus infinity, and NaN with a sign, which is what processors make of invalid operations."""
    logits = torch.arange(1.0, 21.0).view(2, 1, 10).to(torch.bfloat16)
    logits.view(torch.int16)[1, 0, 3] = bits
    for each in (logits, logits.float()):
        assert greedy_choices(each).tolist() == [[9], [NO_CHOICE]]


def test_a_row_without_any_choice_says_so() -> None:
    logits = torch.full((1, 2, 4), -torch.inf, dtype=torch.bfloat16)
    logits[0, 0, 2] = -3
    assert greedy_choices(logits).tolist() == [[2, NO_CHOICE]]
