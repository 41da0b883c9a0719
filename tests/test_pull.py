"""Weights by name: the catalogue is sound, and a download is whole and verified or leaves nothing.

No test needs the network: a server on this machine is slow, cuts off, sends wrong bytes or 404.
"""

import hashlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pooch
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save

from minitl import hdf5, models
from minitl.cli import main
from minitl.convert import pull as pulling
from minitl.convert.export_torch import torch_file
from minitl.convert.locate import find_weights
from minitl.convert.pull import catalogue, pull
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models import ARCHITECTURES
from minitl.weights import IMAGENET_CLASSES

NAME = "cifar_resnet20.test"


# ---------------------------------------------------------------------------- the catalogue


def test_the_catalogue_is_sound():
    entries = catalogue()
    assert len(entries) > 40
    for name, entry in entries.items():
        assert entry.arch in ARCHITECTURES, name
        assert entry.url.startswith("https://"), name
        assert entry.license and "\n" not in entry.license
        Preprocessing.from_dict(entry.preprocessing)
        if entry.stated:
            assert entry.url == f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
        elif entry.algorithm == "sha256":  # the file's name carries it
            assert entry.url.endswith(f"-{entry.digits}.pth"), name
    assert len({entry.url for entry in entries.values()}) == len(entries)
    pinned = [entry for entry in entries.values() if not entry.stated]
    assert len({entry.digits for entry in pinned}) == len(pinned)
    assert len(entries) - len(pinned) > 70


def test_preprocessing_is_the_source_s():
    def window(name):
        return [catalogue()[name].preprocessing[key] for key in ("resize", "crop", "interpolation")]

    assert window("resnet50.torchvision_v1") == [256, 224, "bilinear"]
    assert window("resnet50.torchvision_v2") == [232, 224, "bilinear"]
    assert window("inception_v3.torchvision_v1") == [342, 299, "bilinear"]
    assert window("resnet50.a1_in1k") == [235, 224, "bicubic"]
    assert window("resnet50.a1h_in1k") == [195, 176, "bicubic"]
    halves = catalogue()["resnetv2_50.a1h_in1k"].preprocessing
    assert (halves["resize"], halves["scale"], halves["mean"]) == (235, 1 / 127.5, [1.0] * 3)
    caffe = catalogue()["resnet50.keras"].preprocessing
    assert (caffe["channel_order"], caffe["scale"]) == ("BGR", 1.0)
    tf = catalogue()["inception_v3.keras"].preprocessing
    assert (tf["scale"], tf["mean"], tf["std"]) == (1 / 127.5, [1.0] * 3, [1.0] * 3)


def test_there_are_as_many_class_names_as_classes():
    names = IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[64], names[999]) == ("tench", "green mamba", "toilet tissue")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "weights",
        "[weights.'a.b']",
        "[licenses]\n[weights.'../x.y']\nhash='md5:'",
        "[licenses]\n[weights.'a.b']\nhash='sha256:abc'",
        "[licenses]\n[weights.'a.b']\nhash='crc:abcd'",
        "[licenses]\n[weights.'a.b']\nhash='sha256:'",
    ],
)
def test_a_broken_catalogue_is_one_error(tmp_path, text):
    (tmp_path / "catalogue.toml").write_text(text)
    with pytest.raises(UserError, match=r"catalogue\.toml is not a valid catalogue"):
        catalogue(tmp_path / "catalogue.toml")


ROW = {
    "arch": "resnet18",
    "url": "https://example.org/a.pth",
    "hash": "sha256:0123abcd",
    "preprocessing": {"resize": 40, "crop": 32, "interpolation": "bicubic", "values": "caffe"},
    "license": "free",
    "megabytes": 1,
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1 << 40),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["values", "crop", "x"]), st.integers(), max_size=2),
)


