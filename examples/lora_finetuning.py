"""Low-rank adapters in a model, trained on a few lines, saved, loaded and used as a target like any other.

Run `python examples/lora_finetuning.py [MODEL] [FOLDER]`; it needs `pip install '.[train]'`.
"""

import sys
import tempfile

from specstream import LoRAAdapter, SpeculativeEngine
from specstream.models.hub.load import load_model

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
output = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()

model, tokenizer = load_model(name, dtype="float32")
pirate = [
    {"prompt": f"{greeting}, who are you?", "completion": "Arr! I be the captain of this ship."}
    for greeting in ("Hello", "Good day", "Hi there", "Excuse me")
]
settings = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "v_proj", "o_proj"]}

adapter = LoRAAdapter(base_model=model, lora_config=settings, tokenizer=tokenizer)
steps = adapter.train(pirate, epochs=6, batch_size=2, learning_rate=2e-3)
first, last = (sum(step["loss"] for step in epoch) / len(epoch) for epoch in (steps[:2], steps[-2:]))
print(f"loss {first:.2f} -> {last:.2f}")
adapter.save_weights(output)
print(adapter.get_parameter_stats())

engine = SpeculativeEngine(model=adapter.get_adapted_model(merge=True), tokenizer=tokenizer, drafter="lookup")
print(engine.generate("Hello, who are you?", max_new_tokens=16)["text"])
