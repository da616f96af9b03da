"""Errors in the words of the command line: an option is called what was typed, whatever Python calls it.

Everything behind a verb speaks of arguments of Python, ``max_new_tokens is 0``. Here that becomes ``--N is 0`` for
whoever typed that, for every verb, by its own options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specstream.cli.elsewhere import told_of_others
from specstream.environment import PREFIX
from specstream.errors import UsageError

_ALSO = {
    "draft": ("draft_model",),
    "k": ("gamma", "max_speculation_depth"),
    "gamma": ("max_speculation_depth",),
    "served_model_name": ("model_name",),
    "model": ("model_name", "model_path", "models"),
}
"""What Python calls some options besides their own names."""

_FROM_A_FILE = re.compile(r"(\S+:\d+(, with --set)?|--set): ")
"""The beginning of an error about a line of a file, or what replaces it: that is no option's fault."""

_UNTYPED = re.compile(
    r",? or (an engine's )?(drafter|heads|pruning|dtype|quantization)='[^']*'|,? or leave [a-z]+_\w+ out"
)
"""Advice that is of no option of the verb."""

_A_DRAFTER = re.compile(r"(is a drafter, not a model; give a model here)$")
"""The end of an error of a verb that has no option for drafters."""

_ARGUMENT = re.compile(r"\b(\w+)=,")
"""An argument of Python that is an option of no verb, or stands in a file."""

_ARTICLES = "(?<!the )(?<!a )(?<!this )(?<!no )"

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
"""What word processors and web pages make of a dash."""

_TEXTS = ("words", "prompt", "input_str", "stop")
"""What a verb takes as it stands: all other values may be paths."""


@dataclass(frozen=True)
class _Option:
    """One option of a verb.

    Attributes:
        parameter: of click.
        typed: what it was called on the command line; None if it was not given.
        values: that it was given.
    """

    parameter: Any
    typed: str | None
    values: tuple[str, ...]

    def called(self, name: str) -> str:
        """The form that is most like Python's name; ``_as_typed`` puts what was typed in its place."""
        forms = [form for form in self.parameter.opts if form.startswith("--")] or self.parameter.opts
        alike = [form for form in forms if _python(form) == name]
        return str((alike or forms)[0])


def in_typed_words(message: str, root: Any, words: Sequence[str]) -> str:
    """A message about arguments of Python as one about the options of the verb that was called.

    Args:
        message: of an error.
        root: the whole command, of click.
        words: the command line.
    """
    command, rest = verb_of(root, words)
    if command is None or _FROM_A_FILE.match(message):
        return _ARGUMENT.sub(r"\1,", message)
    options = list(_options(command, rest))
    by_name: dict[str, list[_Option]] = {}
    for option in options:
        for name in _names(option.parameter):
            by_name.setdefault(name, []).append(option)
    # What was not typed may come from a file or from the environment.
    filed = any(option.parameter.name == "config" and option.typed for option in options)
    message = _values(message, by_name)
    message = _as_typed(_settings(message, by_name, filed), options) if by_name else message
    message = _one_by_one(message, options)
    where = " in a --config file," if any(option.parameter.name == "config" for option in options) else ","
    message = _A_DRAFTER.sub(r"\1; generate and benchmark heads have --drafter", _UNTYPED.sub("", message))
    return _ARGUMENT.sub(rf"\1{where}", message)


def with_home(root: Any, words: Sequence[str]) -> list[str]:
    """The words with the folder of a user where a path begins with ``~``: shells leave ``--output=~/x`` alone.

    Args:
        root: the whole command, of click.
        words: the command line.
    """
    command, rest = verb_of(root, words)
    if command is None:
        return list(words)
    taken = {each.name for each in command.params}
    texts = {form for each in command.params if each.name in _TEXTS for form in each.opts}
    done, before = list(words[: len(words) - len(rest)]), ""
    for at, word in enumerate(rest):
        if word == "--":
            return [*done, *rest[at:]]
        form, equals, value = word.partition("=")
        if form.startswith("--") and equals and form not in texts:
            word = f"{form}={os.path.expanduser(value)}"
        elif before not in texts and ("words" not in taken or before.startswith("-")):
            word = os.path.expanduser(word)
        done.append(word)
        before = word
    return done


