"""``python -m benchmarks.serving load | throughput``: a crowd of clients at a server.

``load`` looks for what goes wrong: every finished answer has to be that of a lone run, the only refusals are those of
a full queue, and memory has to stay flat. ``throughput`` compares one client with many. Servers beside each other:
``server_peers.py``.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Annotated, Any

import httpx
import typer

from benchmarks import options
from benchmarks.beside import Outcome as Figure
from benchmarks.beside import Settings
from benchmarks.report import Spread, aligned, exit_codes, say, setting, write_json
from benchmarks.servers import (
    NAME,
    Command,
    Growth,
    MemorySampler,
    Served,
    ServerError,
    ServerProcess,
    free_port,
    growth,
    ours,
)
from benchmarks.traffic import Crowd, Outcome, Question, Request, questions, requests
from specstream.engine import contestants
from specstream.evaluation.statistics import median_of

app = typer.Typer(add_completion=False, no_args_is_help=True)

Requests = Annotated[int, typer.Option("--requests", min=1, help="How many.")]
Clients = Annotated[int, typer.Option("--clients", min=1, help="How many ask at the same time.")]
Distinct = Annotated[int, typer.Option("--distinct", min=1, help="Different requests; each has a lone run.")]
Longest = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Of the longest answers.")]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Answers that a server decodes side by side.")]
Context = Annotated[int, typer.Option("--context", min=2, help="Most tokens of a prompt and its answer.")]
Seed = Annotated[int, typer.Option("--seed", help="Of what is asked, in which order, and who leaves.")]
Set = Annotated[list[str], typer.Option("--set", help="KEY=VALUE of our server's configuration; may be repeated.")]

CLIENTS = 16
"""Of the figure ``server-load``."""

FLAT = 0.02
"""Memory is flat if the last quarter's median is at most this share above the first quarter's."""

ENOUGH_MINUTES = 10.0
"""Of samples, for memory to be judged."""

LEAST_SAMPLES = 10
"""For a line; a load that is over sooner has none."""

SETTLING_SECONDS = 60.0
"""In which a server that nobody asks any more has to let go of all rows."""


@app.command()
def load(
    target: options.Target = "smollm2-135m",
    dtype: options.Dtype = "float32",
    count: Requests = 200,
    clients: Clients = 16,
    distinct: Distinct = 50,
    longest: Longest = 96,
    rows: Rows = 8,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Answers that may wait; few, for 429s.")] = 4,
    context: Context = 2048,
    leaving: Annotated[float, typer.Option("--leaving", min=0, max=1, help="Clients that go away.")] = 0.15,
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="Repeat the load for so long.")] = 0.0,
    url: Annotated[str, typer.Option("--url", help="A server that runs; else one is started.")] = "",
    model: Annotated[str, typer.Option("--model", help="What the model is called there.")] = NAME,
    pid: Annotated[int, typer.Option("--pid", help="Its process, to watch its memory.")] = 0,
    option: Set = [],  # noqa: B006  # typer copies it
    seed: Seed = 0,
    output: options.Output = "build/benchmarks/load.json",
) -> None:
    """Ask a server as a crowd does, and check every answer, every refusal and its memory."""
    arguments = dict(locals())
    with exit_codes(), ExitStack() as open_until_then:
        folder = options.model_folder(target)
        asked = questions(distinct, longest=longest, seed=seed)
        expected = lone_runs(folder, dtype, asked)
        if not url:
            served = Served(target=folder, dtype=dtype, rows=rows, queue=queue, most=longest, context=context)
            port = free_port()
            process = open_until_then.enter_context(ServerProcess("our server", *ours(served, port, option), port))
            url, pid = process.url, process.pid
        checks = Checks(asked, expected, count)
        crowd = Crowd(url, model, asked)
        crowd.ask(opening(asked, clients), clients, checks.take)
        sampler = open_until_then.enter_context(MemorySampler(pid)) if pid else None
        started, rounds, seconds = time.monotonic(), 0, 0.0
        while not rounds or time.monotonic() - started < minutes * 60:
            plan = requests(count, distinct, leaving=leaving, seed=seed + rounds)
            seconds += crowd.ask(plan, clients, checks.take)
            rounds += 1
        problems = [*checks.problems, *settled(url)]
        grown = growth(sampler.samples) if sampler and len(sampler.samples) >= LEAST_SAMPLES else None
        if grown is not None and grown.minutes >= ENOUGH_MINUTES and grown.end_mib > grown.start_mib * (1 + FLAT):
            problems.append(f"memory grew from {grown.start_mib:.0f} to {grown.end_mib:.0f} MiB")
        print(report(checks, grown, rounds, seconds))
        if output:
            figures = {**checks.as_json(), "rounds": rounds, "seconds": seconds, "problems": problems}
            memory = sampler and {**(asdict(grown) if grown else {}), "samples": sampler.samples}
            write_json(output, {**setting(arguments, dtype), **figures, "memory": memory})
            say(f"every outcome is in {output}")
    for problem in problems[:20]:
        say(f"FAILED {problem}")
    if problems:
        sys.exit(1)


def lone_runs(folder: str, dtype: str, asked: Sequence[Question]) -> list[tuple[str, str, int]]:
    """Text, reason and tokens of every question, asked alone in this process of an engine that drafts nothing."""
    from specstream import SpeculativeEngine
    from specstream.cli.loading import quiet

    with quiet():
        engine = SpeculativeEngine(folder, drafter="none", dtype=dtype)
    found = []
    for at, question in enumerate(asked):
        result = engine.generate(question.prompt, max_new_tokens=question.max_tokens)
        found.append((result.text, result.finish_reason, result.new_tokens))
        if at % 10 == 9:
            say(f"{at + 1} of {len(asked)} lone runs")
    del engine
    gc.collect()
    return found


def opening(asked: Sequence[Question], clients: int) -> list[Request]:
    """Everybody asks the question with the longest prompt, so that memory has been at its most before it is watched.

    Rows are as wide as the widest of them, and an allocator keeps what it once had: else the moment at which several
    long prompts first meet by chance, minutes later, would look like growth.
    """
    longest = max(range(len(asked)), key=lambda at: len(str(asked[at].prompt)))
    return [Request(question=longest, stream=False) for _ in range(clients)]


class Checks:
    """What became of the requests, and what is wrong with it.

    Args:
        asked: the questions.
        expected: text, reason and tokens of a lone run of each.
        report_each: outcomes between two lines of progress.
    """

    def __init__(self, asked: Sequence[Question], expected: Sequence[tuple[str, str, int]], report_each: int) -> None:
        self._asked, self._expected, self._each = asked, expected, report_each
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []

    def take(self, outcome: Outcome) -> None:
        """Check one more."""
        self.outcomes.append(outcome)
        if len(self.outcomes) % min(self._each, 50) == 0:
            say(f"{len(self.outcomes)} requests ended, {len(self.problems)} wrong")
        if problem := self._problem(outcome):
            self.problems.append(f"request {len(self.outcomes)} ({outcome.request}): {problem}")

    def _problem(self, outcome: Outcome) -> str:
        text, reason, tokens = self._expected[outcome.request.question]
        if outcome.error:
            return outcome.error
        if outcome.left:
            return "" if text.startswith(outcome.text) else f"began with {outcome.text!r}, alone it is {text!r}"
        if (outcome.text, outcome.reason, outcome.tokens) == (text, reason, tokens):
            return ""
        return f"{outcome.tokens} tokens, {outcome.reason}: {outcome.text!r}; alone {tokens}, {reason}: {text!r}"

    @property
    def finished(self) -> list[Outcome]:
        return [each for each in self.outcomes if not each.error and not each.left]

    def as_json(self) -> dict[str, Any]:
        """Counts, and every outcome without its text."""
        return {
            "requests": len(self.outcomes),
            "finished": len(self.finished),
            "left": sum(each.left for each in self.outcomes),
            "failed": sum(bool(each.error) for each in self.outcomes),
            "refusals": sum(each.refusals for each in self.outcomes),
            "wrong": len(self.problems),
            "tokens": sum(each.tokens for each in self.finished),
            "outcomes": [{**asdict(each), "text": len(each.text)} for each in self.outcomes],
        }


def settled(url: str) -> list[str]:
    """What is wrong with a server after its load: it has to be well and hold no row and no one waiting."""
    end, held = time.monotonic() + SETTLING_SECONDS, "not asked"
    while time.monotonic() < end:
        try:
            figures = metrics(url)
            rows, waiting = (
                sum(value for name, value in figures.items() if name.startswith(f"specstream_{kind}{{"))
                for kind in ("running_answers", "queue_length")
            )
            held = f"{rows:.0f} rows and {waiting:.0f} waiting"
            if rows == 0 == waiting and httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return []
        except (httpx.HTTPError, KeyError) as error:
            held = f"{type(error).__name__}: {error}"
        time.sleep(0.2)
    return [f"the server has not come to rest: {held}"]


def metrics(url: str) -> dict[str, float]:
    """The server's figures by name and labels.

    Raises:
        httpx.HTTPError: it does not tell them.
    """
    lines = httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def report(checks: Checks, grown: Growth | None, rounds: int, seconds: float) -> str:
    """The figures as text."""
    found = checks.as_json()
    lines = [
        f"{found['requests']} requests in {rounds} rounds, {seconds:.0f} s: {found['finished']} finished and were "
        f"compared with lone runs, {found['left']} left before the end, {found['failed']} failed, "
        f"{found['wrong']} wrong",
        f"{found['refusals']} times 429, each with Retry-After; {found['tokens']} tokens in finished answers",
        f"reasons: {dict(Counter(each.reason for each in checks.finished))}",
    ]
    for name in ("seconds", "first_seconds"):
        if values := sorted(value for each in checks.finished if (value := getattr(each, name))):
            late = values[min(len(values) - 1, int(0.95 * len(values)))]
            lines.append(f"{name}: median {median(values):.2f}, 95 % under {late:.2f}")
    if grown is not None:
        lines.append(
            f"memory: {grown.start_mib:.0f} MiB at first, {grown.end_mib:.0f} at last, peak {grown.peak_mib:.0f}; "
            f"{grown.mib_per_hour:+.1f} MiB an hour (standard error {grown.error:.1f}) over {grown.minutes:.1f} min"
        )
    return "\n".join(lines)


Side = Callable[[], tuple[float, int]]
"""Asks everything once: seconds, and tokens of the answers."""


@app.command()
def throughput(
    target: options.Target = "smollm2-135m",
    dtype: options.Dtype = "bfloat16",
    count: Requests = 48,
    clients: Clients = 16,
    longest: Longest = 96,
    rows: Rows = 16,
    context: Context = 2048,
    rounds: options.Rounds = 3,
    option: Set = [],  # noqa: B006
    seed: Seed = 0,
    output: options.Output = "build/benchmarks/throughput.json",
) -> None:
    """Tokens per second of the same load: one client against many."""
    arguments = dict(locals())
    with exit_codes():
        folder = options.model_folder(target)
        served = Served(target=folder, dtype=dtype, rows=rows, queue=4 * clients, most=longest, context=context)
        commands = {"specstream": lambda port: ours(served, port, option)}
        asked = questions(count, longest=longest, seed=seed)
        speeds = speeds_of(commands, asked, (1, clients), rounds, seed)
    many = f"specstream @{clients}"
    found = ratios(speeds, many)
    print(throughput_table(speeds, found, many))
    if output:
        write_json(output, {**setting(arguments, dtype), "of": many, "speeds": speeds, "ratios": found})
        say(f"every sample is in {output}")


def speeds_of(
    commands: Mapping[str, Callable[[int], Command]],
    asked: Sequence[Question],
    clients: Sequence[int],
    rounds: int,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Start servers and ask everything of each of them, in turn: tokens per second of every round, by ``NAME @N``.

    Args:
        commands: of each server, what to run, given its port.
        asked: the questions, each asked once.
        clients: how many ask at the same time; each number is a side of its own.
        rounds: that count.
        seed: of the order.
    """
    with ExitStack() as servers:
        sides: dict[str, Side] = {}
        for name, command in commands.items():
            port = free_port()
            url = servers.enter_context(ServerProcess(name, *command(port), port)).url
            say(f"{name} listens")
            for at_once in clients:
                sides[f"{name} @{at_once}"] = side(Crowd(url, NAME, asked), len(asked), at_once, seed)
        return in_turn(sides, rounds)


