"""The local page: its endpoint and its limits. The page itself, in a real browser: test_browser.py."""

import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
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
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost", "LOCALHOST:80"):
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


@pytest.fixture(scope="module")
def weights(model: models.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model.h5"
    save_model(model, path)
    return path


def command(weights: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "minitl", "serve", str(weights), *options]


@contextlib.contextmanager
def served(weights: Path, *options: str) -> Iterator[str]:
    """Start the command on a free port; yield the address that it prints."""
    arguments = command(weights, "--port", "0", *options)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[0]  # type: ignore[union-attr]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(weights: Path) -> Iterator[str]:
    with served(weights) as address:
        yield address


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


@pytest.mark.parametrize("size", [1, 3])
def test_a_large_upload_gets_a_reason_from_the_running_server(address: str, size: int) -> None:
    body = bytes(size * MAX_BYTES + 1)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/predict", data=body), timeout=60)
    assert refused.value.code == 413
    assert "limit of 25 MB" in json.load(refused.value)["error"]


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("localhost", "localhost")],
)
def test_every_loopback_address_can_be_used(weights: Path, host: str, shown: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError:
        pytest.skip(f"this machine does not listen on {host}")
    with served(weights, "--host", host) as address:
        assert address.startswith(f"http://{shown}:")
        with urllib.request.urlopen(f"{address}/model", timeout=60) as answer:
            assert json.load(answer)["classes"] == NAMES
        asked = urllib.request.Request(f"{address}/model", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(asked, timeout=60)


def refused(weights: Path, *options: str) -> str:
    """Return what the command says when it cannot start."""
    done = subprocess.run(
        command(weights, *options), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr


def test_an_address_that_is_none_is_said(weights: Path) -> None:
    assert "--host foo.invalid" in refused(weights, "--host", "foo.invalid")
    assert "192.0.2.1" in refused(weights, "--host", "192.0.2.1")  # of another machine


def test_a_busy_port_is_said(address: str, weights: Path) -> None:
    port = address.rpartition(":")[2]
    assert f"port {port}" in refused(weights, "--port", port)