def refuse_useless(root: Any, words: Sequence[str]) -> None:
    """Refuse what click takes and nobody means: an option that is given twice and may not be, and one that is empty.

    Args:
        root: the whole command, of click.
        words: the command line.

    Raises:
        UsageError: so it is. Whatever else is wrong with the line is left to click.
    """
    _refuse_long_dashes(root, words)
    _refuse_before_verb(root, words)
    command, rest = verb_of(root, words)
    if command is None:
        return
    _refuse_run_together(command, rest)
    _, given = _parsed(command, rest)
    for option in _options(command, rest):
        own, form = option.parameter, option.typed
        if given.count(own) > 1 and not own.multiple:
            values = "" if own.is_flag else f", {' and '.join(map(repr, option.values))}"
            forms = f"{' or '.join([*own.opts[:1], *own.secondary_opts])}, " if own.secondary_opts else "it "
            raise UsageError(f"{form} is given twice{values}; give {forms}once")
        if own in given and not own.is_flag:
            _refuse_value(option, command)
        # Blanks are a text; as a name or a path they are a variable of a script that was not set.
        blank = [each for each in option.values if not (each if own.name in _TEXTS else each.strip())]
        if own in given and not own.is_flag and blank:
            rest = "" if own.required else ", or leave it out"
            raise UsageError(f"{form} is {blank[0]!r}; give a value that is not empty{rest}")


def _refuse_value(option: _Option, command: Any) -> None:
    """Refuse another option as the value of one, which is missing then, and the standard output as a file."""
    forms = {form for each in command.params for form in (*each.opts, *each.secondary_opts) if form.startswith("-")}
    for value in option.values if option.parameter.name not in _TEXTS else ():
        if value.startswith("=") and not str(option.typed).startswith("--"):
            raise UsageError(f"{option.typed} is {value!r}; give {option.typed} {value[1:]}, with a space")
        if option.parameter.name == "config" and value.isdigit():
            limit = "the context's limit is --max-context" if "--max-context" in forms else "the context is the model's"
            raise UsageError(f"{option.typed} is {value!r}, which is no name of a YAML file; give one; {limit}")
        if value in forms:
            raise UsageError(f"{option.typed} is given without a value: {value!r} is an option; give one before it")
        if value == "-" and option.parameter.name in ("output", "output_dir"):
            printed = ", or --json to print" if "--json" in forms else ""
            raise UsageError(
                f"{option.typed} is '-', and nothing is written to the standard output; give a name{printed}"
            )


def _parsed(command: Any, words: Sequence[str]) -> tuple[Sequence[str], Sequence[Any]]:
    """The words that are no options of a command, and the options that are given, once for each time."""
    try:
        _, left, given = command.make_parser(command.context_class(command)).parse_args(args=list(words))
    except Exception:  # click's own errors, whose home moved between releases of typer, come when it reads the line
        return (), ()
    return left, given


def standing_alone(command: Any, words: Sequence[str]) -> Sequence[str]:
    """The words of a command line that are neither an option nor the value of one, beyond those that a verb takes.

    Args:
        command: the verb, of click.
        words: the command line, with the verb.
    """
    at = next((at for at, word in enumerate(words) if word == command.name), -1)
    return _parsed(command, words[at + 1 :])[0]


