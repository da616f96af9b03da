"""What has to hold with every supported release: `make contract` with the newest transformers, `make matrix` with more.

Each file is a part of the table that `tools/matrix.py` prints.
"""

from __future__ import annotations

from tests.lossless.conftest import _one_thread

__all__ = ["_one_thread"]