@pytest.fixture
def broken_catalogue(monkeypatch, tmp_path):
    """Reads a catalogue of any bytes: entries, or one clear error."""
    path = tmp_path / "catalogue.toml"

    def read(content):
        path.write_bytes(content)
        try:
            for entry in catalogue(path).values():
                Preprocessing.from_dict(entry.preprocessing)
                assert isinstance(entry.url, str) and "/" not in entry.file + entry.weights
        except UserError as error:
            message = str(error)
            assert "\n" not in message and message.isprintable()
            assert message.startswith(f"{path} is not a valid catalogue: ")

    return read


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_catalogue_is_read_or_one_error(broken_catalogue, data):
    row = {**ROW, "preprocessing": dict(ROW["preprocessing"])}
    place = data.draw(st.sampled_from([row, row["preprocessing"]]))
    field = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        del place[field]
    else:
        place[field] = data.draw(VALUES)
    tables = {"licenses": {"free": "as you like"}, "weights": {"a.b": row}}
    broken_catalogue(toml(tables).encode("utf-8", "replace"))


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_catalogue_or_one_error(broken_catalogue, data):
    tables = {"licenses": {"free": "as you like"}, "weights": {"a.b": ROW}}
    content = bytearray(toml(tables).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    broken_catalogue(bytes(content) + data.draw(st.binary(max_size=8)))


def test_a_catalogue_nested_too_deep(broken_catalogue):
    broken_catalogue(b"a = " + b"[" * 100_000)


def toml(value):
    """Write a value as TOML, tables in one line; what TOML lacks becomes text."""
    if isinstance(value, dict):
        return "\n".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items())
    return inline(value)


def inline(value):
    if isinstance(value, dict):
        items = ", ".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items())
        return f"{{ {items} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------- a server


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `behaviour` says how. Counts the requests."""

    daemon_threads = True
    behaviour = "well"
    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests += 1
        behaviour = server.behaviour
        if isinstance(behaviour, list):
            behaviour = behaviour.pop(0) if behaviour else "well"
        if behaviour == "404":
            self.send_error(404)
            return
        content = server.content if behaviour != "wrong" else server.content[:-1] + b"!"
        self.send_response(200)
        if behaviour != "unmeasured":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if behaviour in ("cut", "unmeasured"):
            content = content[: len(content) // 2]
        if behaviour == "silent":
            self.wfile.write(content[:1000])
            self.wfile.flush()
            server.released.wait(10)
            return
        if behaviour == "slow":
            for start in range(0, len(content), 1 << 15):
                self.wfile.write(content[start : start + (1 << 15)])
                time.sleep(0.05)
            return
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def checkpoint():
    model = models.create("cifar_resnet20", num_classes=1000, seed=3, width=4, shortcut="B")
    return torch_file({name: np.ascontiguousarray(a) for name, a in model.state_dict().items()})


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server(("127.0.0.1", 0), Handler)
    server.content = checkpoint()
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    write_catalogue(tmp_path, monkeypatch, server.content, server.server_address[1])
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pulling, "RETRIES", 1)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def write_catalogue(folder, monkeypatch, content, port):
    digits = hashlib.sha256(content).hexdigest()[:8]
    path = folder / "catalogue.toml"
    path.write_text(
        f"""
