"""The writing page in headless Chromium: typing, Tab, choosing, taking; screenshots as wide as a desk and a phone.

`make test-browser` installs what it needs. The screenshots are left in the directory that GPT_SCREENSHOTS names.
"""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from toy import Run

from gpt.demo.app import Service, make_app
from gpt.demo.server import make_service
from gpt.training.model_dir import load_model

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: `make test-browser` does it"
)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium: `make test-browser` installs it", allow_module_level=True)

TEXT = "The cat sleeps near"


class Served:
    """A server in a thread of its own."""

    def __init__(self, service: Service) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, args=([listener],))

    def __enter__(self) -> str:
        self._thread.start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def service(pretrained: Run) -> Service:
    return make_service(pretrained.path, load_model(pretrained.path), 4, 12, name="toy", token="s3cret")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("GPT_SCREENSHOTS")
    directory = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    directory.mkdir(exist_ok=True)
    return directory


def open_page(browser: Any, url: str, problems: list[str], **device: Any) -> Any:
    page = browser.new_context(**device).new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith((url, "data:")) else problems.append(request.url))
    page.goto(url)
    return page


def sign_in(page: Any) -> None:
    page.get_by_label("This server wants its token").fill("s3cret")
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("heading", name="Write with toy").wait_for()


def make_safe(page: Any) -> None:
    """Lets the model, which has learnt little, write nothing odd, such as blank lines."""
    page.get_by_label("Length").fill("5")
    page.get_by_label("Temperature").fill("0.1")


def taken(page: Any, text: str) -> str:
    """What was put behind the text."""
    value = page.get_by_role("textbox", name="Your text").input_value()
    assert value.startswith(text)
    return value.removeprefix(text).strip()


def options_of(page: Any) -> list[str]:
    page.locator("#list:not(:has(li.writing)) li").nth(2).wait_for()
    return page.get_by_role("option").all_inner_texts()


def test_with_the_keyboard_alone_one_types_asks_chooses_takes_and_takes_back(
    service: Service, browser: Any, screenshots: Path
) -> None:
    problems: list[str] = []
    with Served(service) as url:
        page = open_page(browser, url, problems, viewport={"width": 1100, "height": 850})
        sign_in(page)
        assert all("401" in problem for problem in problems), problems
        problems.clear()
        text = page.get_by_role("textbox", name="Your text")
        make_safe(page)
        text.focus()
        page.keyboard.type(TEXT)
        page.keyboard.press("Tab")
        options = options_of(page)
        assert len(options) == 3
        assert all(options), "each is a text"
        assert text.get_attribute("aria-activedescendant") == "option-0"
        page.keyboard.press("ArrowDown")
        assert page.get_by_role("option", selected=True).inner_text() == options[1]
        page.screenshot(path=screenshots / "desk.png")
        page.keyboard.press("Enter")
        assert taken(page, TEXT) == options[1]
        assert page.get_by_role("option").count() == 0
        page.keyboard.press("Control+z")
        assert text.input_value() == TEXT
        page.get_by_role("button", name="Redo").click()
        assert taken(page, TEXT) == options[1]
        page.get_by_role("button", name="Undo").click()
        assert text.input_value() == TEXT

        page.keyboard.press("Tab")
        options_of(page)
        page.keyboard.press("Escape")
        assert page.get_by_role("option").count() == 0
        page.keyboard.press("Tab")
        assert not text.evaluate("element => element === document.activeElement"), "nobody is caught in the text"
        page.reload()
        assert text.input_value() == TEXT, "the text is still there"
    assert problems == []


def test_on_a_phone_one_taps_and_sees_how_surprising_each_word_is(
    service: Service, browser: Any, screenshots: Path
) -> None:
    problems: list[str] = []
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    with Served(service) as url:
        page = open_page(browser, url, problems, color_scheme="dark", **phone)
        sign_in(page)
        problems.clear()
        text = page.get_by_role("textbox", name="Your text")
        make_safe(page)
        text.fill(f"{TEXT} winter")
        page.get_by_label("Surprise").check()
        page.locator("#mirror span[class^=heat]").first.wait_for()
        text.press("End")
        page.get_by_text("“winter” had a probability of 1 in").wait_for()
        page.get_by_role("button", name="Continue").tap()
        options = options_of(page)
        page.screenshot(path=screenshots / "phone.png")
        page.get_by_role("option").nth(2).tap()
        assert taken(page, f"{TEXT} winter") == options[2]
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], "nothing sticks out to the side"
    assert problems == []


def test_what_goes_wrong_is_said(service: Service, browser: Any) -> None:
    with Served(service) as url:
        page = open_page(browser, url, [], viewport={"width": 800, "height": 600})
        status = page.locator("#status")
        status.filter(has_text="this server wants its token").wait_for()
        sign_in(page)
        text = page.get_by_role("textbox", name="Your text")
        text.press("Tab")
        assert status.inner_text() == "Write a few words first."
        text.fill("日本")
        text.press("Tab")
        status.filter(has_text="the vocabulary knows none of its characters").wait_for()
        text.fill(TEXT)
    text.press("Tab")
    status.filter(has_text="The server does not answer. Is it still running?").wait_for()
