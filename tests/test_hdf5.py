"""The weights file: what goes in comes out to the bit; whatever is wrong is one clear error."""

import errno
import functools
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl import hdf5
from minitl.errors import UserError, WeightsFileError
from minitl.files import advice
from minitl.hdf5 import Golden, WeightsFile
from minitl.models.sequential import KINDS


def example(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "arch": "resnet18",
        "arch_options": {"width": 4},
        "state": {
            "conv1.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "layer1.0.bn1.weight": np.array([1, -0.0, np.nan, np.inf, 1e-45], np.float32),
            "layer1.10.bn1.weight": np.ones(2, np.float32),
            "scalar": np.array(2.5, np.float32),
            "empty": np.zeros((0, 3), np.float32),
        },
        "class_names": ["cat", "Füchse", 'a "b"\n\udc80'],
        "preprocessing": {"resize": 256, "mean": [0.485, 0.456, 0.406]},
        "source": "somewhere",
        "source_sha256": "ab" * 32,
        "license": "MIT",
    }
    return WeightsFile(**(fields | changes))


def example_golden():
    picture = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    return Golden(picture, np.array([0.5, -0.0, 1e-40], np.float32))


def example_checkpoint():
    rng = np.random.default_rng(1)
    return example(
        golden=example_golden(),
        optimizer={
            "lr": 0.1,
            "step": 2**127 + 1,
            "momentum": [rng.standard_normal((2, 3)), np.arange(5, dtype=np.int16)],
        },
        progress={
            "epoch": 3,
            "best": -math.inf,
            "nothing": None,
            "flags": np.array([True, False]),
            "order": np.arange(6, dtype=">i8").reshape(2, 3).T,
            "half": np.array(0.5, np.float16),
            "deep": {"a": [{"b": [1.5, "x", True, {}]}, []], "ü.x/y": "text"},
        },
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.h5"


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_nested(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_nested(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_nested, a, b))
    if isinstance(a, np.ndarray):
        return same_bits(a.astype(a.dtype.newbyteorder("=")), b)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def refused(path, *words):
    """Return the one-line error with which `path` is refused."""
    with pytest.raises(WeightsFileError) as caught:
        hdf5.read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message, message
    return message


# ---------------------------------------------------------------------------- round trip


def test_everything_comes_back_to_the_bit(path):
    written = example_checkpoint()
    digest = hdf5.write(path, written)
    back = hdf5.read(path)
    assert back.digest == digest
    assert sorted(back.state) == sorted(written.state)
    for name, array in written.state.items():
        assert same_bits(array, back.state[name]), name
        assert back.state[name].flags.c_contiguous and back.state[name].flags.writeable
    for name in ("arch", "arch_options", "class_names", "preprocessing"):
        assert getattr(back, name) == getattr(written, name)
    for name in ("source", "source_sha256", "license"):
        assert getattr(back, name) == getattr(written, name)
    assert same_nested(written.optimizer, back.optimizer)
    assert same_nested(written.progress, back.progress)
    assert same_bits(written.golden.picture, back.golden.picture)
    assert same_bits(written.golden.logits, back.golden.logits)


def test_bytes_behind_the_end_are_counted(path):
    hdf5.write(path, example_checkpoint())
    assert hdf5.read(path).appended == 0
    with path.open("ab") as file:
        file.write(b"something else")
    assert hdf5.read(path).appended == 14


def test_without_checkpoint_parts_and_names(path):
    hdf5.write(path, example(class_names=None, state={}))
    back = hdf5.read(path)
    assert (back.class_names, back.optimizer, back.progress, back.state) == (None, None, None, {})
    assert back.golden is None


def test_equal_contents_make_equal_files(tmp_path):
    hdf5.write(tmp_path / "a.h5", example())
    hdf5.write(tmp_path / "b.h5", example())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_arrays_of_several_chunks_and_transposed(path, monkeypatch):
    monkeypatch.setattr(hdf5, "_CHUNK_BYTES", 100)
    array = np.arange(7 * 11 * 2, dtype=np.float32).reshape(11, 7, 2).transpose(1, 0, 2)
    hdf5.write(path, example(state={"a": array}))
    assert np.array_equal(hdf5.read(path).state["a"], array)
    with h5py.File(path) as file:
        assert file["a"].chunks == (1, 11, 2) and file["a"].fletcher32


def test_chunks_are_about_equal(path, monkeypatch):
    monkeypatch.setattr(hdf5, "_CHUNK_BYTES", 400)
    hdf5.write(path, example(state={"a": np.zeros(101, np.float32)}))
    with h5py.File(path) as file:
        assert file["a"].chunks == (51,)


def test_many_long_class_names(path):
    names = [f"class number {i}, with a long name" for i in range(30_000)]
    hdf5.write(path, example(class_names=names))
    assert hdf5.read(path).class_names == names


@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**200), 2**200)
        | st.floats(allow_nan=True)
        | st.text(st.characters(), max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.text(max_size=4).filter(lambda s: not s.startswith("$")), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_nesting_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("nest") / "w.h5"
    hdf5.write(path, example(progress={"value": value}))
    assert same_nested({"value": value}, hdf5.read(path).progress)


def test_tuples_come_back_as_lists_and_numpy_numbers_as_python_ones(path):
    hdf5.write(path, example(progress={"a": (1, 2), "b": np.float32(0.5), "c": np.int8(3)}))
    assert hdf5.read(path).progress == {"a": [1, 2], "b": 0.5, "c": 3}


def test_a_link_keeps_pointing_to_the_file(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.h5"
    link.symlink_to(tmp_path / "real" / "w.h5")
    hdf5.write(link, example())
    assert link.is_symlink() and hdf5.read(tmp_path / "real" / "w.h5").arch == "resnet18"


# ---------------------------------------------------------------------------- the format as described


def test_the_description_agrees(path):
    """The program in weights/README.md, which knows only h5py and hashlib, finds the same digest."""
    text = (Path(__file__).parent.parent / "weights" / "README.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(import hashlib.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(program.group(1), names)
    digest = hdf5.write(path, example_checkpoint())
    assert names["digest"](path) == digest
    for kind, (_, settings) in KINDS.items():  # of a chain of layers
        (row,) = re.findall(rf"^\|[^|]*`{kind}`[^|]*\|[^|]*\|$", text, re.MULTILINE)
        row = row.replace("the same", "`kernel` `stride` `padding`")
        assert all(f"`{setting}`" in row for setting in settings), kind
    with h5py.File(path) as file:
        assert bytes(file.attrs["digest"]).decode() == digest
        assert file["layer1/10/bn1/weight"].dtype == np.float32
        assert json.loads(bytes(file.attrs["class_names"]))[0] == "cat"


def write_by_hand(path, change=None, *, state=None, checksum=True, libver="v110", **attributes):
    """Write a file as somebody else would, from the description; `change` gets the open h5py file."""
    texts = {
        "format": "minitl",
        "format_version": "1",
        "arch": "resnet18",
        "arch_options": "{}",
        "class_names": "null",
        "preprocessing": "{}",
        "source": "",
        "source_sha256": "",
        "license": "",
    }
    texts |= attributes
    state = {"a": np.arange(4, dtype=np.float32)} if state is None else state
    result = hashlib.sha256()
    for name in sorted(texts):
        text = texts[name].encode()
        result.update(f"@{name}\tutf8\t{len(text)}\n".encode() + text)
    for name in sorted(state):
        array = state[name]
        shape = ",".join(map(str, array.shape))
        result.update(f"{name}\t{array.dtype.name}\t{shape}\n".encode() + array.tobytes())
    with h5py.File(path, "w", libver=libver) as file:
        for name, text in (texts | {"digest": result.hexdigest()}).items():
            file.attrs[name] = np.bytes_(text.encode())
        for name, array in state.items():
            file.create_dataset(name, data=array, fletcher32=checksum)
        if change:
            change(file)


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("libver", ["v110", "latest"])
def test_files_written_by_hand(path, checksum, libver):
    write_by_hand(path, checksum=checksum, libver=libver)
    assert hdf5.read(path).state["a"].tolist() == [0, 1, 2, 3]


def test_float16_reads_as_float32(path):
    values = np.array([1.5, -0.0, 65504, 6e-8, np.inf], np.float16)
    write_by_hand(path, state={"a": values})
    assert same_bits(hdf5.read(path).state["a"], values.astype(np.float32))


def test_bfloat16_reads_as_float32(path):
    exact = np.array([1.5, -0.0, 3.0e38, 1e-40, -np.inf], np.float32)
    bits = (exact.view(np.uint32) >> 16).astype(np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)

    def disguise(file):
        file["a"].attrs["dtype"] = np.bytes_(b"bfloat16")

    write_by_hand(path, disguise, state={"a": bits})
    refused(path, "altered")  # the digest was computed over uint16
    with h5py.File(path, "r+") as file:
        texts = {
            name: (f"utf8\t{len(file.attrs[name])}", bytes(file.attrs[name]))
            for name in file.attrs
            if name != "digest"
        }
        result = hashlib.sha256()
        for name in sorted(texts):
            result.update(f"@{name}\t{texts[name][0]}\n".encode() + texts[name][1])
        result.update(b"a\tbfloat16\t5\n" + bits.tobytes())
        file.attrs["digest"] = np.bytes_(result.hexdigest().encode())
    assert same_bits(hdf5.read(path).state["a"], expected)


# ---------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"PK\x03\x04" + bytes(100), ["not an HDF5 file", "minitl convert"]),
        (b"\x89HDF\r\n\x1a\n", ["not a minitl weights file"]),
        (b"\x89HDF\r\n\x1a\n\x03" + bytes(100), ["damaged"]),
    ],
)
def test_other_files_are_refused(path, content, words):
    path.write_bytes(content)
    refused(path, *words)


def test_absent_files_and_folders_are_refused(path, tmp_path):
    refused(path, "does not exist")
    refused(tmp_path, "not a file")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything"
)
def test_unreadable_files_are_refused(path):
    hdf5.write(path, example())
    path.chmod(0)
    refused(path, "Permission denied")


