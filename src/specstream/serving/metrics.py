"""What a server counts, in Prometheus' form."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from specstream.serving.jobs import Job
from specstream.serving.scheduler import Scheduler

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self._whole = self._histogram("answer_seconds", "From arrival to the end.")

    def watch(self, scheduler: Scheduler) -> None:
        """Read its queue whenever someone asks."""
        waiting = Gauge("specstream_queue_length", "Answers that wait for a place.", registry=self.registry)
        waiting.set_function(lambda: scheduler.waiting)
        running = Gauge("specstream_running_answers", "Answers that are being decoded.", registry=self.registry)
        running.set_function(lambda: scheduler.running)

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
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"specstream_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"specstream_{name}", what, buckets=_SECONDS, registry=self.registry)
