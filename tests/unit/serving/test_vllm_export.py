"""What vLLM loads says what ours says: names, shapes, values, and the tokens that are drafted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from specstream.cli import main
from specstream.errors import NumericalError, UsageError, VocabularyMismatchError
from specstream.heads.medusa import MedusaHeads
from specstream.models.architecture.compat import config_of
from specstream.models.hub import load
from specstream.models.hub.vocabulary import cut_head, write_part
from specstream.serving.vllm_export import RECORD, every_row, export
from tests.tiny import tiny_model, tiny_tokenizer

PART = torch.tensor([0, 1, *range(40, 120)])


def trained_heads(model: Any, token_map: torch.Tensor | None = None) -> MedusaHeads:
    """Heads whose blocks are no longer the identity."""
    heads = MedusaHeads(model, num_heads=3, num_layers=2, token_map=token_map)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for parameter in heads.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return heads


def vllm_logits(folder: Path, states: torch.Tensor) -> list[torch.Tensor]:
    """Of each head, computed as vLLM 0.32 does from the names and numbers of the folder alone."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert (config["model_type"], config["architectures"]) == ("medusa", ["MedusaModel"])
    assert config["truncated_vocab_size"] == config["vocab_size"]
    logits = []
    for head in range(config["num_heads"]):
        x = states
        for layer in range(config["num_hidden_layers"]):
            weight = tensors[f"blocks.{head}.layers.{layer}.weight"]
            assert weight.shape == (config["hidden_size"],) * 2
            x = x + functional.silu(x @ weight.T)
        weight = tensors[f"lm_heads.{head}.weight"]
        assert weight.shape == (config["vocab_size"], config["hidden_size"])
        logits.append(x @ weight.T)
    assert len(tensors) == config["num_heads"] * (config["num_hidden_layers"] + 1)
    return logits


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(64, 48, generator=torch.Generator().manual_seed(1)) * 3


