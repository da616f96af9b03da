"""``specstream serve --engine vllm``: with a stand-in for vLLM, and with vLLM itself where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specstream.cli import main
from specstream.heads.eagle import EagleHead
from specstream.heads.medusa import MedusaHeads
from specstream.serving import vllm_launch
from specstream.serving.vllm_export import export
from tests.tiny import tiny_model, tiny_tokenizer

STAND_IN = """#!{python}
import json, os, signal, sys
def told(number, frame):
    if number == signal.SIGTERM:
        sys.exit(40 + number)
    os.write(1, b"%d\\n" % number)  # print may be interrupted, and then refuses
signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGINT, told)
print(json.dumps({{"arguments": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY"), "pid": os.getpid()}}), flush=True)
while True:
    signal.pause()
"""

VLLM = os.environ.get("SPECSTREAM_VLLM_PATH") or shutil.which("vllm")
PATIENCE = 240.0


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "vllm"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


@contextmanager
def served(*arguments: str, environment: Mapping[str, str], **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """The command, killed if it outlives the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "specstream.cli", "serve", "--engine", "vllm", *arguments],
        env={**os.environ, **environment},
        text=True,
        **settings,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def tiny_folder(path: Path, model: Any = None) -> str:
    (tiny_model() if model is None else model).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_signals_reach_vllm_and_its_exit_code_is_ours(stand_in: Path, tmp_path: Path) -> None:
    environment = {"SPECSTREAM_VLLM_PATH": str(stand_in), "SPECSTREAM_API_KEY": "secret"}
    arguments = ("--model", tiny_folder(tmp_path / "model"), "--", "--tensor-parallel-size", "2")
    with served(*arguments, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        said = json.loads(process.stdout.readline())
        assert said["pid"] == process.pid  # in the place of the command, with nothing in between
        assert said["key"] == "secret"
        assert said["arguments"][:2] == ["serve", str(tmp_path / "model")]
        assert said["arguments"][-2:] == ["--tensor-parallel-size", "2"]
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"{int(signal.SIGINT)}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 40 + signal.SIGTERM
        shown = process.stderr.read()
        assert f"starting {stand_in} serve" in shown
        assert "secret" not in shown


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("VLLM_PATH=/no/vllm", 1, "which is no command; run: pip install vllm"),
        ("MEMORY_GB=1e6", 2, "memory_gb is 1000000 and this machine has"),
        ("DRAFTER=streams", 2, "drafter is 'streams', which vLLM cannot run; give lookup (its ngram)"),
    ],
)
def test_what_cannot_be_started_is_one_line(
    setting: str,
    code: int,
    words: str,
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(vllm_launch, "start", lambda launch: pytest.fail("started"))
    monkeypatch.setenv("SPECSTREAM_VLLM_PATH", str(stand_in))
    monkeypatch.setenv(*f"SPECSTREAM_{setting}".split("=", 1))
    model = tiny_folder(tmp_path / "model")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--engine", "vllm", "--model", model])
    said = capsys.readouterr().err
    assert (caught.value.code, said.count("\n")) == (code, 1)
    assert words in said


def wide_model() -> LlamaForCausalLM:
    """Tiny, but with heads of a size that vLLM's attention takes."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.mark.skipif(VLLM is None, reason="vLLM is not installed: no vllm on the PATH, nor as SPECSTREAM_VLLM_PATH")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["medusa", "eagle3"])
def test_vllm_itself_serves_heads(kind: str, tmp_path: Path) -> None:
    """Exported Medusa heads, and an EAGLE-3 head as it was saved, draft there, and the answer is our own greedy one."""
    model = wide_model()
    source, heads = tiny_folder(tmp_path / "model", model), str(tmp_path / "heads")
    if kind == "medusa":
        MedusaHeads(model, num_heads=2, token_map=range(200)).save(heads)
        heads = export(heads, str(tmp_path / "exported")).folder
    else:
        EagleHead.fresh(model, (0, 1, 2), 2, torch.arange(200)).save(heads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert VLLM is not None
    environment = {
        "SPECSTREAM_VLLM_PATH": VLLM,
        "SPECSTREAM_MODEL_NAME": "wide",
        "SPECSTREAM_MODEL_PATH": source,
        "SPECSTREAM_HEADS": heads,
        "SPECSTREAM_DTYPE": "float32",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    prompt = [5, 40, 77, 120, 9, 33]
    body = {"model": "wide", "prompt": prompt, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
    with served("--port", str(port), "--", "--enforce-eager", environment=environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health", process)
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE).raise_for_status().json()
        metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    plain = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert answer["choices"][0]["token_ids"] == plain[0, len(prompt) :].tolist()
    drafted = [line for line in metrics.splitlines() if line.startswith("vllm:spec_decode_num_draft_tokens_total")]
    assert float(drafted[0].split()[-1]) > 0


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE * 2
    while time.monotonic() < end:
        assert process.poll() is None, "vLLM has ended"
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError("vLLM did not start in time")
