"""Files of tensors that are ours: safetensors, nothing that executes, told from others by their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specstream.errors import UsageError
from specstream.files.atomic import check_new, whole, why_unread


def keep_tensors(path: str | Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors into a file, which is whole or as it was.

    Args:
        path: the file; its folder is made.
        name: of the argument, for the error.
        tensors: by their names.
        metadata: of the file. One that is there is replaced if it has the same.

    Raises:
        UsageError: the file cannot be written, or holds something else.
    """

    def is_own(there: Path) -> bool:
        try:
            with safe_open(there, framework="pt") as file:
                return bool(file.metadata() == metadata)
        except (OSError, SafetensorError):
            return False

    check_new(Path(path), name, is_own)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as partial:
            partial.touch()  # what fails here is said in the system's words
            save_file(dict(tensors), partial, metadata=dict(metadata))
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{name} {str(path)!r} cannot be written: {why_unread(error)}; give another file, or none"
        ) from error