class TestMedusa:
    def test_the_logits_of_vllms_formula_are_ours(self, tmp_path: Path, states: torch.Tensor) -> None:
        heads = trained_heads(tiny_model())
        heads.save(tmp_path / "heads")
        made = export(str(tmp_path / "heads"), str(tmp_path / "out"))
        assert made.speculative_config == {
            "method": "medusa",
            "model": str(tmp_path / "out"),
            "num_speculative_tokens": 3,
        }
        for head, logits in enumerate(vllm_logits(tmp_path / "out", states)):
            torch.testing.assert_close(logits, heads.logits(states, head))

    def test_heads_of_a_part_of_the_vocabulary_draft_the_same_tokens(
        self, tmp_path: Path, states: torch.Tensor
    ) -> None:
        heads = trained_heads(tiny_model(), PART)
        heads.save(tmp_path / "heads")
        made = export(str(tmp_path / "heads"), str(tmp_path / "out"))
        assert made.changed == ("heads of 82 tokens have all 300 now, and draft the same ones",)
        theirs = vllm_logits(tmp_path / "out", states)
        assert torch.equal(torch.stack(theirs, 1).argmax(-1), heads.draft(states, 3, 1)[0][:, :, 0])
        torch.testing.assert_close(theirs[1][:, PART], heads.logits(states, 1))

    def test_other_weights_than_the_config_says_are_refused(self, tmp_path: Path) -> None:
        trained_heads(tiny_model()).save(tmp_path / "heads")
        tensors = load_file(tmp_path / "heads" / "model.safetensors")
        save_file(
            {name: each for name, each in tensors.items() if name != "lm_heads.2.weight"},
            tmp_path / "heads" / "model.safetensors",
        )
        with pytest.raises(UsageError, match=r"holds other weights than its config says: lm_heads\.2\.weight"):
            export(str(tmp_path / "heads"), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_numbers_that_are_none_are_refused(self, tmp_path: Path) -> None:
        heads = trained_heads(tiny_model())
        with torch.no_grad():
            heads.lm_heads[1].weight[3, 3] = torch.nan  # type: ignore[index]
        heads.save(tmp_path / "heads")
        with pytest.raises(NumericalError, match="hold NaN or infinity"):
            export(str(tmp_path / "heads"), str(tmp_path / "out"))


class TestDraft:
    def test_a_draft_is_the_model_it_was(self, tmp_path: Path) -> None:
        model = tiny_model().to(torch.bfloat16)
        made = export(saved(model, tmp_path / "draft"), str(tmp_path / "out"))
        assert (made.kind, made.depth, made.changed) == ("draft_model", 4, ())
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
        assert again.dtype == torch.bfloat16
        assert {name: each.shape for name, each in again.state_dict().items()} == {
            name: each.shape for name, each in model.state_dict().items()
        }
        assert all(torch.equal(each, again.state_dict()[name]) for name, each in model.state_dict().items())
        modes = {(tmp_path / "out" / name).stat().st_mode for name in ("tokenizer.json", "model.safetensors")}
        assert len(modes) == 1  # whoever reads one reads the other

    @pytest.mark.parametrize("tied", [False, True])
    def test_a_draft_that_says_some_tokens_says_the_same_ones(self, tied: bool, tmp_path: Path) -> None:
        model = tiny_model()
        if tied:
            model.config.tie_word_embeddings = True
            model.tie_weights()
        source = saved(model, tmp_path / "draft")
        write_part(source, PART)
        made = export(source, str(tmp_path / "out"))
        assert made.changed == ("its head drafts 82 of 300 tokens, and has rows for all",)
        logits = self.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
        cut_head(model, PART)
        own = self.logits(model)
        assert torch.equal(logits.argmax(-1), PART[own.argmax(-1)])
        torch.testing.assert_close(logits[..., PART], own)

    def test_the_targets_configuration_is_read_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        target, draft = (saved(tiny_model(), tmp_path / name) for name in ("target", "draft"))
        read: list[str] = []
        monkeypatch.setattr(load, "config_of", lambda folder: read.append(str(folder)) or config_of(folder))
        export(draft, str(tmp_path / "out"), target)
        assert read == [target]

    @pytest.mark.parametrize(("size", "word"), [(320, "padded"), (303, "cut")])
    def test_a_draft_takes_the_targets_padding(self, size: int, word: str, tmp_path: Path) -> None:
        draft = tiny_model(vocab_size=310)
        target = saved(tiny_model(seed=5, vocab_size=size), tmp_path / "target")
        made = export(saved(draft, tmp_path / "draft"), str(tmp_path / "out"), target)
        assert made.changed == (f"its vocabulary is {word} from 310 to {size} rows, the target's",)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert again.config.vocab_size == size
        logits, own, least = self.logits(again), self.logits(draft), min(size, 310)
        torch.testing.assert_close(logits[..., :least], own[..., :least])
        assert torch.equal(logits.argmax(-1), own[..., :least].argmax(-1))

    def test_a_draft_of_another_tokenizer_is_refused(self, tmp_path: Path) -> None:
        target = saved(tiny_model(), tmp_path / "target")
        source = saved(tiny_model(), tmp_path / "draft")
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<more>"])
        tokenizer.save_pretrained(source)
        (tmp_path / "draft" / "model.safetensors").unlink()  # its weights are not read for that
        with pytest.raises(VocabularyMismatchError, match=r"the draft .* has another vocabulary"):
            export(source, str(tmp_path / "out"), target)

    @torch.no_grad()
    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        tokens = torch.randint(2, 300, (2, 20), generator=torch.Generator().manual_seed(2))
        logits: torch.Tensor = model(tokens).logits
        return logits


def test_a_mean_is_never_the_largest() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) - 4  # all logits may be negative
    tokens = torch.tensor([1, 2, 5, 6, 8])
    logits = torch.rand(100, 7) @ every_row(weight, tokens, 9).T
    assert set(logits.argmax(-1).tolist()) <= set(tokens.tolist())


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["export", *arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    def test_it_says_how_vllm_is_started(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trained_heads(tiny_model()).save(tmp_path / "heads")
        arguments = (str(tmp_path / "heads"), "--to", "vllm", "--output", str(tmp_path / "out"))
        code, out, _ = self.run(capsys, *arguments)
        assert code == 0
        assert f'vllm serve TARGET --speculative-config \'{{"method": "medusa", "model": "{tmp_path}/out"' in out
        code, out, _ = self.run(capsys, *arguments, "--json")  # what it wrote it may write again
        assert json.loads(out)["speculative_config"]["num_speculative_tokens"] == 3
        assert json.loads((tmp_path / "out" / RECORD).read_text())["source"] == "heads"

    def test_a_target_of_the_catalog_is_named_by_its_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from specstream.cli.export import _served
        from specstream.models.hub import catalog

        folder = Path("/models/smollm2-135m")
        monkeypatch.setattr(catalog, "cached_folder", {"smollm2-135m": folder}.get)
        assert _served("smollm2-135m") == str(folder)
        assert (_served("org/name"), _served(None)) == ("org/name", "TARGET")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"kind": "streams"}, "holds streams, which vLLM cannot run; serve it with engine: local, train an eagle3"),
            ({"speculators_model_type": "eagle3"}, "holds 'eagle3', which vLLM loads as it is; give vLLM that folder"),
        ],
    )
    def test_what_vllm_cannot_run_or_loads_is_one_line(
        self, settings: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        code, _, err = self.run(capsys, str(tmp_path), "--to", "vllm", "--output", str(tmp_path / "out"))
        assert (code, err.count("\n")) == (2, 1)
        assert said in err

    def test_a_folder_of_others_is_not_replaced(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        code, _, err = self.run(capsys, str(tmp_path), "--to", "vllm", "--output", str(tmp_path / "out"))
        assert (code, (tmp_path / "out" / "thesis.txt").read_text()) == (2, "years of work")
        assert "is something else that would be lost; give a new folder" in err

    def test_another_system_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = self.run(capsys, str(tmp_path), "--to", "other", "--output", str(tmp_path / "out"))
        assert (code, err.count("\n")) == (2, 1)
