"""Files of tensors: our own are replaced, and nothing else is."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from specstream.errors import UsageError
from specstream.files.tensors_file import keep_tensors

OWN = {"format": "ours"}


def test_what_has_the_same_metadata_is_replaced(tmp_path):
    path = tmp_path / "folder" / "kept"
    for value in (1, 2):
        keep_tensors(path, "state", {"a": torch.tensor([value])}, OWN)
    assert load_file(path)["a"].tolist() == [2]


@pytest.mark.parametrize("metadata", [None, {"format": "theirs"}])
def test_the_tensors_of_others_stay(tmp_path, metadata):
    path = tmp_path / "kept"
    save_file({"a": torch.tensor([1])}, path, metadata=metadata)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="state"):
        keep_tensors(path, "state", {"a": torch.tensor([2])}, OWN)
    assert path.read_bytes() == before
