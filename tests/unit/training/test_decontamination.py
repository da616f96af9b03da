from __future__ import annotations

import pytest

from specstream.training.decontamination import Decontamination

LONG = "a farmer has seventeen sheep and all but nine of them run away how many sheep are left on his farm"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("What is 2+2?", True),
        ("what is  2 + 2", True),
        ("What is 2+3?", False),
        (f"Answer briefly: {LONG.title()}!", True),
        (" ".join(LONG.split()[:12]), False),
        (" ".join(LONG.split()[:13]), True),
        ("日本", False),
        ("...", False),
        ("!?", True),
    ],
)
def test_prompts_that_are_held_out_are_known_again(text, inside):
    assert (text in Decontamination(["What is 2+2?", LONG, "!?"])) is inside
