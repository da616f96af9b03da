"""Editing code: most of the answer is in the prompt, and the lookup finds it. Run `python examples/code.py [MODEL]`."""

import sys

from specstream import SpeculativeEngine

CODE = '''def area(width, height):
    """Area of a rectangle."""
    return width * height


def perimeter(width, height):
    """Perimeter of a rectangle."""
    return 2 * (width + height)
'''

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
engine = SpeculativeEngine(model, drafter="lookup", measure_baseline=True)
prompt = f"Repeat this code, with type hints added to each function:\n\n{CODE}"
result = engine.generate([{"role": "user", "content": prompt}], max_new_tokens=96)
print(result["text"])
print(f"{result['speedup']:.2f} times plain decoding; {result['acceptance_rate']:.0%} of the drafted tokens accepted")
