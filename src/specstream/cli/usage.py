"""What is wrong with a command line: one line with the value, and the option, command or form that is meant."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from specstream.cli.elsewhere import SHORT, advice, told_of, told_of_others
from specstream.cli.typed import DASHES, standing_alone, verb_of
from specstream.errors import meant, remedy
from specstream.models.hub.catalog import catalog


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
        return f"No such option: {name}{_suggested(name, error.ctx, words)}"
    if (unknown := re.match(r"No such command '(.*?)'", message)) is not None:
        if told := _of_option(unknown[1], command, words):
            return f"No such command {unknown[1]!r}; {told}"
        return f"No such command {unknown[1]!r}{_command_meant(unknown[1], command, words)}"
    if message.startswith("Missing "):
        return message.removesuffix(".") + _of_missing(message, command, words)
    if (short := re.match(r"Option '(--?\S+)' requires an argument", message)) is not None:
        return f"{short[1]} is given without a value; give one behind it"
    if (extra := re.match(r"Got unexpected extra arguments? ?(?:\(s\))? \((.*)\)", message)) is not None:
        return _of_extra(extra[1], command, words)
    if (switch := re.match(r"Option '(--?\S+)' does not take a value", message)) is not None:
        return _of_switch(switch[1], command)
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is not None and hasattr(cause, "errors"):  # of pydantic, whose message leaves out the value
        first = cause.errors()[0]
        return f"{_called(parameter)} is {first['input']!r}; give {remedy(first['msg'], first['input'])}"
    return message


def _of_missing(message: str, command: Any, words: Sequence[str]) -> str:
    """What to give where something is missing; empty where the message says it."""
    if message.startswith("Missing command"):
        return f"; give one of {', '.join(getattr(command, 'commands', ()))}"
    if message.startswith("Missing argument"):
        return f"; give one of {', '.join(sorted(catalog()))}" if command.name == "pull" else "; give one"
    if (missing := re.match(r"Missing option '(--?[\w-]+)'", message)) is None:
        return ""
    alone = standing_alone(command, words)
    return f"; give {missing[1]} {shlex.quote(alone[0]) if alone else 'and a value'}"


def _verbs(command: Any) -> Mapping[str, Any]:
    """The commands within one; none of most."""
    found: Mapping[str, Any] = getattr(command, "commands", {})
    return found


def _command_meant(name: str, group: Any, words: Sequence[str]) -> str:
    """What to give in place of a command that there is not."""
    known = {verb: each for verb, each in _verbs(group).items() if not each.hidden}
    if not name:
        return f"; give one of {', '.join(known)}"
    if told := told_of(name, group.name):
        return f"; {told}"
    if " " in name and "generate" in known:
        return f"; give specstream generate {shlex.quote(name)}"
    if f"--{name}" in {"--help", *_forms_of(group)}:
        return f"; give {next((f'{word} ' for word in words if word in known), '')}--{name}"
    inner_too = {f"{outer}-{verb}": f"{outer} {verb}" for outer, each in known.items() for verb in _verbs(each)}
    if (like := meant(name, [*known, *inner_too])) is not None:
        return f". Did you mean {inner_too.get(like, like)!r}?"
    for outer, each in known.items():
        if (inner := meant(name, _verbs(each))) is not None:
            return f". Did you mean '{outer} {inner}'?"
    return f"; give one of {', '.join(known)}" if len(known) < 6 else "."


def _of_extra(extra: str, command: Any, words: Sequence[str]) -> str:
    message = f"Got unexpected extra argument(s) ({extra})"
    if extra[0] in DASHES:
        return f"{message}; it begins with a long dash: give -, or -- before a whole word"
    if told := _of_option(extra, command, words):
        return told if told.endswith("alone") else f"{message}; {told}"
    model = next((form for form in _forms_of(command) if form in ("--model", "--target")), None)
    if model is not None and _is_model(extra):
        return f"{message}; give {model} {extra}"
    arguments = [each for each in getattr(command, "params", ()) if not _options_of(each)]
    if arguments:
        name = arguments[0].metavar or str(arguments[0].name).upper()
        return f"{message}; give one {name} a call, in quotes if it has spaces"
    if command.name == "chat":
        return f"{message}; give it to specstream generate, or when chat asks"
    if "--prompts" in _forms_of(command):
        return f"{message}; give prompts in a file, --prompts FILE"
    valued = any(not getattr(each, "is_flag", False) and each.name != "help" for each in getattr(command, "params", ()))
    return f"{message}; {'give what it is for as an option' if valued else 'leave it out'}"


def _is_model(word: str) -> bool:
    is_file = word.endswith(".gguf") and os.path.isfile(word)
    return is_file or word in catalog() or os.path.isfile(os.path.join(word, "config.json"))


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
            if "commas" in (each.help or ""):
                return (
                    f"{before[-2]} has {before[-1]!r}; give {before[-2]} {before[-1]},{extra.split()[0]}, with commas"
                )
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


def _suggested(name: str, context: Any, words: Sequence[str]) -> str:
    """What is meant by an option that a command has not: one of its own, or what to do instead."""
    if behind := _behind(name, context, words):
        return f"; {behind}"
    verb = str(getattr(context, "command_path", "")).partition(" ")[2]
    if same := next((form for form in _options(context.command) if form.lower() == name.lower()), None):
        return f"; did you mean {same}?"
    told, alike = told_of(name, verb), not told_of_others(name)
    long = SHORT.get(name[1:], name)
    like = meant(long, _options(getattr(context, "command", None)), alike=alike)
    if not told and like is not None:
        return f"; did you mean {like}?"
    told = told or advice(name, verb)
    configs = [form for each in context.command.params if each.name == "config" for form in each.opts]
    if told.startswith("give --set") and not {word.partition("=")[0] for word in words} & set(configs):
        told = told.replace("give --set", "give --config FILE and --set", 1)
    return f"; {told or _all_of(context.command)}"


def _all_of(command: Any) -> str:
    """The options of a command, for one that stands for none of them."""
    first = [forms[0] for each in command.params if (forms := _options_of(each)) and forms[0] != "--help"]
    return f"leave it out; the options are {', '.join(first)}"


def _behind(name: str, context: Any, words: Sequence[str]) -> str:
    """Where to give an option that the commands of a group have and the group has not; empty for nowhere."""
    inner = {verb: each for verb, each in getattr(context.command, "commands", {}).items() if not each.hidden}
    having = [verb for verb, each in inner.items() if name in _forms_of(each)]
    typed = [verb for verb in having if verb in words]
    if not having or {"-c", "--config"} & {word.partition("=")[0] for word in words}:
        return ""
    place = " or ".join(typed or having)
    return f"give it behind {place}" if typed or len(having) < 4 else "give a command, and the option behind it"


def _forms_of(command: Any) -> list[str]:
    return [form for each in getattr(command, "params", ()) for form in _forms(each)]


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
