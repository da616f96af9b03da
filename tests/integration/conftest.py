from __future__ import annotations

import pytest

from specstream import reporting
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(autouse=True)
def without_lines_of_slow_steps(monkeypatch):
    """A busy machine is slow in everything; tests of those lines set how soon they come."""
    monkeypatch.setattr(reporting, "AFTER", float(2**20))
