"""The memory of answers: what it keeps, its file, and which files it refuses."""

import pytest
import torch
from safetensors.torch import save_file

from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stopping import Stopping
from specstream.core.suffix_index import SEPARATOR
from specstream.engine import memory as memories
from specstream.engine.memory import CONTEXT, Memory
from specstream.errors import UsageError

SIZE = 100


class Words:
    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: at for at, word in enumerate(self.words)}


def answers(*texts, prompt=(1, 2, 3)):
    rows = start_rows(
        [prompt] * len(texts), range(len(texts)), None, sampling=Sampling(), stopping=Stopping(max_new_tokens=9)
    )
    for row, text in zip(rows, texts, strict=True):
        row.tokens.extend(text)
    return rows


def test_an_answer_is_found_from_the_end_of_its_prompt_on():
    memory = Memory(None, None, SIZE)
    prompt = list(range(50))
    memory.learn(answers([60, 61, 62], [70], prompt=prompt))
    kept = [*prompt[-CONTEXT:], 60, 61, 62, SEPARATOR, *prompt[-CONTEXT:], 70, SEPARATOR]
    assert memory.index.tokens().tolist() == kept
    ends = [end for _, end in memory.index.matches(prompt)]
    assert [memory.index.after(end, 9) for end in ends] == [[70], [60, 61, 62]]


def test_an_answer_that_failed_is_not_kept():
    memory = Memory(None, None, SIZE)
    (row,) = answers([60])
    row.error = ValueError("broken")
    memory.learn([row])
    assert len(memory.index) == 0


def test_another_process_goes_on_from_the_file(tmp_path):
    file = str(tmp_path / "new" / "answers")
    Memory(file, Words("a", "b"), SIZE).learn(answers([60, 61]))
    again = Memory(file, Words("a", "b"), SIZE)
    assert again.index.tokens().tolist() == [1, 2, 3, 60, 61, SEPARATOR]
    again.learn(answers([70]))
    assert Memory(file, Words("a", "b"), SIZE).index.tokens().tolist()[-3:] == [3, 70, SEPARATOR]
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["answers"], "no temporary name is left"


def test_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(memories, "CAPACITY", 8)
    file = str(tmp_path / "answers")
    memory = Memory(file, None, SIZE)
    for token in (60, 61, 62):
        memory.learn(answers([token]))
    assert Memory(file, None, SIZE).index.tokens().tolist() == [2, 3, 61, SEPARATOR, 1, 2, 3, 62, SEPARATOR][-8:]


def written(path, tokens, **metadata):
    save_file({"tokens": tokens}, path, metadata=metadata)


def mine(file):
    with pytest.raises(UsageError) as caught:
        Memory(str(file), Words("a", "b"), SIZE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_none_of_ours_are_refused_and_stay(tmp_path):
    file = tmp_path / "answers"
    file.write_text("my thesis")
    assert "cannot be used" in mine(file)
    assert "give a new name" in mine(file)
    assert file.read_text() == "my thesis"
    written(file, torch.zeros(3, dtype=torch.int32))
    assert "it holds something else" in mine(file)
    assert "is a folder" in mine(tmp_path)


def test_another_tokenizers_file_is_refused(tmp_path):
    file = tmp_path / "answers"
    Memory(str(file), Words("b", "a"), SIZE).learn(answers([60]))
    assert "another tokenizer" in mine(file)
    with pytest.raises(UsageError, match="another tokenizer"):
        Memory(str(file), None, SIZE)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (torch.tensor([SIZE], dtype=torch.int32), "beyond the vocabulary of 100"),
        (torch.tensor([-2], dtype=torch.int32), "beyond the vocabulary of 100"),
        (torch.tensor([3.0]), "no list of int32"),
        (torch.zeros(0, dtype=torch.int32), "no list of int32"),
    ],
)
def test_tokens_that_cannot_be_are_refused(tmp_path, tokens, reason):
    file = tmp_path / "answers"
    written(file, tokens, **Memory(str(file), Words("a", "b"), SIZE)._metadata)
    assert reason in mine(file)


def test_half_a_file_is_refused(tmp_path):
    file = tmp_path / "answers"
    Memory(str(file), Words("a", "b"), SIZE).learn(answers([60, 61]))
    file.write_bytes(file.read_bytes()[:-9])
    assert "cannot be used" in mine(file)


def test_a_place_that_cannot_be_written_costs_nobody_an_answer(tmp_path, caplog):
    file = tmp_path / "answers"
    memory = Memory(str(file), None, SIZE)
    file.write_text("written meanwhile by somebody else")
    memory.learn(answers([60]))
    assert "another file's name already" in caplog.text
    assert memory.index.tokens().tolist() == [1, 2, 3, 60, SEPARATOR]
    assert file.read_text() == "written meanwhile by somebody else"