def test_hdf5_files_of_others_are_refused(path):
    with h5py.File(path, "w") as file:
        file["a"] = [1.0]
    refused(path, "not a minitl weights file")
    with h5py.File(path, "w", libver="v110") as file:
        file["a"] = [1.0]
    refused(path, "not a minitl weights file")


@pytest.mark.parametrize("version", ["2", "99", "", "one"])
def test_newer_versions_are_refused(path, version):
    write_by_hand(path, format_version=version)
    refused(path, "version", "newer minitl")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"arch": ""}, ["arch"]),
        ({"arch_options": "[]"}, ["arch_options"]),
        ({"arch_options": "{"}, ["arch_options", "JSON"]),
        ({"preprocessing": "null"}, ["preprocessing"]),
        ({"preprocessing": '{"mean": NaN}'}, ["preprocessing", "NaN"]),
        ({"preprocessing": "[" * 100_000}, ["preprocessing"]),
        ({"class_names": "[1]"}, ["class_names"]),
        ({"class_names": '{"a": 1}'}, ["class_names"]),
    ],
)
def test_wrong_attributes_are_refused(path, attributes, words):
    write_by_hand(path, **attributes)
    refused(path, *words)


@pytest.mark.parametrize("value", [1, np.zeros(3), h5py.Empty("S3"), ["a", "b"], "variable length"])
def test_attributes_of_other_types_are_refused(path, value):
    def change(file):
        del file.attrs["license"]
        file.attrs["license"] = value

    write_by_hand(path, change)
    refused(path, "license")


