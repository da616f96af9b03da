"""The server's first answers."""

from __future__ import annotations

from tests.integration import test_server as answers
from tests.integration.served import serving, tiny_engine


def test_the_first_answers_are_those_of_a_lone_run() -> None:
    lone = tiny_engine(drafter="none")
    with serving(max_rows=3, max_tokens=200) as served:
        answers.TestAnswers().test_a_chat_is_that_of_a_lone_run(served, lone)
        answers.TestAnswers().test_a_stream_is_the_same(served, lone)
