"""The vLLM that a configuration asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specstream.errors import (
    MissingPackageError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
    VocabularyMismatchError,
)
from specstream.serving.deployment import DeploymentConfig
from specstream.serving.vllm_launch import plan, shards, speculation, start, where
from tests.published_heads import write_dflash, write_eagle
from tests.tiny import tiny_model


def folder(path: Path, **settings: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    return str(path)


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    path = tmp_path / "vllm"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def value(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_a_parser_that_vllm_does_not_have_is_refused(vllm: str) -> None:
    with pytest.raises(UsageError, match="tool_call_parser is 'smollm2'"):
        plan(DeploymentConfig(engine="vllm", tool_call_parser="smollm2", vllm_path=vllm))
    with pytest.raises(UsageError, match="reasoning_parser is 'think'"):
        plan(DeploymentConfig(engine="vllm", reasoning_parser="think", vllm_path=vllm))


class TestCommand:
    def test_settings_become_vllms_words(self, tmp_path: Path, vllm: str) -> None:
        model = folder(tmp_path / "model", vocab_size=300)
        config = DeploymentConfig(
            model_name="mine",
            model_path=model,
            engine="vllm",
            gamma=5,
            host="10.0.0.1",
            port=1234,
            dtype="bfloat16",
            temperature=0.7,
            max_tokens=64,
            max_rows=32,
            max_context=2048,
            grace_seconds=7,
            log_prompts=True,
            tool_call_parser="hermes",
            vllm_path=vllm,
            vllm_args=("--tensor-parallel-size", "4", "--distributed-executor-backend", "ray"),
        )
        launch = plan(config)
        assert launch.command[:3] == (vllm, "serve", model)
        pairs = {
            "--served-model-name": "mine",
            "--host": "10.0.0.1",
            "--port": "1234",
            "--tool-call-parser": "hermes",
            "--dtype": "bfloat16",
            "--generation-config": "vllm",
            "--max-num-seqs": "32",
            "--max-model-len": "2048",
            "--shutdown-timeout": "7",
        }
        assert {flag: value(launch.command, flag) for flag in pairs} == pairs
        assert json.loads(value(launch.command, "--override-generation-config")) == {
            "temperature": 0.7,
            "max_new_tokens": 64,
        }
        assert "--enable-log-requests" in launch.command
        assert launch.command[-4:] == config.vllm_args  # last, so that they go over ours
        assert launch.notes == ()

    def test_what_nobody_said_is_left_to_vllm(self, tmp_path: Path, vllm: str) -> None:
        launch = plan(DeploymentConfig(model_path=folder(tmp_path / "model"), vllm_path=vllm))
        assert not {"--max-num-seqs", "--max-model-len", "--enable-log-requests"} & set(launch.command)

    def test_the_key_is_not_on_the_command_line(self, tmp_path: Path, vllm: str) -> None:
        launch = plan(DeploymentConfig(model_path=folder(tmp_path / "model"), vllm_path=vllm, api_key="secret"))
        assert launch.environment == {"VLLM_API_KEY": "secret"}
        assert not any("secret" in word for word in launch.command)

    def test_what_vllm_does_not_do_is_said(self, tmp_path: Path, vllm: str) -> None:
        config = DeploymentConfig(model_path=folder(tmp_path / "model"), vllm_path=vllm, max_queue=3, runtime="eager")
        assert plan(config).notes == (
            "vLLM has no runtime, max_queue: left out",
            "vLLM drafts 4 tokens in every round, whether it pays or not; gamma sets how many",
        )

    def test_no_vllm_is_one_line_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingPackageError, match="finds no command 'vllm'; run: pip install vllm"):
            plan(DeploymentConfig())
        with pytest.raises(MissingPackageError, match="vllm_path is '/nowhere', which is no command"):
            plan(DeploymentConfig(vllm_path="/nowhere"))

    def test_an_executable_that_is_none_is_named(self, tmp_path: Path, vllm: str) -> None:
        Path(vllm).write_text("#!/no/such/interpreter\n")
        launch = plan(DeploymentConfig(model_path=folder(tmp_path / "model"), vllm_path=vllm))
        with pytest.raises(UsageError, match=r"cannot be run .*; give vLLM's own command"):
            start(launch)


class TestSpeculation:
    def test_none_is_none(self) -> None:
        assert speculation(DeploymentConfig(drafter="none")) is None

    @pytest.mark.parametrize("drafter", ["auto", "lookup"])
    def test_lookup_is_ngram_with_our_sizes(self, drafter: Any) -> None:
        assert speculation(DeploymentConfig(drafter=drafter, gamma=6)) == {
            "method": "ngram",
            "num_speculative_tokens": 6,
            "prompt_lookup_max": 6,
            "prompt_lookup_min": 2,
        }

    @pytest.mark.parametrize("drafter", ["auto", "draft_model"])
    def test_a_draft_model(self, drafter: Any, tmp_path: Path) -> None:
        draft = folder(tmp_path / "draft", vocab_size=300)
        target = folder(tmp_path / "target", text_config={"vocab_size": 300})
        assert speculation(DeploymentConfig(model_path=target, drafter=drafter, draft_model=draft)) == {
            "method": "draft_model",
            "model": draft,
            "num_speculative_tokens": 4,
        }

    @pytest.mark.parametrize("drafter", ["auto", "medusa"])
    def test_medusa_heads_draft_as_many_as_they_are(self, drafter: Any, tmp_path: Path) -> None:
        heads = folder(tmp_path / "heads", model_type="medusa", num_heads=3, vocab_size=300, truncated_vocab_size=300)
        config = DeploymentConfig(drafter=drafter, heads=heads)
        assert speculation(config) == {"method": "medusa", "model": heads, "num_speculative_tokens": 3}
        with pytest.raises(UsageError, match="gamma is 4 and the heads draft 3 tokens; give 3 or less"):
            speculation(config.model_copy(update={"gamma": 4}))

    @pytest.mark.parametrize("layout", ["speculators", "authors"])
    @pytest.mark.parametrize("drafter", ["auto", "eagle3"])
    def test_an_eagle3_head_goes_on_as_it_was_published(self, drafter: Any, layout: Any, tmp_path: Path) -> None:
        heads = str(write_eagle(tmp_path / "heads", tiny_model(), layout, gamma=3))
        config = DeploymentConfig(drafter=drafter, heads=heads)
        depth = 3 if layout == "speculators" else 4
        assert speculation(config) == {"method": "eagle3", "model": heads, "num_speculative_tokens": depth}
        deeper = speculation(config.model_copy(update={"gamma": 6}))
        assert deeper == {"method": "eagle3", "model": heads, "num_speculative_tokens": 6}

    @pytest.mark.parametrize("layout", ["speculators", "authors"])
    @pytest.mark.parametrize("drafter", ["auto", "dflash"])
    def test_a_dflash_head_drafts_the_block_behind_its_first_token(
        self, drafter: Any, layout: Any, tmp_path: Path
    ) -> None:
        heads = str(write_dflash(tmp_path / "heads", tiny_model(), layout, block=4))
        config = DeploymentConfig(drafter=drafter, heads=heads)
        assert speculation(config) == {"method": "dflash", "model": heads, "num_speculative_tokens": 3}
        with pytest.raises(UsageError, match="gamma is 4 and the heads draft 3 tokens; give 3 or less"):
            speculation(config.model_copy(update={"gamma": 4}))

    def test_a_dflash_head_that_drafts_its_first_token_too_is_not_vllms(self, tmp_path: Path) -> None:
        heads = write_dflash(tmp_path / "heads", tiny_model(), change={"sample_from_anchor": True})
        with pytest.raises(UnsupportedModelError, match="has sample_from_anchor, which vLLM cannot run"):
            speculation(DeploymentConfig(heads=str(heads)))

    @pytest.mark.parametrize("drafter", ["streams", "block", "lookahead", "mixed"])
    def test_what_vllm_cannot_run_is_said(self, drafter: Any) -> None:
        with pytest.raises(UsageError, match=f"drafter is '{drafter}', which vLLM cannot run; give lookup"):
            speculation(DeploymentConfig(drafter=drafter))

    def test_heads_that_are_streams(self, tmp_path: Path) -> None:
        heads = folder(tmp_path / "heads", kind="streams")
        with pytest.raises(UsageError, match="drafter is 'streams', which vLLM cannot run"):
            speculation(DeploymentConfig(heads=heads))
        with pytest.raises(UsageError, match="are streams and drafter is 'medusa'; give medusa heads"):
            speculation(DeploymentConfig(drafter="medusa", heads=heads))

    def test_heads_of_a_part_of_the_vocabulary_are_to_be_exported(self, tmp_path: Path) -> None:
        heads = folder(tmp_path / "heads", model_type="medusa", num_heads=3, vocab_size=300, truncated_vocab_size=80)
        with pytest.raises(UsageError, match=r"run: specstream export .* --to vllm --output FOLDER"):
            speculation(DeploymentConfig(heads=heads))

    def test_a_draft_of_another_size_is_to_be_exported(self, tmp_path: Path) -> None:
        draft, target = folder(tmp_path / "draft", vocab_size=310), folder(tmp_path / "target", vocab_size=300)
        with pytest.raises(
            VocabularyMismatchError, match=r"has 310 tokens and the model 300, .* run: specstream export"
        ):
            speculation(DeploymentConfig(model_path=target, draft_model=draft))

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"draft_model": "self:int8"}, "draft_model is 'self:int8', which vLLM cannot run"),
            ({"drafter": "draft_model"}, "there is no draft_model"),
            ({"drafter": "medusa"}, "there are no heads; give a folder of medusa heads"),
            ({"drafter": "eagle3"}, "there are no heads; give a folder of eagle3 heads"),
        ],
    )
    def test_what_is_missing_is_named(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            speculation(DeploymentConfig(**settings))


def test_a_hub_id_is_left_to_vllm(tmp_path: Path) -> None:
    assert where("org/name") == "org/name"
    assert where(folder(tmp_path / "model")) == str(tmp_path / "model")
    with pytest.raises(ModelNotFoundError, match="unknown model 'smollm2'"):
        where("smollm2")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), 1),
        (("-tp", "4", "-pp", "2"), 8),
        (("--tensor-parallel-size=4", "--pipeline-parallel-size", "3", "--seed", "5"), 12),
        (("-tp",), 1),
    ],
)
def test_weights_are_split_as_vllm_is_told(arguments: tuple[str, ...], parts: int) -> None:
    assert shards(arguments) == parts
