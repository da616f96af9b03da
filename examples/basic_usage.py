"""Drafters, sampling, streaming and figures. Run `python examples/basic_usage.py [MODEL]`."""

import sys

from specstream import SpeculativeEngine

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
question = [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}]

# The same answer from every drafter: who proposes cannot change what the model says.
answers = {}
for drafter in ("none", "lookup", "lookahead"):
    engine = SpeculativeEngine(model, drafter=drafter)
    result = engine.generate(question, max_new_tokens=48)
    answers[drafter] = result["token_ids"]
    print(f"{drafter:10} {result['tokens_per_second']:6.1f} tokens/s, {result['mean_accepted_length']:.2f} a pass")
print("equal:", all(tokens == answers["none"] for tokens in answers.values()))

# Sampling, with a seed that repeats; piece by piece, as it comes.
engine = SpeculativeEngine(model)
for piece in engine.stream(question, max_new_tokens=48, temperature=0.7, top_p=0.9, seed=1):
    print(piece, end="", flush=True)
print()

# A draft model may be named too; here it is the model itself, its weights read as bytes.
engine = SpeculativeEngine(model, draft_model="self:int8")
print(engine.generate(question, max_new_tokens=48)["text"])
print({name: value for name, value in engine.get_metrics().items() if not isinstance(value, dict)})
