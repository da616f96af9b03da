"""The command where the terminal, the pipe or the bytes are not what one has at home."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from specstream.cli import main
from tests.tiny import tiny_model, tiny_tokenizer

COMMAND = (sys.executable, "-m", "specstream.cli")
ASCII = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def shell(line, *words):
    """Run by a shell, in which ``"$@"`` is the command: exit code and everything that was said."""
    done = subprocess.run(["bash", "-c", line, "bash", *COMMAND, *words], env=ASCII, capture_output=True, timeout=120)
    return done.returncode, (done.stdout + done.stderr).decode("ascii")


def run(capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    return exit_.value.code, *capsys.readouterr()


def test_what_an_ascii_terminal_cannot_show_is_escaped():
    code, said = shell('"$@"', "models", "list")
    assert code == 0
    assert "internal" not in said
    assert "\\u2026" in said


def test_a_generation_ends_well_on_an_ascii_terminal(target):
    code, said = shell('"$@"', "generate", "one two", "--model", target, "--no-chat", "-n", "40")
    assert code == 0
    assert "internal" not in said
    assert "\\u" in said  # of the tiny model's nonsense


@pytest.mark.parametrize("line", ['"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&-'])
def test_a_closed_output_is_no_error(line):
    code, said = shell(line, "models", "list")
    assert code == 0
    assert "internal" not in said


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('cd "$(mktemp -d)" && rmdir "$PWD" && "$@"', "error: the current folder is not there any more; change into"),
        ('PYTHONOPTIMIZE=2 "$@"', "error: Python is run without docstrings, which transformers reads; unset PYTHONOPT"),
    ],
)
def test_what_libraries_fail_under_is_refused_in_our_words(line, told):
    code, said = shell(line, "models", "list")
    assert code == 2 and said.startswith(told) and said.count("\n") == 1


@pytest.mark.parametrize("line", ['"$@" 2>&-', '"$@" 2> >(true)'])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(line):
    code, said = shell(line, "nonsense")
    assert code == 2
    assert said == ""


@pytest.mark.parametrize("words", [["models", "list"], ["--help"], ["models", "pull", "--help"]])
def test_a_reader_that_went_away_ends_the_command_in_silence(words):
    code, said = shell('"$@" | true; exit ${PIPESTATUS[0]}', *words)
    assert code in (0, 141)  # 0 if it was done before the reader went
    assert said == ""


def test_a_prompt_of_an_ascii_locale_is_the_text_that_was_typed(capsys, target):
    """Python hands over bytes that the locale does not know as lone surrogates."""
    typed, given = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "caf\udcc3\udca9"
    words = ("--model", target, "--no-chat", "-n", "4", "--json")
    outputs = [run(capsys, "generate", prompt, *words) for prompt in (typed, given)]
    assert [code for code, _, _ in outputs] == [0, 0]
    ids = [out.partition('"token_ids": ')[2].partition("]")[0] for _, out, _ in outputs]
    assert ids[0] == ids[1] != ""


def test_latin_1_bytes_in_a_prompt_are_refused_with_the_remedy(capsys, target):
    code, out, err = run(capsys, "generate", "caf\udce9", "--model", target, "-n", "4")
    assert (code, out) == (2, "")
    assert "'\\udce9'" in err
    assert "iconv -f latin1 -t utf-8" in err


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts.csv"])
def test_a_latin_1_file_of_prompts_is_refused_with_the_remedy(capsys, target, tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"caf\xe9\n")
    code, _, err = run(capsys, "audit", "--prompts", str(file), "--model", target, "-n", "4")
    assert code == 2
    assert "is not UTF-8" in err
    assert "iconv -f latin1 -t utf-8" in err


def test_a_latin_1_configuration_is_refused_with_the_remedy(capsys, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_bytes(b"recipe: caf\xe9\n")
    code, _, err = run(capsys, "train", "--config", str(file))
    assert code == 2
    assert "iconv -f latin1 -t utf-8" in err