def test_text_that_is_no_utf8_is_refused(path):
    write_by_hand(path, lambda file: file.attrs.__setitem__("license", np.bytes_(b"a\xffb")))
    refused(path, "damaged")


def test_lacking_attributes_are_refused(path):
    write_by_hand(path, lambda file: file.attrs.__delitem__("digest"))
    refused(path, "digest")


def add_virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("b", layout)


def add_external_storage(file):
    file.create_dataset("b", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def add_cycle(file):
    file.create_group("b")
    file["b/c"] = file["/"]


def add_second_name(file):
    file["b"] = file["a"]


def add_promise(file):
    file.create_dataset("b", (1 << 40,), "f4", chunks=(1 << 20,))


def add_small_promise(file):
    file.create_dataset("b", (4,), "f4", chunks=(4,))


def add_contiguous_promise(file):
    file.create_dataset("b", (1 << 50,), "f4")


def add_large_chunks(file):
    dataset = file.create_dataset("b", (4,), "f4", chunks=(1 << 20,), maxshape=(None,))
    dataset[:] = 1


def add_many_chunks(file):
    file.create_dataset("b", data=np.zeros(1500, "f4"), chunks=(1,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.__setitem__("b", h5py.ExternalLink("/etc/passwd", "/x")), ["link", "passwd"]),
        (lambda f: f.__setitem__("b", h5py.SoftLink("/a")), ["link"]),
        (lambda f: f.__setitem__("b", h5py.SoftLink("/nowhere")), ["link"]),
        (add_virtual, ["virtual"]),
        (add_external_storage, ["another file"]),
        (add_cycle, ["second name"]),
        (add_second_name, ["second name"]),
        (add_promise, ["more than the file can hold"]),
        (add_contiguous_promise, ["more than the file can hold"]),
        (add_small_promise, ["not there"]),
        (add_many_chunks, ["1000 chunks"]),
        (add_large_chunks, ["no fixed shape"]),
        (lambda f: f.create_dataset("b", data=np.zeros(4)), ["float64"]),
        (lambda f: f.create_dataset("b", data=np.zeros(4, "i4")), ["int32"]),
        (lambda f: f.create_dataset("b", data=np.zeros(4, ">f4")), ["little-endian"]),
        (lambda f: f.create_dataset("b", data=np.zeros(4, "c8")), ["little-endian"]),
        (lambda f: f.create_dataset("b", data=np.zeros(4, bool)), ["plain"]),
        (lambda f: f.create_dataset("b", data=np.zeros(2, [("x", "f4")])), ["plain"]),
        (lambda f: f.create_dataset("b", data=["text"]), ["plain"]),
        (lambda f: f.create_dataset("b", data=f.ref, dtype=h5py.ref_dtype), ["plain"]),
        (lambda f: f.create_dataset("b", data=h5py.Empty("f4")), ["no fixed shape"]),
        (lambda f: f.create_dataset("b", data=np.zeros(999, "f4"), compression=9), ["compressed"]),
        (lambda f: f.create_dataset("b", data=np.zeros(9, "f4"), shuffle=True), ["filtered"]),
        (lambda f: f.__setitem__("b", np.dtype("f4")), ["neither"]),
        (lambda f: f.create_dataset("b", data=np.zeros(4, "f4")), ["altered"]),
        (lambda f: f["a"].__setitem__(0, 7), ["altered"]),
        (lambda f: f.move("a", "b"), ["altered"]),
        (lambda f: f.attrs.__setitem__("class_names", np.bytes_(b'["x"]')), ["altered"]),
        (lambda f: f["a"].attrs.__setitem__("dtype", np.bytes_(b"bfloat16")), ["bfloat16"]),
        (lambda f: f["a"].attrs.__setitem__("other", "x"), ["attribute 'other'"]),
        (lambda f: f.attrs.__setitem__("other", "x"), ["attribute 'other'"]),
        (lambda f: f.create_dataset("a.b", data=np.zeros(4, "f4")), ["valid parameter name"]),
        (lambda f: f.create_dataset("é", data=np.zeros(4, "f4")), ["valid parameter name"]),
        (lambda f: f.create_dataset("..x", data=np.zeros(4, "f4")), ["valid parameter name"]),
        (lambda f: f.create_dataset("b\\c", data=np.zeros(4, "f4")), ["valid parameter name"]),
        (lambda f: f.create_dataset("/".join("b" * 40), data=np.zeros(4, "f4")), ["deep"]),
        (lambda f: f.create_dataset("b" * 600, data=np.zeros(4, "f4")), ["valid parameter name"]),
    ],
)
def test_what_version_1_does_not_write_is_refused(path, change, words):
    write_by_hand(path, change)
    refused(path, *words)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"a": {"$array": 7}}', '{"a": {"$float": "x"}}', '{"a": NaN}', "[" * 90_000],
)
def test_checkpoint_text_that_is_wrong_is_refused(path, text):
    section = {"progress/json": np.frombuffer(text.encode(), np.uint8)}
    write_by_hand(path, state=section)
    refused(path)


