"""`specstream generate`: text from a prompt, shown as it is accepted."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Optional

import typer

from specstream.cli.options import (
    Device,
    Draft,
    Dtype,
    GammaOption,
    MinP,
    Model,
    RepetitionPenalty,
    Runtime,
    Seed,
    Temperature,
    TopK,
    TopP,
    parse_drafter,
)
from specstream.errors import UsageError


def generate(
    words: Annotated[Optional[str], typer.Argument(metavar="PROMPT", help="The prompt.")] = None,  # noqa: UP045
    prompt: Annotated[Optional[str], typer.Option("--prompt", "-p", help="The prompt, as an option.")] = None,  # noqa: UP045
    model: Model = "smollm2-135m",
    draft: Draft = None,
    drafter: Annotated[
        str, typer.Option("--drafter", help="none, lookup, draft_model or auto (a draft if given, else lookup).")
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Never one more.")] = 100,
    k: GammaOption = 4,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Annotated[
        Optional[list[str]], typer.Option("--stop", help="Stop before this text; may be repeated.")  # noqa: UP045
    ] = None,
    chat: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--chat/--no-chat", help="Put the prompt into the model's chat template (default: if it has one)."
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    runtime: Runtime = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Generate text. It is the model's own text; the drafter only makes it arrive sooner."""
    text = _one_prompt(words, prompt)
    parse_drafter(drafter)
    from specstream.cli.loading import quiet_loading

    with quiet_loading():
        from specstream.engine import SpeculativeEngine

        engine = SpeculativeEngine(
            model,
            draft_model=draft,
            drafter=drafter,  # type: ignore[arg-type]
            gamma=k,
            max_speculation_depth=max(k, 5),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop or [],
            device=device,
            dtype=dtype,
            runtime=runtime,  # type: ignore[arg-type]
        )
    has_template = getattr(engine.tokenizer, "chat_template", None) is not None
    content: Any = [{"role": "user", "content": text}] if (has_template if chat is None else chat) else text
    if as_json:
        print(json.dumps(dict(engine.generate(content))))
        return
    pieces = engine.stream(content)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    sys.stdout.flush()
    print(summary(dict(pieces.result)), file=sys.stderr)


def summary(result: dict[str, Any]) -> str:
    """One line on how it went."""
    exactness = "lossless" if result["lossless"] else "NOT lossless (acceptance_threshold)"
    return (
        f"\n[{result['new_tokens']} tokens in {result['seconds']:.2f} s, {result['tokens_per_second']:.1f} tokens/s; "
        f"{result['speedup']:.2f}x the decoding speed of plain decoding ({result['baseline']['tokens_per_second']:.1f} "
        f"tokens/s, {result['baseline']['tokens']} tokens in this process); "
        f"{result['mean_accepted_length']:.2f} tokens per pass, {result['acceptance_rate']:.0%} of drafts accepted; "
        f"{result['drafter']}, {result['model']}, {result['dtype']}, {result['runtime']}; "
        f"{exactness}, exact: {result['exact']}]"
    )


def _one_prompt(words: str | None, prompt: str | None) -> str:
    if words is not None and prompt is not None:
        raise UsageError(f"two prompts were given, {words!r} and --prompt {prompt!r}; give one")
    text = words if words is not None else prompt
    if not text:
        raise UsageError('the prompt is empty; give one, such as: specstream generate "The sea is"')
    return text
