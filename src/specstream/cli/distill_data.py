"""`specstream distill-data`: prompts in, the model's own answers out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine
from specstream.cli.progress import progress
from specstream.errors import UsageError

_Prompts = Annotated[list[str], typer.Option("--prompts", help="A .txt, .jsonl, .json or .csv file; may be repeated.")]
_Output = Annotated[str, typer.Option("--output", "-o", help="The JSON lines to write. An interrupted run goes on.")]
_Exclude = Annotated[
    options.Texts, typer.Option("--exclude", help="A file of held-out prompts to leave out; may be repeated.")
]
_Limit = Annotated[options.Integer, typer.Option("--limit", min=1, help="Most prompts to answer.")]
_PerFile = Annotated[options.Integer, typer.Option("--per-file", min=1, help="Most prompts of each file.")]
_BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Prompts answered at once.")]
_MaxPrompt = Annotated[int, typer.Option("--max-prompt-tokens", min=1, help="Leave longer prompts out.")]
_Shuffle = Annotated[bool, typer.Option("--shuffle/--in-order", help="Mix the files, so that a limit takes of all.")]
_Drafter = Annotated[str, typer.Option("--drafter", help="none or lookup: how the answers are decoded.")]
_TopP = Annotated[
    float, typer.Option("--top-p", help="Keep the likeliest tokens up to this probability; 0 and 1 keep all.")
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the order, and of sampling.")]


def distill_data(
    prompts: _Prompts,
    output: _Output,
    model: options.Model = "smollm2-135m",
    exclude: _Exclude = None,
    limit: _Limit = None,
    per_file: _PerFile = None,
    batch_size: _BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 256,
    max_prompt_tokens: _MaxPrompt = 768,
    temperature: options.Temperature = 0.0,
    top_p: _TopP = 1.0,
    seed: _Seed = 0,
    chat: options.Chat = None,
    shuffle: _Shuffle = True,
    drafter: _Drafter = "none",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Write a model's own answers to prompts: what drafts for it are trained on."""
    if drafter not in ("none", "lookup"):
        raise UsageError(f"--drafter is {drafter!r}; give none or lookup")
    options.check_files(*prompts, *(exclude or ()))
    options.note_greedy(temperature, top_p=top_p if 0 < top_p < 1 else None)
    from specstream.training.answers import AnswerSettings, check_place, distill, read_questions

    settings = AnswerSettings(
        model=model,
        prompts=tuple(prompts),
        exclude=tuple(exclude or ()),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        per_file=per_file,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat=chat,
        shuffle=shuffle,
    )
    # Before a model is loaded: what cannot be read, or written afterwards.
    read_questions(settings)
    check_place(output, "--output")
    decoding = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    engine = load_engine(
        model, None, {**decoding, "drafter": drafter, "dtype": dtype, "device": device, "runtime": runtime}
    )
    with progress("answers") as tell:
        record = distill(engine, settings, Path(output), limit, tell)
    left_out = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in record["left_out"].items())
    if as_json:
        print(json.dumps({"output": output, **record}))
    else:
        print(f"{output}: {record['prompts']} answers of {model}; left out: {left_out}")
