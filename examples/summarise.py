"""A summary repeats names and phrases of its text. Run `python examples/summarise.py [MODEL]`."""

import sys

from specstream import SpeculativeEngine

TEXT = (
    "The lighthouse of Orange Point was built in 1857 after three ships ran aground in one winter. Its keeper, Ada "
    "Brennan, lit the lamp every evening for thirty-one years and wrote down the weather each morning. Her notebooks "
    "were found in 1998 in the cellar of the lighthouse of Orange Point, and are read by those who study the climate."
)

engine = SpeculativeEngine(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m", drafter="lookup")
prompt = f"Summarise in one sentence:\n\n{TEXT}"
result = engine.generate([{"role": "user", "content": prompt}], max_new_tokens=64)
print(result["text"])
print(f"{result['new_tokens']} tokens in {result['target_passes']} passes of the model")
