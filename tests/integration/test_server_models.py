"""Several models and adapters in one server: chosen by name, each with all of a server's own, one at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from specstream.serving import run
from specstream.serving.deployment import DeploymentConfig
from tests.adapters import save_adapter
from tests.integration.served import PATIENCE, Served, eventually, serving
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's

TEXT = "the cat sat on the mat and"
NAMES = ["base", "sql", "other"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base, other = tiny_model(hidden_size=64), tiny_model(seed=7, hidden_size=64, context=256)
    for name, model in (("base", base), ("other", other)):
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    save_adapter(root / "adapter", 1, base)
    return root


@pytest.fixture(scope="module")
def config(folder: Path) -> DeploymentConfig:
    return DeploymentConfig(
        model_name="base",
        model_path=str(folder / "base"),
        lora_modules={"sql": str(folder / "adapter")},
        runtime="native",  # with heads of 16 our kernels take it, and prompts are kept
        models={"other": {"model_path": str(folder / "other"), "drafter": "recycling", "max_tokens": 30}},
        port=0,
    )


@pytest.fixture(scope="module")
def loaded(config: DeploymentConfig) -> list[run.Loaded]:
    run.check(config)
    return run.load(config)


@pytest.fixture(scope="module")
def served(loaded: list[run.Loaded]) -> Iterator[Served]:
    with serving(loaded=loaded) as running:
        yield running


def complete(served: Served, model: str | None, **more: Any) -> Any:
    body = {"prompt": TEXT, "max_tokens": 20, **({"model": model} if model else {}), **more}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=PATIENCE).json()


def test_all_are_listed_as_vllm_lists_them(served: Served, folder: Path, loaded: list[run.Loaded]) -> None:
    cards = [card.model_dump() for card in served.client().models.list()]
    assert [(card["id"], card["root"], card["parent"], card["max_model_len"]) for card in cards] == [
        ("base", str(folder / "base"), None, 512),
        ("sql", str(folder / "adapter"), "base", 512),
        ("other", str(folder / "other"), None, 256),
    ]
    assert [served.client().models.retrieve(name).id for name in NAMES] == NAMES
    drafters = [each.engine.parts.drafter for each in loaded]
    assert drafters[0] is drafters[1]
    assert drafters[2].name == "recycling"


def test_the_name_chooses_everywhere(served: Served) -> None:
    whole = {name: complete(served, name) for name in NAMES}
    assert len({answer["choices"][0]["text"] for answer in whole.values()}) == 3
    assert [answer["model"] for answer in whole.values()] == NAMES
    assert complete(served, None)["choices"] == whole["base"]["choices"]
    chat = [{"role": "user", "content": TEXT}]
    said, responded, streamed = list[str](), list[str](), list[str]()
    for name in NAMES:
        client = served.client()
        given: Any = {"model": name, "messages": chat, "max_tokens": 12}
        said.append(client.chat.completions.create(**given).choices[0].message.content or "")
        stream = client.chat.completions.create(**given, stream=True)
        streamed.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
        answer = client.responses.create(model=name, input=TEXT, max_output_tokens=12)
        assert answer.model == name
        responded.append(answer.output_text)
    assert said == streamed == responded
    assert len(set(said)) == 3
    sizes = [
        httpx.post(f"{served.url}/tokenize", json={"model": name, "prompt": TEXT}).json()["max_model_len"]
        for name in NAMES
    ]
    assert sizes == [512, 512, 256]
    assert complete(served, "other", max_tokens=100)["clamped"] == {"max_tokens": 30}


@pytest.mark.parametrize("path", ["completions", "chat/completions", "responses", "../tokenize", "../detokenize"])
def test_another_name_is_refused_with_those_that_are_served(served: Served, path: str) -> None:
    body: dict[str, Any] = {
        "completions": {"prompt": "a"},
        "chat/completions": {"messages": [{"role": "user", "content": "a"}]},
        "responses": {"input": "a"},
        "../tokenize": {"prompt": "a"},
        "../detokenize": {"tokens": [5]},
    }[path]
    answer = httpx.post(f"{served.url}/v1/{path}", json={"model": "gpt-4", **body}, timeout=PATIENCE)
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "the model 'gpt-4' is not served here; give 'base' or 'sql' or 'other'",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        served.client().models.retrieve("gpt-4")


def test_what_one_has_read_another_has_not(served: Served) -> None:
    def cached(name: str) -> int:
        answer = complete(served, name, prompt=f"one two three {TEXT} " * 3)
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached(name) for name in NAMES] == [0, 0, 0]
    assert all(cached(name) > 0 for name in NAMES)


def test_each_is_counted_by_its_name(loaded: list[run.Loaded]) -> None:
    with serving(loaded=loaded) as fresh:
        answers = {name: complete(fresh, name) for name in NAMES for _ in range(2)}
        complete(fresh, "nobody")
        assert eventually(fresh.idle)
        text = httpx.get(f"{fresh.url}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(metric: str, name: str) -> float:
        (found,) = [each.value for each in samples if each.name == metric and each.labels == {"model_name": name}]
        return found

    for name in NAMES:
        tokens = answers[name]["usage"]["completion_tokens"]
        for metric in ("specstream_generated_tokens_total", "vllm:generation_tokens_total"):
            assert value(metric, name) == 2 * tokens
        for metric in ("specstream_queue_length", "vllm:num_requests_running"):
            assert value(metric, name) == 0
    assert 'specstream_refused_requests_total{status="404"} 1.0' in text


def test_the_passes_of_all_run_on_one_thread(loaded: list[run.Loaded]) -> None:
    threads = set[int]()
    with serving(loaded=loaded) as together:
        for each in together.server.models:
            turn = each.scheduler._turn

            def noted(turn: Any = turn) -> None:
                threads.add(threading.get_ident())
                turn()

            each.scheduler._turn = noted  # type: ignore[method-assign]
        alone = {name: complete(together, name, max_tokens=30)["choices"] for name in NAMES}
        with ThreadPoolExecutor(6) as pool:
            asked = [(name, pool.submit(complete, together, name, max_tokens=30)) for name in NAMES * 2]
            assert all(answer.result()["choices"] == alone[name] for name, answer in asked)
    assert len(threads) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_died_is_named_and_the_others_answer(loaded: list[run.Loaded]) -> None:
    with serving(loaded=loaded) as hurt:
        dying = hurt.server.models.named("sql").scheduler

        def dies() -> None:
            raise MemoryError

        dying._turn = dies  # type: ignore[method-assign]
        assert complete(hurt, "sql")["error"]["code"] == "stopping"
        assert eventually(lambda: not dying.alive)
        health = httpx.get(f"{hurt.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "the scheduler of sql has died"})
        assert httpx.get(f"{hurt.url}/ready").status_code == 503
        assert complete(hurt, "base")["choices"][0]["text"]


def test_a_stop_lets_all_of_them_finish(loaded: list[run.Loaded]) -> None:
    with serving(loaded=loaded) as ending:
        streams = [
            ending.client().completions.create(model=name, prompt=TEXT, max_tokens=30, stream=True) for name in NAMES
        ]
        parts = [next(stream) for stream in streams]
        ending.web.should_exit = True
        ends = [list(stream)[-1].choices[0].finish_reason for stream in streams]
    assert len(parts) == 3
    assert set(ends) <= {"length", "stop"}


def test_tools_schemas_and_scores_are_each_models_own(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["cat", "dog"]}}}
    for name in NAMES:
        body = {"model": name, "messages": [{"role": "user", "content": "a"}], "response_format": form}
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
        assert json.loads(answer["choices"][0]["message"]["content"]) in ("cat", "dog")
    scores = [
        complete(served, name, prompt_logprobs=0, max_tokens=1)["choices"][0]["prompt_logprobs"] for name in NAMES
    ]
    assert len({str(each) for each in scores}) == 3
