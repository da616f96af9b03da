"""Weights in blocks: whoever reads them as numbers gets those numbers, and nobody changes them."""

from __future__ import annotations

import copy
import pickle

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specstream.errors import UsageError
from specstream.models.architecture import blocks
from specstream.models.architecture.blocks import BlockTensor, kinds_of, source_of
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.architecture.memory import held_bytes
from specstream.models.architecture.view import Copied, Stamp
from specstream.models.hub.gguf_header import KINDS
from tests.gguf_files import stored

ROWS, COLUMNS = 12, 64


def weight(kind: str = "Q4_1", dtype: torch.dtype = torch.bfloat16, columns: int = COLUMNS) -> BlockTensor:
    chance = np.random.default_rng(0)
    values = chance.normal(size=(ROWS, columns)).astype(np.float32)
    return BlockTensor(torch.from_numpy(stored(values, kind, chance)), kind, dtype)


def numbers(of: BlockTensor) -> Tensor:
    """What its blocks stand for, by the gguf package."""
    found = gguf.quants.dequantize(of.blocks.numpy(), gguf.GGMLQuantizationType[of.kind])
    return torch.from_numpy(found).to(of.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_layer_and_an_embedding_read_the_numbers(kind: str, dtype: torch.dtype) -> None:
    own = nn.Parameter(weight(kind, dtype, 256), requires_grad=False)
    expected = numbers(own)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert own.shape == (ROWS, 256) and own.dtype == dtype and isinstance(own, nn.Parameter)
    assert torch.equal(nn.functional.linear(x, own), nn.functional.linear(x, expected))
    with torch.inference_mode():
        assert torch.equal(nn.functional.linear(x, own), nn.functional.linear(x, expected))
    ids = torch.tensor([[3, 0], [3, 11]])
    assert torch.equal(nn.functional.embedding(ids, own), expected[ids])


@pytest.mark.parametrize(
    ("taken", "rows"),
    [
        (lambda of: of[2:9:2], 4),
        (lambda of: of[-1], 1),
        (lambda of: of[torch.tensor([5, 5, 0])], 3),
        (lambda of: of[torch.tensor([[5], [1]])], 2),
        (lambda of: of[torch.arange(ROWS) % 3 == 0], 4),
        (lambda of: of.index_select(0, torch.tensor([7, 2])), 2),
        (lambda of: nn.functional.embedding(torch.tensor([1, 2]), of), 2),
        (lambda of: of[:, 3], ROWS),
        (lambda of: of[torch.tensor([1, 2]), torch.tensor([3, 4])], ROWS),
        (lambda of: of[of > 0], ROWS),
        (lambda of: of.index_select(1, torch.tensor([7, 2])), ROWS),
        (lambda of: of.t().contiguous(), ROWS),
        (lambda of: of.float() * 2, ROWS),
    ],
    ids=[
        "slice",
        "row",
        "index",
        "index-2d",
        "mask",
        "select",
        "lookup",
        "column",
        "pairs",
        "values",
        "1",
        "t",
        "cast",
    ],
)
def test_only_the_rows_that_are_taken_are_read(taken, rows, monkeypatch) -> None:
    own, read = weight(), list[int]()
    expected, original = taken(numbers(own)), gguf.quants.dequantize
    with torch.inference_mode():  # where passes run
        assert torch.equal(taken(own), expected) and torch.equal(taken(own.detach()), expected)
    monkeypatch.setattr(
        blocks.gguf.quants, "dequantize", lambda data, kind: read.append(len(data)) or original(data, kind)
    )
    assert torch.equal(taken(own), expected)
    assert max(read) == rows


def test_a_module_keeps_it_where_it_is_and_another_dtype_is_refused() -> None:
    layer = nn.Linear(COLUMNS, ROWS, bias=False, device="meta")
    layer.weight = own = nn.Parameter(weight(), requires_grad=False)
    layer.to("cpu").to(torch.bfloat16).eval().requires_grad_(False)
    assert layer.weight is own and type(own) is BlockTensor
    with pytest.raises(
        UsageError, match=r"Q4_1 blocks of a GGUF file stays torch\.bfloat16 on the CPU.* with that dtype"
    ):
        layer.to(torch.float32)
    twin = copy.deepcopy(layer).weight
    assert twin is not own and isinstance(twin, BlockTensor) and twin.blocks.data_ptr() == own.blocks.data_ptr()
    assert torch.equal(pickle.loads(pickle.dumps(own)) + 0, numbers(own))


@pytest.mark.parametrize(
    "write",
    [
        lambda of: of.add_(1),
        lambda of: of.data.zero_(),
        lambda of: of.detach().copy_(torch.zeros(ROWS, COLUMNS)),
        lambda of: torch.add(numbers(of), 1, out=of),
        lambda of: of.__setitem__(0, 1.0),
        lambda of: setattr(of, "data", torch.zeros(ROWS, COLUMNS, dtype=of.dtype)),
    ],
    ids=["add", "data", "copy", "out", "item", "replace"],
)
def test_writing_into_it_is_refused(write) -> None:
    own = weight()
    before = own.blocks.clone()
    with pytest.raises(UsageError, match="Q4_1 blocks of a GGUF file cannot be changed in place by"):
        write(own)
    assert torch.equal(own.blocks, before)


@pytest.mark.parametrize("read", [lambda of: of.data_ptr(), lambda of: of.numpy(), lambda of: of.tolist()])
def test_nobody_reads_memory_that_holds_no_numbers(read) -> None:
    with pytest.raises(RuntimeError):
        read(weight())


def test_saving_it_or_sharing_its_memory_is_refused(tmp_path) -> None:
    layer = nn.Linear(COLUMNS, ROWS, bias=False, device="meta")
    layer.weight = nn.Parameter(weight(), requires_grad=False)
    refused = "Q4_1 blocks of a GGUF file has no numbers to save or to share; copy the file, or load"
    for use in (lambda: save_file(layer.state_dict(), tmp_path / "saved.safetensors"), layer.share_memory):
        with pytest.raises(UsageError, match=refused):
            use()


class Holder(nn.Module):
    """As much of a model as a fingerprint and a stamp look at."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, ROWS, bias=False)
        self.layer.weight = nn.Parameter(matrix, requires_grad=False)
        self.config = type("Config", (), {"model_type": "llama", "_attn_implementation": "eager"})()


def test_its_fingerprint_is_that_of_its_numbers_and_reads_few_blocks(monkeypatch) -> None:
    wide, read = weight(columns=32 * 256), list[int]()
    expected, original = fingerprint(Holder(numbers(wide))), gguf.quants.dequantize
    monkeypatch.setattr(
        blocks.gguf.quants, "dequantize", lambda data, kind: read.append(data.size) or original(data, kind)
    )
    assert fingerprint(Holder(BlockTensor(wide.blocks.repeat(1, 1), "Q4_1", torch.float32))) == expected
    assert read == [64 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q4_1][1]]


def test_what_looks_after_changes_reads_no_numbers(monkeypatch) -> None:
    own = weight()
    model = Holder(own)
    monkeypatch.setattr(BlockTensor, "dequantized", None)
    stamp = Stamp(model)
    assert stamp.holds() and stamp.fits(model)
    assert not Copied(model.layer.weight).outdated
    model.layer.weight = nn.Parameter(weight(), requires_grad=False)
    assert not stamp.fits(model)


def test_a_new_tensor_of_its_dtype_reads_no_numbers(monkeypatch) -> None:
    own = weight()
    monkeypatch.setattr(BlockTensor, "dequantized", None)
    for made in (own.new_empty(0), own.new_zeros(2, 3), own.new_ones(2), own.new_full((2,), 4.0)):
        assert type(made) is Tensor and made.dtype == own.dtype and made.device == own.device
    assert own.new_zeros(2, 3, dtype=torch.float32).dtype == torch.float32


def test_its_memory_is_that_of_its_blocks() -> None:
    own = weight()
    assert own.nbytes == own.blocks.nbytes == ROWS * COLUMNS // 32 * 20
    assert held_bytes([own], nn.Module()) == own.nbytes
    model = Holder(own)
    assert held_bytes([own], model) == 0
    assert kinds_of(model) == {"layer.weight": "Q4_1"} and source_of(model) == "gguf"
    assert source_of(nn.Linear(2, 2)) is None