def test_checkpoint_without_text_is_refused(path):
    write_by_hand(path, state={"progress/0": np.zeros(3, np.float32)})
    refused(path, "progress/json")


PICTURE, LOGITS = np.zeros((2, 2, 3), np.uint8), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    "golden",
    [
        {"picture": PICTURE},
        {"logits": LOGITS},
        {"picture": PICTURE, "logits": LOGITS, "more": LOGITS},
        {"picture": PICTURE.astype(np.float32), "logits": LOGITS},
        {"picture": PICTURE[0], "logits": LOGITS},
        {"picture": PICTURE[..., :2], "logits": LOGITS},
        {"picture": PICTURE[:0], "logits": LOGITS},
        {"picture": np.zeros((1, 1025, 3), np.uint8), "logits": LOGITS},
        {"picture": PICTURE, "logits": LOGITS.astype(np.float64)},
        {"picture": PICTURE, "logits": LOGITS[:0]},
        {"picture": PICTURE, "logits": LOGITS[None]},
        {"picture": PICTURE, "logits": LOGITS + np.float32(np.nan)},
    ],
)
def test_a_golden_part_that_is_wrong_is_refused(path, golden):
    write_by_hand(path, state={f"golden/{name}": array for name, array in golden.items()})
    refused(path, "golden")


