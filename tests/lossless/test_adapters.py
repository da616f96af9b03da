"""Adapters by name beside each other and their base: each says what PEFT's model says alone, whatever drafts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from specstream.engine.tokens import TokenTexts
from specstream.heads.medusa import MedusaHeads
from specstream.heads.streams import Streams, StreamsConfig
from specstream.serving import run
from specstream.serving.deployment import DeploymentConfig
from tests.adapters import save_adapter, with_adapter
from tests.integration.served import PATIENCE, serving
from tests.lossless.families import prompt
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's

PROMPTS = [prompt(12), prompt(150, seed=1), prompt(9, seed=2)]
NEW = 20
NAMES = ("base", "first", "second")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_model(hidden_size=64)  # heads of 16, which our kernels take
    base.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    tiny_model(hidden_size=64, noise=0.02).save_pretrained(folder / "draft")
    tiny_tokenizer().save_pretrained(folder / "draft")
    for seed, name in enumerate(NAMES[1:]):
        save_adapter(folder / name, seed, tiny_model(hidden_size=64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(base, StreamsConfig(gamma=2, layers=1, rank=2)).save(folder / "streams")
        MedusaHeads(base).save(folder / "medusa")
    return folder


def asked(url: str, name: str, tokens: Sequence[int]) -> list[str]:
    """The tokens of an answer, as texts."""
    body = {"model": name, "prompt": list(tokens), "max_tokens": NEW, "ignore_eos": True, "logprobs": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE).json()
    assert answer["speculation"]["lossless"]
    return [str(token) for token in answer["choices"][0]["logprobs"]["tokens"]]


@pytest.mark.parametrize(
    ("runtime", "drafts"),
    [
        ("native", {"drafter": "streams", "heads": "streams"}),
        ("native", {"drafter": "none"}),
        ("native", {"drafter": "mixed", "draft_model": "draft"}),
        ("native", {"draft_model": "self:int8"}),
        ("native", {"drafter": "medusa", "heads": "medusa"}),
        ("native", {"drafter": "recycling"}),
        ("eager", {"drafter": "mixed", "draft_model": "draft"}),
        ("eager", {"drafter": "streams", "heads": "streams"}),
    ],
    ids=str,
)
def test_each_says_what_it_says_alone(root: Path, runtime: Any, drafts: dict[str, str]) -> None:
    own = {key: value if key == "drafter" or ":" in value else str(root / value) for key, value in drafts.items()}
    config = DeploymentConfig(
        model_name="base",
        model_path=str(root / "base"),
        lora_modules={name: str(root / name) for name in NAMES[1:]},
        runtime=runtime,
        max_rows=3,
        **own,
    )
    run.check(config)
    loaded = run.load(config)
    with serving(loaded=loaded) as served, ThreadPoolExecutor(9) as pool:
        answers = {
            (name, at): pool.submit(asked, served.url, name, tokens)
            for at, tokens in enumerate(PROMPTS)
            for name in NAMES
        }
        told = {key: answer.result() for key, answer in answers.items()}
    texts = TokenTexts(tiny_tokenizer())
    for name in NAMES:
        model = tiny_model(hidden_size=64) if name == "base" else with_adapter(root / name, tiny_model(hidden_size=64))
        for at, tokens in enumerate(PROMPTS):
            ids = torch.tensor([tokens])
            given = {"attention_mask": torch.ones_like(ids), "eos_token_id": None, "pad_token_id": 0}
            expected = model.generate(ids, max_new_tokens=NEW, do_sample=False, **given)[0, len(tokens) :].tolist()
            assert told[name, at] == [texts.say(token, mark="bytes:") for token in expected]
