"""The `specstream` command: one verb per file, and the one place where an exception becomes an exit code.

Commands import torch and transformers inside their bodies, so that `specstream --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TextIO

import typer

from specstream.cli.options import note
from specstream.cli.typed import in_typed_words, refuse_useless, with_home, with_typed_hint
from specstream.cli.usage import usage_message
from specstream.environment import PREFIX, VARIABLES, is_on, limit_libraries, variable
from specstream.errors import SpecStreamError, UsageError
from specstream.reporting import in_words

# typer raises its usage errors from classes whose home moved between its releases; this base is reachable in all.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

_FAILURE = 1
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_BROKEN_PIPE = 141  # 128 + SIGPIPE
_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO)
"""Errors of a path that a user gave, or that lies in a folder of the user's."""


def build_app() -> typer.Typer:
    """Assemble the command from its verbs."""
    app = typer.Typer(
        name="specstream",
        help="Speculative decoding for Hugging Face causal language models.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_global_options)
    _register_verbs(app)
    return app


def _register_verbs(app: typer.Typer) -> None:
    # The order here is the order of `specstream --help`. A verb is a plain function: app.command()(function).
    from specstream.cli import (
        audit,
        bench_heads,
        bench_task,
        benchmark,
        chat,
        compare,
        demo,
        distill_data,
        doctor,
        evaluate,
        export,
        generate,
        make_draft,
        make_head,
        models,
        profile,
        quantize,
        report,
        router,
        serve,
        train,
        tune,
    )
    from specstream.cli.renamed import renamed

    app.command()(generate.generate)
    app.command()(chat.chat)
    app.command()(doctor.doctor)
    app.command()(compare.compare)
    app.command()(audit.audit)
    app.command(hidden=True)(renamed(bench_heads.bench_heads, "benchmark heads"))
    app.command(hidden=True)(renamed(bench_task.bench_task, "benchmark task"))
    app.add_typer(benchmark.app, name="benchmark")
    app.command()(report.report)
    app.command()(evaluate.evaluate)
    app.command()(profile.profile)
    app.command()(tune.tune)
    app.command("distill-data")(distill_data.distill_data)
    app.command("make-draft")(make_draft.make_draft)
    app.command("make-head")(make_head.make_head)
    app.command()(train.train)
    app.add_typer(router.app, name="router")
    app.command()(quantize.quantize)
    app.command()(export.export)
    app.command()(serve.serve)
    app.command()(demo.demo)
    app.add_typer(models.app, name="models")


def _global_options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when a command fails; so does SPECSTREAM_DEBUG=1.")
    ] = False,
) -> None:
    if version:
        import specstream

        print(f"specstream {specstream.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failure, 2 usage, 130 interrupted."""
    _make_writable()
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, debug = _take_debug(words)
    command: Any = None
    try:
        debug = debug or is_on("SPECSTREAM_DEBUG")
        _check_process()
        _check_variables(words)
        limit_libraries()  # before a verb imports torch
        command = typer.main.get_command(build_app())
        words = with_home(command, words)
        refuse_useless(command, words)
        with in_words(lambda text: in_typed_words(text, command, words)):
            code = _invoke(command, words)
        # Inside the try, because a reader that has gone away is noticed only when the buffer is written out.
        sys.stdout.flush()
    except BaseException as error:
        code = _report(error, debug, command, words)
    sys.exit(code)


def _make_writable() -> None:
    """Let no output fail for its form: a stream that is closed takes anything, and a character it lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    # Taken out wherever it stands, so that "re-run with --debug" is true of a flag added at the end of the line.
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if word != "--debug"] + words[end:], "--debug" in words[:end]


def _check_process() -> None:
    """Refuse what libraries fail under, after a while and in their own words."""
    if sys.flags.optimize > 1:
        raise UsageError(
            "Python is run without docstrings, which transformers reads; unset PYTHONOPTIMIZE, or leave -OO out"
        )
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder is not there any more; change into one that is") from None


def _check_variables(words: Sequence[str]) -> None:
    """Refuse empty and unknown variables, whatever the verb: a misspelt one would be obeyed by nobody."""
    own = [name for name in os.environ if name.startswith(PREFIX)]
    for name in own:
        variable(name)
    is_on("SPECSTREAM_NO_SELFTEST_CACHE")
    if served := sorted(set(own) - set(VARIABLES)):
        from specstream.serving.deployment import check_variables  # takes a while to import, and is rarely needed

        check_variables(os.environ)
        if words[:1] == ["generate"]:
            note(f"{' and '.join(served)}: read by specstream serve alone; give options here")


def _invoke(command: Any, words: list[str]) -> int:
    try:
        # Not command.main(): it would turn interrupts and broken pipes into its own messages and exit codes.
        with command.make_context("specstream", words) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _report(error: BaseException, debug: bool, command: Any, words: list[str]) -> int:
    # Rich makes an exit of a pipe that broke.
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, BrokenPipeError):
        _let_go(sys.stdout)
        return _BROKEN_PIPE
    if isinstance(error, SystemExit):
        raise error
    message, code = _describe(error, command, words)
    try:
        if debug:
            traceback.print_exception(error)
        print(" ".join(message.split()), file=sys.stderr, flush=True)
    except BrokenPipeError:  # whoever reads no errors gets the exit code
        _let_go(sys.stderr)
    return code


def _let_go(stream: TextIO) -> None:
    """Of a pipe that nobody reads: the interpreter flushes once more on exit, and would end with a code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _describe(error: BaseException, command: Any, words: list[str]) -> tuple[str, int]:
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", _INTERRUPTED
    if isinstance(error, UsageError):
        return f"error: {in_typed_words(str(error), command, words)}", error.exit_code
    if isinstance(error, SpecStreamError):
        return f"error: {error}", error.exit_code
    if isinstance(error, _CommandLineError):
        message = with_typed_hint(usage_message(error, command, words), command, words)
        return f"error: {message}", getattr(error, "exit_code", 2)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"error: no space left on the disk{where}: free some and run the command again", _FAILURE
    if isinstance(error, OSError) and error.errno in _PLACES:
        path = error.filename2 or error.filename
        where = "the standard input or output" if path is None else repr(str(path))
        return f"error: {where} cannot be used: {error.strerror}; give another path, or mend that one", _FAILURE
    return f"error: internal: {type(error).__name__}: {error} (re-run with --debug for the traceback)", _FAILURE
