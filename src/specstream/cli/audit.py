"""`specstream audit`: every token that speculation emitted, held against plain decoding."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine
from specstream.cli.progress import progress
from specstream.cli.records import check_output, write_record
from specstream.errors import UsageError, counted
from specstream.files.prompts import read_prompts
from specstream.reporting import as_typed

if TYPE_CHECKING:
    from specstream.evaluation.audit import AuditReport, Divergence, Noise

PROMPTS = (
    "Explain in three sentences why the moon has phases.",
    "Copy this list twice: copper, tin, zinc, lead; copper, tin, zinc, lead; copper, tin, zinc, lead.",
    "def read_rows(path):\n    with open(path) as file:\n        rows = [line.split(',') for line in file]\n    return",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Think step by step.",
    "Rewrite in the past tense: The baker opens the shop, the baker lights the oven, and the baker waits.",
    "Schreibe einen kurzen Brief an eine Freundin, die ans Meer gezogen ist.",
    '{"name": "Ada", "city": "London"}\n{"name": "Alan", "city": "Manchester"}\n{"name": "Grace", "city":',
    "Write a strange little story about a lighthouse keeper who collects fog in bottles.",
)
"""What is audited where no prompt is given: free text, text that repeats, code, numbers, another language, a format."""

_Prompts = Annotated[
    options.Text, typer.Option("--prompts", help="A .txt, .jsonl, .json or .csv file, or - (default: 8 built in).")
]
_BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="Prompts decoded at once.")]
_Exact = Annotated[str, typer.Option("--exact", help="bits pads passes to bit-equal widths; rounding pads nothing.")]
_Output = Annotated[options.Text, typer.Option("--output", "-o", help="Write the whole report to this JSON file.")]


def audit(
    words: options.Words = None,
    prompts: _Prompts = None,
    model: options.Model = "smollm2-135m",
    draft: options.Draft = None,
    drafter: options.Drafter = "auto",
    max_new_tokens: options.MaxNewTokens = 64,
    k: options.Gamma = 4,
    batch_size: _BatchSize = 1,
    temperature: options.Temperature = 0.0,
    repetition_penalty: options.RepetitionPenalty = None,
    chat: options.Chat = None,
    exact: _Exact = "bits",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    quantization: options.Quantization = "none",
    draft_quantization: options.DraftQuantization = "auto",
    heads: options.HeadsFolder = None,
    output: _Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that speculation is lossless: decode again one token a pass, and list every divergence. Fails with 1."""
    words = None if words is None else options.text_given(words)
    texts = _texts(words, prompts)
    options.check_drafter(drafter, without="router")
    _check_call(temperature, batch_size, len(texts))
    check_output(output)
    settings = {
        "drafter": drafter,
        **({} if drafter == "none" else {"gamma": k, "max_speculation_depth": k}),
        "adaptive": False,  # drafts are to be judged, whether they pay or not
        "max_new_tokens": max_new_tokens,
        **options.given(repetition_penalty=repetition_penalty),
        "exact": exact,
        **{"device": device, "dtype": dtype, "runtime": runtime, "quantization": quantization},
        "draft_quantization": draft_quantization,
        "heads": heads,
    }
    engine = load_engine(model, draft, settings, alone=True)
    report = _audit(engine, texts, batch_size, chat)
    arguments = {
        **settings,
        "model": model,
        "draft": draft,
        "prompt": words,
        "prompts": prompts,
        "batch_size": batch_size,
        "chat": chat,
    }
    record = {**report.to_dict(), "provenance": engine.provenance(), "arguments": arguments}
    if output is not None:
        write_record(output, record)
    if as_json:
        print(json.dumps(record))
    else:
        _print(report, record["provenance"])
    if not report.passed:
        raise typer.Exit(1)


def _texts(words: str | None, prompts: str | None) -> list[Any]:
    if words is not None and prompts is not None:
        raise UsageError(f"a prompt, {words!r}, and a file of prompts, {prompts!r}, were given; give one of them")
    if words is not None:
        options.check_text(words, "--prompts {}")
    if prompts is not None:
        return read_prompts(prompts)
    return list(PROMPTS) if words is None else [words]


def _check_call(temperature: float, batch_size: int, prompts: int) -> None:
    """Refuse before a model is loaded what would be refused after it, and note what comes to nothing."""
    if temperature != 0:
        raise UsageError(f"--temperature is {temperature}; give 0: sampled tokens have no single right choice")
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; give 1 or more")
    if batch_size > prompts == 1:
        one = f"batch_size is {batch_size} and there is 1 prompt"
        options.note(as_typed(f"{one}: nothing is decoded side by side; give --prompts, a file of more"))


def _audit(engine: Any, texts: list[Any], batch_size: int, chat: bool | None) -> AuditReport:
    from specstream.engine.text import asked
    from specstream.evaluation.audit import audit as run_audit

    contents = [asked(engine.tokenizer, text, chat) for text in texts]
    with progress("audited prompts", len(texts)) as tell:
        return run_audit(engine, contents, batch_size=batch_size, on_batch=tell)


def _print(report: AuditReport, provenance: dict[str, Any]) -> None:
    divergences = len(report.divergences)
    if divergences:
        _print_divergences(report)
    gaps = f", the largest gap {report.largest_gap:.3g}" if divergences else ""
    print(
        f"audit {'passed' if report.passed else 'FAILED'}: {counted(report.tokens, 'token')} of "
        f"{counted(report.prompts, 'prompt')}, {counted(divergences, 'divergence')} from plain decoding{gaps}"
    )
    for problem in report.problems:
        print(f"  failed: {problem}")
    print(f"  rule: {report.rule}")
    print(f"  noise: {_noise(report.noise)}")
    drafts = f"{report.accepted} of {report.drafted} drafted tokens accepted"
    print(
        f"  {provenance['drafter']}: {drafts if report.drafted else 'drafted nothing, so nothing was put to the test'}"
    )
    print("  " + ", ".join(str(provenance[key]) for key in ("model", "dtype", "device", "runtime")))


def _noise(noise: Noise) -> str:
    widths = ", ".join(map(str, noise.widths))
    if noise.logit == 0:
        return f"none, passes of {widths} tokens have the very logits of passes of one"
    return (
        f"{noise.gap:.3g}, the most that passes of {widths} tokens instead of one move the gap between likely tokens "
        f"(single logits: {noise.logit:.3g})"
    )


def _print_divergences(report: AuditReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("prompt", "token", "after", "emitted", "plain decoding", "gap", "")
    for each in report.divergences:
        cells = (str(each.prompt), str(each.position), *_tokens(each), f"{each.gap:.3g}")
        table.add_row(*map(Text, cells), "fails" if report.fails(each) else "rounding")
    Console().print(table)


def _tokens(divergence: Divergence) -> tuple[str, str, str]:
    """The last text both agree on and the two tokens that follow it, spaces and line ends made visible."""
    return (
        repr(divergence.before[-16:]),
        f"{divergence.emitted_text!r} ({divergence.emitted})",
        f"{divergence.plain_text!r} ({divergence.plain})",
    )
