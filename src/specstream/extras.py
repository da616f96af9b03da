"""Packages that only some commands need: imported when used, and missed with the line that installs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from specstream.distribution import install_line
from specstream.errors import MissingPackageError


def require(package: str, extra: str, purpose: str) -> Any:
    """The imported package.

    Args:
        package: to import.
        extra: the extra of this project that installs it.
        purpose: what needs it, for the error.

    Raises:
        MissingPackageError: it is not installed, with the line that installs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != package.partition(".")[0]:
            raise  # it is there, and something of its own is not
        raise MissingPackageError(
            f"{purpose} needs {package!r}, which is not installed; run: {install_line(extra)}"
        ) from None
