from __future__ import annotations

import os

import pytest

# Before torch is imported: on a machine that does other work too, threads that wait by spinning hold up the very
# threads they wait for, by whole time slices for every small operation.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def default_model_path() -> str:
    """The folder of the embedded default, fetched once if this machine does not have it yet."""
    from specstream.models.catalog import DEFAULT_MODEL, resolve

    return resolve(DEFAULT_MODEL, progress=False)
