"""Options that several verbs share, with one name, one help text and one range each."""

from __future__ import annotations

from typing import Annotated, Optional, get_args

import typer

from specstream.errors import UsageError

Model = Annotated[str, typer.Option("--model", "-m", help="A catalog name, a local folder, or a hub id.")]
Draft = Annotated[Optional[str], typer.Option("--draft", "-d", help="A smaller model of the same tokenizer.")]  # noqa: UP045
GammaOption = Annotated[int, typer.Option("-K", "--gamma", min=1, help="Most tokens a draft model drafts per round.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", min=0, help="0 is greedy decoding.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens up to this probability; in (0, 1].")]
MinP = Annotated[float, typer.Option("--min-p", min=0, max=1, help="Drop tokens below this times the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 discourages repeats.")]
Seed = Annotated[Optional[int], typer.Option("--seed", min=0, help="Fixes the draws.")]  # noqa: UP045
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="auto (float32 on a CPU without bf16 instructions), float32, bfloat16 or float16."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Runtime = Annotated[str, typer.Option("--runtime", help="How passes run: auto, eager or packed.")]


def parse_drafter(name: str) -> None:
    """Refuse an unknown drafter before anything is loaded."""
    from specstream.config import DrafterName

    known = get_args(DrafterName)
    if name not in known:
        raise UsageError(f"drafter is {name!r}; give one of {', '.join(known)}")
