from __future__ import annotations

import json

import torch

from specstream.environment import level, provenance


def test_provenance_names_what_a_number_depends_on() -> None:
    found = provenance(device="cpu", dtype="bfloat16")
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["dtype"], found["accelerator"]) == ("cpu", "bfloat16", None)
    assert all(found[key] for key in ("specstream", "transformers", "python", "platform", "cpu"))
    assert found["cpu_level"] == level().name
