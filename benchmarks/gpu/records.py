"""Records of one part, written as they come: what was measured, what failed and why, what was left out."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from specstream.errors import UnsupportedModelError
from specstream.files.atomic import write_whole

POISONED = 3
"""Exit code of a part whose CUDA context is broken: it is started again, and goes on behind what it has recorded."""


class Records:
    """Of one part.

    Args:
        path: the file; what it holds already is not measured again.
        seconds: after which nothing more is begun.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._end = path, time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    @property
    def late(self) -> bool:
        return time.monotonic() > self._end

    def measure(self, label: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Record what ``work`` returns, or its traceback, under a label that nothing else has.

        Returns:
            Whether it was recorded, now or before; False if it failed or was left out.

        Raises:
            SystemExit: the device is of no use to this process any more.
        """
        if any(row["label"] == label for row in self.rows):
            return True
        if self.late:
            self._add(label, left_out="out of time")
            return False
        started = time.perf_counter()
        try:
            found = work()
        except UnsupportedModelError as error:
            self._add(label, left_out=str(error))
            return False
        except Exception as error:
            message = " ".join(str(error).split())[:300]
            self._add(label, error=f"{type(error).__name__}: {message}", traceback=traceback.format_exc())
            if _poisoned():
                raise SystemExit(POISONED) from error
            return False
        finally:
            _tidy()
        self._add(label, **found, took=round(time.perf_counter() - started, 3))
        return True

    def _add(self, label: str, **fields: Any) -> None:
        self.rows.append({"label": label, **fields})
        write_whole(self._path, json.dumps(self.rows, indent=1, default=str))


def _in_use() -> bool:
    cuda: Any = torch.cuda  # without types
    return bool(cuda.is_initialized())


def _poisoned() -> bool:
    if not _in_use():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _tidy() -> None:
    gc.collect()
    if _in_use() and not _poisoned():
        torch.cuda.empty_cache()
