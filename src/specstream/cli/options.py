"""The options of the verbs, with one name, one help text and one range each."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import Annotated, Optional, get_args

import typer

from specstream.errors import UsageError, listed
from specstream.files.atomic import why_unread
from specstream.reporting import as_typed

# typer reads these at run time, where Python 3.10 knows Optional[X] of a string annotation but typer not X | None.
Text = Optional[str]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
Integer = Optional[int]  # noqa: UP045
Integers = Optional[list[int]]  # noqa: UP045
Number = Optional[float]  # noqa: UP045
Flag = Optional[bool]  # noqa: UP045
Words = Annotated[Text, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from the standard input.")]
PromptOption = Annotated[Text, typer.Option("--prompt", "-p", help="The prompt, as an option.")]
PromptFile = Annotated[
    Text, typer.Option("--prompt-file", help="A file whose text is the prompt, whole; - is the standard input.")
]
Model = Annotated[str, typer.Option("--model", "-m", help="A catalog name, a local folder, or a hub id.")]
Draft = Annotated[Text, typer.Option("--draft", "-d", help="A smaller model of the same tokenizer, or self:int8.")]
Quantization = Annotated[
    str,
    typer.Option("--quantization", help="The model's weights, on a CPU: int8, int4, or none; another model's output."),
]
DraftQuantization = Annotated[
    str, typer.Option("--draft-quantization", help="The draft's weights: int8, int4, none, or auto.")
]
Drafter = Annotated[
    str,
    typer.Option(
        "--drafter",
        help="none, lookup, recycling, lookahead, streams, medusa, block, eagle3, dflash, draft_model, mixed, router, "
        "or auto: what is given, else lookup, with the streams that are shipped for the model.",
    ),
]
HeadsFolder = Annotated[
    Text,
    typer.Option("--heads", help="A folder of heads trained for the model: streams, medusa, block, eagle3 or dflash."),
]
RouterFolder = Annotated[
    Text, typer.Option("--router", help="For --drafter router: the folder that `specstream router train` wrote.")
]
RouterState = Annotated[Text, typer.Option("--router-state", help="The file in which the router keeps what it learns.")]
Memory = Annotated[
    Text, typer.Option("--memory", help="A file of earlier answers, for drafts to copy from; this one is added.")
]
PrefixCache = Annotated[
    Number, typer.Option("--prefix-cache-gb", help="Memory for prompts and answers, so as not to read them again.")
]
Pruning = Annotated[
    Number, typer.Option("--pruning", help="Streams: drop drafts that their early exit gives less than this.")
]
EngineFile = Annotated[
    Text,
    typer.Option(
        "--config", "-c", help="Settings in a YAML file, as tune writes them; options given here replace its."
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "--max-tokens", "--N", "-n", help="Never one token more.")
]
Gamma = Annotated[int, typer.Option("-K", "--K", "--gamma", help="Most tokens drafted per round.")]
Depth = Annotated[
    Integer, typer.Option("-K", "--K", "--gamma", help="Most tokens drafted per round; as many as pay if not given.")
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy decoding.")]
# What is not given of these follows the checkpoint.
TopK = Annotated[Integer, typer.Option("--top-k", help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[
    Number, typer.Option("--top-p", help="Keep the likeliest tokens up to this probability; 0 and 1 keep all.")
]
MinP = Annotated[Number, typer.Option("--min-p", help="Drop tokens below this times the likeliest.")]
RepetitionPenalty = Annotated[
    Number,
    typer.Option("--repetition-penalty", help="Above 1 discourages repeats; 1 does not, whatever the checkpoint says."),
]
AcceptanceThreshold = Annotated[
    Number,
    typer.Option("--acceptance-threshold", help="Typical acceptance, which changes the output at a temperature > 0."),
]
Seed = Annotated[Integer, typer.Option("--seed", help="Fixes the draws.")]
Stop = Annotated[Texts, typer.Option("--stop", help="Stop before this text; may be repeated.")]
StopTokenIds = Annotated[Integers, typer.Option("--stop-token-ids", help="Stop at this token; may be repeated.")]
Chat = Annotated[Flag, typer.Option("--chat/--no-chat", help="Use the model's chat template (default: if it has one).")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="float32, bfloat16, float16, or auto: the checkpoint's, if this machine is fast in it."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Runtime = Annotated[
    str, typer.Option("--runtime", help="How passes run: auto, graphs, native, packed, eager or static.")
]
MeasureBaseline = Annotated[
    bool,
    typer.Option("--measure-baseline", help="Decode some tokens without drafts too, to measure the speedup against."),
]
Set = Annotated[Texts, typer.Option("--set", help="section.key=value, in place of the file's; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


_FILE_NAME = re.compile(r"\S+\.(txt|md|jsonl?|csv|ya?ml)")
"""What is hardly meant as a prompt."""


def given(**settings: object) -> dict[str, object]:
    """The settings that have a value."""
    return {name: value for name, value in settings.items() if value is not None}


def check_drafter(name: str, without: str = "") -> None:
    """Refuse an unknown drafter before anything is loaded, and one that a command has no options for."""
    from specstream.config import DrafterName

    known = [each for each in get_args(DrafterName) if each != without]
    if name not in known:
        raise UsageError(f"--drafter is {name!r}; give one of {listed(name, known)}")


def check_files(*files: str) -> None:
    """Refuse before a model is loaded what is no file.

    Raises:
        UsageError: the first.
    """
    for file in files:
        if not os.path.isfile(file):
            raise UsageError(f"file {file!r} is no file; give a .txt, .jsonl, .json or .csv file")


def check_draft(draft: str | None, model: str) -> None:
    """Refuse a draft model that is not there, or does not fit, before the target is loaded.

    Raises:
        ModelNotFoundError: nothing answers to the name.
        UsageError: ``self:`` with another quantisation than there are.
        VocabularyMismatchError: it has another vocabulary.
    """
    from specstream.engine.choices import SELF, self_quantization
    from specstream.models.hub.catalog import check

    if draft is not None and draft.startswith(SELF):
        self_quantization(draft)
    elif draft is not None:
        from specstream.cli.loading import quiet
        from specstream.models.hub.vocabulary import check_tokenizers

        check(draft)
        with quiet():
            check_tokenizers(model, draft)
        note_own_draft(draft, model)


def note_own_draft(draft: str | None, model: str) -> None:
    """Note a draft that is its target, where no result says it."""
    from specstream.config import target_as_draft

    if draft == model:
        note(as_typed(target_as_draft(draft)))


def text_given(text: str) -> str:
    """A prompt as it was given, or the standard input for ``-``, without its last line break.

    Raises:
        UsageError: what is piped in is not UTF-8.
    """
    from specstream.files.prompts import text_of

    try:
        return text if text != "-" else text_of(text).removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the standard input is no prompt: {why_unread(error)}; give a text") from None


def check_text(text: str, read_by: str, model: str = "--model") -> None:
    """Refuse a prompt that is no text before anything is loaded, and note one that looks like something else.

    Args:
        text: the prompt.
        read_by: what to give to read a file, with {} for it.
        model: the option that takes one.

    Raises:
        UsageError: it is empty, or holds bytes of another encoding than UTF-8.
    """
    from specstream.engine.text import valid
    from specstream.models.hub.catalog import catalog

    if not text:
        raise UsageError('the prompt is empty; give one, such as "The sea is", or - for the standard input')
    valid(text)
    if not text.strip():
        note(f"the prompt is {text!r}, which is blank")
    short = len(text) < 256 and "\0" not in text
    if short and os.path.isfile(text):
        note(f"{text!r} is a file, its name is the prompt; to read it: {read_by.format(shlex.quote(text))}")
    elif short and _FILE_NAME.fullmatch(text):
        note(f"{text!r} is no file here, and is taken as the prompt; to read a file: {read_by.format('FILE')}")
    elif text in catalog() or (short and os.path.isfile(os.path.join(text, "config.json"))):
        note(f"{text!r} is a model, and its name is taken as the prompt; to use it: {model} {shlex.quote(text)}")


def stops(given: list[str] | None) -> list[str]:
    """Stop strings as they were given; a line break that no shell has made one is noted."""
    for each in given or ():
        if "\\n" in each:
            note(f"--stop is {each}, a backslash and a letter; for a line break: --stop $'\\n'")
    return given or []


def note_greedy(temperature: float, **given: object) -> None:
    """Note options that change nothing where the likeliest token is taken."""
    from specstream.config import without_effect

    if (told := without_effect(temperature, **given)) is not None:
        note(as_typed(told))


def note(text: str) -> None:
    """Say on stderr what is done otherwise than somebody may think."""
    print(f"note: {text}", file=sys.stderr)


def open_to_others(host: str) -> bool:
    """Whether a server that listens there is reached from other machines."""
    return host not in ("127.0.0.1", "localhost", "::1")
