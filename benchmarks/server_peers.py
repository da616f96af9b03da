"""``python -m benchmarks.server_peers``: our server beside vLLM's and llama.cpp's, under the same load for minutes.

Every server gets the same questions in the same order, greedily and streamed, from as many clients. Only one is asked
at a time. New tokens are counted here, by the target's tokenizer: llama-cpp-python counts none in a stream, and where
it counts leaves out the end of a text, which vLLM counts. Nobody may reuse earlier prompts, as the load repeats them.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import numpy
import typer

from benchmarks import options
from benchmarks.report import Spread, aligned, exit_codes, say, setting, write_json
from benchmarks.servers import (
    NAME,
    Command,
    MemorySampler,
    Served,
    ServerProcess,
    free_port,
    growth,
    llama_cpp,
    ours,
    vllm,
)
from benchmarks.serving import LEAST_SAMPLES, Clients, Context, Distinct, Longest, Rows, Seed, Set, opening
from benchmarks.systems import parse_pythons
from benchmarks.traffic import Crowd, Outcome, Question, Request, questions, requests
from specstream.engine import contestants
from specstream.errors import UsageError

OURS = "specstream"

LOADED = re.compile(r"loaded in [\d.]+ s: (.+)")
"""What our server says of the dtype it chose."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One of the contestants.

    Attributes:
        command: what to run, given its port.
        weights: the file or folder that it serves.
        runs: in which dtype; ours says it when it has loaded.
        extra: fields of every request.
        usage: it counts the tokens of a stream.
    """

    command: Callable[[int], Command]
    weights: str
    runs: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    usage: bool = True


@dataclass(kw_only=True)
class Load:
    """What became of a server's load.

    Attributes:
        weights: that it served.
        runs: in which dtype.
        outcomes: of each of its turns.
        seconds: that each turn took.
        memory: ``(seconds, MiB)`` from the first turn to the last of all servers.
    """

    weights: str
    runs: str
    outcomes: list[list[Outcome]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def all(self) -> list[Outcome]:
        return list(chain.from_iterable(self.outcomes))

    @property
    def answers(self) -> dict[int, str]:
        """The first answer to each question."""
        return {each.request.question: each.text for each in reversed(self.all) if not each.error}

    def speeds(self, length: Callable[[str], int]) -> list[float]:
        """Tokens of answers a second, for each turn."""
        tokens = [sum(length(each.text) for each in turn if not each.error) for turn in self.outcomes]
        return [number / seconds for number, seconds in zip(tokens, self.seconds, strict=True)]

    def as_json(self, length: Callable[[str], int]) -> dict[str, Any]:
        """The figures, and every outcome without its text; times in seconds."""
        good = [each for each in self.all if not each.error]
        lengths = {each.text: length(each.text) for each in good}
        later = [
            (each.seconds - each.first_seconds) / (lengths[each.text] - 1)
            for each in good
            if lengths[each.text] > 1 and not each.refusals
        ]
        grown = asdict(growth(self.memory)) if len(self.memory) >= LEAST_SAMPLES else {}
        return {
            "weights": self.weights,
            "runs": self.runs,
            "requests": len(self.all),
            "errors": dict(Counter(each.error.partition(":")[0] for each in self.all if each.error)),
            "refusals": sum(each.refusals for each in self.all),
            "tokens": sum(lengths[each.text] for each in good),
            "counted_by_server": sum(each.tokens for each in good),
            "speeds": self.speeds(length),
            "first_seconds": percentiles([each.first_seconds for each in good if each.first_seconds]),
            "later_seconds": percentiles(later),
            "memory": {**grown, "samples": self.memory},
            "outcomes": [{**asdict(each), "text": len(each.text)} for each in self.all],
        }


def server_peers(
    target: options.Target = "smollm2-135m",
    dtype: options.Dtype = "auto",
    gguf: options.Gguf = "",
    python: options.Pythons = [],  # noqa: B006  # typer copies it
    vllm_dtype: Annotated[list[str], typer.Option("--vllm-dtype", help="May be repeated.")] = ["bfloat16"],  # noqa: B006
    compiled: Annotated[bool, typer.Option("--vllm-compile", help="vLLM without --enforce-eager.")] = False,
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="Of load for each server, all turns.")] = 10.0,
    rounds: options.Rounds = 5,
    clients: Clients = 16,
    distinct: Distinct = 48,
    longest: Longest = 96,
    rows: Rows = 16,
    context: Context = 2048,
    option: Set = [],  # noqa: B006
    seed: Seed = 0,
    output: options.Output = "build/benchmarks/server_peers.json",
) -> None:
    """Ask our server, vLLM's (--python vllm=...) and llama.cpp's (--python llama.cpp=... --gguf FILE) in turn."""
    arguments = dict(locals())
    with exit_codes():
        folder = options.model_folder(target)
        served = Served(target=folder, dtype=dtype, rows=rows, queue=4 * clients, most=longest, context=context)
        flags = () if compiled else ("--enforce-eager",)
        servers = servers_of(served, gguf, parse_pythons(python), vllm_dtype, flags, option)
        tokenizer = options.load_tokenizer(folder)
        asked = questions(distinct, longest=longest, seed=seed)
        loads = measure(servers, asked, clients, minutes * 60, rounds, seed)

    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    found = {name: each.as_json(length) for name, each in loads.items()}
    over = ratios({name: each["speeds"] for name, each in found.items()})
    print(table(found, over, {name: equal(loads, name) for name in loads}))
    if output:
        write_json(output, {**setting(arguments, dtype), "servers": found, "over_the_better_other": over})
        say(f"every sample is in {output}")
    if any(each["errors"] for each in found.values()):
        sys.exit(1)


def servers_of(
    served: Served,
    gguf: str,
    pythons: Mapping[str, str],
    vllm_dtypes: Sequence[str],
    vllm_flags: Sequence[str],
    option: Sequence[str],
) -> dict[str, Server]:
    """The contestants by name; ours are first.

    Raises:
        UsageError: an interpreter of another peer; llama.cpp without a file of weights.
    """
    if strange := set(pythons) - {"vllm", "llama.cpp"}:
        raise UsageError(f"--python is for {', '.join(sorted(strange))}; the other servers are vllm's and llama.cpp's")
    if "llama.cpp" in pythons and not Path(gguf).is_file():
        raise UsageError(f"gguf is {gguf!r} and llama.cpp reads such a file; give one with --gguf FILE")
    blocks = replace(served, target=str(Path(gguf).absolute()))
    own = ("prefix_cache_gb=0", *option)
    servers = {OURS: Server(command=lambda port: ours(served, port, own), weights=served.target)}
    if gguf:
        servers[f"{OURS} gguf"] = Server(command=lambda port: ours(blocks, port, own), weights=blocks.target)
    for dtype in vllm_dtypes if "vllm" in pythons else ():
        command = partial(vllm, replace(served, dtype=dtype), python=pythons["vllm"], options=vllm_flags)
        servers[f"vllm {dtype}"] = Server(command=command, weights=served.target, runs=dtype)
    if "llama.cpp" in pythons:
        servers["llama.cpp"] = Server(
            command=partial(llama_cpp, blocks, python=pythons["llama.cpp"]),
            weights=blocks.target,
            runs="as the file",
            extra={"repeat_penalty": 1.0},  # of its own accord it takes 1.1
            usage=False,
        )
    return servers


def measure(
    servers: Mapping[str, Server], asked: Sequence[Question], clients: int, seconds: float, rounds: int, seed: int
) -> dict[str, Load]:
    """Start all servers and load each for ``seconds``, divided into ``rounds`` turns.

    Raises:
        ServerError: one does not start.
    """
    loads: dict[str, Load] = {}
    with ExitStack() as running:
        ways = {}
        for name, server in servers.items():
            port = free_port()
            process = running.enter_context(ServerProcess(name, *server.command(port), port))
            said = LOADED.search(process.log())
            loads[name] = Load(weights=server.weights, runs=server.runs or (said[1] if said else ""))
            say(f"{name} listens")
            crowd = Crowd(process.url, NAME, asked, extra=server.extra, usage=server.usage)
            crowd.ask(opening(asked, clients), clients, lambda outcome: None)
            sampler = running.enter_context(MemorySampler(process.pid))
            loads[name].memory = sampler.samples
            ways[name] = partial(turn, crowd, loads[name], asking(len(asked), seed), clients, seconds / rounds)
        for entry in contestants.in_turn(ways, [None], rounds=rounds, warm_up=0):
            load = loads[entry.contestant]
            say(f"round {entry.round}: {entry.contestant}: {len(load.outcomes[-1])} requests, {load.seconds[-1]:.0f} s")
    return loads


def asking(distinct: int, seed: int) -> Iterator[Request]:
    """Every question, again and again, in an order that is the same for each server."""
    for again in count(seed):
        for each in requests(distinct, distinct, leaving=0, seed=again):
            yield replace(each, stream=True)


def turn(crowd: Crowd, load: Load, plan: Iterator[Request], clients: int, seconds: float, _: None) -> None:
    """Go on with a server's load for so long."""
    load.outcomes.append([])
    load.seconds.append(crowd.ask(plan, clients, load.outcomes[-1].append, seconds=seconds))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the 95th; nothing of nothing."""
    return {f"p{share}": float(numpy.percentile(values, share)) for share in (50, 95)} if values else {}


def ratios(speeds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Of each of our servers, its speed over the better of the others', round by round."""
    others = [values for name, values in speeds.items() if not name.startswith(OURS)]
    better = [max(each) for each in zip(*others, strict=True)]
    return {
        name: [own / other for own, other in zip(values, better, strict=True)]
        for name, values in speeds.items()
        if others and name.startswith(OURS)
    }


