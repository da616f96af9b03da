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

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own

    def collect(self) -> Iterator[Metric]:
        families = {family.name: family for family in self._own.collect()}
        for ours, name, labels_of in _VLLM:
            family = families[f"specstream_{ours}"]
            sums = dict[tuple[str, tuple[tuple[str, str], ...]], float]()
            for sample in family.samples:
                ending, rest = sample.name.removeprefix(family.name), dict(sample.labels)
                model = {"model_name": rest.pop("model_name")}
                if (labels := labels_of(rest)) is not None and ending != "_created":
                    key = ending, tuple({**model, **labels}.items())
                    sums[key] = sums.get(key, 0.0) + sample.value
            metric = Metric(f"vllm:{name}", family.documentation, family.type)
            for (ending, own), value in sums.items():
                metric.add_sample(metric.name + ending, dict(own), value)
            yield metric


class ServerMetrics:
    """Counters of one server, in registries of their own; each by the name of the model, as clients call it."""

    def __init__(self) -> None:
        self.registry, self._vllm = CollectorRegistry(), CollectorRegistry()
        self._by_model: list[Counter | Histogram] = []
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
        self._waited = self._histogram("queue_seconds", "From arrival to the first pass.")
        self._first = self._histogram("first_token_seconds", "From arrival to the first token.")
        self._token = self._histogram("token_seconds", "From one token to the next, as their mean in an answer.")
        self._whole = self._histogram("answer_seconds", "From arrival to the end.")
        self._waiting = self._gauge("queue_length", "Answers that wait for a place.")
        self._running = self._gauge("running_answers", "Answers that are being decoded.")
        self._refused = Counter(  # also for models that are not served
            "specstream_refused_requests",
            "Requests that were refused, by HTTP status.",
            ["status"],
            registry=self.registry,
        )
        self._vllm.register(_AsVllm(self.registry))

    def watch(self, model: str, scheduler: Scheduler) -> None:
        """Read its queue whenever someone asks, and begin to count from 0."""
        self._waiting.labels(model).set_function(lambda: scheduler.waiting)
        self._running.labels(model).set_function(lambda: scheduler.running)
        for each in self._by_model:
            each.labels(model)

    def finished(self, model: str, job: Job) -> None:
        """Count a job that ended."""
        now = time.monotonic()
        self._answers.labels(model, job.outcome).inc()
        self._whole.labels(model).observe(now - job.arrived)
        if job.joined is not None:
            self._waited.labels(model).observe(job.joined - job.arrived)
        if job.first is not None:
            self._first.labels(model).observe(job.first - job.arrived)
        if job.row is None:
            return
        stats = job.row.stats
        if job.first is not None:
            for _ in range(stats.new_tokens - 1):
                self._token.labels(model).observe((now - job.first) / (stats.new_tokens - 1))
        self._prompt.labels(model).inc(job.row.prompt_length)
        self._cached.labels(model).inc(job.row.cached)
        self._hits.labels(model).inc(job.row.cached > 0)
        self._generated.labels(model).inc(stats.new_tokens)
        self._passes.labels(model).inc(stats.target_passes)
        self._nodes.labels(model).inc(stats.drafted)
        for counter, counts in ((self._drafted, stats.drafted_at), (self._accepted, stats.accepted_at)):
            for position, count in counts.items():
                counter.labels(model, str(position)).inc(count)
        for drafter, count in stats.drafts.items():
            self._drafts.labels(model, drafter).inc(count)

    def refused(self, status: int) -> None:
        """Count a request that got no answer."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """Everything, to be scraped."""
        return generate_latest(self.registry) + generate_latest(self._vllm)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        made = Counter(f"specstream_{name}", what, ["model_name", *labels], registry=self.registry)
        if not labels:
            self._by_model.append(made)
        return made

    def _histogram(self, name: str, what: str) -> Histogram:
        made = Histogram(f"specstream_{name}", what, ["model_name"], buckets=_SECONDS, registry=self.registry)
        self._by_model.append(made)
        return made

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"specstream_{name}", what, ["model_name"], registry=self.registry)
