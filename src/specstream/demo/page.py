"""The page itself, in Gradio: components, what they trigger, and nothing that could be tested without them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from specstream.config import GenerationConfig
from specstream.demo import colours, figures, tree
from specstream.demo.offered import OfferedModels, Question
from specstream.demo.race import Race, ShownRound
from specstream.environment import require
from specstream.errors import SpecStreamError, UsageError, must_be

EVERY = 0.1
"""Seconds between two pictures of a race."""

FIELD = 220
"""Pixels: narrower fields go below each other."""

VIEWS = 8
"""Components behind the verdict that a race changes, its rounds among them."""

MOST_TOKENS, MOST_TEMPERATURE = 512, 2.0

ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}

SEED_DIGITS = 18
"""Fit into 63 bits."""

CHAT_BUTTONS = ["copy", "copy_all"]
"""Of a conversation. Gradio's third, "share", would send it to the hub."""

TITLE = "SpecStream"
INTRODUCTION = (
    '<header class="introduction"><h1>SpecStream</h1><p>The same model twice: alone, one token a pass, and with a '
    "drafter, whose tokens the model checks in one pass. They take turns pass by pass, each timed by "
    "itself.</p></header>"
)
PROMPTS = [
    "Repeat this code, with type hints added:\n\ndef area(width, height):\n    return width * height\n\n"
    "def perimeter(width, height):\n    return 2 * (width + height)",
    "Name three rivers in Africa and one fact about each of them.",
    "Explain in three sentences why the sea has tides.",
    "Write a short poem about a fox who learns to read.",
]


def style() -> str:
    """The page's own style sheet."""
    return files("specstream.demo").joinpath("page.css").read_text(encoding="utf-8")


def build_page(offered: OfferedModels, settings: GenerationConfig) -> Any:
    """The page as ``gradio.Blocks``.

    Args:
        offered: what it offers; its first model is loaded here.
        settings: what the fields show at first.

    Raises:
        MissingPackageError: Gradio is not installed.
        UsageError: the first model does not have the drafter to begin with.
        SpecStreamError: it cannot be loaded.
    """
    gradio = require("gradio", "demo", "specstream demo")
    drafters = offered.begin()
    if offered.drafter not in drafters:
        raise UsageError(f"drafter is {offered.drafter!r}; {offered.models[0]} has {', '.join(drafters)}")
    with gradio.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gradio.HTML(INTRODUCTION)
        with gradio.Tab("Compare"):
            fields = _fields(gradio, offered, drafters, settings)
            with gradio.Row(elem_classes="actions"):
                run = gradio.Button("Run", variant="primary", min_width=110, elem_id="run")
                stop = gradio.Button("Stop", min_width=110, elem_id="stop")
            views = _views(gradio)
            rounds = gradio.State([])
            _connect(gradio, offered, fields, views, rounds, run, stop)
        with gradio.Tab("Chat"):
            _chat(gradio, offered, {name: field for name, field in fields.items() if name != "prompt"})
    return page


def _fields(gradio: Any, offered: OfferedModels, drafters: list[str], settings: GenerationConfig) -> dict[str, Any]:
    """The components that somebody fills in, by the names of ``Question``'s attributes."""
    fields = {"prompt": gradio.Textbox(PROMPTS[0], label="Prompt", lines=4, max_lines=12, elem_id="prompt")}
    gradio.Examples(PROMPTS, fields["prompt"], label="Prompts to try", cache_examples=False)
    with gradio.Row():
        fields["model"] = gradio.Dropdown(
            [(name_of(each), each) for each in offered.models],
            value=offered.models[0],
            label="Model",
            min_width=FIELD,
            elem_id="model",
        )
        fields["drafter"] = gradio.Dropdown(
            drafters, value=offered.drafter, label="Drafter", min_width=FIELD, elem_id="drafter"
        )
        most = max(MOST_TOKENS, settings.max_new_tokens)
        fields["max_new_tokens"] = gradio.Slider(
            1, most, settings.max_new_tokens, step=1, label="Max new tokens", min_width=FIELD, elem_id="tokens"
        )
    with gradio.Row():
        fields["temperature"] = gradio.Slider(
            0,
            MOST_TEMPERATURE,
            settings.temperature,
            step=0.1,
            label="Temperature (0 is greedy)",
            min_width=FIELD,
            elem_id="temperature",
        )
        # A number field would show 0 where nothing is given.
        given = "" if settings.seed is None else str(settings.seed)
        fields["seed"] = gradio.Textbox(
            given, label="Seed of sampling", placeholder="a fresh one each time", min_width=FIELD, elem_id="seed"
        )
        fields["always"] = gradio.Checkbox(
            False, label="Draft in every round", info="Even where it does not pay.", min_width=FIELD
        )
    return fields


def _views(gradio: Any) -> dict[str, Any]:
    """The components that show a race, in the order of ``_shown``'s values."""
    views = {"verdict": gradio.HTML(figures.line("Nothing has run yet.", "running"), elem_id="verdict")}
    with gradio.Row(elem_classes="sides"):
        for side, heading in (("plain", "Plain decoding"), ("speculative", "Speculative decoding")):
            with gradio.Column(min_width=280):
                gradio.HTML(f"<h2>{heading}</h2>")
                views[f"{side}_figures"] = gradio.HTML(elem_id=f"{side}-figures")
                views[side] = gradio.HTML(colours.output(""), elem_id=side)
    views["legend"] = gradio.HTML(elem_id="legend")
    gradio.HTML("<h2>The tree of a round</h2>")
    views["number"] = gradio.Slider(1, 2, 1, step=1, label="Round", interactive=False, elem_id="round")
    views["tree"] = gradio.HTML(tree.drawn(None), elem_id="tree")
    return views