def equal(loads: Mapping[str, Load], name: str) -> str:
    """How many of a server's answers are those of ours with the same weights."""
    first = next(other for other in loads if loads[other].weights == loads[name].weights)
    own, theirs = loads[name].answers, loads[first].answers
    shared = own.keys() & theirs.keys()
    return "" if first == name else f"{sum(own[at] == theirs[at] for at in shared)} of {len(shared)}"


def table(found: Mapping[str, Mapping[str, Any]], over: Mapping[str, Sequence[float]], same: Mapping[str, str]) -> str:
    """The figures as text."""
    titles = ["server", "runs", "tokens/s median (min-max)", "over the better other", "first token s p50 p95"]
    titles += ["later tokens ms p50 p95", "requests", "429", "errors", "MiB first last quarter", "equal answers"]
    cells = [titles]
    for name, each in found.items():
        times = [
            " ".join(f"{scale * value:.{digits}f}" for value in each[kind].values())
            for kind, scale, digits in (("first_seconds", 1, 2), ("later_seconds", 1000, 0))
        ]
        memory = each["memory"]
        grown = f"{memory['start_mib']:.0f} {memory['end_mib']:.0f}" if "start_mib" in memory else ""
        errors = ", ".join(f"{number} {kind}" for kind, number in each["errors"].items()) or "0"
        ratio = Spread.of(over[name]).ratio() if name in over else ""
        speed = Spread.of(each["speeds"]).around(1)
        counts = [str(each["requests"]), str(each["refusals"]), errors]
        cells.append([name, each["runs"], speed, ratio, *times, *counts, grown, same[name]])
    return aligned(cells)


if __name__ == "__main__":
    typer.run(server_peers)
