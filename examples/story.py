"""A story, sampled and streamed; the same seed tells the same story. Run `python examples/story.py [MODEL]`."""

import sys

from specstream import SpeculativeEngine

engine = SpeculativeEngine(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
pieces = engine.stream(
    [{"role": "user", "content": "Tell a short story about a fox who learns to read."}],
    max_new_tokens=120,
    temperature=0.8,
    min_p=0.05,
    seed=7,
)
for piece in pieces:
    print(piece, end="", flush=True)
print(f"\n\n{pieces.result['mean_accepted_length']:.2f} tokens a pass")
