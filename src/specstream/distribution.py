"""What pip calls this project, its version, and the other project of the package index whose package has our name."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable

DISTRIBUTION = "specstream-decoding"
"""What pip calls this project; pyproject.toml says the same. ``specstream`` is another project, with such a package."""

VERSION = "0.1.0"
"""Of this project; pyproject.toml reads it here."""


def install_line(extra: str) -> str:
    """What installs an extra of this project, from where it was installed: it is on no package index."""
    return f"pip install '.[{extra}]' in the checkout, or 'WHEEL[{extra}]' with the wheel of {DISTRIBUTION}"


def other_distribution(paths: Iterable[str]) -> str | None:
    """The folder in which a distribution called ``specstream`` says that the files of this package are its own.

    Only names of folders are read: importlib.metadata would cost more than all else that ``import specstream`` does.

    Args:
        paths: where Python looks for packages.
    """
    for path in paths:
        try:
            names = os.listdir(path or ".")
        except OSError:  # an archive, or a folder that is not there
            continue
        for name in names:
            if name.startswith("specstream-") and name.endswith(".dist-info") and _owns_package(path, name):
                return path
    return None


def warn_of_other_distribution() -> None:
    """Say once in a process that there are two."""
    if (folder := other_distribution(sys.path)) is not None:
        warnings.warn(
            f"{folder} holds another project's 'specstream' too, and the two overwrite each other's files; "
            f"run: pip uninstall specstream, then install {DISTRIBUTION} again",
            stacklevel=3,
        )


def _owns_package(path: str, name: str) -> bool:
    """Whether it installed files of the package; an editable install has none."""
    try:
        with open(os.path.join(path, name, "RECORD"), encoding="utf-8") as record:
            return any(line.startswith("specstream/__init__.py,") for line in record)
    except (OSError, UnicodeDecodeError):
        return False
