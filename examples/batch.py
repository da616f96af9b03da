"""Several prompts at once, each at its own pace. Run `python examples/batch.py [MODEL]`."""

import sys

from specstream import SpeculativeEngine

engine = SpeculativeEngine(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
questions = [
    "Name a colour.",
    "What is 12 times 12?",
    "Write one sentence about the sea, and a second one about ships.",
]
results = engine.generate([[{"role": "user", "content": each}] for each in questions], max_new_tokens=40)
for question, result in zip(questions, results, strict=True):
    print(f"{question}\n  -> {result['text']!r} ({result['new_tokens']} tokens in {result['target_passes']} passes)")