def server_load(settings: Settings) -> Figure:
    """Our server beside the same server without speculation: tokens a second of a mixed load of ``CLIENTS`` clients."""
    served = Served(
        target=settings.smollm2,
        dtype=settings.dtype,
        rows=CLIENTS,
        queue=4 * CLIENTS,
        most=settings.max_new_tokens,
        context=2048,
    )
    commands = {
        drafter: partial(ours, served, options=[f"drafter={drafter}"])
        for drafter in (*(settings.drafters or ("auto",)), "none")
    }
    asked = questions(3 * CLIENTS, longest=settings.max_new_tokens, seed=0)
    speeds = speeds_of(commands, asked, [CLIENTS], settings.rounds)
    plain = f"none @{CLIENTS}"
    found = {name: [1 / each for each in values] for name, values in ratios(speeds, plain).items()}
    estimates = {name: median_of(values) for name, values in found.items()}
    cells = [["drafter @clients", "tokens/s median (min-max)", "over none: min median max", "95 % from"]]
    for name, values in speeds.items():
        over = [Spread.of(found[name]).ratio(), f"{estimates[name].low:.3f}"] if name in found else ["", ""]
        cells.append([name, Spread.of(values).around(1), *over])
    details = {"speeds": speeds, "ratios": found, "medians": {name: asdict(each) for name, each in estimates.items()}}
    return Figure(value=min(each.value for each in estimates.values()), text=aligned(cells), details=details)


