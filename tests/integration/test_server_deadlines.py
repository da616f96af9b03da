"""``request_seconds`` binds whatever the time goes into, and its error says what that was."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from specstream.engine.engine import SpeculativeEngine
from specstream.models.target.session import PREFILL_CHUNK
from specstream.serving.deployment import DeploymentConfig
from tests.integration.served import NAME, PATIENCE, Served, eventually, serving
from tests.tiny import tiny_model, tiny_tokenizer

LONG = [5, 6, 7, 8, 9] * 380


def engine() -> SpeculativeEngine:
    return SpeculativeEngine(tiny_model(context=2048), tiny_tokenizer(), drafter="none")


def post(served: Served, prompt: Any, **more: Any) -> httpx.Response:
    body = {"model": NAME, "prompt": prompt, "max_tokens": 1, **more}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=PATIENCE)


def message(answer: httpx.Response) -> str:
    assert answer.status_code == 504, answer.text
    return str(answer.json()["error"]["message"])


def test_a_prompt_that_takes_too_long_to_read_is_given_up_and_so_is_who_waits_for_it() -> None:
    """Both are told while a pass runs, and of that prompt nothing more is read."""
    with serving(engine(), request_seconds=0.5, max_rows=1) as served, ThreadPoolExecutor(1) as pool:
        target, passes, go_on = served.engine.target, [], threading.Event()
        forward = target.forward

        def stuck(*arguments: Any, **named: Any) -> Any:
            passes.append(arguments)
            assert go_on.wait(PATIENCE)
            return forward(*arguments, **named)

        target.prepare()
        target.forward = stuck  # type: ignore[method-assign]
        reading = pool.submit(post, served, LONG)
        assert eventually(lambda: len(passes) == 1)
        assert "0.0 s reading the prompt, 0.0 s writing; try again later" in message(post(served, [5, 6]))
        assert "0.0 s writing; send a shorter prompt" in message(reading.result())
        go_on.set()
        assert eventually(served.idle)
        assert len(passes) == 1


def test_what_is_done_before_the_queue_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(request_seconds=0.2) as served:
        encoding = served.gateway.prompts

        def slowly(body: Any) -> Any:
            time.sleep(0.3)
            return encoding(body)

        monkeypatch.setattr(served.gateway, "prompts", slowly)
        said = message(post(served, "the cat"))
    assert "the answer took more than 0.2 s: 0.3 s waiting" in said


def test_a_long_prompt_does_not_hold_up_an_answer() -> None:
    """One that is written gets a token for every chunk that is read beside it."""
    with serving(engine(), slow=0.05, prefill_chunk_tokens=100) as slow, ThreadPoolExecutor(1) as pool:
        stream = slow.client().completions.create(model=NAME, prompt=[5, 6], max_tokens=400, stream=True)
        chunks = iter(stream)
        next(chunks)
        reading = pool.submit(post, slow, LONG)
        assert eventually(lambda: slow.scheduler.running == 2)
        written = 0
        while not reading.done():
            written += bool(next(chunks).choices[0].text)
        stream.close()
        assert reading.result().status_code == 200
        assert written > 5


@pytest.mark.parametrize("most", [512, 100])
def test_an_answer_whose_prompt_was_read_in_chunks_is_that_of_a_lone_run(most: int) -> None:
    expected = engine().generate(tiny_tokenizer().decode(LONG), max_new_tokens=30)
    with serving(engine(), prefill_chunk_tokens=most) as served:
        answer = post(served, LONG, max_tokens=30).json()
    assert answer["choices"][0]["text"] == expected.text
    assert answer["speculation"]["exact"] == (expected.exact if most == PREFILL_CHUNK else "rounding")


def test_a_chunk_is_no_more_than_a_pass_reads() -> None:
    assert DeploymentConfig().prefill_chunk_tokens == PREFILL_CHUNK
