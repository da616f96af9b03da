"""Self-distillation: prompts in, the model's own answers out, batch by batch; an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specstream.config import GenerationConfig
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Generation
from specstream.engine.inventory import announce_short_context, prepare
from specstream.engine.text import asked, encode
from specstream.environment import provenance
from specstream.errors import UsageError
from specstream.files.atomic import changed, check_new, difference, read_lines, refuse_folder_name, write_json
from specstream.files.prompts import prompt_of, read_records
from specstream.models.hub.catalog import resolve
from specstream.reporting import announce
from specstream.training.decontamination import Decontamination, same


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What is asked, and how it is answered.

    Attributes:
        model: whose answers; a catalog name, a folder or a hub id.
        prompts: files of prompts.
        exclude: files whose prompts must not be among them; see ``Decontamination``.
        batch_size: prompts answered at once.
        max_new_tokens: of an answer.
        max_prompt_tokens: longer prompts are left out.
        per_file: prompts to take of each file at most, None for all.
        temperature: 0 is greedy decoding.
        top_p: of sampling.
        seed: of sampling; the answer to a prompt does not depend on its batch.
        chat: put prompts through the chat template; None does where there is one.
        shuffle: take the prompts of all files in an order drawn by the seed, so that a limit takes some of each.
    """

    model: str
    prompts: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    batch_size: int = 16
    max_new_tokens: int = 256
    max_prompt_tokens: int = 768
    per_file: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    chat: bool | None = None
    shuffle: bool = True


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, the file and record it stands in, and what kind it is, where that is known."""

    prompt: str
    source: str
    domain: str = ""


Tell = Callable[[int, int, str], None]
"""Told how far a run is: prompts done, prompts in all, and a note."""


def read_questions(settings: AnswerSettings) -> tuple[list[Question], dict[str, int]]:
    """The prompts of the files, each once, without those excluded; and how many were left out, and why.

    Raises:
        UsageError: a file that cannot be read, or nothing left.
    """
    excluded = Decontamination.of_files(settings.exclude)
    seen: set[tuple[str, ...]] = set()
    left_out = {"repeated": 0, "excluded": 0}
    questions: list[Question] = []
    for file in settings.prompts:
        own: list[Question] = []
        for number, record in enumerate(read_records(file), 1):
            prompt = prompt_of(record, f"{file}:{number}")
            if prompt in excluded:
                left_out["excluded"] += 1
            elif same(prompt) in seen:
                left_out["repeated"] += 1
            else:
                seen.add(same(prompt))
                own.append(Question(prompt=prompt, source=f"{short_name(file)}:{number}"))
        questions += _shuffled(own, settings)[: settings.per_file]
    if not questions:
        raise UsageError("no prompt is left; give --prompts a file of prompts that --exclude does not hold")
    return _shuffled(questions, settings), left_out


def _shuffled(questions: list[Question], settings: AnswerSettings) -> list[Question]:
    return sorted(questions, key=lambda each: drawn(settings.seed, each.prompt)) if settings.shuffle else questions


def short_name(path: str) -> str:
    """A file by its name and its folder's: the rest says nothing elsewhere."""
    return f"{Path(path).parent.name}/{Path(path).name}"


def drawn(seed: int, text: str) -> bytes:
    """What to sort texts by for an order of chance: that of some does not depend on which others are there."""
    return hashlib.sha256(f"{seed}/{text}".encode()).digest()


def check_lengths(usable: int, prompts: int, most: int, setting: str = "max_prompt_tokens") -> None:
    """Refuse to write a file without a line.

    Raises:
        UsageError: all prompts have more tokens than they may have.
    """
    if not usable:
        raise UsageError(f"{setting} is {most} and all {prompts} prompts are longer; give more")