def _refuse_long_dashes(root: Any, words: Sequence[str]) -> None:
    """Refuse an option that is typed with another dash: it would be taken for a prompt, or for a command."""
    command, rest = verb_of(root, words)
    own = (command or root).params
    valued = {form for each in own if each.param_type_name == "option" and not each.is_flag for form in each.opts}
    known = {"-h", "--help", *(form for each in own for form in (*each.opts, *each.secondary_opts))}
    behind = list(words) if command is None else list(rest)
    for before, word in zip(["", *behind], behind, strict=False):
        if word == "--":
            return
        name = word.lstrip(f"-{DASHES}").partition("=")[0]
        dashes = word[: len(word) - len(word.lstrip(f"-{DASHES}"))]
        forms = (f"--{name}", f"-{name}", f"-{name[:1]}" if name[1:].isdigit() else "")
        meant_ = next((form for form in forms if form in known and form.startswith("-")), None)
        if set(dashes) & set(DASHES) and meant_ is not None and before not in valued:
            raise UsageError(f"{word!r} begins with a long dash; give {meant_}, with the dash of the keyboard")


def _refuse_run_together(command: Any, words: Sequence[str]) -> None:
    """Refuse what would be a short option with a value: ``-ngl`` of another tool's, ``-max-tokens`` with one dash."""
    long = {form for each in command.params for form in (*each.opts, *each.secondary_opts) if form.startswith("--")}
    valued = {form for each in command.params if not getattr(each, "is_flag", False) for form in each.opts}
    for before, word in zip(["", *words], words, strict=False):
        name = word.partition("=")[0]
        if word == "--":
            return
        if len(name) > 2 and f"-{name}" in long and before not in valued:
            raise UsageError(f"No such option: {name}; give two dashes before {name[1:]}")
        single = len(name) > 2 and name[0] == "-" != name[1]
        if single and before not in valued and (told := told_of_others(name)):
            raise UsageError(f"No such option: {name}; {told}")


def _refuse_before_verb(root: Any, words: Sequence[str]) -> None:
    """Refuse options between a command and one of its own: they are of the first alone, which then does nothing."""
    group = getattr(root, "commands", {}).get(words[0]) if words else None
    inner = getattr(group, "commands", {})
    left, given = _parsed(group, words[1:]) if inner else ((), ())
    if not left or left[0] not in inner or not given:
        return
    form = next(_options(group, words[1 : len(words) - len(left)])).typed
    behind = any(form in option.opts for option in inner[left[0]].params)
    remedy = f"give it behind {left[0]}" if behind else f"leave {form} or {left[0]} out"
    raise UsageError(f"{form} is given before {left[0]}, which does not read it there; {remedy}")


def with_typed_hint(message: str, root: Any, words: Sequence[str]) -> str:
    """A message of click, which lists every form of an option or names the first, with the one that was typed."""
    command, rest = verb_of(root, words)
    options = [] if command is None else list(_options(command, rest))
    message = _as_typed(message, options)
    for option in options:
        forms = [*option.parameter.opts, *option.parameter.secondary_opts]
        hint = " / ".join(f"'{form}'" for form in forms)
        if option.typed is not None and len(forms) > 1:
            message = message.replace(hint, f"'{option.typed}'")
    return _one_by_one(message, options)


def _one_by_one(message: str, options: Sequence[_Option]) -> str:
    """A message about several values with commas, where an option takes one and may be repeated."""
    for option in options:
        for value in option.values if option.parameter.multiple and option.typed else ():
            parts = [part.strip() for part in value.split(",") if part.strip()]
            if len(parts) > 1 and "=" not in value and repr(value) in message and not os.path.exists(value):
                each = " ".join(f"{option.typed} {part}" for part in parts)
                return f"{option.typed} is {value!r} and takes one value each time; give {each}"
    return message