def test_a_golden_part_written_by_hand(path):
    write_by_hand(path, state={"golden/picture": PICTURE, "golden/logits": LOGITS})
    back = hdf5.read(path)
    assert back.state == {}
    assert back.golden.picture.shape == (2, 2, 3) and back.golden.logits.shape == (2,)


def test_every_cut_is_noticed(path):
    hdf5.write(path, example_checkpoint())
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


def test_no_flipped_byte_changes_what_is_read(path):
    """A wrong byte is refused, or lies in a gap of the file and changes nothing."""
    digest = hdf5.write(path, example_checkpoint())
    whole = path.read_bytes()
    noticed = 0
    positions = range(0, len(whole), 23)
    for position in positions:
        wrong = bytearray(whole)
        wrong[position] ^= 1 << position % 8
        path.write_bytes(wrong)
        try:
            assert hdf5.read(path).digest == digest, position
        except WeightsFileError as error:
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > len(positions) // 3  # of such a small file the larger part is gaps


@functools.cache
def image_of_checkpoint():
    """Return the bytes of a file with all that a file may have, and its digest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.h5"
        digest = hdf5.write(path, example_checkpoint())
        return path.read_bytes(), digest


@given(data=st.data())
def test_any_damage_is_refused_or_changes_nothing(tmp_path_factory, data):
    whole, digest = image_of_checkpoint()
    image = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of HDF5's own records lie in the first part.
        place = data.draw(st.integers(0, len(image) - 1) | st.integers(0, 4000))
        image[place % len(image)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    path = tmp_path_factory.mktemp("damage") / "w.h5"
    path.write_bytes(image)
    try:
        assert hdf5.read(path).digest == digest
    except WeightsFileError as error:
        assert "\n" not in str(error) and str(path) in str(error)


TYPES = st.sampled_from(["u1", "<f4", "<f8", "<f2", "<i8", ">f4", "S3"])


@given(data=st.data())
def test_any_golden_part_is_read_or_refused(tmp_path_factory, data):
    """Whoever makes a file computes the right digest, so the digest does not help here."""
    golden = {}
    for name, usual in {"picture": (2, 2, 3), "logits": (2,), "more": ()}.items():
        if data.draw(st.booleans() if name == "more" else st.integers(0, 9)):
            shape = data.draw(st.just(usual) | st.lists(st.integers(0, 3), max_size=4).map(tuple))
            kind = data.draw(st.just("u1" if name == "picture" else "<f4") | TYPES)
            array = np.zeros(shape, kind)
            if array.dtype.kind == "f":
                array[...] = data.draw(st.floats(width=16))
            golden[f"golden/{name}"] = array
    path = tmp_path_factory.mktemp("golden") / "w.h5"
    checksum = all(array.size and array.ndim for array in golden.values())
    write_by_hand(path, state=golden, checksum=checksum)
    try:
        found = hdf5.read(path).golden
    except WeightsFileError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return
    if found is None:
        assert not golden
        return
    assert found.picture.dtype == np.uint8 and found.picture.ndim == 3
    assert found.logits.dtype == np.float32 and np.isfinite(found.logits).all()


# ---------------------------------------------------------------------------- bad contents


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": ""}, "arch"),
        ({"license": None}, "license"),
        ({"source": "a\0b"}, "source"),
        ({"source": "\udc80"}, "source"),
        ({"arch_options": {"a": np.zeros(2)}}, "arch_options"),
        ({"preprocessing": {"mean": float("nan")}}, "preprocessing"),
        ({"preprocessing": None}, "preprocessing"),
        ({"class_names": [1]}, "class_names"),
        ({"state": {"a": np.zeros(2)}}, "float64"),
        ({"state": {"../a": np.zeros(2, "f")}}, "name"),
        ({"state": {"a..b": np.zeros(2, "f")}}, "name"),
        ({"state": {"a/b": np.zeros(2, "f")}}, "name"),
        ({"state": {"": np.zeros(2, "f")}}, "name"),
        ({"state": {"a\n": np.zeros(2, "f")}}, "name"),
        ({"state": {"optimizer.x": np.zeros(2, "f")}}, "optimizer"),
        ({"state": {"golden.x": np.zeros(2, "f")}}, "golden"),
        ({"golden": Golden(np.zeros((2, 2), np.uint8), np.zeros(2, "f"))}, "golden/picture"),
        ({"golden": Golden(np.zeros((2, 2, 3), np.uint8), np.zeros(2))}, "golden/logits"),
        ({"state": {"a": np.zeros(2, "f"), "a.b": np.zeros(2, "f")}}, "both"),
        ({"state": {".".join("a" * 40): np.zeros(2, "f")}}, "deeper"),
        ({"progress": {"a": object()}}, "progress/a"),
        ({"progress": {"a": {1: 2}}}, "progress/a"),
        ({"progress": {"a": {"$x": 2}}}, "progress/a"),
        ({"progress": {"a": np.zeros(2, "c8")}}, "complex"),
        ({"progress": {"a": np.array(["x"])}}, "progress"),
        ({"progress": []}, "progress"),
    ],
)
def test_contents_that_do_not_fit_are_refused_before_anything_is_written(path, changes, words):
    hdf5.write(path, example())
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError), match=words):
        hdf5.write(path, example(**changes))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------------- all or nothing


def test_a_full_disk_leaves_the_earlier_file(path, monkeypatch):
    hdf5.write(path, example())
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsFileError, match=r"w\.h5: No space left on device"):
        hdf5.write(path, example(license="other"))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def in_a_process(code, path):
    root = Path(__file__).parent.parent
    script = f"import sys; sys.path.insert(0, {str(root)!r})\nfrom pathlib import Path\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )


def test_a_real_limit_of_the_system_leaves_the_earlier_file(path):
    pytest.importorskip("resource")
    hdf5.write(path, example())
    before = path.read_bytes()
    done = in_a_process(
        """
