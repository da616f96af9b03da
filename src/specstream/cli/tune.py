"""`specstream tune`: the fastest lossless setting on this machine, as a file that `generate` and the engine load."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine, quiet
from specstream.cli.records import check_output, table_console
from specstream.errors import UsageError
from specstream.files.atomic import write_whole
from specstream.files.prompts import read_prompts

if TYPE_CHECKING:
    from specstream.evaluation.tune import Tuned

_Prompts = Annotated[
    str, typer.Option("--prompts", help="Prompts like yours: a .txt, .jsonl, .json or .csv file, or -.")
]
_Output = Annotated[str, typer.Option("--output", "-o", help="The YAML file that the setting is written to.")]
_NumPrompts = Annotated[int, typer.Option("--num-prompts", min=2, help="So many of the prompts, spread over the file.")]
_Repeats = Annotated[
    int, typer.Option("--repeats", "--num-runs", min=1, help="Of the last stage, from which the interval is.")
]
_Draft = Annotated[options.Text, typer.Option("--draft", "-d", help="A draft model to try.")]


_FIRST = "# The fastest lossless setting that `specstream tune` found"
"""How a file of this command begins."""


def tune(
    prompts: _Prompts,
    output: _Output,
    model: options.Model = "smollm2-135m",
    draft: _Draft = None,
    heads: options.HeadsFolder = None,
    num_prompts: _NumPrompts = 8,
    max_new_tokens: options.MaxNewTokens = 64,
    repeats: _Repeats = 2,
    chat: options.Chat = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Find the fastest lossless setting for these prompts, or that speculation does not pay, and write it down."""
    _check_output(output)
    texts = read_prompts(prompts)
    texts = [texts[at * len(texts) // num_prompts] for at in range(min(num_prompts, len(texts)))]
    if len(texts) < 2:
        raise UsageError(f"prompts {prompts!r} holds {len(texts)} prompt; give two or more, so that they can disagree")
    if heads is not None:
        from specstream.heads.folder import check_base_name

        check_base_name(heads, model)
    options.check_draft(draft, model)
    settings = {"drafter": "none", "max_new_tokens": max_new_tokens, "dtype": dtype, "device": device}
    engine = load_engine(model, None, settings)
    found = _tune(engine, texts, chat, draft, heads, repeats)
    record = {
        **found.to_dict(),
        "provenance": engine.provenance(),
        "arguments": {**settings, "model": model, "draft": draft, "heads": heads, "prompts": prompts}
        | {"num_prompts": len(texts), "repeats": repeats, "chat": chat},
    }
    write_whole(Path(output), _file(record))
    if as_json:
        print(json.dumps(record))
    else:
        _print(record, output)


def _check_output(output: str) -> None:
    if not output.endswith((".yaml", ".yml")):
        raise UsageError(f"output is {output!r}; give the name of a .yaml file")
    check_output(output, lambda path: path.read_bytes().startswith(_FIRST.encode()), Path(output).suffix)


def _tune(
    engine: Any, texts: list[Any], chat: bool | None, draft: str | None, heads: str | None, repeats: int
) -> Tuned:
    from specstream.cli.progress import progress
    from specstream.engine.text import asked, encode
    from specstream.evaluation.tune import tune as run

    prompts = [encode(engine.tokenizer, asked(engine.tokenizer, text, chat)) for text in texts]
    with quiet(), progress("runs") as tell:
        return run(
            engine,
            prompts,
            engine.config.generation,
            draft=draft,
            heads=heads,
            repeats=repeats,
            on_run=tell,
        )


def _file(record: dict[str, Any]) -> str:
    """The setting, and behind # where it comes from."""
    import yaml

    arguments, provenance = record["arguments"], record["provenance"]
    about = (
        f"{arguments['num_prompts']} prompts of {arguments['prompts']}, {arguments['max_new_tokens']} tokens each, "
        "greedy; decoding only, the prompt on neither side"
    )
    machine = ", ".join(f"{provenance[key]}" for key in ("cpu", "accelerator", "dtype") if provenance[key])
    versions = ", ".join(f"{key} {provenance[key]}" for key in ("specstream", "torch", "transformers"))
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    lines = (
        f"{_FIRST.removeprefix('# ')}, for: specstream generate --config FILE",
        f"{when}: {record['verdict']}",
        about,
        f"{machine}, {provenance['threads']} threads; {versions}",
    )
    values = {"model": arguments["model"], **record["settings"]}
    values |= {key: arguments[key] for key in ("dtype", "device") if arguments[key] != "auto"}
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(values, sort_keys=False)


def _print(record: dict[str, Any], output: str) -> None:
    from rich.table import Table

    table = Table("setting", "prompts", "x plain", "")
    for place, search in (("runtime: ", record["runtimes"]), ("", record["candidates"])):
        last = {name: stage for stage in (search or {"stages": []})["stages"] for name in stage["ratios"]}
        for name, stage in sorted(last.items(), key=lambda item: (-item[1]["prompts"], -item[1]["ratios"][item[0]])):
            table.add_row(place + name, str(stage["prompts"]), f"{stage['ratios'][name]:.2f}", "")
        for stage in (search or {"stages": []})["stages"]:
            for name, reason in stage["out"].items():
                table.add_row(place + name, str(stage["prompts"]), "", reason)
    for name, reason in record["left_out"].items():
        table.add_row(name, "", "", f"not tried: {reason}")
    table_console().print(table)
    print(record["verdict"])
    print(f"written to {output}; to use it: specstream generate --config {output} PROMPT")
    print(", ".join(str(record["provenance"][key]) for key in ("model", "dtype", "device", "cpu")))
