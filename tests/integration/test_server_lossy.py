"""What a deployment asks for reaches its answers: typical acceptance is lossy by name, and what is left out is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from specstream.heads.streams import Streams, StreamsConfig
from specstream.serving import run
from specstream.serving.deployment import DeploymentConfig
from tests.integration.served import NAME, PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("target")
    model = tiny_model()
    model.save_pretrained(root)
    tiny_tokenizer().save_pretrained(root)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(model, StreamsConfig(gamma=2, layers=1, rank=2)).save(root / "streams")
    return root


def speculation(served: Served, path: str, *, stream: bool, temperature: float) -> Any:
    prompt = {"messages": [{"role": "user", "content": "one"}]} if "chat" in path else {"prompt": "one two"}
    body = {**prompt, "max_tokens": 3, "stream": stream, "temperature": temperature}
    text = httpx.post(f"{served.url}/v1/{path}", json=body, timeout=PATIENCE).text
    if not stream:
        return json.loads(text)["speculation"]
    (said,) = [line for line in text.splitlines() if '"speculation"' in line]
    return json.loads(said.removeprefix("data: "))["speculation"]


def test_answers_carry_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = DeploymentConfig(
        model_name=NAME, model_path=str(folder), heads=str(folder / "streams"), gamma=9, acceptance_threshold=0.3
    )
    with caplog.at_level(logging.WARNING, "specstream.serving"):
        (loaded,) = run.load(config)
    assert "acceptance_threshold is 0.3: answers at a temperature above 0 are not lossless" in caplog.text
    wanted = "gamma is 9 and there are 2 streams, so 2 tokens deep is the most that they draft"
    with serving(loaded.engine) as served:
        for path in ("completions", "chat/completions"):
            for stream in (False, True):
                lossy = speculation(served, path, stream=stream, temperature=1.0)
                greedy = speculation(served, path, stream=stream, temperature=0.0)
                assert (lossy["lossless"], greedy["lossless"]) == (False, True)
                assert lossy["left_out"] == greedy["left_out"] == wanted


def test_the_default_is_lossless(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "specstream.serving"):
        (loaded,) = run.load(DeploymentConfig(model_name=NAME, model_path=str(folder)))
    assert "acceptance_threshold" not in caplog.text
    with serving(loaded.engine) as served:
        said = speculation(served, "completions", stream=False, temperature=1.0)
    assert (said["lossless"], said["left_out"]) == (True, None)
