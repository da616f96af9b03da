"""Built-in prompts, and prompts of files encoded once, the same way for every system."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from specstream.engine.text import asked, encode
from specstream.errors import UsageError

CHATS = (
    "Explain in a few sentences how tides come about, and why there are two of them a day.",
    "Write a Python function that merges two sorted lists into one sorted list, with a docstring.",
    "Name five large rivers, one per line, each with the countries it flows through.",
    "Summarize in two sentences: A bridge over the river was closed on Monday after inspectors had found cracks in two "
    "of its cables. The city expects repairs to take six weeks; until then buses use the old bridge downstream, and "
    "drivers are asked to allow twenty minutes more.",
    "What is the difference between a process and a thread? Give an example of when to use each.",
    "Write a SQL query that lists each customer's name with the number of orders placed in 2024, most orders first.",
    "Translate into French: The library opens at nine, and the reading room closes an hour before the library does.",
    "Plan a vegetarian dinner of three courses for four people, with a shopping list.",
)

_BANK = '''class Account:
    """A bank account."""

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("balance is too low")
        self.balance -= amount
        self.history.append(("withdraw", amount))

    def statement(self):
        lines = [f"Account of {self.owner}"]
        for kind, amount in self.history:
            lines.append(f"{kind:>10}: {amount:10.2f}")
        lines.append(f"{'balance':>10}: {self.balance:10.2f}")
        return "\\n".join(lines)
'''

_REPORT = """import csv
from collections import defaultdict


def read_sales(path):
    rows = []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            rows.append((row["region"], row["product"], int(row["units"]), float(row["price"])))
    return rows


def revenue_by_region(rows):
    totals = defaultdict(float)
    for region, product, units, price in rows:
        totals[region] += units * price
    return dict(totals)


def best_product(rows):
    totals = defaultdict(float)
    for region, product, units, price in rows:
        totals[product] += units * price
    return max(totals, key=totals.get)


def print_report(path):
    rows = read_sales(path)
    for region, revenue in sorted(revenue_by_region(rows).items()):
        print(f"{region}: {revenue:.2f}")
    print(f"best product: {best_product(rows)}")
"""

_EDIT = "{task} Give the whole file back, with nothing else changed.\n\n```python\n{code}```"
CODE_EDITS = tuple(
    _EDIT.format(task=task, code=code)
    for code, task in (
        (_BANK, "Rename the method `statement` to `report`."),
        (_BANK, "Add type hints to all methods of this class."),
        (_REPORT, "Rename the variable `totals` to `sums` everywhere."),
        (_REPORT, "Make `best_product` return None if there are no rows."),
        (_BANK, "Add a method `transfer(self, other, amount)` to this class."),
        (_REPORT, "Add a docstring of one line to every function."),
    )
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """What one call of ``generate`` is given: a batch of one prompt or more.

    Attributes:
        name: for people.
        prompts: token ids.
    """

    name: str
    prompts: list[list[int]]


def encoded(tokenizer: Any, texts: Iterable[str], *, raw: bool = False, name: str = "prompt") -> list[Item]:
    """One item for each text, through the chat template unless ``raw`` or where there is none."""
    chats = [asked(tokenizer, text, False if raw else None) for text in texts]
    return [Item(name=f"{name} {index}", prompts=[encode(tokenizer, each)]) for index, each in enumerate(chats)]


def batches(items: Sequence[Item], size: int) -> list[Item]:
    """Items of ``size`` prompts each; what is left over is dropped.

    Raises:
        UsageError: fewer prompts than one batch.
    """
    prompts = [prompt for item in items for prompt in item.prompts]
    if len(prompts) < size:
        raise UsageError(f"{len(prompts)} prompts make no batch of {size}; give more")
    starts = range(0, len(prompts) - size + 1, size)
    return [Item(name=f"batch {start // size}", prompts=prompts[start : start + size]) for start in starts]


def random_prompts(vocab_size: int, *, count: int, length: int, seed: int, at_once: int = 1) -> list[Item]:
    """Prompts of tokens drawn at random, the same for the same seed, ``at_once`` of them in each item."""
    chance = random.Random(seed)
    prompts = [[chance.randrange(vocab_size) for _ in range(length)] for _ in range(count)]
    return [Item(name=f"random {at // at_once}", prompts=prompts[at : at + at_once]) for at in range(0, count, at_once)]


def long_text(words: int, seed: int = 0) -> str:
    """A text of about so many words in which phrases come back, as they do in documents: for long contexts."""
    chance = random.Random(seed)
    subjects = (
        "The harbour office",
        "A surveyor",
        "The northern depot",
        "The night shift",
        "Our supplier",
        "The pilot",
    )
    verbs = ("reported", "counted", "returned", "delivered", "inspected", "misplaced")
    things = ("crates of lamps", "bales of wool", "barrels of tar", "coils of rope", "sacks of rice", "sheets of tin")
    lines: list[str] = []
    while len(lines) * 11 < words:
        day, many = len(lines) + 1, chance.randrange(2, 90)
        lines.append(f"Day {day}: {chance.choice(subjects)} {chance.choice(verbs)} {many} {chance.choice(things)}.")
    return "\n".join(lines)
