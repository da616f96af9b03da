from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from specstream.errors import DownloadError
from specstream.models.hub import snapshots


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reachable hub with one model, whose snapshot is this folder."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    offer(monkeypatch, "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **options: str(tmp_path))
    return tmp_path


def offer(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, hub_id, timeout: info)


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def model_info(self: object, hub_id: str, timeout: float) -> None:
        assert timeout <= 10
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_a_snapshot_counts_when_its_weights_are_there(snapshot: Path) -> None:
    assert snapshots.cached_snapshot("org/name") is None
    (snapshot / "model.safetensors").write_bytes(b"")
    assert snapshots.cached_snapshot("org/name") == snapshot


@pytest.mark.parametrize("single", ["model.safetensors", "pytorch_model.bin"])
def test_a_sharded_snapshot_needs_every_shard(single: str, snapshot: Path) -> None:
    index = {"weight_map": {"a": "shard-1", "b": "shard-2"}}
    (snapshot / f"{single}.index.json").write_text(json.dumps(index), encoding="utf-8")
    (snapshot / "shard-1").write_bytes(b"")
    assert snapshots.cached_snapshot("org/name") is None
    (snapshot / "shard-2").write_bytes(b"")
    assert snapshots.cached_snapshot("org/name") == snapshot


def test_nothing_cached_is_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert snapshots.cached_snapshot("org/name") is None


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model*.safetensors"),
        (["pytorch_model.bin", "flax_model.msgpack"], "pytorch_model*.bin"),
    ],
)
def test_one_form_of_the_weights_is_fetched(
    files: list[str], pattern: str, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: Any) -> str:
        asked.update(options)
        (snapshot / pattern.replace("*", "")).write_bytes(b"")
        return str(snapshot)

    offer(monkeypatch, *files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert snapshots.fetch_snapshot("org/name", progress=True) == snapshot
    assert asked["allow_patterns"][-1] == pattern


def test_offline_asks_nothing(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fail(monkeypatch, AssertionError("asked"))
    with pytest.raises(snapshots.HubUnavailable, match="HF_HUB_OFFLINE"):
        snapshots.fetch_snapshot("org/name", progress=False)


def test_a_model_without_weights_is_unavailable(snapshot: Path) -> None:
    with pytest.raises(snapshots.HubUnavailable, match="no weights"):
        snapshots.fetch_snapshot("org/name", progress=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("refused"), r"cannot be reached \(ConnectionError\)"),
        (NotADirectoryError(20, "Not a directory"), r"cannot be used \(Not a directory\): point HF_HOME elsewhere"),
        (errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError), "no public model"),
        (errors.GatedRepoError.__new__(errors.GatedRepoError), "hf auth login"),
    ],
)
def test_why_the_hub_did_not_deliver(
    error: Exception, said: str, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, error)
    with pytest.raises(snapshots.HubUnavailable, match=said):
        snapshots.fetch_snapshot("org/name", progress=False)


def test_a_full_disk_is_not_mistaken_for_a_hub_out_of_reach(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DownloadError, match="no space left in"):
        snapshots.fetch_snapshot("org/name", progress=False)