def verb_of(root: Any, words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """The verb that the words begin with, and the words behind it."""
    found, rest = None, words
    for at, word in enumerate(words):
        inner = getattr(found or root, "commands", {}).get(word)
        if inner is not None:
            found, rest = inner, words[at + 1 :]
        elif not word.startswith("-"):
            break
    return found, rest


def _options(command: Any, words: Sequence[str]) -> Iterator[_Option]:
    """The options of a verb, those that were typed first."""
    own = [each for each in command.params if each.param_type_name == "option"]
    typed: dict[str, tuple[str, list[str]]] = {}
    words = list(words[: words.index("--")] if "--" in words else words)
    is_value = False
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if is_value:
            is_value = False
            continue
        for parameter in own:
            for form in (*parameter.opts, *parameter.secondary_opts):
                if (value := _value(word, following, form)) is not None:
                    typed.setdefault(parameter.name, (form, []))[1].append(value)
                    is_value = word == form and not parameter.is_flag
    for parameter in sorted(own, key=lambda each: each.name not in typed):
        form, values = typed.get(parameter.name, (None, []))
        yield _Option(parameter, form, tuple(values))


def _value(word: str, following: str, form: str) -> str | None:
    """The value that a form of an option gets by a word; None if the word is another one."""
    if word == form:
        return following
    if form.startswith("--"):
        return word.removeprefix(f"{form}=") if word.startswith(f"{form}=") else None
    short = word.startswith(form) and not word.startswith("--")
    return word.removeprefix(form) if short else None


def _python(form: str) -> str:
    return form.lstrip("-").replace("-", "_")


def _names(parameter: Any) -> list[str]:
    """What Python calls an option; letters alone would be found in every sentence."""
    forms = (_python(form) for form in parameter.opts)
    names = [parameter.name, *forms, *_ALSO.get(parameter.name, ())]
    return [name for name in dict.fromkeys(names) if len(name) > 1]


def _values(message: str, by_name: Mapping[str, Sequence[_Option]]) -> str:
    """``config 'x' cannot be read``, where that is what was given."""
    found = re.match(r"(\w+) '([^']*)'", message)
    if found is None:
        return message
    named = [option for option in by_name.get(found[1], ()) if found[2] in option.values]
    every = {id(option): option for options in by_name.values() for option in options if found[2] in option.values}
    # By another noun than an option's name it is the one option that has the value, if there is one.
    for option in named or (every.values() if len(every) == 1 else ()):
        return f"{option.called(found[1])}{message[len(found[1]) :]}"
    return message


def _as_typed(message: str, options: Sequence[_Option]) -> str:
    """Options that the message calls by another form than was typed."""
    for option in options:
        for form in option.parameter.opts if option.typed in option.parameter.opts else ():
            message = re.sub(rf"(?<!\S){form}(?![\w-])", str(option.typed), message)
    return message


def _settings(message: str, by_name: Mapping[str, Sequence[_Option]], filed: bool) -> str:
    """``x is 3``, ``give x=`` and ``give x='y'``."""
    names = "|".join(sorted(by_name, key=len, reverse=True))

    def option_of(name: str, rest: str) -> _Option:
        options = by_name[name]
        return next((each for each in options if any(f" is {value!r}" in rest for value in each.values)), options[0])

    def is_(match: re.Match[str]) -> str:
        name = match["name"]
        option = option_of(name, match.string[match.end() :])
        if option.typed is None and (filed or PREFIX + name.upper() in os.environ):
            return match[0]
        return option.called(name)

    def give(match: re.Match[str]) -> str:
        option = by_name[match["name"]][0]
        found = match.groupdict()
        value = found.get("text") or found.get("word") or ""
        return f"{option.called(match['name'])} {'' if option.parameter.is_flag else value}".rstrip()

    def leave(match: re.Match[str]) -> str:
        return "" if match[1] and by_name[match["name"]][0].parameter.required else f"{match[1]}leave {give(match)} out"

    said = (
        rf"{_ARTICLES}(?<![\w'./-])(?:\w+\.)*(?P<name>{names})(?:\.\d+)?"
        r"(?= has the token | is (?:['\"\d\[{(-]|given\b|None\b|True\b|False\b|-?inf\b|nan\b))"
    )
    given = rf"(?<![\w'./-])(?P<name>{names})=(?:'(?P<text>[^']*)'|(?P<word>[\w.]*))"
    message = re.sub(said, is_, message)
    message = re.sub(rf"(,? or |\b)leave (?P<name>{names}) out\b", leave, message)
    if drafts := by_name.get("draft_model"):
        message = re.sub(
            r"(?<![\w'./-])(?<!, )(?<! of )draft_model\b(?!['=,]| is )", drafts[0].called("draft_model"), message
        )
    return re.sub(given, give, message)