import resource, signal
from tests.test_hdf5 import example, hdf5, WeightsFileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    hdf5.write(sys.argv[1], example(license="other"))
except WeightsFileError as error:
    print(error)
""",
        path,
    )
    assert "cannot write" in done.stdout and "too large" in done.stdout, done.stderr
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_kill_before_the_rename_leaves_the_earlier_file(path):
    hdf5.write(path, example())
    before = path.read_bytes()
    done = in_a_process(
        """
import os, signal
from tests.test_hdf5 import example, hdf5
Path.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
hdf5.write(sys.argv[1], example(license="other"))
""",
        path,
    )
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == before and hdf5.read(path).license == "MIT"
    # What is left over is whole, hidden, and in nobody's way.
    (left,) = [p for p in path.parent.iterdir() if p != path]
    assert left.name.startswith(".w.h5.") and left.suffix == ".tmp"
    hdf5.write(path, example(license="third"))
    assert hdf5.read(path).license == "third"


def test_an_interrupted_write_removes_its_temporary_file(path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hdf5.write(path, example())
    assert list(path.parent.iterdir()) == []


def test_what_to_do_depends_on_what_went_wrong():
    full, refused = (OSError(number, "") for number in (errno.ENOSPC, errno.EACCES))
    assert "free some space" in advice(full) and "free some space" not in advice(refused)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.w\.h5: there is no folder .*none; make it first"):
        hdf5.write(tmp_path / "none" / "w.h5", example())


# ---------------------------------------------------------------------------- check_state


def test_a_state_that_fits():
    hdf5.check_state({"a": (2, 3)}, {"a": np.zeros((2, 3))}, "w.h5")


def test_all_that_does_not_fit_is_listed_together():
    expected = {"conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,), "bn1.bias": (4,)}
    state = {"conv1.weight": np.zeros((4, 1, 3, 3)), "bn1.weigth": np.zeros(4), "x": np.zeros(1)}
    with pytest.raises(WeightsFileError) as caught:
        hdf5.check_state(expected, state, "w.h5")
    message = str(caught.value)
    for part in (
        "w.h5",
        "missing (2)",
        "bn1.weight (is it bn1.weigth?)",
        "bn1.bias",
        "unexpected (2)",
        "misshapen (1)",
        "conv1.weight: has (4, 1, 3, 3), needs (4, 3, 3, 3)",
    ):
        assert part in message, message


def test_a_head_of_other_classes_is_recognised():
    expected = {"fc.weight": (5, 8), "fc.bias": (5,)}
    state = {"fc.weight": np.zeros((10, 8)), "fc.bias": np.zeros(10)}
    with pytest.raises(WeightsFileError, match=r"for 10 classes.*has 5: ask for a new head"):
        hdf5.check_state(expected, state, "w.h5")


def test_a_prefix_is_recognised():
    with pytest.raises(WeightsFileError, match=r"prefix 'module\.'"):
        hdf5.check_state({"a.b": (1,)}, {"module.a.b": np.zeros(1)}, "w.h5")


def test_a_long_list_is_cut():
    with pytest.raises(WeightsFileError, match="and 80 more"):
        hdf5.check_state({f"p{i}": (1,) for i in range(100)}, {}, "w.h5")
