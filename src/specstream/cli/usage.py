"""What is wrong with a command line: one line with the value, and the option, command or form that is meant."""

from __future__ import annotations

import re
from typing import Any

from specstream.errors import meant, remedy

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"


def usage_message(error: Exception) -> str:
    """The line for an error of typer's, whose classes and words differ between its releases.

    Args:
        error: of reading the command line.
    """
    message = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    message = _better(message, error, context)
    return f"{message} (see {context.command_path} --help)" if context is not None else message


def _better(message: str, error: Any, context: Any) -> str:
    command = getattr(context, "command", None)
    if (name := getattr(error, "option_name", None)) is not None and message.startswith("No such option"):
        return f"No such option: {name}{_suggested(name, _options(command))}"
    if (unknown := re.match(r"No such command '(.*?)'", message)) is not None:
        known = getattr(command, "commands", {})
        told = f". Did you mean {like!r}?" if (like := meant(unknown[1], known)) else "."
        return f"No such command {unknown[1]!r}{told}"
    if (extra := re.match(r"Got unexpected extra arguments? ?(?:\(s\))? \((.*)\)", message)) is not None:
        return _of_extra(extra[1], command)
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is not None and hasattr(cause, "errors"):  # of pydantic, whose message leaves out the value
        first = cause.errors()[0]
        return f"{_called(parameter)} is {first['input']!r}; give {remedy(first['msg'])}"
    return message


def _of_extra(words: str, command: Any) -> str:
    message = f"Got unexpected extra argument(s) ({words})"
    if words[0] in _DASHES:
        return f"{message}; it begins with a long dash: give -, or -- before a whole word"
    arguments = [each for each in getattr(command, "params", ()) if not _options_of(each)]
    if arguments:
        return f"{message}; put quotes around what belongs together"
    return f"{message}; give what it is for as an option"


def _suggested(name: str, known: list[str]) -> str:
    like = meant(name, known)
    return "" if like is None else f"; did you mean {like}?"


def _options(command: Any) -> list[str]:
    return [option for each in getattr(command, "params", ()) for option in _options_of(each)]


def _options_of(parameter: Any) -> list[str]:
    every = [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]
    return [option for option in every if option.startswith("--")]


def _called(parameter: Any) -> str:
    """An option by its first long name, an argument by its own."""
    return next(iter(_options_of(parameter)), str(parameter.name).upper())
