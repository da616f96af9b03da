"""`specstream chat`: lines in, answers out."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specstream.cli import main
from specstream.cli.chat import Conversation, shows_colours
from specstream.engine.engine import SpeculativeEngine
from tests.tiny import tiny_model, tiny_tokenizer

Talk = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Exit code, lines of answers and stderr of a conversation with these lines."""
    tiny_model(hidden_size=64).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def said(*lines: str, options: tuple[str, ...] = ()) -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        with pytest.raises(SystemExit) as exit_:
            main(["chat", "--model", str(tmp_path / "model"), "-n", "5", *options])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out.splitlines(), err

    return said


def answers(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """The conversation as the library has it, turn by turn."""
    engine = SpeculativeEngine(tiny_model(hidden_size=64), tiny_tokenizer(), max_new_tokens=5, prefix_cache_gb=0)
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        messages.append({"role": "assistant", "content": engine.generate(messages).text})
    return messages


def test_turns_have_the_history_before_them_and_say_what_was_reused(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    code, _, err = talk("one two three", "the cat", f"/save {file}", "/stats", "/quit", "not asked any more")
    assert code == 0
    assert json.loads(file.read_text()) == answers("one two three", "the cat")
    assert "5 tokens, " in err
    assert " 0 tokens of the prompt were not read again" not in err


def test_lines_between_three_quotes_are_one_turn(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    code, _, err = talk('"""one two', "", ' three"""', '"""the cat"""', '"""', '"""', f"/save {file}", "/help")
    assert code == 0 and '"""           begins a turn of several lines' in err
    assert json.loads(file.read_text()) == answers("one two\n\n three", "the cat")


def test_three_quotes_that_are_not_closed_are_refused(talk: Talk) -> None:
    code, out, err = talk('"""one two', "three")
    assert code == 1 and not out
    assert 'note: \'"""one two\' begins a turn that does not end; give """ behind it' in err


@pytest.mark.parametrize("word", ["quit", "Exit"])
def test_a_word_that_may_be_meant_as_a_command_is_asked_and_noted(talk: Talk, word: str) -> None:
    code, out, err = talk(word, "quit smoking")
    assert code == 0 and out
    assert err.count("note: ") == 1
    assert f"note: {word!r} is asked of the model; /quit ends the conversation" in err


def test_instructions_that_are_the_name_of_a_file_are_noted(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "be short.txt"
    file.write_text("be short")
    _, _, err = talk(options=("--system", str(file)))
    assert f"is a file, and its name is the instructions; to read it: --system \"$(cat '{file}')\"" in err
    assert "instructions" not in talk(options=("--system", "be short"))[2]


def test_instructions_and_a_new_beginning(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    talk("a dog", "/clear", "/system be short", "one two", f"/save {file}")
    assert json.loads(file.read_text()) == answers("one two", system="be short")
    talk("one two", f"/save {tmp_path / 'other.json'}", options=("--system", "be short"))
    assert json.loads((tmp_path / "other.json").read_text()) == answers("one two", system="be short")


@pytest.mark.parametrize(
    ("asked", "terminal", "no_color", "coloured"),
    [(True, True, "", True), (True, True, "1", False), (True, False, "", False), (False, True, "", False)],
)
def test_tokens_are_coloured_by_who_drafted_them_in_a_terminal_that_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, asked: bool, terminal: bool, no_color: str, coloured: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    engine = SpeculativeEngine(
        tiny_model(), tiny_tokenizer(), tiny_model(noise=0.02), drafter="mixed", adaptive=False, max_new_tokens=40
    )
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr("sys.stdin", io.StringIO("one two three\n"))
    monkeypatch.setattr("sys.stdout", out := Terminal())
    conversation = Conversation(engine, coloured=asked and shows_colours())
    assert conversation.goes_on()
    said = out.getvalue()
    assert ("\x1b[38;2;" in said) == coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", said).endswith(conversation.turns[1]["content"] + "\n")
    assert conversation.turns[1]["content"] == engine.generate(conversation.turns[:1]).text


def test_a_mistake_ends_no_conversation(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    code, _, err = talk("/sav x", "/save", "word " * 600, "the cat", f"/save {file}", f"/save {file}", "/help")
    assert code == 1, "so that a script sees it"
    for said in ("'/sav' is no command", "/save names no file", "the model's context holds", "another file's name"):
        assert said in err
    assert json.loads(file.read_text()) == answers("the cat")
    assert "/system TEXT" in err


def test_a_conversation_that_cannot_be_saved_names_the_file_that_was_given(talk: Talk, tmp_path: Path) -> None:
    code, _, err = talk(f"/save {tmp_path}/no/a.json", f"/save {tmp_path}/a.csv")
    assert code == 1
    no_folder, other_format = err.splitlines()[-2:]
    assert no_folder.endswith("/no/a.json', which cannot be written: No such file or directory; give another")
    assert other_format.endswith("/a.csv' and JSON is written; give a name that ends in .json")


def test_a_model_without_a_template_is_refused(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "model" / "chat_template.jinja").unlink()
    code, _, err = talk("one")
    assert code == 2
    assert "no chat template; use specstream generate" in err


def test_an_interrupt_ends_the_answer_and_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = SpeculativeEngine(tiny_model(hidden_size=64), tiny_tokenizer(), max_new_tokens=30)
    conversation, stream = Conversation(engine), engine.stream

    def interrupted(messages: Any) -> Iterator[str]:
        yield next(stream(messages))
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO("one two\nthe cat\n"))
    monkeypatch.setattr(type(engine), "stream", lambda self, messages: interrupted(messages))
    assert conversation.goes_on()
    user, assistant = conversation.turns
    assert user["content"] == "one two"
    assert assistant["content"]
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
    assert conversation.goes_on()
    assert len(conversation.turns) == 4
    assert not conversation.goes_on(), "the end of the input"
