"""The local page: its endpoint, its limits, and the page itself in a real browser where there is one."""

import io
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minitl import models, save_model
from minitl.serve import MAX_BYTES, make_app
from minitl.train.predict import predict

NAMES = ["cat", "<b>dog</b>", "owl"]


@pytest.fixture(scope="module")
def model() -> models.Classifier:
    model = models.create("cifar_resnet20", num_classes=3, seed=0, width=4)
    model.class_names = list(NAMES)
    return model


@pytest.fixture
def client(model: models.Classifier):
    return make_app(model, "a <title>").test_client()


def picture(kind: str = "PNG", side: int = 50) -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (side, side + 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_as_the_body_or_as_a_form(client, model, tmp_path: Path) -> None:
    body = client.post("/predict", data=picture())
    form = client.post("/predict", data={"image": (io.BytesIO(picture()), "x.png")})
    assert body.status_code == form.status_code == 200 and body.json == form.json
    (tmp_path / "x.png").write_bytes(picture())
    save_model(model, tmp_path / "model.h5")
    expected = predict(tmp_path / "model.h5", [tmp_path / "x.png"])[0]["top"]
    assert [name for name, _ in body.json["top"]] == [name for name, _ in expected]
    np.testing.assert_allclose(
        [p for _, p in body.json["top"]], [p for _, p in expected], atol=1e-5
    )
    assert body.json["map"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "send a picture"),
        (b"<html>", 415, "text instead of a picture"),
        (picture()[:300], 415, "cannot be decoded"),
        (b"\0" * 100, 415, "not a picture"),
        (b"\0" * (MAX_BYTES + 1), 413, "larger than the limit"),
    ],
    ids=["empty", "text", "truncated", "zeros", "large"],
)
def test_what_is_no_picture_gets_a_reason(client, content: bytes, status: int, words: str) -> None:
    answer = client.post("/predict", data=content)
    assert answer.status_code == status and words in answer.json["error"]
    answer = client.post("/predict", data={"image": (io.BytesIO(content), "../../x.png")})
    assert answer.status_code == status and words in answer.json["error"]


def test_too_many_pixels_are_refused_before_they_are_decoded(client) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    answer = client.post("/predict", data=bomb.getvalue())
    assert answer.status_code == 415 and "pixels" in answer.json["error"]


def test_pages_of_other_sites_cannot_use_it(client) -> None:
    # What a browser sends after another site's name was pointed at this machine.
    answer = client.get("/model", headers={"Host": "evil.example"})
    assert answer.status_code == 403 and "evil.example" in answer.json["error"]
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"):
        assert client.get("/model", headers={"Host": host}).status_code == 200
    assert client.get("/model").headers["X-Content-Type-Options"] == "nosniff"


def test_unknown_paths_and_methods(client) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/../pyproject.toml").status_code == 404
    assert client.get("/page.html").status_code == 404


def test_the_page_escapes_names(client) -> None:
    html = client.get("/").text
    assert "a &lt;title&gt;" in html and "&lt;b&gt;dog&lt;/b&gt;" in html and "<b>dog" not in html


def test_the_model_describes_itself(client) -> None:
    assert client.get("/model").json == {"model": "cifar_resnet20", "classes": NAMES, "side": 32}


@pytest.fixture
def address(model: models.Classifier, tmp_path: Path):
    """A server as the command starts it, on a free port."""
    save_model(model, tmp_path / "model.h5")
    command = [
        sys.executable,
        "-m",
        "minitl",
        "serve",
        str(tmp_path / "model.h5"),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[0]  # type: ignore[union-attr]
        finally:
            server.terminate()


def test_the_command_answers_several_at_once(address: str) -> None:
    answers: list[dict] = []

    def ask() -> None:
        request = urllib.request.Request(f"{address}/predict", data=picture())
        with urllib.request.urlopen(request, timeout=120) as response:
            answers.append(json.load(response))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3 and answers[0] == answers[1] == answers[2]


def test_a_busy_port_is_said(address: str, tmp_path: Path) -> None:
    port = address.rpartition(":")[2]
    command = [
        sys.executable,
        "-m",
        "minitl",
        "serve",
        str(tmp_path / "model.h5"),
        "--port",
        port,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and f"port {port}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(
    not shutil.which("chromedriver"), reason="needs Chromium and chromedriver (a real browser)"
)
def test_in_a_browser(address: str, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.get(address)
        (tmp_path / "drop.png").write_bytes(picture())
        choose = browser.find_element(By.ID, "file")
        choose.send_keys(str(tmp_path / "drop.png"))
        wait = WebDriverWait(browser, 60)
        wait.until(lambda b: b.find_elements(By.CLASS_NAME, "bar"))
        rows = [row.text for row in browser.find_elements(By.CLASS_NAME, "bar")]
        assert len(rows) == 3 and {row.split()[0] for row in rows} == set(NAMES)
        widths = "return [...document.querySelectorAll('#pictures img')].map(i => i.naturalWidth)"
        assert browser.execute_script(widths) == [32, 32]

        (tmp_path / "text.png").write_text("<html>")
        choose.send_keys(str(tmp_path / "text.png"))
        wait.until(lambda b: "text instead" in b.find_element(By.ID, "error").text)
        assert not browser.find_element(By.ID, "result").is_displayed()
        errors = [entry for entry in browser.get_log("browser") if "415" not in entry["message"]]
        assert not [e for e in errors if "favicon" not in e["message"]], errors
    finally:
        browser.quit()
