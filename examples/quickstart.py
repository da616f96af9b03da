"""The shortest way: a model by name, a prompt, the text. Run `python examples/quickstart.py [MODEL]`."""

import sys

from specstream import SpeculativeEngine

engine = SpeculativeEngine(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m", measure_baseline=True)
result = engine.generate([{"role": "user", "content": "Name three rivers in Africa."}], max_new_tokens=40)
print(result["text"])
print(f"{result['mean_accepted_length']:.2f} tokens a pass, {result['speedup']:.2f} times plain decoding, lossless")
