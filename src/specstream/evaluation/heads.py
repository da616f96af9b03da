"""Drafters of one target beside each other, on the same prompts: trained heads, lookup, a draft model, and plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from specstream.config import engine_config
from specstream.engine.text import as_chat, encode, token_ids
from specstream.errors import UsageError, shown
from specstream.evaluation.benchmark.experiments import PLAIN_ARM, Arm, Group
from specstream.evaluation.benchmark.folder import Samples
from specstream.evaluation.benchmark.prompts import Prompt, say_left_out
from specstream.evaluation.benchmark.run import Progress, measure
from specstream.evaluation.benchmark.summary import arms_of, side_of, told
from specstream.files.prompts import is_chat, load_prompts, read_records
from specstream.heads.folder import KINDS

NEEDING = {**{kind: kind for kind in KINDS}, "draft_model": "draft", "mixed": "draft"}
"""Drafters and the option that says what each of them drafts with; streams that are shipped need none."""

CONVERSATIONS = (
    "Spec-Bench's question.jsonl, what SPEED-Bench's prepare.py writes, or lines such as "
    '{"category": "mine", "turns": ["The sea is"]}'
)
"""What ``read_conversations`` reads."""

SHORTEST = 512
"""Tokens of the first range of positions; each further range is twice as long as all before it."""

_ASKING = ("user", "tool")

FIXED = " (fixed tree)"
"""Behind the name of one whose tree is of one size, whether it pays or not: what heads are worth by themselves."""
PER_CATEGORY = 20
"""Prompts of each category that are asked where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What is asked, turn by turn.

    Attributes:
        category: the kind of task it is.
        turns: the messages before each answer of the model.
        tools: for the chat template.
        where: the record it is from, for errors.
    """

    category: str
    turns: Sequence[Sequence[Mapping[str, Any]]]
    tools: Sequence[Any]
    where: str


def read_conversations(path: str | Path, per_category: int | None = None, turns: int = 1) -> list[Conversation]:
    """The conversations of a file, category by category.

    A record has a ``category`` and ``turns``, the texts of a user, as Spec-Bench and SPEED-Bench publish them; or
    ``messages``, as SPEED-Bench's ``prepare.py`` writes them, and ``tools`` if there are any. The model is asked behind
    each message of a user or a tool that the next user's follows, and behind the last one.

    Args:
        path: the file.
        per_category: the first so many of each; None for 20, and it is said if that leaves some out.
        turns: the first so many of each conversation.

    Raises:
        UsageError: a file that cannot be read, a record of another form, by number, or none with so many turns.
    """
    limit = per_category or PER_CATEGORY
    found, longest, records = dict[str, list[Conversation]](), 0, read_records(path, CONVERSATIONS)
    for number, record in enumerate(records, 1):
        each = _conversation(record, f"record {number} of {str(path)!r}")
        own = found.setdefault(each.category, [])
        if len(own) < limit:
            longest = max(longest, len(each.turns))
            own.append(replace(each, turns=each.turns[:turns]))
    if not found:
        raise UsageError(f"prompts {str(path)!r} holds no prompt; give {CONVERSATIONS}")
    if longest < turns:
        raise UsageError(
            f"turns is {turns} and the longest conversation of {str(path)!r} has {longest}; give {longest}"
        )
    taken = [each for own in found.values() for each in own]
    if per_category is None:
        say_left_out(f"per_category is {limit}", len(taken), len(records))
    return taken


def _conversation(record: Mapping[str, Any], where: str) -> Conversation:
    said = record.get("turns", record.get("messages"))
    missing = [name for name, value in (("category", record.get("category")), ("turns", said)) if value is None]
    if missing:
        raise UsageError(f"{where} has no {' and '.join(map(repr, missing))}; give {CONVERSATIONS}")
    if "turns" in record:
        if not isinstance(said, list) or not said:
            raise UsageError(f'{where} has turns {shown(said)}; give a list of texts, such as ["The sea is"]')
        said = [{"role": "user", "content": str(each)} for each in said]
    texts = is_chat(said) and all(isinstance(each["content"], str | None) for each in said)
    if not texts or said[-1]["role"] not in _ASKING:
        raise UsageError(f"{where} has messages {shown(said)}; give a list of role and content that ends with a user's")
    turns: list[list[Mapping[str, Any]]] = [[]]
    for message, after in zip_longest(said, said[1:], fillvalue={"role": ""}):
        turns[-1].append(message)
        if message["role"] in _ASKING and after["role"] == "user":
            turns.append([])
    return Conversation(category=str(record["category"]), turns=turns, tools=record.get("tools") or (), where=where)


def read_document(path: str | Path) -> str:
    """The text that long prompts are cut from: all prompts of a file of any format, in their order.

    Raises:
        UsageError: a file that cannot be read or holds no prompt.
    """
    return "\n\n".join(load_prompts(path))


def prompts_of(
    engine: Any,
    conversations: Sequence[Conversation],
    told: Callable[[int, int], object],
    *,
    document: str = "",
    contexts: Sequence[int] = (),
) -> list[Prompt]:
    """Every turn of conversations as a prompt of token ids, behind the model's own answers to the turns before.

    Args:
        engine: that answers; it does not draft.
        conversations: whole.
        told: how many are there, of how many.
        document: text of which a passage stands before what is first asked, another one in each conversation.
        contexts: tokens of a first prompt with its passage, give or take a few; all conversations for each of them.
            None for no passages.

    Raises:
        UsageError: a conversation of several messages, or tools, for a model whose chat template takes none; a document
            or a context that is too short or too long.
    """
    limit = engine.target.context_length
    if limit is not None and max(contexts, default=0) >= limit:
        raise UsageError(f"context is {max(contexts)} tokens and the model's context holds {limit}; give a smaller one")
    tokens = token_ids(engine.tokenizer, document, add_special_tokens=False) if document else []
    found, total = list[Prompt](), len(conversations) * max(1, len(contexts))
    for done, (size, each) in enumerate(product(contexts or (0,), conversations)):
        told(done, total)
        said = list[Mapping[str, Any]]()
        for number, messages in enumerate(each.turns, 1):
            said += messages if number > 1 or not size else _behind(engine.tokenizer, tokens, done, size, each)
            ids = _ids(engine.tokenizer, said, each)
            found.append(Prompt(category=each.category, text=ids, chat=None, turn=number))
            if number < len(each.turns):
                said.append({"role": "assistant", "content": engine.generate(ids)["text"]})
    return found


def _behind(
    tokenizer: Any, tokens: Sequence[int], number: int, size: int, conversation: Conversation
) -> list[Mapping[str, Any]]:
    """The first messages with a passage before the last of them; the numbers of prompts have passages one by one."""
    *first, last = conversation.turns[0]
    room = size - len(_ids(tokenizer, conversation.turns[0], conversation))
    if not 0 < room <= len(tokens):
        short = f"the document has {len(tokens)}" if room > 0 else f"{conversation.where} has {size - room} by itself"
        raise UsageError(f"context is {size} tokens and {short}; give a {'longer text' if room > 0 else 'larger one'}")
    start = number * size % (len(tokens) - room + 1)
    passage = tokenizer.decode(tokens[start : start + room], skip_special_tokens=True).strip("\ufffd\n ")
    return [*first, {**last, "content": f"{passage}\n\n{last['content']}"}]


def _ids(tokenizer: Any, said: Sequence[Mapping[str, Any]], conversation: Conversation) -> list[int]:
    prompt = said if len(said) > 1 or as_chat(tokenizer, None) else said[0]["content"]
    ids = encode(tokenizer, prompt, {"tools": list(conversation.tools)} if conversation.tools else None)
    if conversation.tools and ids == encode(tokenizer, prompt):
        raise UsageError(
            f"{conversation.where} has tools and this model's chat template takes none; give another model"
        )
    return ids


def drafters_beside(
    names: Sequence[str],
    given: Mapping[str, str | None],
    settings: Mapping[str, Any],
    *,
    fixed: int | None,
    pruning: Sequence[float],
) -> list[Arm]:
    """Plain decoding and drafters.

    Args:
        names: of the drafters.
        given: what they draft with, by the options of ``NEEDING``.
        settings: of ``EngineConfig``, for all of them.
        fixed: heads once more, with a tree of so many nodes in every round; None for not.
        pruning: streams once more at each of these thresholds.
    """
    found = [PLAIN_ARM]
    wanted = [(name, each) for name in names for each in (None, *(pruning if name == "streams" else ()))]
    for name, least in wanted:
        heads = given[name] if name in KINDS else None
        draft = given["draft"] if NEEDING.get(name) == "draft" else None
        config = engine_config({**settings, "drafter": name, "heads": heads, "pruning": least})  # type: ignore[typeddict-item]
        arm = Arm(name=name if least is None else f"{name} (pruned {least:g})", config=config, draft=draft)
        found.append(arm)
        if fixed is not None and name in KINDS:
            found.append(replace(arm, name=f"{arm.name}{FIXED}", fixed_tree=fixed))
    return found


def measure_drafters(
    engine: Any, arms: Sequence[Arm], questions: Sequence[Prompt], size: int, on_progress: Progress
) -> dict[str, Any]:
    """Every arm on every group of questions, in turn; the last questions, too few for a group, are left out.

    Args:
        engine: whose target and settings all of them share.
        arms: one of them is plain decoding.
        questions: what is asked, ``size`` at once, in their order.
        size: of a group.
        on_progress: told how far it came, in answers.

    Returns:
        Plain values that JSON can hold.
    """
    left_out = len(questions) % size
    asked = questions[: len(questions) - left_out]
    group = Group(experiment="heads", generation=engine.config.generation, arms=tuple(arms), batch=size)
    samples = measure(engine, group, asked, on_progress, predicted=True)
    found = arms_of(samples)
    parameters = {each["arm"]: each["facts"]["draft_parameters"] for each in found}
    ratio = "measured_over_predicted"
    kinds = dict.fromkeys(each.category for each in asked) if size == 1 else ()  # else groups may mix them
    return {
        "batch_size": size,
        "left_out": left_out,
        "parameter_ratio": parameters["medusa"] / parameters["streams"]
        if {"medusa", "streams"} <= set(parameters)
        else None,
        "all": [{**side_of(each), ratio: each["all"][ratio]} for each in found],
        "categories": {kind: [side_of(each, kind) for each in found] for kind in kinds},
        "turns": _lengths(samples, lambda each, _: asked[each["item"]].turn) if size == 1 else {},
        "positions": _lengths(samples, lambda _, at: max(SHORTEST, 1 << (at - 1).bit_length())) if size == 1 else {},
        "samples": [
            {
                "question": (first := each["item"] * size),
                "category": ", ".join(dict.fromkeys(one.category for one in asked[first : first + size])),
                **told(each, samples),
            }
            for each in samples.samples
        ],
    }


def _lengths(samples: Samples, kind_of: Callable[[Mapping[str, Any], int], int]) -> dict[int, list[dict[str, Any]]]:
    """Tokens a pass of every arm, by a kind that a pass has by its sample and by the tokens before it; one row each."""
    counts = dict[int, dict[str, list[int]]]()
    for sample in samples.samples:
        position = sample["prompt_tokens"]
        for ((*_, emitted),) in sample["depths"]:
            own = counts.setdefault(kind_of(sample, position), {}).setdefault(sample["arm"], [0, 0])
            own[:] = own[0] + emitted, own[1] + 1
            position += emitted
    return {
        kind: [
            {"side": arm, "mean_accepted_length": tokens / passes, "passes": passes}
            for arm, (tokens, passes) in counts[kind].items()
        ]
        for kind in sorted(counts)
    }
