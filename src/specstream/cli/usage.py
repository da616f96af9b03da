"""What is wrong with a command line: one line with the value, and the option, command or form that is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from specstream.cli.elsewhere import advice
from specstream.cli.typed import verb_of
from specstream.errors import meant, remedy

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"


def usage_message(error: Exception, root: Any, words: Sequence[str]) -> str:
    """The line for an error of typer's, whose classes and words differ between its releases.

    Args:
        error: of reading the command line.
        root: the whole command.
        words: the command line.
    """
    message = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    message = _better(message, error, context.command if context else verb_of(root, words)[0], words)
    return f"{message} (see {context.command_path} --help)" if context is not None else message


def _better(message: str, error: Any, command: Any, words: Sequence[str]) -> str:
    if (name := getattr(error, "option_name", None)) is not None and message.startswith("No such option"):
        return f"No such option: {name}{_suggested(name, error.ctx)}"
    if (unknown := re.match(r"No such command '(.*?)'", message)) is not None:
        if told := _of_option(unknown[1], command, words):
            return f"No such command {unknown[1]!r}; {told}"
        known = getattr(command, "commands", {})
        told = f". Did you mean {like!r}?" if (like := meant(unknown[1], known)) else "."
        return f"No such command {unknown[1]!r}{told}"
    if (short := re.match(r"Option '(--?\S+)' requires an argument", message)) is not None:
        return f"{short[1]} is given without a value; give one behind it"
    if (extra := re.match(r"Got unexpected extra arguments? ?(?:\(s\))? \((.*)\)", message)) is not None:
        return _of_extra(extra[1], command, words)
    if (switch := re.match(r"Option '(--?\S+)' does not take a value", message)) is not None:
        return _of_switch(switch[1], command)
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is not None and hasattr(cause, "errors"):  # of pydantic, whose message leaves out the value
        first = cause.errors()[0]
        return f"{_called(parameter)} is {first['input']!r}; give {remedy(first['msg'])}"
    return message


def _of_extra(extra: str, command: Any, words: Sequence[str]) -> str:
    message = f"Got unexpected extra argument(s) ({extra})"
    if extra[0] in _DASHES:
        return f"{message}; it begins with a long dash: give -, or -- before a whole word"
    if told := _of_option(extra, command, words):
        return told if told.endswith("alone") else f"{message}; {told}"
    arguments = [each for each in getattr(command, "params", ()) if not _options_of(each)]
    if arguments:
        name = arguments[0].metavar or str(arguments[0].name).upper()
        return f"{message}; give one {name} a call, in quotes if it has spaces"
    return f"{message}; give what it is for as an option"


def _of_option(extra: str, command: Any, words: Sequence[str]) -> str:
    """What to do with a word too many that stands behind an option or is the value of one; empty for neither."""
    before, own = _before(extra, words), getattr(command, "params", ())
    if extra.endswith((".yaml", ".yml")) and any("--config" in _forms(each) for each in own):
        return f"give --config {extra}"
    if "=" in extra and any("--set" in _forms(each) for each in own):
        return f"give --set {extra}"
    for each in own:
        forms, is_flag = _forms(each), getattr(each, "is_flag", False)
        if is_flag and before[-1] in forms:
            return _of_switch(before[-1], command)
        if len(before) > 1 and before[-2] in forms and not is_flag:
            again = f"give {before[-2]} before each" if each.multiple else "it is given once, with one value"
            return f"{before[-2]} has {before[-1]!r}: {again}; quotes keep words together"
    return ""


def _before(extra: str, words: Sequence[str]) -> Sequence[str]:
    """The two words before the first that is too much."""
    at = next((at for at, word in enumerate(words) if at and f"{extra} ".startswith(f"{word} ")), 1)
    return words[max(0, at - 2) : at]


def _of_switch(form: str, command: Any) -> str:
    """What to give in place of a switch with a value."""
    own = next((each for each in getattr(command, "params", ()) if form in _forms(each)), None)
    forms = " or ".join(form for form in _forms(own) if form.startswith("--")) or form
    return f"{form} takes no value; give {forms} alone"


def _suggested(name: str, context: Any) -> str:
    """What is meant by an option that a command has not: one of its own, or what to do instead."""
    if (like := meant(name, _options(getattr(context, "command", None)))) is not None:
        return f"; did you mean {like}?"
    told = advice(name, str(getattr(context, "command_path", "")).partition(" ")[2])
    return f"; {told}" if told else ""


def _options(command: Any) -> list[str]:
    return [option for each in getattr(command, "params", ()) for option in _options_of(each)]


def _options_of(parameter: Any) -> list[str]:
    return [option for option in _forms(parameter) if option.startswith("--")]


def _forms(parameter: Any) -> list[str]:
    """Whatever an option is called; an argument by its name alone, which begins with no dash."""
    return [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]


def _called(parameter: Any) -> str:
    """An option by its first long name, an argument by its own."""
    return next(iter(_options_of(parameter)), str(parameter.name).upper())
