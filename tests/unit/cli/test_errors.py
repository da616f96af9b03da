from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from specstream import errors
from specstream.cli import main
from specstream.models.hub import catalog

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "SPECSTREAM_DEBUG"}


@pytest.fixture(autouse=True)
def without_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECSTREAM_DEBUG", raising=False)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def failing_pull(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def pull(name: str, progress: bool = True) -> None:
        raise error

    monkeypatch.setattr(catalog, "is_cached", lambda name: False)
    monkeypatch.setattr(catalog, "pull", pull)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.SpecStreamError("it broke"), 1, "error: it broke"),
        (errors.UsageError("K is -1: give 0 or more"), 2, "error: K is -1: give 0 or more"),
        (errors.ModelNotFoundError("no such"), 2, "error: no such"),
        (errors.UnsupportedModelError("no"), 2, "error: no"),
        (errors.VocabularyMismatchError("no"), 2, "error: no"),
        (errors.NumericalError("NaN"), 1, "error: NaN"),
        (errors.DownloadError("two\nlines"), 1, "error: two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            1,
            "error: no space left on the disk for /a/b: free some and run the command again",
        ),
        (
            OSError(errno.EISDIR, "Is a directory"),
            1,
            "error: the standard input or output cannot be used: Is a directory; give another path, or mend that one",
        ),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "error: internal: ZeroDivisionError: by zero (re-run with --debug for the traceback)",
        ),
    ],
)
def test_an_exception_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_pull(monkeypatch, error)
    assert run("models", "pull", "tiny") == code
    captured = capsys.readouterr()
    assert captured.err == f"{line}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--nonsense"],
            "error: No such option: --nonsense; leave it out; the options are --version, --debug "
            "(see specstream --help)",
        ),
        (["nonsense"], "error: No such command 'nonsense'. (see specstream --help)"),
        (
            ["models", "pull"],
            "error: Missing argument 'NAME'; give one of qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, "
            "smollm2-135m (see specstream models pull --help)",
        ),
    ],
)
def test_a_misspelt_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--debug", "models", "pull", "tiny"], "0"),
        (["models", "pull", "tiny", "--debug"], "0"),
        (["models", "pull", "tiny"], "1"),
    ],
)
def test_debug_shows_the_traceback_wherever_it_is_asked_for(
    arguments: list[str], environment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECSTREAM_DEBUG", environment)
    failing_pull(monkeypatch, ZeroDivisionError("zero"))
    assert run(*arguments) == 1
    captured = capsys.readouterr().err
    assert "Traceback (most recent call last)" in captured
    assert captured.splitlines()[-1].startswith("error: internal: ZeroDivisionError")


@pytest.mark.parametrize(
    "name",
    ["SPECSTREAM_API_KEY", "SPECSTREAM_CPU", "SPECSTREAM_DEBUG", "SPECSTREAM_MODELS", "SPECSTREAM_NO_SELFTEST_CACHE"],
)
def test_an_empty_variable_is_refused_by_every_verb(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "")
    assert run("models", "list") == 2
    assert capsys.readouterr().err == f"error: {name} is empty; give it a value, or unset it\n"


def test_an_unknown_variable_is_refused_by_every_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECSTREAM_MAX_ROWS", "2")  # of serve, and harmless here
    assert run("models", "list") == 0
    monkeypatch.setenv("SPECSTREAM_MODEL", "gpt2")
    capsys.readouterr()
    assert run("models", "list") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: SPECSTREAM_MODEL is no variable of this program; unset it, or give one of ")
    assert error.count("\n") == 1


def test_debug_after_two_dashes_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "pull", "--", "--debug") == 2
    assert "unknown model '--debug'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    assert "models" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import specstream

    assert run("--version") == 0
    assert capsys.readouterr().out == f"specstream {specstream.__version__}\n"


def test_the_installed_command_reports_like_this() -> None:
    command = [sys.executable, "-c", "from specstream.cli import main; main()", "models", "pull", "nope"]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: unknown model 'nope'")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_has_gone_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from specstream.cli import main; main()", "models", "list", "--json"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.EROFS])
def test_a_path_that_cannot_be_used_is_no_internal_error(monkeypatch, capsys, number):
    failing_pull(monkeypatch, OSError(number, os.strerror(number), "/a/b"))
    assert run("models", "pull", "smollm2-135m") == 1
    line = f"error: '/a/b' cannot be used: {os.strerror(number)}; give another path, or mend that one\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("generate x -n 4.5", "-n is '4.5'; give a value that is a whole number"),
        ("generate x -t 0,7", "-t is '0,7'; give 0.7, with a point"),
        ("bench-task --task a --data b --nodes 0", "--nodes is '0'; give a value that is greater than or equal to 1"),
        ("generate x --n-predict 4", "No such option: --n-predict; did you mean --max-new-tokens?"),
        ("generate x --num-speculative-tokens 4", "No such option: --num-speculative-tokens; did you mean --gamma?"),
        ("generate x --assistant-model a", "No such option: --assistant-model; did you mean --draft?"),
        ("generate x --torch_dtype a", "No such option: --torch_dtype; did you mean --dtype?"),
        ("serve --max-model-len 4", "No such option: --max-model-len; did you mean --max-context?"),
        ("compare --prompt x", "No such option: --prompt; did you mean --input-str?"),
        ("generate Hello world", "(world); give one PROMPT a call, in quotes if it has spaces"),
        ("generate x \u2013n 4", "'\u2013n' begins with a long dash; give -n, with the dash of the keyboard"),
        ("generate x \u2013nope 4", "; it begins with a long dash: give -, or -- before a whole word"),
        ("run x", "No such command 'run'. Did you mean 'generate'?"),
        ("models ls", "No such command 'ls'. Did you mean 'list'?"),
        ("serve gpt2", "'gpt2' stands alone; give --model gpt2"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_value_and_the_remedy(capsys, words, line):
    assert run(*words.split()) == 2
    error = capsys.readouterr().err
    assert line in error and error.startswith("error: ") and error.count("\n") == 1