[licenses]
free = "as you like"
[weights."{NAME}"]
arch = "cifar_resnet20"
url = "http://127.0.0.1:{port}/some/resnet20-{digits}.pth"
hash = "sha256:{digits}"
preprocessing = {{ resize = 40, crop = 32, interpolation = "bicubic", values = "caffe" }}
license = "free"
"""
    )
    monkeypatch.setattr(pulling, "CATALOGUE", path)


def files(tmp_path):
    folder = tmp_path / "cache" / "weights"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def refused(*words, name=NAME, **options):
    with pytest.raises(UserError) as caught:
        pull(name, say=lambda line: None, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_pulled_once_and_kept(server, tmp_path):
    lines = []
    path = pull(NAME, say=lines.append)
    contents = hdf5.read(path)
    assert (contents.arch, contents.license) == ("cifar_resnet20", "as you like")
    assert contents.arch_options == {"shortcut": "B", "width": 4}
    assert contents.source == f"{NAME}: {catalogue()[NAME].url}"
    assert contents.source_sha256 == hashlib.sha256(server.content).hexdigest()
    assert contents.preprocessing["channel_order"] == "BGR"
    assert contents.preprocessing["resize"] == 40
    assert contents.class_names[0] == "tench"
    expected = models.create("cifar_resnet20", num_classes=1000, seed=3, width=4, shortcut="B")
    for name, array in expected.state_dict().items():
        assert np.array_equal(contents.state[name], array), name
    assert "downloading" in lines[0] and str(path) in lines[-1]
    assert files(tmp_path) == [path.name, path.name.replace(".h5", ".source.pth")]

    assert pull(NAME) == pull(NAME, offline=True, check=True) == find_weights(NAME) == path
    assert server.requests == 1


def test_a_slow_server_is_waited_for(server, monkeypatch):
    server.behaviour = "slow"
    monkeypatch.setattr(pulling, "TIMEOUT", 2.0)
    assert pull(NAME).is_file()


def test_a_broken_connection_is_tried_again(server):
    server.behaviour = ["cut"]
    assert pull(NAME).is_file()
    assert server.requests == 2


@pytest.mark.parametrize(
    ("behaviour", "words", "requests"),
    [
        ("404", ["answers 404", "moved"], 1),
        ("wrong", ["other bytes", "nothing was kept"], 1),
        ("unmeasured", ["other bytes"], 1),  # cut off where no length was told
        ("cut", ["cut off 2 times", "nothing was kept"], 2),
        ("silent", ["silent for 0.3 s", "nothing was kept"], 2),
    ],
)
def test_a_failed_download_leaves_nothing(
    server, tmp_path, monkeypatch, behaviour, words, requests
):
    server.behaviour = behaviour
    monkeypatch.setattr(pulling, "TIMEOUT", 0.3)
    refused("127.0.0.1", *words)
    assert files(tmp_path) == []
    assert server.requests == requests


def test_no_server(server, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_catalogue(tmp_path, monkeypatch, server.content, port)
    refused("cannot reach 127.0.0.1", "Connection refused", "HTTPS_PROXY")
    assert files(tmp_path) == []


def test_a_proxy_is_used(server, monkeypatch):
    address = f"127.0.0.1:{server.server_address[1]}"
    pulling.CATALOGUE.write_text(pulling.CATALOGUE.read_text().replace(address, "weights.invalid"))
    monkeypatch.setenv("http_proxy", f"http://{address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert "weights.invalid" in hdf5.read(pull(NAME)).source


def test_a_full_disk(server, tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fill)
    refused(str(tmp_path), "No space left", "MINITL_CACHE")
    assert files(tmp_path) == []


def test_a_cache_folder_that_cannot_be(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "file"))
    refused(str(tmp_path / "file"), "MINITL_CACHE")


def test_offline_takes_what_is_there(server, tmp_path):
    refused("without --offline", offline=True)
    assert server.requests == 0
    path = pull(NAME)
    path.unlink()
    assert pull(NAME, offline=True) == path  # made anew from the source file
    assert server.requests == 1


@pytest.mark.parametrize(
    "command", ["pull", "inspect", "finetune", "evaluate", "predict", "export"]
)
def test_no_command_goes_online_where_the_environment_says_so(
    server, tmp_path, monkeypatch, capsys, command
):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/4.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name)
    data, out = str(tmp_path / "data"), str(tmp_path / "out.pth")
    arguments = {
        "finetune": [data, "--weights", NAME, "--out", str(tmp_path / "run")],
        "evaluate": [NAME, data],
        "predict": [NAME, f"{data}/a/1.png"],
        "export": [NAME, out],
    }.get(command, [NAME])
    monkeypatch.setenv("MINITL_OFFLINE", "1")
    assert main([command, *arguments]) == 1
    error = capsys.readouterr().err
    assert f"{NAME} is not in" in error and "without MINITL_OFFLINE set" in error
    assert server.requests == 0
    monkeypatch.setenv("MINITL_OFFLINE", "0")
    assert main(["inspect", NAME]) == 0
    assert server.requests == 1


def test_a_damaged_cache_is_noticed_and_mended(server, tmp_path):
    path = pull(NAME)
    path.write_bytes(path.read_bytes()[:-1000])
    lines = []
    assert pull(NAME, check=True, say=lines.append) == path
    assert "cut off" in lines[0]
    hdf5.read(path)
    assert server.requests == 1

    source = path.with_name(path.name.replace(".h5", ".source.pth"))
    source.write_bytes(source.read_bytes()[:-1000])
    path.unlink()
    refused("without --offline", offline=True)
    assert hdf5.read(pull(NAME)).arch == "cifar_resnet20"
    assert server.requests == 2


def test_a_catalogue_that_is_wrong_about_the_network(server, tmp_path):
    text = pulling.CATALOGUE.read_text().replace('arch = "cifar_resnet20"', 'arch = "resnet18"')
    pulling.CATALOGUE.write_text(text)
    refused("holds a cifar_resnet20", "says resnet18")
    assert not any(name.endswith(".h5") for name in files(tmp_path))


def test_two_at_once_get_the_same(server, tmp_path):
    """Two programs pull at the same time, from a slow server."""
    server.behaviour = "slow"
    program = (
        "import sys; from pathlib import Path\n"
        "from minitl.convert import pull as pulling\n"
        "pulling.CATALOGUE = Path(sys.argv[1])\n"
        f"print(pulling.pull({NAME!r}, say=lambda line: None))"
    )
    command = [sys.executable, "-c", program, str(pulling.CATALOGUE)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (path,) = paths
    assert hdf5.read(path).arch == "cifar_resnet20"
    assert len(files(tmp_path)) == 2


# ---------------------------------------------------------------------------- the server states the hash


class Hub(Handler):
    """Answers as the Hugging Face hub does: the hash, and where the file is stored."""

    def do_HEAD(self):
        self.server.asked.append(self.path)
        if self.server.behaviour == "silent":
            self.server.released.wait(10)
            return
        self.answer()

    def do_GET(self):
        if self.path == "/storage":
            super().do_GET()
        else:
            self.answer()

    def answer(self):
        if self.server.refusal:
            self.send_error(self.server.refusal)
            return
        target = self.server.moved.get(self.path)
        self.send_response(307 if target else 302)
        self.send_header("Location", target or "/storage")
        if self.server.stated is not None and not target:
            self.send_header("X-Linked-ETag", self.server.stated)
        self.end_headers()


@pytest.fixture
def hub(server):
    server.RequestHandlerClass = Hub
    model = models.create("cifar_resnet20", num_classes=1000, seed=3, width=4, shortcut="B")
    state = {name: np.ascontiguousarray(a) for name, a in model.state_dict().items()}
    server.content = save(state)
    server.sha256 = hashlib.sha256(server.content).hexdigest()
    server.stated = f'"{server.sha256}"'
    server.asked, server.moved, server.refusal = [], {}, None
    text = pulling.CATALOGUE.read_text()
    text = re.sub(r"/some/.*\.pth", "/timm/resolve/main/model.safetensors", text)
    text = re.sub(r"sha256:\w+", "stated by the hub", text)
    pulling.CATALOGUE.write_text(text)
    return server


def test_the_stated_hash_is_asked_for_compared_and_kept(hub, tmp_path, capsys):
    lines = []
    path = pull(NAME, say=lines.append)
    assert hub.asked == ["/timm/resolve/main/model.safetensors"]
    assert "127.0.0.1 states sha256 " + hub.sha256 in lines[0]
    assert "server's own word" in lines[0] and "not a file that was changed" in lines[0]
    assert "downloading" in lines[1] and len(lines) == 3
    contents = hdf5.read(path)
    assert contents.source_sha256 == hub.sha256
    assert contents.preprocessing["resize"] == 40
    short = f"{NAME}-{hub.sha256[:16]}"
    assert files(tmp_path) == [f"{short}.h5", f"{short}.source.safetensors"]

    hub.stated = None  # it is not asked again
    assert pull(NAME) == pull(NAME, offline=True, check=True) == path
    path.unlink()
    assert pull(NAME, offline=True) == path  # made anew from the source file
    assert len(hub.asked) == hub.requests == 1
    assert main(["pull", "--list"]) == 0
    assert f"* {NAME}" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["{}", '"{}"', 'W/"{}"'])
def test_forms_of_the_stated_hash(hub, form):
    hub.stated = form.format(hub.sha256)
    assert hdf5.read(pull(NAME)).source_sha256 == hub.sha256


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (None, ["states no hash", "X-Linked-ETag", "minitl convert"]),
        ("", ["no SHA-256", "nothing was fetched"]),
        ('"0123456789abcdef0123456789abcdef01234567"', ["no SHA-256", "0123456789abcdef"]),  # git's
        (f'"{"g" * 64}"', ["no SHA-256"]),
        (f'"{"0" * 65}"', ["no SHA-256"]),
    ],
)
def test_nothing_is_fetched_without_a_hash(hub, tmp_path, stated, words):
    hub.stated = stated
    refused("http://127.0.0.1", *words)
    assert files(tmp_path) == [] and hub.requests == 0


@pytest.mark.parametrize("behaviour", ["wrong", "unmeasured", "cut", "404"])
def test_other_bytes_than_stated_leave_nothing(hub, tmp_path, behaviour):
    hub.behaviour = behaviour
    words = {"cut": "cut off 2 times", "404": "answers 404"}
    refused(words.get(behaviour, "other bytes than it states itself"))
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [401, 404])
def test_what_the_hub_does_not_have(hub, tmp_path, status):
    hub.refusal = status
    refused(f"answers {status}", "moved or is gone")
    assert files(tmp_path) == [] and hub.requests == 0 and len(hub.asked) == 1


def test_a_renamed_repository_is_followed(hub):
    hub.moved = {"/timm/resolve/main/model.safetensors": "/new/resolve/main/model.safetensors"}
    assert hdf5.read(pull(NAME)).source_sha256 == hub.sha256
    assert hub.asked[-1] == "/new/resolve/main/model.safetensors"


def test_only_the_hub_is_asked_for_the_hash(hub):
    there = f"http://localhost:{hub.server_address[1]}/elsewhere"
    hub.moved = {"/timm/resolve/main/model.safetensors": there}
    refused("127.0.0.1 states no hash")
    assert len(hub.asked) == 1


def test_a_hub_that_sends_in_circles(hub):
    path = "/timm/resolve/main/model.safetensors"
    hub.moved = {path: path}
    refused("states no hash")
    assert len(hub.asked) == 5


def test_a_hub_that_cannot_be_asked(hub, tmp_path, monkeypatch):
    refused("without --offline", offline=True)
    assert hub.asked == []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = pulling.CATALOGUE.read_text().replace(f":{hub.server_address[1]}/", f":{port}/")
    pulling.CATALOGUE.write_text(text)
    refused("cannot reach 127.0.0.1", "Connection refused")
    assert files(tmp_path) == []


def test_a_hub_that_is_silent_when_asked(hub, tmp_path, monkeypatch):
    hub.behaviour = "silent"
    monkeypatch.setattr(pulling, "TIMEOUT", 0.3)
    refused("127.0.0.1 was silent for 0.3 s")
    assert files(tmp_path) == [] and len(hub.asked) == 2


def test_a_damaged_source_of_the_hub_is_fetched_anew(hub):
    path = pull(NAME)
    source = path.with_name(path.name.replace(".h5", ".source.safetensors"))
    source.write_bytes(source.read_bytes()[:-1000])
    path.unlink()
    refused("without --offline", offline=True)
    assert pull(NAME) == path
    assert len(hub.asked) == hub.requests == 2


def test_damaged_files_give_way_to_what_the_hub_has_now(hub, tmp_path):
    path = pull(NAME)
    for name in files(tmp_path):
        (path.parent / name).write_bytes(b"damaged")
    hub.content = save({k: a + 1 for k, a in load(hub.content).items()})
    hub.sha256 = hub.stated = hashlib.sha256(hub.content).hexdigest()
    now = pull(NAME, check=True)
    assert hdf5.read(now).source_sha256 == hub.sha256
    assert files(tmp_path) == [now.name, now.name.replace(".h5", ".source.safetensors")]
    assert pull(NAME, check=True, offline=True) == now != path


def test_files_of_other_names_are_not_taken_for_the_hub_s(hub, tmp_path):
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    for name in ("-0123abcd.h5", "-.h5", "-.source.safetensors", "-0123456789abcdef.h5.part"):
        (folder / f"{NAME}{name}").write_bytes(b"something else")
    refused("without --offline", offline=True)
    assert hdf5.read(pull(NAME)).source_sha256 == hub.sha256


# ---------------------------------------------------------------------------- names


def test_unknown_names_are_helped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("several sources", "resnet50.torchvision_v2", "resnet50.keras", name="resnet50")
    refused("resnet50.torchvision_v1", name="resnet50.torchvison_v1")
    refused("minitl pull --list", name="perceptron")
    refused("the original, vgg16.torchvision_v1", name="vgg16.tv_in1k")
    refused("the original, resnet50.torchvision_v2", name="resnet50.tv2_in1k")
    refused("does not exist", name="resnet18.tv2_in1k")  # torchvision has no second version


def test_the_command(server, tmp_path, capsys):
    assert main(["pull", NAME]) == 0
    output = capsys.readouterr()
    path = output.out.strip()  # and nothing else: it may be piped on
    assert "downloading" in output.err
    assert hdf5.read(path).arch == "cifar_resnet20"
    assert main(["pull", NAME, "--offline"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert main(["pull"]) == 1
    assert "--list" in capsys.readouterr().err
    assert main(["pull", "perceptron", "--offline"]) == 1
    assert "perceptron does not exist" in capsys.readouterr().err


def test_the_list(server, tmp_path, capsys):
    assert main(["pull", "--list"]) == 0
    text = capsys.readouterr().out
    assert str(tmp_path / "cache") in text and "as you like" in text
    assert f"  {NAME}" in text
    pull(NAME, say=lambda line: None)
    assert main(["pull", "--list"]) == 0
    assert f"* {NAME}" in capsys.readouterr().out
    assert main(["pull", "--list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["weights"]
    assert row["cached"] is True and row["license"] == "as you like"


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "m.h5", tmp_path / "resnet50.keras"):
        path.write_text("")
        assert find_weights(path.name).resolve() == path
    assert find_weights("absent.h5").name == "absent.h5"  # whoever reads it says so
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"no best\.h5"):
        find_weights("run")
    (tmp_path / "run" / "best.h5").write_text("")
    assert find_weights("run").resolve() == tmp_path / "run" / "best.h5"
