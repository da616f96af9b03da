"""The demo's page: what its server answers, and what somebody sees who opens it in a browser."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from specstream.config import GenerationConfig
from specstream.demo.offered import OfferedModels
from specstream.demo.page import build_page
from specstream.demo.run import free_port, open_page
from specstream.engine.engine import SpeculativeEngine

pytest.importorskip("gradio")

# Of Gradio's own doing, in its threads.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:'future.no_silent_downcasting' is deprecated",
)

PROMPT = "one two three one <b>two</b> three ${1} one two"
TOKENS = 30
PATIENCE = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def loops_of_gradio() -> Iterator[None]:
    """Inside, Gradio may make event loops that it does not close; behind it they are gone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        asyncio.set_event_loop(None)
        gc.collect()


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def address(folder: str) -> Iterator[str]:
    offered = OfferedModels([folder], "self:int8", gamma=3, drafter="mixed", runtime="eager")
    with loops_of_gradio():
        page = build_page(offered, GenerationConfig(max_new_tokens=TOKENS))
        address = open_page(page, "127.0.0.1", free_port("127.0.0.1", 0))
    yield address
    with loops_of_gradio():
        page.close()
    offered.close()


@pytest.fixture(scope="module")
def expected(folder: str) -> str:
    """The model's own answer."""
    engine = SpeculativeEngine(folder, drafter="none", runtime="eager")
    return engine.generate([{"role": "user", "content": PROMPT}], max_new_tokens=TOKENS).text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    binary = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or name one in CHROMIUM")
    with playwright.sync_playwright() as running:
        # Root, as in a container, gets no sandbox of Chromium's.
        browser = running.chromium.launch(executable_path=binary, args=["--no-sandbox"], timeout=PATIENCE * 1000)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    """The page in a window, with what it asked for and what went wrong in it."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(PATIENCE * 1000)
    window.asked, window.errors = [], []
    window.on("request", lambda request: window.asked.append(request.url))
    window.on("pageerror", lambda error: window.errors.append(str(error)))
    window.goto(address)
    window.wait_for_selector("#run")
    yield window
    window.close()


def plain_text(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_its_server_streams_both_outputs(address: str, folder: str, expected: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    job = client.submit(PROMPT, folder, "mixed", TOKENS, 0, "", True, api_name="/run")
    job.result(timeout=PATIENCE)
    first, last = job.outputs()[0], job.outputs()[-1]
    assert "Reading the prompt" in first[0]
    assert re.search(r"Equal: both outputs are the same \d+ tokens", last[0])
    assert [plain_text(html) for html in (last[2], last[4])] == [expected] * 2
    assert 'class="drafted"' in last[4]
    assert "<svg" in last[7]
    client.close()


def test_a_conversation_goes_on_from_what_was_said(address: str, folder: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    engine = SpeculativeEngine(folder, drafter="none", runtime="eager")
    client, turns, log = Client(address, verbose=False), list[dict[str, str]](), list[Any]()
    for said in ("one two three", "the cat"):
        turns.append({"role": "user", "content": said})
        job = client.submit(said, log, folder, "mixed", 40, 0, "", True, api_name="/chat")
        line, log = job.result(timeout=PATIENCE)
        turns.append({"role": "assistant", "content": engine.generate(turns, max_new_tokens=40).text})
        assert line == ""
        assert [(turn["role"], plain_content(turn)) for turn in log] == [tuple(turn.values()) for turn in turns]
    with pytest.raises(AppError, match="give a text"):
        client.predict(" ", log, folder, "mixed", 40, 0, "", False, api_name="/chat")
    client.close()


def test_no_button_sends_a_conversation_to_the_hub(address: str) -> None:
    components = httpx.get(f"{address}config").json()["components"]
    (chat,) = (each["props"] for each in components if each["type"] == "chatbot")
    assert "share" not in chat["buttons"]


def plain_content(turn: Any) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_its_server_says_what_cannot_be_asked(address: str, folder: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    for prompt, seed, words in ((" ", "", "is empty"), ("a", "-1", "seed is &#x27;-1&#x27;; give a whole number")):
        last = client.predict(prompt, folder, "mixed", TOKENS, 0, seed, False, api_name="/run")
        assert 'class="verdict bad"' in last[0]
        assert words in last[0]
    with pytest.raises(AppError, match="not in the list of choices"):
        client.predict("a", "../other", "mixed", TOKENS, 0, "", False, api_name="/run")
    client.close()


@pytest.mark.timeout(600)
def test_somebody_types_runs_and_compares(opened: Any, expected: str, address: str) -> None:
    opened.fill("#prompt textarea", PROMPT)
    opened.get_by_label("Draft in every round").check()
    opened.click("#run")
    opened.wait_for_selector("#verdict .verdict.good")
    assert "Equal: both outputs are the same" in opened.inner_text("#verdict")
    plain, speculative = (opened.text_content(f"#{side} .output") for side in ("plain", "speculative"))
    assert plain == speculative == expected
    assert opened.locator("#speculative .drafted").count() > 0
    assert opened.locator("#speculative .own").count() > 0
    assert "drafted by" in opened.inner_text("#legend")
    assert re.search(r"\d\.\d\dx", opened.inner_text("#speculative-figures"))
    assert opened.locator("#tree rect").count() > 1
    opened.fill("#round input[type=number]", "1")
    opened.press("#round input[type=number]", "Enter")
    opened.wait_for_selector("#tree >> text=Round 1:")
    assert opened.errors == []
    assert {urlsplit(url).netloc for url in opened.asked if url.startswith("http")} == {urlsplit(address).netloc}


@pytest.mark.timeout(600)
def test_a_mistake_is_shown_and_a_phone_needs_no_sideways_scrolling(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    opened.fill("#prompt textarea", " ")
    opened.click("#run")
    opened.wait_for_selector("#verdict .verdict.bad")
    assert "is empty" in opened.inner_text("#verdict")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