def side(crowd: Crowd, count: int, clients: int, seed: int) -> Side:
    """The same requests, from so many clients."""

    def ask() -> tuple[float, int]:
        outcomes: list[Outcome] = []
        seconds = crowd.ask(requests(count, count, leaving=0, seed=seed), clients, outcomes.append)
        if failed := [each.error for each in outcomes if each.error]:
            raise ServerError(f"{len(failed)} of {count} requests failed: {failed[0]}")
        return seconds, sum(each.tokens for each in outcomes)

    return ask


def in_turn(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of every side in every round; only one is asked at a time, and a first round does not count."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    ways = {name: lambda _, ask=ask: ask() for name, ask in sides.items()}
    for entry in contestants.in_turn(ways, [None], rounds=rounds + 1, warm_up=0):
        seconds, tokens = entry.value
        name, speed = entry.contestant, tokens / seconds
        say(f"round {entry.round}: {name}: {tokens} tokens in {seconds:.1f} s, {speed:.1f} a second")
        speeds[name].extend([speed] if entry.round else [])
    return speeds


def ratios(speeds: dict[str, list[float]], many: str) -> dict[str, list[float]]:
    """The crowd's speed at our server over every other side's, round by round."""
    return {
        name: [own / other for own, other in zip(speeds[many], values, strict=True)]
        for name, values in speeds.items()
        if name != many
    }


def throughput_table(speeds: dict[str, list[float]], found: dict[str, list[float]], many: str) -> str:
    """The figures as text."""
    cells = [["server @clients", "tokens/s median (min-max)", f"{many} over it: min median max"]]
    for name, values in speeds.items():
        ratio = Spread.of(found[name]).ratio() if name in found else ""
        cells.append([name, Spread.of(values).around(), ratio])
    return aligned(cells)


if __name__ == "__main__":
    app()
