from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def default_model_path() -> str:
    """The folder of the embedded default, fetched once if this machine does not have it yet."""
    from specstream.models.catalog import DEFAULT_MODEL, resolve

    return resolve(DEFAULT_MODEL, progress=False)
