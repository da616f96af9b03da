"""What a frozen base computes at an example, kept on disk: computed once for all epochs, runs and recipes.

Every example is read alone, so what is kept does not depend on its neighbours or on when it was first needed, and a run
that goes on from a checkpoint meets the same bits.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specstream.files.atomic import whole
from specstream.training.data import Batch

Read = Callable[[Tensor], dict[str, Tensor]]
"""Tokens ``[1, length]`` -> tensors by name, ``[1, ..., length, width]`` each."""

HEADER = 2048
"""Bytes of a file besides its tensors, at most: their names and shapes."""


class HiddenStateCache:
    """Tensors of examples in a folder, in bfloat16 but for integers.

    Args:
        folder: where; None keeps nothing, and what is computed is not rounded.
        identity: what they depend on besides the tokens: the base, and which of its layers.
        most_gb: that the folder holds at most, all that is in it counted; what does not fit is computed each time, to
            the same bits. None is no limit.
    """

    def __init__(self, folder: str | Path | None, identity: str, most_gb: float | None = None) -> None:
        self._folder, self._identity = None if folder is None else Path(folder), identity
        self._room = math.inf if most_gb is None else most_gb * 1e9
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._room -= sum(each.stat().st_size for each in os.scandir(self._folder))

    def batch(self, batch: Batch, read: Read, part: str = "") -> dict[str, Tensor]:
        """What there is of every row of a batch, or is computed now.

        Args:
            batch: whose rows are wanted.
            read: computes them.
            part: which of several things that are kept of an example.

        Returns:
            The tensors of ``read`` with a row for each of the batch's, padded with zeros to its width.
        """
        if self._folder is None:
            return read(batch.tokens)
        lengths = batch.lengths
        rows = [self.row(batch.tokens[row, :length], read, part) for row, length in enumerate(lengths)]
        width = batch.tokens.shape[1]
        joined = {}
        for name, first in rows[0].items():
            shape = (len(rows), *first.shape[1:-2], width, first.shape[-1])
            joined[name] = torch.zeros(shape, dtype=first.dtype, device=batch.tokens.device)
            for row, length in enumerate(lengths):
                joined[name][row, ..., :length, :] = rows[row][name][0]
        return joined

    def row(self, tokens: Tensor, read: Read, part: str = "") -> dict[str, Tensor]:
        """Of one example ``[length]``; tensors as ``read`` gives them, rounded to bfloat16 but for integers."""
        if self._folder is None:
            return read(tokens[None])
        identity = f"{self._identity}/{part}" if part else self._identity
        digest = hashlib.sha256(f"{identity}/{tokens.tolist()}".encode()).hexdigest()
        path = self._folder / f"{digest[:32]}.safetensors"
        try:
            return {name: tensor.to(tokens.device) for name, tensor in load_file(path).items()}
        except (FileNotFoundError, SafetensorError):
            pass  # not there, or a crash cut it short
        made = {name: _rounded(tensor.detach()) for name, tensor in read(tokens[None]).items()}
        if (size := sum(tensor.nbytes for tensor in made.values()) + HEADER) <= self._room:
            self._room -= size
            with whole(path) as partial:
                save_file({name: tensor.cpu().contiguous() for name, tensor in made.items()}, partial)
        return made


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
