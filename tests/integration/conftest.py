from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest

from specstream import reporting
from specstream.models.invariance import selftest_cache
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session", autouse=True)
def certificates_are_read_once() -> Iterator[None]:
    """And not for every client: that takes twenty times as long as a request to a tiny model's server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", cache(httpx.create_ssl_context), raising=False)
        yield


@pytest.fixture(scope="session")
def self_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("self_tests")


@pytest.fixture(scope="module", autouse=True)
def a_model_is_tested_once(self_tests: Path) -> Iterator[None]:
    """Engines of one tiny model ask the cache what the first of them found, as on a user's machine.

    In this process and folder only: nothing here breaks a kernel. Processes that tests start keep nothing.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selftest_cache, "switched_off", lambda: False)
        patch.setattr(selftest_cache, "cache_folder", lambda: self_tests)
        yield


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
