"""``python -m benchmarks.peers``: systems beside each other, each in a process of its own, in interleaved rounds.

Every system gets the same token ids, the same dtype, the same ends and the same limit, decodes greedily, and is timed
over its whole call, prompt included. Only one computes at a time.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from benchmarks import options
from benchmarks.prompts import CHATS, batches, encoded
from benchmarks.report import exit_codes, say, setting, table, write_json
from benchmarks.rounds import Plan, measure
from benchmarks.systems import System, parse_pythons, parse_system
from specstream.errors import UsageError
from specstream.files.prompts import load_prompts

OURS = ("specstream:none", "specstream:lookup", "specstream:draft_model", "specstream:mixed")
TRANSFORMERS = ("transformers:generate", "transformers:assisted", "transformers:lookup")
PEERS = ("vllm:none", "vllm:ngram", "vllm:draft_model", "economize:lookup", "economize:draft_model")
LESS_USUAL = ("flashspec:lookup", "flashspec:draft_model", "llama.cpp:none")


def default_systems(draft: str, gguf: str) -> list[System]:
    """Everything that the models at hand allow."""
    systems = [parse_system(name) for name in (*OURS, *TRANSFORMERS, *PEERS, *LESS_USUAL)]
    return [each for each in systems if (draft or not each.needs_draft) and (gguf or each.engine != "llama.cpp")]


def default_reference(systems: list[System]) -> str:
    """transformers' generate, if it takes part."""
    names = [system.name for system in systems]
    return TRANSFORMERS[0] if TRANSFORMERS[0] in names else names[0]


def conditions(values: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` as a mapping.

    Raises:
        UsageError: not of that form.
    """
    for value in values:
        if "=" not in value:
            raise UsageError(f"--where is {value!r}; give KEY=VALUE")
    return dict(value.split("=", 1) for value in values)


def peers(
    target: options.Target = "smollm2-135m",
    draft: options.Draft = "",
    system: Annotated[
        list[str], typer.Option("--system", "-s", help="ENGINE:MODE[@K][+OPTION]; may be repeated; all by default.")
    ] = [],  # noqa: B006  # typer copies it
    require: Annotated[list[str], typer.Option("--require", help="A system that must be there.")] = [],  # noqa: B006
    reference: Annotated[str, typer.Option("--reference", help="What ratios are against (default: generate).")] = "",
    python: options.Pythons = [],  # noqa: B006
    prompts: Annotated[str, typer.Option("--prompts", help="A .jsonl, .json or .csv file; a few are built in.")] = "",
    field: Annotated[str, typer.Option("--field", help="The prompt's key in a record; found if not given.")] = "",
    where: Annotated[list[str], typer.Option("--where", help="Only records with KEY=VALUE.")] = [],  # noqa: B006
    limit: options.Limit = 4,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Prompts in one call.")] = 1,
    rounds: options.Rounds = 3,
    max_new_tokens: options.MaxNewTokens = 64,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Always make --max-new-tokens.")] = False,
    dtype: options.Dtype = "bfloat16",
    raw: options.Raw = False,
    gguf: options.Gguf = "",
    alive: options.Alive = 99,
    output: options.Output = "build/benchmarks/peers.json",
) -> None:
    """Compare systems on the same prompts."""
    arguments = dict(locals())
    with exit_codes():
        systems = [parse_system(name) for name in dict.fromkeys([*system, *require])] or default_systems(draft, gguf)
        interpreters = parse_pythons(python)
        texts = load_prompts(prompts, field, conditions(where)) if prompts else list(CHATS)
        folder = options.model_folder(target)
        items = encoded(options.load_tokenizer(folder), texts[: limit * batch], raw=raw)
        items = batches(items, batch) if batch > 1 else items
        plan = Plan(
            systems=systems,
            reference=reference or default_reference(systems),
            models=options.models(
                folder,
                draft and options.model_folder(draft),
                dtype=dtype,
                items=items,
                limit=max_new_tokens,
                gguf=gguf,
            ),
            items=items,
            rounds=rounds,
            limit=max_new_tokens,
            ignore_eos=ignore_eos,
            required=frozenset(require),
            pythons=interpreters,
            alive=alive,
        )
        measured = measure(plan, say)
        print(table(measured, plan.reference))
        if output:
            write_json(output, {**setting(arguments, dtype), "reference": plan.reference, **measured.as_json()})
            say(f"every sample is in {output}")
    if measured.failed:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(peers)