def check_place(place: str | Path, setting: str) -> None:
    """Refuse a place for an ``AnswerFile`` before anything is loaded for it, and make its folder.

    Raises:
        UsageError: a folder, a place that cannot be written to, or a file that no such run wrote: it would be lost.
    """
    path = Path(place)
    if not path.is_dir():
        refuse_folder_name(place, setting)
    if path.suffix not in ("", ".jsonl"):  # by its ending it would be read as something else
        raise UsageError(f"{setting} is {str(path)!r} and JSON lines are written; give a name that ends in .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{setting} is {str(path)!r}: {error.strerror}; give a file in another folder") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{setting} is {str(path)!r}; give the name of a file in a folder that can be written to")
    check_new(path, setting, lambda path: _record_of(path).exists())


def check_same(
    path: Path, identity: Mapping[str, Any], *, what: str, setting: str, later: Collection[str] = ()
) -> None:
    """Refuse a file that holds lines of another identity.

    Args:
        path: of an ``AnswerFile``, which may not be there.
        identity: as for that.
        what: as for that.
        setting: as for that.
        later: keys inside one of the identity's that are not known yet.

    Raises:
        UsageError: it does, with the first key that differs.
    """
    lines = any(
        each.is_file() and b"\n" in each.read_bytes() for each in (path, path.with_name(path.name + ".partial"))
    )
    if not lines or not (record := _record_of(path)).exists():  # without lines nothing is lost
        return
    before = json.loads(record.read_text(encoding="utf-8")).get("identity", {})
    before = {name: _without(later, before.get(name)) for name in identity}
    if (other := difference(before, identity)) is not None:
        raise UsageError(f"{path} holds {what} with {changed(*other)}; give another {setting}, or remove it")


def _without(keys: Collection[str], value: Any) -> Any:
    return {key: each for key, each in value.items() if key not in keys} if isinstance(value, dict) else value


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


