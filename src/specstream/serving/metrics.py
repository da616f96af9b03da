"""What a server counts, in Prometheus' form."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from specstream.serving.jobs import Job
from specstream.serving.scheduler import Scheduler

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

Labels = Mapping[str, str]

_ENDS = {"cancelled": "abort", "late": "abort", "failed": "error"}

_VLLM: tuple[tuple[str, str, Callable[[Labels], Labels | None]], ...] = (
    ("running_answers", "num_requests_running", dict),
    ("queue_length", "num_requests_waiting", dict),
    ("prompt_tokens", "prompt_tokens", dict),
    ("generated_tokens", "generation_tokens", dict),
    ("prompt_tokens", "prefix_cache_queries", dict),
    ("cached_prompt_tokens", "prefix_cache_hits", dict),
    ("answers", "request_success", lambda own: {"finished_reason": _ENDS.get(own["outcome"], own["outcome"])}),
    ("first_token_seconds", "time_to_first_token_seconds", dict),
    ("token_seconds", "inter_token_latency_seconds", dict),
    ("answer_seconds", "e2e_request_latency_seconds", dict),
    ("queue_seconds", "request_queue_time_seconds", dict),
    ("drafted_tokens", "spec_decode_num_drafts", lambda own: {} if own["position"] == "1" else None),
    ("drafted_nodes", "spec_decode_num_draft_tokens", dict),
    ("accepted_tokens", "spec_decode_num_accepted_tokens", lambda own: {}),
    (
        "accepted_tokens",
        "spec_decode_num_accepted_tokens_per_pos",
        lambda own: {"position": str(int(own["position"]) - 1)},
    ),
)
"""Our name, vLLM's, and its labels; None for what it does not count. Its positions begin with 0."""


class _AsVllm(Collector):
    """The same numbers by the names, and with the label, that dashboards of vLLM know."""

    def __init__(self, own: CollectorRegistry, model: str) -> None:
        self._own, self._model = own, model

    def collect(self) -> Iterator[Metric]:
        families = {family.name: family for family in self._own.collect()}
        for ours, name, labels_of in _VLLM:
            family = families[f"specstream_{ours}"]
            sums = dict[tuple[str, tuple[tuple[str, str], ...]], float]()
            for sample in family.samples:
                ending, labels = sample.name.removeprefix(family.name), labels_of(sample.labels)
                if labels is not None and ending != "_created":
                    key = ending, tuple(labels.items())
                    sums[key] = sums.get(key, 0.0) + sample.value
            metric = Metric(f"vllm:{name}", family.documentation, family.type)
            for (ending, own), value in sums.items():
                metric.add_sample(metric.name + ending, {"model_name": self._model, **dict(own)}, value)
            yield metric


class ServerMetrics:
    """Counters of one server, in registries of their own.

    Args:
        model: as clients call it.
    """

    def __init__(self, model: str) -> None:
        self.registry, self._vllm = CollectorRegistry(), CollectorRegistry()
        self._answers = self._counter("answers", "Answers that ended, by how: stop, length, cancelled, ...", "outcome")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached = self._counter("cached_prompt_tokens", "Tokens of prompts that were reused from earlier texts.")
        self._hits = self._counter("prefix_cache_hits", "Answers whose prompts began with such tokens.")
        self._generated = self._counter("generated_tokens", "Tokens of answers.")
        self._passes = self._counter("target_passes", "Passes of the target, counted once for each answer in them.")
        self._nodes = self._counter("drafted_nodes", "Drafted tokens that were scored, all branches of trees.")
        self._drafted = self._counter("drafted_tokens", "Passes that drafted as deep as this position.", "position")
        self._accepted = self._counter("accepted_tokens", "Passes that accepted a token at this position.", "position")
        self._drafts = self._counter("drafts", "Passes that a drafter drafted for.", "drafter")
        self._refused = self._counter("refused_requests", "Requests that were refused, by HTTP status.", "status")
        self._waited = self._histogram("queue_seconds", "From arrival to the first pass.")
        self._first = self._histogram("first_token_seconds", "From arrival to the first token.")
        self._token = self._histogram("token_seconds", "From one token to the next, as their mean in an answer.")
        self._whole = self._histogram("answer_seconds", "From arrival to the end.")
        self._model = model

    def watch(self, scheduler: Scheduler) -> None:
        """Read its queue whenever someone asks."""
        waiting = Gauge("specstream_queue_length", "Answers that wait for a place.", registry=self.registry)
        waiting.set_function(lambda: scheduler.waiting)
        running = Gauge("specstream_running_answers", "Answers that are being decoded.", registry=self.registry)
        running.set_function(lambda: scheduler.running)
        self._vllm.register(_AsVllm(self.registry, self._model))

    def finished(self, job: Job) -> None:
        """Count a job that ended."""
        now = time.monotonic()
        self._answers.labels(job.outcome).inc()
        self._whole.observe(now - job.arrived)
        if job.joined is not None:
            self._waited.observe(job.joined - job.arrived)
        if job.first is not None:
            self._first.observe(job.first - job.arrived)
        if job.row is None:
            return
        stats = job.row.stats
        if job.first is not None:
            for _ in range(stats.new_tokens - 1):
                self._token.observe((now - job.first) / (stats.new_tokens - 1))
        self._prompt.inc(job.row.prompt_length)
        self._cached.inc(job.row.cached)
        self._hits.inc(job.row.cached > 0)
        self._generated.inc(stats.new_tokens)
        self._passes.inc(stats.target_passes)
        self._nodes.inc(stats.drafted)
        for counter, counts in ((self._drafted, stats.drafted_at), (self._accepted, stats.accepted_at)):
            for position, count in counts.items():
                counter.labels(str(position)).inc(count)
        for drafter, count in stats.drafts.items():
            self._drafts.labels(drafter).inc(count)

    def refused(self, status: int) -> None:
        """Count a request that got no answer."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """Everything, to be scraped."""
        return generate_latest(self.registry) + generate_latest(self._vllm)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"specstream_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"specstream_{name}", what, buckets=_SECONDS, registry=self.registry)
