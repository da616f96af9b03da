"""`specstream make-draft`: a small draft from layers of the target itself, ready to distil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specstream.cli import options
from specstream.errors import UsageError
from specstream.reporting import step

if TYPE_CHECKING:
    from specstream.training.data import Examples
    from specstream.training.layer_choice import Judged

PROMPTS = (
    "Explain how a rainbow forms.",
    "Write a Python function that merges two sorted lists.",
    "A train covers 120 km in 90 minutes. What is its average speed? Show the steps.",
    "Summarise in two sentences why cities plant trees along their streets.",
)
"""What the target is asked where no texts are given."""

ANSWER_TOKENS = 96
SHOWN = 8
"""Prompts of a file that are answered."""

_Target = Annotated[str, typer.Option("--target", "-m", help="A catalog name, a local folder, or a hub id.")]
_Output = Annotated[str, typer.Option("--output", "-o", help="The folder to write.")]
_Layers = Annotated[int, typer.Option("--layers", min=1, help="How many of the target's layers to take.")]
_Vocab = Annotated[
    options.Integer,
    typer.Option("--vocab", min=2, help="Let the draft say only so many tokens, the most frequent of the texts."),
]
_Choice = Annotated[
    str,
    typer.Option(
        "--layer-choice",
        help="auto (what is accepted most), search, first, spaced, ends, last-only, or numbers: 0,1,28,29.",
    ),
]
_Texts = Annotated[
    options.Texts,
    typer.Option(
        "--texts", help="Answers or texts: to rank the vocabulary, fit the head and compare layers. May be repeated."
    ),
]
_Prompts = Annotated[
    options.Texts,
    typer.Option("--prompts", help="Held-out prompts: layers are compared on the target's own answers to them."),
]


def make_draft(
    output: _Output,
    target: _Target = "smollm2-135m",
    layers: _Layers = 4,
    vocab: _Vocab = None,
    layer_choice: _Choice = "auto",
    texts: _Texts = None,
    prompts: _Prompts = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Make a small draft of some of the target's layers, and say why of those."""
    from specstream.training.cards import MADE
    from specstream.training.checkpoints import check_replaceable

    check_replaceable(Path(output), MADE, "--output")
    options.check_files(*(texts or ()), *(prompts or ()))
    _check_contents(texts or [], prompts or [])
    from specstream.cli.loading import quiet

    with quiet():
        from specstream.models.hub.load import load_model, pick_device
        from specstream.training import make_draft as making
        from specstream.training.config import ModelSection
        from specstream.training.layer_choice import choose_layers

        stored = _checked(target, layers, layer_choice, vocab).dtype
        computed = ModelSection(dtype=dtype).dtype_on(str(pick_device(device)))
        model, tokenizer = load_model(target, dtype=computed, device=device)
        ranking = _examples(texts, tokenizer)
        judged, fitted, where = _to_look_at(model, tokenizer, ranking, texts, prompts)
        part, vocabulary = None, None
        if vocab is not None:
            part = making.frequent_part(model, tokenizer, ranking or judged, vocab)
            by = (
                f"the most frequent of {', '.join(Path(file).name for file in texts)}"
                if texts
                else "the tokenizer's order"
            )
            covered = making.coverage(judged, part)
            vocabulary = {"size": vocab, "ranked_by": by, "coverage": covered}
        with step("comparing choices of layers"):
            compared, change = choose_layers(model, (judged, fitted), part, layers, layer_choice)
        if computed != dtype and stored is not None:
            model.to(stored)
        made = making.record(target, compared, where, change is not None, vocabulary)
        making.write_draft(Path(output).absolute(), model, tokenizer, change, part, made)
    if as_json:
        print(json.dumps({"output": output, **made}))
    else:
        _say(output, compared, made)


