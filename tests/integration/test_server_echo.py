"""``echo``: prompts with the model's own log-probabilities, as evaluation harnesses ask for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from specstream.engine.engine import SpeculativeEngine
from tests.integration.served import PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = "the cat sat on the mat and the dog sat on the cat"
OTHER = "one two three four five"
LONG = " ".join([TEXT, OTHER] * 6)
CHOOSE = """\
task: tiny_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {root}/data.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" the mat", " three", " b): return a"]
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def model() -> Any:
    """Of heads of 16, which our kernels take."""
    return tiny_model(hidden_size=64)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(SpeculativeEngine(model(), tiny_tokenizer(), runtime="native")) as running:
        yield running


def complete(served: Served, prompt: Any = TEXT, **more: Any) -> Any:
    body = {"prompt": prompt, "max_tokens": 1, **more}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=PATIENCE).json()


def ids(text: str) -> list[int]:
    return list(tiny_tokenizer()(text)["input_ids"])


def chances(text: str) -> torch.Tensor:
    """Log-probabilities of every token behind each of the text's, ``[tokens, vocab]``: the model's own."""
    with torch.inference_mode():
        logits: torch.Tensor = model()(input_ids=torch.tensor([ids(text)])).logits[0]
    return logits.log_softmax(-1)


def told(choice: Any, text: str, top: int) -> None:
    """Check what is told of a prompt."""
    found, tokens, expected = choice["logprobs"], ids(text), chances(text)
    count = len(tokens)
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    wanted = expected[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert found["token_logprobs"][1:count] == pytest.approx(wanted.tolist(), abs=2e-3)
    for place, likely in enumerate(found["top_logprobs"][1:count]):
        best = sorted(likely.values(), reverse=True)[:top]
        assert best == pytest.approx(expected[place].topk(top).values.tolist(), abs=2e-3)
        assert likely[found["tokens"][place + 1]] == found["token_logprobs"][place + 1]
    assert "".join(found["tokens"][:count]) == text
    assert found["text_offset"][:count] == [sum(map(len, found["tokens"][:at])) for at in range(count)]


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("text", [TEXT, LONG, "a"])
def test_a_prompt_has_the_logprobs_that_the_model_gives_it(served: Served, text: str, as_tokens: bool) -> None:
    answer = complete(served, ids(text) if as_tokens else text, echo=True, logprobs=2, max_tokens=3)
    (choice,) = answer["choices"]
    told(choice, text, 2)
    assert len(choice["logprobs"]["tokens"]) == len(ids(text)) + 3 == answer["usage"]["total_tokens"]
    (plain,) = complete(served, text, logprobs=2, max_tokens=3)["choices"]
    assert choice["text"] == text + plain["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert choice["logprobs"][name][-3:] == plain["logprobs"][name]


def test_what_was_read_before_is_read_anew(served: Served) -> None:
    first = complete(served, LONG, echo=True, logprobs=1)
    assert complete(served, LONG)["usage"]["prompt_tokens_details"]["cached_tokens"] == len(ids(LONG)) - 2
    again = complete(served, LONG, echo=True, logprobs=1)
    assert again["choices"] == first["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert complete(served, LONG, echo=True)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_several_prompts_are_what_each_is_alone(served: Served) -> None:
    prompts = [TEXT, OTHER, LONG]
    several = complete(served, prompts, echo=True, logprobs=1, n=2)["choices"]
    assert [choice["index"] for choice in several] == list(range(6))
    for place, prompt in enumerate(prompts):
        (alone,) = complete(served, prompt, echo=True, logprobs=1)["choices"]
        for choice in several[2 * place : 2 * place + 2]:
            assert {**choice, "index": 0} == alone


def test_no_token_may_be_asked_for_with_echo_alone(served: Served) -> None:
    answer = complete(served, [TEXT, OTHER], echo=True, logprobs=1, max_tokens=0)
    for choice, text in zip(answer["choices"], (TEXT, OTHER), strict=True):
        told(choice, text, 1)
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        assert len(choice["logprobs"]["tokens"]) == len(ids(text))
    assert (answer["usage"]["completion_tokens"], answer["speculation"]["target_passes"]) == (0, 0)
    (bare,) = complete(served, echo=True, max_tokens=0)["choices"]
    assert (bare["text"], bare["logprobs"]) == (TEXT, None)
    assert complete(served, max_tokens=0)["error"]["message"] == "max_tokens is 0 without echo; give at least 1"
    assert served.idle()


def scored(found: Any, text: str, top: int) -> None:
    """Check what is told of a prompt in vLLM's form."""
    tokens, expected = ids(text), chances(text)
    assert found[0] is None
    assert len(found) == len(tokens)
    for place, told_of in enumerate(found[1:]):
        likeliest, own = expected[place].topk(top), tokens[place + 1]
        assert set(told_of) == {str(own), *map(str, likeliest.indices.tolist())}
        assert next(iter(told_of)) == str(own)
        for token, each in told_of.items():
            logprob = expected[place][int(token)]
            assert each["logprob"] == pytest.approx(float(logprob), abs=2e-3)
            assert each["rank"] == int((expected[place] >= logprob).sum())
    said = "".join(each[str(token)]["decoded_token"] for each, token in zip(found[1:], tokens[1:], strict=True))
    assert text.endswith(said)


@pytest.mark.parametrize("top", [0, 1, 4])
def test_prompt_logprobs_are_told_as_vllm_does(served: Served, top: int) -> None:
    answer = complete(served, [TEXT, LONG], prompt_logprobs=top, n=2)
    texts = (TEXT, TEXT, LONG, LONG)
    for choice, text in zip(answer["choices"], texts, strict=True):
        scored(choice["prompt_logprobs"], text, top)
        assert choice["logprobs"] is None
    messages = [{"role": "user", "content": TEXT}]
    body = {"messages": messages, "max_tokens": 1, "prompt_logprobs": top}
    chat = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    scored(chat["prompt_logprobs"], f"<user>{TEXT}<assistant>", top)
    assert "prompt_logprobs" not in chat["choices"][0]
    alone = complete(served, TEXT, prompt_logprobs=top, max_tokens=0)
    scored(alone["choices"][0]["prompt_logprobs"], TEXT, top)
    assert (alone["choices"][0]["text"], alone["usage"]["completion_tokens"]) == ("", 0)


def test_prompt_logprobs_and_those_of_an_echo_do_not_mix(served: Served) -> None:
    for own, top in ((1, 3), (3, 1)):
        (choice,) = complete(served, echo=True, logprobs=own, prompt_logprobs=top)["choices"]
        told(choice, TEXT, own)
        assert all(len(likely) <= own + 1 for likely in choice["logprobs"]["top_logprobs"][1:])
        scored(choice["prompt_logprobs"], TEXT, top)
    (single,) = complete(served, "a", prompt_logprobs=1)["choices"]
    assert single["prompt_logprobs"] == [None]
    refused = complete(served, prompt_logprobs=1, stream=True)["error"]
    assert refused["message"] == (
        "prompt_logprobs is given and the answer is a stream, which has no place for it; leave one out"
    )


def test_a_stream_says_the_same(served: Served) -> None:
    (whole,) = complete(served, echo=True, logprobs=1, max_tokens=8)["choices"]
    body = {"prompt": TEXT, "max_tokens": 8, "echo": True, "logprobs": 1, "stream": True}
    lines = httpx.post(f"{served.url}/v1/completions", json=body, timeout=PATIENCE).text.splitlines()
    parts = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert parts[0]["text"] == TEXT
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


@pytest.mark.timeout(900)  # the harness is a process of its own, twice
def test_a_harness_has_the_results_that_it_has_of_the_model(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    questions = ["the cat sat on", "one two three one two", "def add(a,", "the dog"]
    lines = [json.dumps({"question": question, "right": at % 3}) for at, question in enumerate(questions)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choose.yaml").write_text(CHOOSE.format(root=tmp_path), encoding="utf-8")
    route = f"model=tiny,base_url={served.url}/v1/completions,tokenizer={tmp_path}/model,max_length=256"
    found = {}
    for name, arguments in (
        ("hf", f"pretrained={tmp_path}/model,dtype=float32"),
        ("local-completions", f"{route},num_concurrent=2,max_retries=1"),
    ):
        out = tmp_path / str(len(found))
        command = [sys.executable, "-m", "lm_eval", "--model", name, "--model_args", arguments, "--device", "cpu"]
        command += ["--tasks", "tiny_choose", "--include_path", str(tmp_path / "tasks"), "--log_samples"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [*command, "--output_path", str(out)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (file,) = out.rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[out.name] = [answer for sample in samples for answer in sample["filtered_resps"]]
    assert len(found["1"]) == 12
    for (own, greedy), (theirs, likeliest) in zip(found["1"], found["0"], strict=True):
        assert (float(own), str(greedy)) == (pytest.approx(float(theirs), abs=2e-3), str(likeliest))
