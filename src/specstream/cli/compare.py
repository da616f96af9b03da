"""`specstream compare`: plain decoding against a draft model, in turn, on one prompt."""

from __future__ import annotations

import json
from statistics import mean, median, stdev
from typing import Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine
from specstream.cli.progress import progress
from specstream.errors import UsageError


def compare(
    target_model: Annotated[str, typer.Option("--target-model", help="The model whose output it is.")],
    draft_model: Annotated[str, typer.Option("--draft-model", help="A smaller model of the same tokenizer.")],
    input_str: Annotated[
        str, typer.Option("--input-str", help="The prompt, taken as plain text; - is the standard input.")
    ],
    num_runs: Annotated[int, typer.Option("--num-runs", help="Counted runs of each method.")] = 50,
    n: Annotated[
        int, typer.Option("--N", "--max-new-tokens", "--max-tokens", "-n", help="Tokens to generate in each run.")
    ] = 40,
    k: options.Gamma = 4,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    quantization: options.Quantization = "none",
    draft_quantization: options.DraftQuantization = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Time plain decoding and speculative decoding with a draft model, alternating run by run."""
    settings = {
        "gamma": k,
        "max_speculation_depth": k,
        "adaptive": False,  # K drafted tokens are what is compared
        "max_new_tokens": n,
        "temperature": temperature,
        **options.given(top_k=top_k, top_p=top_p),
        "seed": seed,
        "ignore_eos": True,  # every run makes the same number of tokens
        "device": device,
        "dtype": dtype,
        "runtime": runtime,
        "quantization": quantization,
        "draft_quantization": draft_quantization,
    }
    if num_runs < 1:
        raise UsageError(f"--num-runs is {num_runs}; give 1 or more")
    input_str = options.text_given(input_str)
    options.check_text(input_str, "--input-str - < {}", "--target-model")
    engine = load_engine(target_model, draft_model, settings, alone=True)
    options.note_own_draft(draft_model, target_model)
    options.note_greedy(temperature, top_k=top_k, top_p=top_p)
    with progress("runs", num_runs + 1) as tell:  # one warms up
        report = _report(engine.benchmark([input_str], num_runs=num_runs, on_run=tell))
    report["arguments"] = {**settings, "input_str": input_str, "N": n, "K": k, "num_runs": num_runs}
    if as_json:
        print(json.dumps(report))
    else:
        _print(report)


def _report(benchmark: dict[str, Any]) -> dict[str, Any]:
    methods = {}
    for method in ("plain", "speculative"):
        times = [run[f"{method}_seconds"] for run in benchmark["runs"]]
        methods[method] = {
            "num_runs": len(times),
            "new_tokens": int(benchmark["runs"][0][f"{method}_new_tokens"]),
            "time": mean(times),
            "median_time": median(times),
            "std": stdev(times) if len(times) > 1 else 0.0,
        }
    methods["plain"]["speedup"] = 1.0
    methods["speculative"]["speedup"] = benchmark["average_speedup"]
    return {
        "methods": methods,
        "acceptance_rate": benchmark["speculation_accuracy"],
        "mean_accepted_length": benchmark["mean_accepted_length"],
        "rejected": benchmark["rejected"],
        "drafted": benchmark["drafted"],
        "provenance": benchmark["provenance"],
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("Method", "num_runs", "time", "+/- std", "speedup")
    for method, row in report["methods"].items():
        cells = (f"{row['time']:.3f} s", f"{row['std']:.3f} s", f"{row['speedup']:.2f}x")
        table.add_row(method, str(row["num_runs"]), *cells)
    Console().print(table)
    rejected = report["rejected"] or "nothing"
    print(
        f"Rejected: {rejected} of {report['drafted']} drafted tokens; "
        f"{report['mean_accepted_length']:.2f} tokens per target pass. "
        f"Times are per run of {report['methods']['plain']['new_tokens']} tokens, prefill included on both sides; "
        "speedup is the median over the pairs of runs."
    )
