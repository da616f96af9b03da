from __future__ import annotations

import json
from pathlib import Path

import pytest

from specstream.cli import main
from specstream.models.hub import snapshots


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "smollm2-135m"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("SPECSTREAM_MODELS", str(tmp_path))
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda hub_id: None)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert (caught.value.code, captured.err) == (0, "")
    return captured.out


def test_list_shows_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    output = run(capsys, "models", "list")
    assert all(name in output for name in ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"))


def test_list_json_is_one_object(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = json.loads(run(capsys, "models", "list", "--json"))
    assert listing["root"] == str(root)
    default = listing["models"][0]
    assert (default["name"], default["default"], default["cached"]) == ("smollm2-135m", True, True)
    assert (default["path"], default["file"]) == (str(root / "smollm2-135m"), None)
    (root / "smollm2-135m.gguf").touch()
    default = json.loads(run(capsys, "models", "list", "--json"))["models"][0]
    assert default["file"] == str(root / "smollm2-135m.gguf")
    assert "yes and as" in run(capsys, "models", "list")
    assert [model["cached"] for model in listing["models"][1:]] == [False, False]


def test_pull_prints_the_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "models", "pull", "smollm2-135m") == f"{root / 'smollm2-135m'}\n"


def test_pull_knows_the_file_of_a_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "smollm2-135m.gguf").touch()
    assert run(capsys, "models", "pull", "smollm2-135m.gguf") == f"{root / 'smollm2-135m.gguf'}\n"


def test_pull_json_is_one_object(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pulled = json.loads(run(capsys, "models", "pull", "smollm2-135m", "--json"))
    assert pulled == {"name": "smollm2-135m", "path": str(root / "smollm2-135m"), "already_here": True}
