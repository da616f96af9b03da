"""What a prefix cache shows: in results, over HTTP and in metrics; and what never uses it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from specstream.engine.engine import SpeculativeEngine
from specstream.errors import UsageError
from tests.integration.served import NAME, serving
from tests.tiny import tiny_model, tiny_tokenizer

PROMPT = list(range(10, 60))


def engine(**settings: Any) -> SpeculativeEngine:
    """Of heads of 16, which our kernels take."""
    return SpeculativeEngine(tiny_model(hidden_size=64), tiny_tokenizer(), max_new_tokens=8, **settings)


def test_results_say_how_much_of_a_prompt_was_reused_and_benchmarks_reuse_nothing() -> None:
    own = engine()
    measured = own.benchmark([PROMPT], num_runs=1)
    assert measured.num_runs == 1
    first = own.generate(PROMPT, ignore_eos=True)
    assert first.cached_tokens == 0, "nothing is left by measurements"
    again = [*PROMPT, *first.token_ids, 70, 71]
    assert own.generate(again).cached_tokens == len(PROMPT) + 8 - 2
    assert [each.cached_tokens for each in own.generate([[80, 81, 82], [80, 81, 82]])] == [0, 1]


def test_without_one_every_prompt_is_read_anew() -> None:
    own = engine(prefix_cache_gb=0)
    assert [own.generate(PROMPT).cached_tokens for _ in range(2)] == [0, 0]
    with pytest.raises(UsageError, match="prefix_cache_gb is -1"):
        engine(prefix_cache_gb=-1)


def test_a_server_says_it_in_usage_and_counts_it() -> None:
    with serving(engine()) as served:
        body = {"model": NAME, "prompt": PROMPT, "max_tokens": 5, "n": 2}
        said = [httpx.post(f"{served.url}/v1/completions", json=body).json() for _ in range(2)]
        expected = engine(prefix_cache_gb=0).generate(PROMPT, max_new_tokens=5).text
        metrics = httpx.get(f"{served.url}/metrics").text
    assert {choice["text"] for answer in said for choice in answer["choices"]} == {expected}
    assert [answer["usage"]["prompt_tokens"] for answer in said] == [50, 50]
    assert [answer["usage"]["prompt_tokens_details"] for answer in said] == [
        {"cached_tokens": 0},
        {"cached_tokens": 48},
    ]
    assert 'specstream_prefix_cache_hits_total{model_name="tiny"} 3.0' in metrics
    assert 'specstream_cached_prompt_tokens_total{model_name="tiny"} 144.0' in metrics