def _check_contents(texts: list[str], prompts: list[str]) -> None:
    """Refuse before the target is read files that hold nothing to look at."""
    from specstream.files.prompts import read_prompts
    from specstream.training.data import read_file

    for file in prompts:
        read_prompts(file)
    for file in texts:
        if not read_file(file):
            raise UsageError(f"texts {file!r} is empty; give another file")


def _checked(target: str, layers: int, choice: str, vocab: int | None) -> Any:
    """The target's configuration; layers and tokens that there are not are refused before its weights are read."""
    from specstream.models.hub.catalog import resolve
    from specstream.models.hub.load import config_in
    from specstream.models.hub.schemes import refuse_quantised
    from specstream.training.layer_choice import choices_of

    refuse_quantised(place := resolve(target), "--target", target, "of which no draft is made")
    config = config_in(place, target).get_text_config(decoder=True)
    choices_of(choice, config.num_hidden_layers, layers)
    if vocab is not None and vocab > config.vocab_size:
        raise UsageError(f"vocab is {vocab}; give {config.vocab_size} or fewer, or leave it out for all")
    return config


def _examples(texts: list[str] | None, tokenizer: Any) -> Examples | None:
    from specstream.training.config import DataSection
    from specstream.training.data import load_examples

    if not texts:
        return None
    return load_examples(DataSection(files=texts, eval_examples=0), tokenizer, seed=0)[0]


def _to_look_at(
    model: Any, tokenizer: Any, ranking: Examples | None, texts: list[str] | None, prompts: list[str] | None
) -> tuple[Examples, Examples | None, str]:
    """What layers are compared on, how to call that, and between the two what the head is fitted to."""
    from specstream.files.prompts import read_prompts
    from specstream.training.layer_choice import split

    if ranking is not None and not prompts:
        return *split(ranking), ", ".join(Path(file).name for file in texts or ())
    asked = [prompt for file in prompts or () for prompt in read_prompts(file)][:SHOWN] or list(PROMPTS)
    where = f"the target's own answers to {len(asked)} prompts"
    return _answers(model, tokenizer, asked), ranking, where


def _answers(model: Any, tokenizer: Any, prompts: list[Any]) -> Examples:
    from specstream.engine.engine import SpeculativeEngine
    from specstream.engine.text import asked, encode
    from specstream.training.data import Example, Examples

    turns: list[Any] = [asked(tokenizer, prompt) for prompt in prompts]
    engine = SpeculativeEngine(model, tokenizer=tokenizer, drafter="none")
    with step(f"answering {len(turns)} prompts, on which layers are compared"):
        answers = engine.generate(turns, max_new_tokens=ANSWER_TOKENS)
    ids = [encode(tokenizer, turn) for turn in turns]
    found = [
        Example(tokens=(*own, *answer["token_ids"]), start=len(own))
        for own, answer in zip(ids, answers, strict=True)
        if answer["token_ids"]
    ]
    if not found:
        raise UsageError("the target answers none of the prompts; give --texts, or other --prompts")
    return Examples(found)


def _say(output: str, compared: list[Judged], made: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "choice",
        "layers",
        "KL",
        "acceptance",
        "agreement",
        title=f"on {made['compared_on']}{', head fitted' if made['head_fitted'] else ''}",
    )
    for each in compared:
        figures = (f"{each.divergence:.2f}", f"{each.acceptance:.3f}", f"{each.agreement:.3f}")
        table.add_row(each.name, ", ".join(map(str, each.layers)), *figures)
    Console().print(table)
    most = max(compared, key=lambda each: each.acceptance)
    why = "the highest acceptance" if compared[0] is most else "as it was asked for"
    numbers = ", ".join(map(str, compared[0].layers))
    print(f"{output}: layers {numbers} ({compared[0].name}: {why}), {made['parameters'] / 1e6:.1f} M parameters")
    if (vocabulary := made["vocabulary"]) is not None:
        said = f"its head has {vocabulary['size']} tokens ({vocabulary['ranked_by']})"
        print(f"{said}, which cover {vocabulary['coverage']:.1%} of what it was compared on")
