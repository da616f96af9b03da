"""`specstream chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from specstream.cli import options
from specstream.cli.loading import load_engine
from specstream.errors import UsageError, listed
from specstream.files.atomic import check_ending, check_new, why_unread, write_json

_HELP = {
    "/help": "these lines",
    "/clear": "forget the conversation",
    "/system TEXT": "instructions from here on; without a text, none",
    "/save FILE": "write the conversation as JSON",
    "/stats": "how fast the last answer was, and what of its prompt was not read again",
    "/quit": "leave; so does the end of the input",
    '"""': "begins a turn of several lines, and ends it",
}

_QUOTES = '"""'
"""Around a turn of several lines, as in Ollama."""

_System = Annotated[options.Text, typer.Option("--system", help="Instructions for the whole conversation.")]
_Color = Annotated[bool, typer.Option("--color-drafts", help="In a terminal: colour tokens by who drafted them.")]


def chat(
    model: options.Model = "smollm2-135m",
    draft: options.Draft = None,
    drafter: options.Drafter = "auto",
    system: _System = None,
    max_new_tokens: options.MaxNewTokens = 512,
    k: options.Depth = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    quantization: options.Quantization = "none",
    draft_quantization: options.DraftQuantization = "auto",
    heads: options.HeadsFolder = None,
    memory: options.Memory = None,
    prefix_cache_gb: options.PrefixCache = None,
    color_drafts: _Color = False,
) -> None:
    """Talk with a model. /help lists the commands; Ctrl-C ends an answer, and once more the conversation."""
    options.check_drafter(drafter, without="router")
    if system is not None and os.path.isfile(system):
        file = shlex.quote(system)
        options.note(f'{system!r} is a file, and its name is the instructions; to read it: --system "$(cat {file})"')
    settings: dict[str, Any] = {
        "drafter": drafter,
        **dict.fromkeys(("gamma", "max_speculation_depth"), k),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        **options.given(top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty),
        "seed": seed,
        **{"device": device, "dtype": dtype, "runtime": runtime, "quantization": quantization},
        "draft_quantization": draft_quantization,
        "heads": heads,
        **options.given(memory=memory, prefix_cache_gb=prefix_cache_gb),
    }
    engine = load_engine(model, draft, settings, alone=True)
    if not getattr(engine.tokenizer, "chat_template", None):
        raise UsageError(f"model is {model!r}, which has no chat template; use specstream generate")
    conversation = Conversation(engine, system, coloured=color_drafts and shows_colours())
    if sys.stdin.isatty():
        import readline  # noqa: F401  # input() then edits lines and remembers them

        options.note("/help lists the commands; Ctrl-C ends an answer, and once more the conversation")
    while conversation.goes_on():
        pass
    if conversation.failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def shows_colours() -> bool:
    """Whether stdout is a terminal whose user has not refused colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class Conversation:
    """Turns so far, and what to do with the next line.

    Args:
        engine: that answers.
        system: instructions; None for none.
        coloured: whether answers show who drafted their tokens.

    Attributes:
        turns: what was said.
        failed: whether a line was refused.
    """

    def __init__(self, engine: Any, system: str | None = None, *, coloured: bool = False) -> None:
        self._engine, self._system, self._last = engine, system, "there is no answer yet"
        self._coloured, self.failed = coloured, False
        self.turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """The instructions and the turns, as the chat template takes them."""
        return ([{"role": "system", "content": self._system}] if self._system else []) + self.turns

    def goes_on(self) -> bool:
        """Read a line and do what it says; False if it is the last."""
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
            if line == "/quit":
                return False
            self._take(line)
        except (EOFError, KeyboardInterrupt):
            return False
        except UsageError as error:  # the conversation is worth more than one line of it
            self.failed = True
            options.note(" ".join(str(error).split()))
        return True

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self._command(*line.partition(" ")[::2])
            return
        if line.lower() in ("quit", "exit", "bye"):
            options.note(f"{line!r} is asked of the model; /quit ends the conversation")
        if turn := _quoted(line) if line.startswith(_QUOTES) else line:
            self._answer(turn)

    def _command(self, name: str, rest: str) -> None:
        if name == "/clear":
            self.turns.clear()
        elif name == "/system":
            self._system = rest.strip() or None
        elif name == "/save":
            self._save(rest.strip())
        elif name == "/stats":
            print(self._last, file=sys.stderr)
        elif name == "/help":
            print("\n".join(f"{each:<14}{what}" for each, what in _HELP.items()), file=sys.stderr)
        else:
            known = [each.partition(" ")[0] for each in _HELP if each.startswith("/")]
            raise UsageError(f"{name!r} is no command; give one of {listed(name, known)}")

    def _save(self, file: str) -> None:
        path = Path(file).expanduser()
        if not file:
            raise UsageError("/save names no file; give one, such as /save chat.json")
        check_new(path, "/save", lambda _: False)
        check_ending(file, "/save", ".json", "JSON")
        try:
            write_json(path, self.messages)
        except OSError as error:
            raise UsageError(f"/save is {file!r}, which cannot be written: {why_unread(error)}; give another") from None

    def _answer(self, line: str) -> None:
        """Ask, and show the answer as it comes; what was said until Ctrl-C is part of the conversation."""
        self.turns.append({"role": "user", "content": line})
        said: list[str] = []
        try:
            pieces = self._engine.stream(self.messages)
            drafters = dict[str, None]()
            for text, drafter in _by_drafter(pieces) if self._coloured else ((piece, None) for piece in pieces):
                said.append(text)
                sys.stdout.write(_painted(text, drafter))
                sys.stdout.flush()
                drafters |= {drafter: None} if drafter else {}
            result = pieces.result
            self._last = (
                f"{result.new_tokens} tokens, {result.tokens_per_second:.1f} a second, {result.cached_tokens} tokens "
                f"of the prompt were not read again, {result.mean_accepted_length:.2f} tokens per pass"
                + "".join(f", {_painted(name, name)}" for name in drafters)
            )
        except KeyboardInterrupt:
            self._last = "the last answer was interrupted"
        except UsageError:  # such as a conversation that is longer than the context
            self.turns.pop()
            raise
        print(flush=True)
        self.turns.append({"role": "assistant", "content": "".join(said)})


def _quoted(line: str) -> str:
    """The turn of several lines that begins with three quotes: what is between them and the next three.

    Raises:
        UsageError: the input ends before these.
    """
    lines = [line.removeprefix(_QUOTES)]
    try:
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(input("... " if sys.stdin.isatty() else ""))
    except EOFError:
        raise UsageError(f"{line!r} begins a turn that does not end; give {_QUOTES} behind it") from None
    return "\n".join(lines).rstrip().removesuffix(_QUOTES).strip("\n")


def _by_drafter(pieces: Any) -> Iterator[tuple[str, str | None]]:
    """The text of each token as its round ends, and who drafted it."""
    from specstream.demo.race import Side

    side, shown = Side(pieces.generation), 0
    for _ in side.steps():
        yield from ((piece.text, piece.drafter) for piece in side.pieces[shown:])
        shown = len(side.pieces)


def _painted(text: str, drafter: str | None) -> str:
    """In the colour of a drafter; the model's own tokens are as the terminal has them."""
    if drafter is None or not text:
        return text
    from specstream.demo.colours import colour_of

    red, green, blue = bytes.fromhex(colour_of(drafter).removeprefix("#"))
    return f"\x1b[38;2;{red};{green};{blue}m{text}\x1b[39m"
