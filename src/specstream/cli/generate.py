"""`specstream generate`: text from a prompt, shown as it is accepted."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine
from specstream.environment import cores
from specstream.errors import UsageError
from specstream.files.atomic import why_unread
from specstream.files.prompts import read_records, text_of
from specstream.reporting import as_typed


def generate(
    context: typer.Context,
    words: options.Words = None,
    prompt: options.PromptOption = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = "smollm2-135m",
    draft: options.Draft = None,
    drafter: options.Drafter = "auto",
    max_new_tokens: options.MaxNewTokens = 100,
    k: options.Depth = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stop_token_ids: options.StopTokenIds = None,
    chat: options.Chat = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    quantization: options.Quantization = "none",
    draft_quantization: options.DraftQuantization = "auto",
    heads: options.HeadsFolder = None,
    router: options.RouterFolder = None,
    router_state: options.RouterState = None,
    memory: options.Memory = None,
    pruning: options.Pruning = None,
    acceptance_threshold: options.AcceptanceThreshold = None,
    measure_baseline: options.MeasureBaseline = False,
    config: options.EngineFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Generate text. It is the model's own text; the drafter only makes it arrive sooner."""
    text = _one_prompt(words, prompt, prompt_file)
    options.check_drafter(drafter)
    settings: dict[str, Any] = {
        "drafter": drafter,
        **dict.fromkeys(("gamma", "max_speculation_depth"), k),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        **options.given(top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty),
        "seed": seed,
        "stop": options.stops(stop),
        "stop_token_ids": stop_token_ids or [],
        **{"device": device, "dtype": dtype, "runtime": runtime, "quantization": quantization},
        "draft_quantization": draft_quantization,
        "heads": heads,
        "router": router,
        "router_state": router_state,
        **options.given(memory=memory),
        "pruning": pruning,
        "acceptance_threshold": acceptance_threshold,
        "measure_baseline": measure_baseline,
    }
    if config is not None:
        model, draft, settings = _with_file(config, context, {**settings, "model": model, "draft_model": draft})
    engine = load_engine(model, draft, settings, alone=True)
    _answer(engine, text, chat, as_json)


def _answer(engine: Any, text: str, chat: bool | None, as_json: bool) -> None:
    from specstream.engine.text import asked

    content = asked(engine.tokenizer, text, chat)
    if as_json:
        result = engine.generate(content)
        print(json.dumps(dict(result)))
        _note_all(result)
    else:
        _show(engine.stream(content))


def _with_file(path: str, context: typer.Context, given: dict[str, Any]) -> tuple[str, str | None, dict[str, Any]]:
    """Model, draft and settings as a file says; where an option was given, that, and the options' defaults else."""
    from specstream.engine.settings_file import read_settings

    names = {"draft_model": "draft", "gamma": "k", "max_speculation_depth": "k"}
    sources = {key: context.get_parameter_source(names.get(key, key)) for key in given}
    # By name: the class of these lives elsewhere in other releases of typer.
    typed = {key for key, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    said = {key: value for key, value in read_settings(path).items() if key not in typed and value is not None}
    settings = {**given, **said}
    return settings.pop("model"), settings.pop("draft_model"), settings


def _show(pieces: Any) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print(flush=True)
    _note_all(pieces.result)
    print(_summary(pieces.result) + _busy(), file=sys.stderr)


def _note_all(result: Any) -> None:
    for each in result.notes:
        options.note(as_typed(each))


def _summary(result: Any) -> str:
    """How it went, and what the speedup was measured against."""
    drafts = (
        ", ".join(f"{passes} with drafts of {name}" for name, passes in result.drafts.items()) or "none with drafts"
    )
    lossless = "lossless" if result.lossless else "NOT lossless: acceptance_threshold is set"
    faster, plain = "", as_typed(f"not known: {result.baseline.get('error')}")
    if result.speedup is not None:
        faster = f"; without it {result.speedup:.2f}x plain decoding"
        plain = f"{result.baseline['tokens_per_second']:.1f} tokens/s: {result.baseline['method']}"
    return (
        f"\n{result.new_tokens} tokens in {result.seconds:.2f} s: {result.tokens_per_second:.1f} tokens/s, "
        f"prompt included{faster}\n"
        f"  plain decoding: {plain}\n"
        f"  {result.drafter}: {result.mean_accepted_length:.2f} tokens per pass, "
        f"{result.acceptance_rate:.0%} of drafted tokens accepted\n"
        f"  {result.target_passes} passes: {drafts}\n"
        f"{_routing(result.routing)}"
        f"  {result.model}, {result.dtype}, {result.device}, {result.runtime}; {lossless}, exact: {result.exact}"
    )


def _busy() -> str:
    """A line where more wants to run than there are cores: times of one text then differ severalfold."""
    load, there = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, cores().logical
    return (
        f"\n  the machine is busy (load {load:.1f} on {there} cores), so these times say little" if load > there else ""
    )


def _routing(routing: Any) -> str:
    """What a router chose, and what that cost."""
    if routing is None:
        return ""
    expected = ", ".join(f"{name} {worth:.2f}x" for name, worth in routing["expected"].items())
    return f"  the router took {routing['drafter']} in {routing['seconds'] * 1000:.1f} ms; it expected {expected}\n"


def _one_prompt(words: str | None, prompt: str | None, file: str | None) -> str:
    given = [each for each in (words, prompt, file) if each is not None]
    if len(given) > 1:
        raise UsageError(f"two prompts were given, {given[0]!r} and {given[1]!r}; give one")
    text = _read(file) if file is not None else options.text_given("".join(given))
    if file is not None and not text:
        raise UsageError(f"--prompt-file {file!r} is empty; give another file, or a prompt")
    options.check_text(text, "--prompt-file {}")
    if file is not None:
        _note_records(file)
    return text


def _note_records(file: str) -> None:
    """Note that a file of several prompts is one here."""
    try:
        records = read_records(file) if file.endswith((".jsonl", ".json", ".csv")) else []
    except UsageError:
        return
    if len(records) > 1:
        answered = f"specstream distill-data --prompts {shlex.quote(file)} --output NEW.jsonl"
        options.note(f"{file!r} holds {len(records)} records and is read as one text; to answer each: {answered}")


def _read(file: str) -> str:
    try:
        return text_of(file).removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompt-file {file!r} cannot be read: {why_unread(error)}; give a text file") from None