class AnswerFile:
    """The JSON lines that are written, under another name until they are whole, and the record of where they come from.

    Args:
        path: the file.
        identity: what the answers depend on; a run goes on only with the same.
        what: what the lines hold, and ``setting`` how the path is given, for the error.

    Raises:
        UsageError: there are answers of another identity, or as for ``check_place``.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], *, what: str = "answers", setting: str = "--output"
    ) -> None:
        check_place(path, setting)
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.record = _record_of(path)
        self._identity, self._what = identity, what
        check_same(path, identity, what=what, setting=setting)

    def at_least(self, limit: int | None) -> int | None:
        """A limit, or what is there already if that is more: what was measured is never dropped. None is no limit."""
        there = next((each for each in (self.partial, self.path) if self.record.exists() and each.exists()), None)
        whole = 0 if there is None else there.read_bytes().count(b"\n")
        if limit is None or whole <= limit:
            return limit
        announce(f"{self.path} holds {whole} {self._what}, more than the limit of {limit}; all are kept")
        return whole

    def begin(self, record: dict[str, Any], unit: int, total: int) -> int:
        """Write the record, keep the lines of whole batches of ``unit``, and say how many of ``total`` are there."""
        if self.path.exists() and not self.partial.exists():  # finished with a smaller limit
            os.replace(self.path, self.partial)
        write_json(self.record, {**record, "identity": self._identity, "complete": False})
        lines = self.partial.read_bytes().splitlines(keepends=True) if self.partial.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        kept = whole if len(whole) >= total else whole[: len(whole) // unit * unit]
        with self.partial.open("ab") as file:
            file.truncate(sum(map(len, kept)))
        return len(kept)

    def tokens(self) -> int:
        """Of the answers that are there."""
        return sum(len(line["answer_token_ids"]) for line in read_lines(self.partial))

    def append(self, answers: Sequence[dict[str, Any]]) -> None:
        with self.partial.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))

    def finish(self, record: dict[str, Any], count: int) -> None:
        """Keep the first ``count`` lines and give the file its name."""
        lines = self.partial.read_bytes().splitlines(keepends=True)
        with self.partial.open("ab") as file:
            file.truncate(sum(map(len, lines[:count])))
        os.replace(self.partial, self.path)
        write_json(self.record, {**record, "identity": self._identity, "complete": True})


def distill(
    engine: SpeculativeEngine,
    settings: AnswerSettings,
    output: Path,
    limit: int | None = None,
    tell: Tell = lambda done, total, note: None,
    enough: Callable[[int], bool] = lambda tokens: False,
) -> dict[str, Any]:
    """Answer the prompts of ``settings`` into ``output``; what is there already of the same run is kept.

    Args:
        engine: of the model.
        settings: what is asked.
        output: JSON lines with ``prompt``, ``prompt_token_ids``, ``answer``, ``answer_token_ids``, ``finish_reason``
            and ``source``; beside it ``.meta.json`` says where they come from.
        limit: prompts to answer at most, and no fewer than are there. A later run with a larger one goes on.
        tell: is told after each batch; the note is its tokens per second.
        enough: is asked before each batch but the first whether these tokens of all answers are enough.

    Returns:
        The record that ``.meta.json`` holds, and the ``seconds`` that this call decoded for.

    Raises:
        UsageError: files that cannot be read, or an output of other settings.
    """
    questions, left_out = read_questions(settings)
    usable = encoded(engine.tokenizer, questions, settings.chat, settings.max_prompt_tokens)
    left_out["too_long"] = len(questions) - len(usable)
    check_lengths(len(usable), len(questions), settings.max_prompt_tokens)
    announce_short_context(engine.target, settings.max_new_tokens)
    file = AnswerFile(output, _identity(settings, engine))
    usable = usable[: file.at_least(limit)]
    record: dict[str, Any] = {
        "prompts": len(usable),
        "left_out": left_out,
        "model": settings.model,
        "provenance": engine.provenance(),
    }
    done = file.begin(record, settings.batch_size, len(usable))
    tell(min(done, len(usable)), len(usable), "")
    tokens, seconds = file.tokens(), 0.0
    for start in range(done, len(usable), settings.batch_size):
        if start and enough(tokens):
            usable = usable[:start]
            break
        batch = usable[start : start + settings.batch_size]
        generation = _answer(engine, [ids for _, ids in batch], settings, start)
        file.append([_line(generation, at, *each) for at, each in enumerate(batch)])
        tokens += sum(len(row.emitted) for row in generation.rows)
        seconds += generation.timings.total
        tell(start + len(batch), len(usable), f"{generation.new_tokens / generation.timings.total:.0f} tokens/s")
    record |= {"prompts": len(usable), "answer_tokens": tokens}
    file.finish(record, len(usable))
    return {**record, "seconds": seconds}


def encoded(
    tokenizer: Any, questions: Sequence[Question], chat: bool | None, most: int
) -> list[tuple[Question, list[int]]]:
    """Prompts with their tokens, but for those that have more than ``most``."""
    pairs = [(each, encode(tokenizer, asked(tokenizer, each.prompt, chat))) for each in questions]
    return [pair for pair in pairs if len(pair[1]) <= most]


def _answer(engine: SpeculativeEngine, prompts: list[list[int]], settings: AnswerSettings, start: int) -> Generation:
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed + start,  # of the first row; the next ones count up
    )
    prepare(engine.parts, len(prompts))
    return Generation(engine.parts, prompts, config).run()


def _line(generation: Generation, at: int, question: Question, prompt_ids: list[int]) -> dict[str, Any]:
    row = generation.rows[at]
    return {
        "prompt": question.prompt,
        "prompt_token_ids": prompt_ids,
        "answer": generation.text(row),
        "answer_token_ids": row.emitted,
        "finish_reason": row.finish_reason,
        "source": question.source,
    }


def _identity(settings: AnswerSettings, engine: SpeculativeEngine) -> dict[str, Any]:
    versions = provenance()
    return {
        **asdict(settings),
        "prompts": files_sha256(settings.prompts),
        "exclude": files_sha256(settings.exclude),
        "weights_sha256": weights_sha256(settings.model),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        **{name: versions[name] for name in ("specstream", "torch", "transformers")},
    }


def weights_sha256(model: str) -> str | None:
    """SHA-256 of a model's weight files, None where they lie in no folder."""
    folder = Path(resolve(model))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest() if files else None


def files_sha256(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, by their names without their folders."""
    return {Path(path).name: file_sha256(Path(path)) for path in paths}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
