from __future__ import annotations

import json
import stat
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from specstream.errors import DownloadError
from specstream.models.hub import convert, repairs
from specstream.models.hub.entry import CatalogEntry

WIDTH, INNER, HEADS, CONTEXT = 32, 64, 2, 128
SPECIAL = ["<end>", "<start>", "<stop>", "<tool_call>"]
TWO_SPACES, THREE_SPACES = "ĠĠ", "ĠĠĠ"
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), TWO_SPACES, THREE_SPACES]
TEMPLATE = "{% for message in messages %}<start>{{ message['content'] }}<end>{% endfor %}"
ENTRY = CatalogEntry(
    name="tiny",
    summary="a model for these tests",
    parameters=1,
    download_bytes=1,
    hub_id="nobody/tiny",
    wheels=("tiny==1.0",),
    member_suffix=".gguf",
    sha256="0" * 64,
    licence="Apache-2.0",
    stop_tokens=("<end>", "<stop>"),
    plain_tokens=("<tool_call>",),
    splits_digits=True,
)


def write_gguf(path: Path, output: np.ndarray | None, embedding: np.ndarray) -> None:
    """A Llama of one layer with a byte-level tokenizer; `output` is a head of its own, if there is one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ"])  # transformers before 5.20 takes a list of one for a string
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH)}
    shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH)}
    shapes |= {"ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("token_embd.weight", embedding)
    if output is not None:
        writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def embedding() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(len(TOKENS), WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedding: np.ndarray) -> Path:
    """Converted from a file that holds one matrix twice, as Qwen2.5-Coder's do."""
    scratch = tmp_path_factory.mktemp("convert")
    noise = np.random.default_rng(2).normal(size=embedding.shape).astype(np.float32)
    write_gguf(scratch / "model.gguf", embedding + 0.05 * noise, embedding)
    convert.gguf_to_folder(scratch / "model.gguf", scratch / "made", ENTRY)
    return scratch / "made"


def test_other_threads_write_to_the_standard_error_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, embedding: np.ndarray
) -> None:
    """And no bar is shown, not even of the reader of GGUF files."""
    write_gguf(tmp_path / "model.gguf", embedding, embedding)
    tie = repairs.tie_embeddings

    def tie_while_another_writes(model: Any) -> None:
        beside = threading.Thread(target=lambda: sys.stderr.write("from beside\n"))
        beside.start()
        beside.join()
        tie(model)

    monkeypatch.setattr(repairs, "tie_embeddings", tie_while_another_writes)
    capsys.readouterr()
    convert.gguf_to_folder(tmp_path / "model.gguf", tmp_path / "made", ENTRY)
    assert capsys.readouterr().err == "from beside\n"


def test_the_folder_loads_and_generates(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert getattr(model.config, "quantization_config", None) is None
    output = model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=2, do_sample=False)
    assert 3 <= output.shape[1] <= 4


def test_every_stop_token_is_kept(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ([0, 2], 2)
    assert model.generation_config._from_model_config is False


def test_the_tokenizer_is_whole(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == CONTEXT
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<stop>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<start>hi<end>"
    text = " two  spaces, 2024\n\tand ünicode"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone_so_that_spaces_before_them_stay_together(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("  12") == [TWO_SPACES, "1", "2"]


def test_plain_tokens_are_not_dropped_from_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("<tool_call>a<end>")
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>a"


def test_one_matrix_stored_twice_is_tied_again_to_the_finer_copy(folder: Path, embedding: np.ndarray) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings is True
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    coarse = torch.from_numpy(embedding).to(torch.bfloat16)
    assert not torch.equal(model.get_input_embeddings().weight, coarse)


def test_two_matrices_stay_two(tmp_path: Path, embedding: np.ndarray) -> None:
    write_gguf(tmp_path / "model.gguf", np.flip(embedding, 0).copy(), embedding)
    convert.gguf_to_folder(tmp_path / "model.gguf", tmp_path / "made", ENTRY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(embedding).to(torch.bfloat16))


def test_a_file_with_one_matrix_is_tied_as_it_comes(tmp_path: Path, embedding: np.ndarray) -> None:
    write_gguf(tmp_path / "model.gguf", None, embedding)
    convert.gguf_to_folder(tmp_path / "model.gguf", tmp_path / "made", replace(ENTRY, stop_tokens=("<end>",)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.config.tie_word_embeddings is True
    assert model.generation_config.eos_token_id == 0


def test_the_origin_is_written_beside_the_weights(folder: Path) -> None:
    origin = json.loads((folder / "specstream.json").read_text(encoding="utf-8"))
    assert (origin["upstream"], origin["sha256"], origin["licence"]) == ("nobody/tiny", "0" * 64, "Apache-2.0")
    assert torch.__version__.startswith(origin["versions"]["torch"])  # whose own may name a build: 2.13.0+cpu


def test_whoever_reads_the_config_reads_the_weights(folder: Path) -> None:
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_an_incomplete_conversion_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DownloadError, match=r"wrote no generation_config\.json, tokenizer\.json"):
        convert._require_complete(tmp_path, ENTRY)


@pytest.mark.model
def test_the_default_model_answers_and_stops(default_model_path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model_path)
    model = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.bfloat16)
    question = [{"role": "user", "content": "What is the capital of France? One sentence."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert output[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(output, skip_special_tokens=True)
