"""The pages that people look at, in a real browser: the one that `minitl serve` shows, and a run's report.

Chromium and chromedriver are not part of the project: without them these tests are skipped.
"""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minitl.serve import MAX_BYTES
from tests.test_report import make_report
from tests.test_serve import NAMES, address, model, picture, weights

__all__ = ["address", "model", "weights"]  # fixtures

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not shutil.which("chromedriver"),
        reason="needs Chromium and chromedriver (on Debian: apt install chromium chromium-driver)",
    ),
]

# What a browser does when a file that was dragged from a file manager is let go above an element.
DROP = """
const [target, name, content] = arguments;
const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], name, {type: "image/png"}));
for (const kind of ["dragenter", "dragover", "drop"]) {
  const options = {bubbles: true, cancelable: true, dataTransfer: carried};
  if (target.dispatchEvent(new DragEvent(kind, options)) && kind !== "dragenter")
    throw new Error(kind + ": the browser would open the file in place of the page");
}
return document.querySelector("#drop").classList.contains("over");
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        yield browser
    finally:
        browser.quit()


def wait_for(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def shown(browser: Any) -> list[str]:
    """Return the lines below the pictures."""
    return [row.text for row in browser.find_elements("class name", "bar")]


def error(browser: Any) -> str:
    return browser.find_element("id", "error").text


def complaints(browser: Any) -> list[str]:
    """Return what the browser notes, but for refused uploads and the icon that there is none of."""
    notes = [entry["message"] for entry in browser.get_log("browser")]
    return [note for note in notes if not any(w in note for w in ("415", "413", "favicon"))]


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    browser.get(address)
    return browser


def drop(browser: Any, content: bytes, name: str = "drop.png") -> None:
    target = browser.find_element("id", "drop")
    assert not browser.execute_script(DROP, target, name, base64.b64encode(content).decode())


def test_a_chosen_picture_is_classified(page: Any, tmp_path: Path) -> None:
    (tmp_path / "chosen.png").write_bytes(picture())
    page.find_element("id", "file").send_keys(str(tmp_path / "chosen.png"))
    wait_for(page, lambda: shown(page))
    assert len(shown(page)) == 3 and {row.split()[0] for row in shown(page)} == set(NAMES)
    widths = "return [...document.querySelectorAll('#pictures img')].map(i => i.naturalWidth)"
    wait_for(page, lambda: page.execute_script(widths) == [32, 32])
    assert not complaints(page)


def test_a_dropped_picture_is_classified_as_a_chosen_one(page: Any, tmp_path: Path) -> None:
    drop(page, picture())
    dropped = wait_for(page, lambda: shown(page))
    page.refresh()
    (tmp_path / "chosen.png").write_bytes(picture())
    page.find_element("id", "file").send_keys(str(tmp_path / "chosen.png"))
    assert wait_for(page, lambda: shown(page)) == dropped
    assert not complaints(page)


def test_what_is_no_picture_gets_a_reason_and_no_result(page: Any) -> None:
    drop(page, picture())
    wait_for(page, lambda: shown(page))
    drop(page, b"<html>")
    wait_for(page, lambda: "text instead" in error(page))
    assert not page.find_element("id", "result").is_displayed()
    drop(page, picture())
    wait_for(page, lambda: page.find_element("id", "result").is_displayed())
    assert error(page) == "" and not complaints(page)


def test_a_picture_that_is_too_large_gets_a_reason(page: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(picture() + bytes(MAX_BYTES))
    page.find_element("id", "file").send_keys(str(tmp_path / "large.png"))
    wait_for(page, lambda: "larger than the limit of 25 MB" in error(page))
    # Just below what the page looks at, with the form around it beyond the server's limit.
    content = picture()
    (tmp_path / "edge.png").write_bytes(content + bytes(MAX_BYTES - len(content)))
    page.refresh()
    page.find_element("id", "file").send_keys(str(tmp_path / "edge.png"))
    wait_for(page, lambda: "larger than the limit of 25 MB" in error(page))
    assert not complaints(page)


def test_a_report_opens_from_a_file_with_all_its_pictures(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    html, _ = make_report(tmp_path / "data")
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) > 10 and all(widths)
    fetched = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert not [name for name in browser.execute_script(fetched) if not name.startswith("data:")]
    wide = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(wide)
    assert not complaints(browser)