def _connect(
    gradio: Any, offered: OfferedModels, fields: dict[str, Any], views: dict[str, Any], rounds: Any, run: Any, stop: Any
) -> None:
    def answer(*values: Any) -> Iterator[list[Any]]:
        yield from answers(gradio, offered, dict(zip(fields, values, strict=True)))

    def choose(model: str) -> Any:
        try:
            drafters = offered.load(model)
        except SpecStreamError as error:
            raise gradio.Error(str(error)) from error
        return gradio.Dropdown(choices=drafters, value=offered.drafter if offered.drafter in drafters else drafters[0])

    def halt() -> list[Any]:
        return [figures.line("Stopped.", "running"), gradio.Slider(interactive=True)]

    def draw(known: list[ShownRound], number: int) -> str:
        return tree.drawn(known[min(int(number), len(known)) - 1] if known else None)

    started = gradio.on(
        [run.click, fields["prompt"].submit],
        answer,
        list(fields.values()),
        [*views.values(), rounds],
        api_name="run",
        show_progress="hidden",
        **ONE_AT_A_TIME,
    )
    stop.click(halt, None, [views["verdict"], views["number"]], cancels=[started], api_visibility="private")
    fields["model"].input(choose, fields["model"], fields["drafter"], api_visibility="private", **ONE_AT_A_TIME)
    views["number"].input(
        draw, [rounds, views["number"]], views["tree"], api_visibility="private", show_progress="hidden"
    )


def _chat(gradio: Any, offered: OfferedModels, chosen: dict[str, Any]) -> None:
    """A conversation with the drafting model, with what is chosen for the comparison."""
    log = gradio.Chatbot(label="Chat, with the model and the settings of Compare", elem_id="chat", buttons=CHAT_BUTTONS)
    line = gradio.Textbox(label="Message", elem_id="message", submit_btn=True, stop_btn=True)
    gradio.ClearButton([log, line])

    def answer(said: str, turns: list[Any], *values: Any) -> Iterator[list[Any]]:
        yield from replies(gradio, offered, said, turns, dict(zip(chosen, values, strict=True)))

    inputs = [line, log, *chosen.values()]
    started = line.submit(answer, inputs, [line, log], api_name="chat", show_progress="hidden", **ONE_AT_A_TIME)
    line.stop(None, cancels=[started], api_visibility="private")


def replies(
    gradio: Any, offered: OfferedModels, said: str, turns: list[Any], values: dict[str, Any]
) -> Iterator[list[Any]]:
    """The empty line and the conversation, again and again while it is answered; an error leaves both."""
    asked = [*turns, {"role": "user", "content": said}]
    try:
        must_be(bool(said.strip()), "message", said, "a text")
        question = Question(prompt="", **{**values, "seed": seed_of(values["seed"])})
        for text in offered.chat(
            question, [{"role": each["role"], "content": each["content"]} for each in asked], EVERY
        ):
            yield ["", [*asked, {"role": "assistant", "content": text}]]
    except SpecStreamError as error:
        raise gradio.Error(str(error)) from error


def answers(gradio: Any, offered: OfferedModels, values: dict[str, Any]) -> Iterator[list[Any]]:
    """What the views show, again and again while a race goes on, and its rounds behind them."""
    untouched = [gradio.skip()] * VIEWS
    yield [figures.line("Reading the prompt …", "running"), *untouched]
    try:
        question = Question(**{**values, "seed": seed_of(values["seed"])})
        for race in offered.race(question, EVERY):
            yield [*_shown(gradio, race), list(race.speculative.rounds)]
    except SpecStreamError as error:
        yield [figures.line(str(error), "bad"), *untouched]


def seed_of(text: str) -> int | None:
    """The seed that was typed, None for an empty field.

    Raises:
        UsageError: no whole number of 0 or more that a generator takes.
    """
    must_be(isinstance(text, str), "seed", text, "a text of digits, or an empty one")
    typed = text.strip()
    if not typed:
        return None
    if not (typed.isascii() and typed.isdigit() and len(typed) <= SEED_DIGITS):
        raise UsageError(
            f"seed is {typed[:40]!r}; give a whole number of 0 or more and at most {SEED_DIGITS} digits, or nothing"
        )
    return int(typed)


def name_of(model: str) -> str:
    """What a model is called on the page: of a folder, its last part."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _shown(gradio: Any, race: Race) -> list[Any]:
    """The values of the views, in their order."""
    side = race.speculative
    drafters = {piece.drafter for piece in side.pieces if piece.drafter is not None}
    number = tree.most_telling(side.rounds) if race.finished and side.rounds else len(side.rounds)
    shown = side.rounds[number - 1] if number else None
    return [
        figures.verdict_html(race),
        figures.as_html(figures.plain_figures(race)),
        colours.output(colours.plain(race.plain.pieces)),
        figures.as_html(figures.speculative_figures(race)),
        colours.output(colours.coloured(side.pieces)),
        colours.legend(drafters),
        gradio.Slider(maximum=max(2, len(side.rounds)), value=max(1, number), interactive=race.finished),
        tree.drawn(shown),
    ]
