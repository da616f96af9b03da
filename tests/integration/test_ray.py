"""Two replicas of our server under Ray Serve, where Ray is installed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.tiny import tiny_model, tiny_tokenizer

PATIENCE = 400.0
SERVE = """
import ray
from ray import serve
from specstream.serving.ray_app import build

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
serve.run(build({{"replicas": 2, "cpus": 0.5}}), blocking=True)
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'")
@pytest.mark.timeout(900)
def test_both_replicas_answer_and_say_the_same(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"SPECSTREAM_MODEL_NAME": "tiny", "SPECSTREAM_MODEL_PATH": str(tmp_path / "model")}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(port=port)],
        env={**os.environ, **environment, "RAY_USAGE_STATS_ENABLED": "0"},
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ready", process)
        body = {"model": "tiny", "prompt": "the cat sat on", "max_tokens": 8}
        names, texts = set(), set()
        for _ in range(60):
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=PATIENCE)
            assert answer.status_code == 200
            names.add(answer.headers["x-specstream-replica"])
            texts.add(answer.json()["choices"][0]["text"])
            if len(names) == 2:
                break
        assert (len(names), len(texts)) == (2, 1)
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl+C, at which it takes its replicas down
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, "Ray Serve has ended"
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError("the replicas did not start in time")
