"""A worker that speaks the protocol and computes nothing; its argument says how it behaves."""

from __future__ import annotations

import json
import sys


def answer(request: dict[str, object], behaviour: str) -> dict[str, object]:
    if request["op"] == "load":
        if behaviour == "missing":
            return {"missing": "vllm", "error": "No module named 'vllm'"}
        return {"ok": True, "versions": {"fake": "1"}, "threads": 1, "memory": {}, "request": request}
    if behaviour == "failing":
        return {"error": "RuntimeError: out of luck"}
    tokens = [[len(prompt)] for prompt in request["prompts"]]  # type: ignore[attr-defined]
    return {"ok": True, "tokens": tokens, "seconds": 0.5, "counts": {}, "memory": {"peak_mib": 7.0}}


for line in sys.stdin:
    received = json.loads(line)
    if received["op"] == "close":
        break
    if sys.argv[1] == "dying" and received["op"] == "generate":
        sys.stderr.write("first words\nlast words\n")
        sys.exit(3)
    sys.stdout.write(json.dumps(answer(received, sys.argv[1])) + "\n")
    sys.stdout.flush()
