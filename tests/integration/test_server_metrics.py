"""What is counted, by our names and by those that dashboards of vLLM know."""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.served import NAME, PATIENCE, eventually, serving

DASHBOARD = {
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:prompt_tokens_total"),
    *("vllm:generation_tokens_total", "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket"),
    *("vllm:e2e_request_latency_seconds_sum", "vllm:request_queue_time_seconds_count"),
    *("vllm:inter_token_latency_seconds_bucket", "vllm:spec_decode_num_drafts_total"),
    *("vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"),
    *("vllm:spec_decode_num_accepted_tokens_per_pos_total", "vllm:prefix_cache_queries_total"),
    "vllm:prefix_cache_hits_total",
}


def test_dashboards_of_vllm_find_their_names() -> None:
    with serving() as served:

        def ask(**more: Any) -> Any:
            body = {"prompt": "the cat sat on the mat", **more}
            return httpx.post(f"{served.url}/v1/completions", json=body, timeout=PATIENCE).json()

        answers = [ask(max_tokens=12), ask(max_tokens=7), ask(logit_bias={"0": 100})]
        assert eventually(served.idle)
        text = httpx.get(f"{served.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    theirs = [sample for sample in samples if sample.name.startswith("vllm:")]
    assert {sample.name for sample in theirs} >= DASHBOARD
    assert {sample.labels.pop("model_name") for sample in theirs} == {NAME}

    def value(name: str, **labels: str) -> float:
        (found,) = [sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)]
        return found

    usage = [answer["usage"] for answer in answers]
    assert value("vllm:prompt_tokens_total") == sum(each["prompt_tokens"] for each in usage)
    assert value("vllm:generation_tokens_total") == sum(each["completion_tokens"] for each in usage) == 20
    assert value("vllm:request_success_total", finished_reason="length") == 2
    assert value("vllm:request_success_total", finished_reason="stop") == 1
    assert value("vllm:inter_token_latency_seconds_count") == 11 + 6
    assert value("vllm:e2e_request_latency_seconds_count") == 3
    said = [answer["speculation"] for answer in answers]
    assert value("vllm:spec_decode_num_draft_tokens_total") == sum(each["drafted_tokens"] for each in said) > 0
    accepted = sum(each["accepted_tokens"] for each in said)
    assert value("vllm:spec_decode_num_accepted_tokens_total") == accepted > 0
    by_position = [sample for sample in theirs if sample.name.endswith("per_pos_total")]
    assert sum(sample.value for sample in by_position) == accepted
    assert min(int(sample.labels["position"]) for sample in by_position) == 0
    drafted = value("specstream_drafted_tokens_total", position="1", model_name=NAME)
    assert value("vllm:spec_decode_num_drafts_total") == drafted <= sum(each["target_passes"] for each in said)
