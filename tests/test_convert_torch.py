"""PyTorch checkpoints: read to the bit without PyTorch; nothing in a pickle is ever executed."""

import builtins
import collections
import io
import os
import pickle
import pickletools
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitl import hdf5, models
from minitl.cli import main
from minitl.convert import (
    ConversionError,
    Report,
    convert,
    find_state,
    match,
)
from minitl.convert import pickles as pickles_module
from minitl.convert.pickles import PickleError, TensorRecord, read_pickle
from minitl.convert.torch_files import read_torch
from minitl.errors import UserError, WeightsFileError

torch = pytest.importorskip("torch")

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "weights"
FORMATS = {"zip": True, "legacy": False}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def save(content, path, form="zip", **options):
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form], **options)
    return path


def refused(path, *words):
    """Return the one-line error with which `path` is refused."""
    with pytest.raises(WeightsFileError) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message, message
    return message


def read_all(path):
    """Return every tensor in a checkpoint, by its place."""
    file = read_torch(path)
    found = {}

    def walk(value, place):
        if isinstance(value, TensorRecord):
            found[place] = file.array(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, (*place, key))
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                walk(inner, (*place, i))

    walk(file.content, ())
    return found


def to_numpy(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).resolve_conj().numpy()


def same(tensor, array):
    expected = to_numpy(tensor)
    return (
        expected.dtype == array.dtype
        and expected.shape == array.shape
        and expected.tobytes() == array.tobytes()
        and array.flags.c_contiguous
    )


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_element_types(path, form, protocol):
    torch.manual_seed(0)
    values = torch.randn(3, 5) * 100
    names = (
        "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    )
    tensors = {name: values.to(getattr(torch, name)) for name in names.split()}
    tensors["special"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    found = read_all(save(tensors, path, form, pickle_protocol=protocol))
    assert len(found) == len(tensors)
    for name, tensor in tensors.items():
        assert same(tensor, found[(name,)]), name


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "lazy",
    [
        torch._neg_view(torch.ones(3)),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.ones(3, dtype=torch.complex64).conj().imag,
    ],
    ids=["negative", "conjugate", "both"],
)
def test_tensors_negated_or_conjugated_in_name_only_are_refused(path, form, lazy):
    refused(save({"a": lazy}, path, form), "resolve_conj().resolve_neg()")
    resolved = lazy.resolve_conj().resolve_neg()
    assert same(resolved, read_all(save({"a": resolved}, path, form))[("a",)])


@pytest.mark.parametrize("form", FORMATS)
def test_attributes_of_a_tensor_are_left(path, form, tmp_path):
    kinds = {
        "tensor": torch.arange(6.0).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "unsigned": torch.tensor([1, 2], dtype=torch.uint16),
    }
    for tensor in kinds.values():
        tensor.tag = "x"
    found = read_all(save(kinds, path, form))
    assert all(same(tensor, found[(name,)]) for name, tensor in kinds.items())
    kinds["tensor"].tag = Attack(open, str(tmp_path / "flag"), "w")
    refused(save(kinds, path, form), "run code")
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_element_types_without_a_storage_of_their_own(path, form):
    tensors = [torch.arange(5).to(t) for t in (torch.uint16, torch.uint32, torch.uint64)]
    found = read_all(save(tensors, path, form))
    assert all(same(t, found[(i,)]) for i, t in enumerate(tensors))


@pytest.mark.parametrize("form", FORMATS)
def test_windows_on_shared_storage(path, form):
    base = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
    tensors = {
        "base": base,
        "transposed": base.permute(3, 1, 0, 2),
        "channels_last": base.to(memory_format=torch.channels_last),
        "strided": base[:, ::2, 1:, ::3],
        "one": base[1, 2, 3, 4],
        "expanded": base[:1, :1, :1, :1].expand(3, 4, 2, 2),
        "empty": base[:, :0],
        "nothing": torch.empty(0),
        "scalar": torch.tensor(7.0),
        "parameter": torch.nn.Parameter(base[0]),
        "half": base.half().T if base.ndim == 2 else base.half().transpose(0, 3),
    }
    found = read_all(save(tensors, path, form))
    for name, tensor in tensors.items():
        assert same(tensor, found[(name,)]), name


@given(data=st.data())
def test_any_window(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    base = torch.arange(int(np.prod(shape)), dtype=torch.int32).reshape(shape)
    index = tuple(
        slice(data.draw(st.integers(0, 3)), None, data.draw(st.integers(1, 3))) for _ in shape
    )
    view = base[index].permute(*data.draw(st.permutations(range(len(shape)))))
    path = tmp_path_factory.mktemp("window") / "w.pth"
    found = read_all(save([view], path, data.draw(st.sampled_from(sorted(FORMATS)))))
    assert same(view, found[(0,)])


@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_training_checkpoint(path, form):
    import argparse

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    save(
        {
            "epoch": 7,
            "best_prec1": np.float64(91.5),
            "curve": np.arange(3.0),
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "args": argparse.Namespace(lr=0.1, names=["a"]),
            "device": torch.device("cpu"),
            "size": torch.Size([2, 3]),
            "seen": {1, 2},
            "tree": collections.defaultdict(list, {"a": [1]}),
            "text": b"bytes",
        },
        path,
        form,
    )
    content = read_torch(path).content
    assert content["epoch"] == 7 and content["size"] == (2, 3) and content["tree"] == {"a": [1]}
    found = read_all(path)
    for name, tensor in model.state_dict().items():
        assert same(tensor, found[("state_dict", name)])
    for i, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            assert same(tensor, found[("optimizer", "state", i, name)])


def test_big_endian_storages(path):
    """As written on a big-endian machine: the byte order is recorded and the storages are swapped."""
    values = {
        "f": torch.tensor([1.5, -2.5]),
        "h": torch.tensor([1.5]).half(),
        "c": torch.tensor([1 + 2j]),
    }
    values["b"] = torch.tensor([1.5]).bfloat16()
    save(values, path)
    sizes = {"0": 4, "1": 2, "2": 4, "3": 2}
    swapped = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/byteorder"):
                content = b"big"
            elif "/data/" in name:
                content = np.frombuffer(content, f"u{sizes[name[-1]]}").byteswap().tobytes()
            new.writestr(name, content)
    path.write_bytes(swapped.getvalue())
    found = read_all(path)
    assert all(same(tensor, found[(name,)]) for name, tensor in values.items())


# ---------------------------------------------------------------------------- code in pickles


class Attack:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduction = (function, arguments)

    def __reduce__(self):
        return self.reduction


ATTACKS = {
    "os.system": lambda flag: Attack(os.system, f"touch {flag}"),
    "posix.system": lambda flag: Attack(getattr(os, "system"), f"touch {flag}"),  # noqa: B009
    "eval": lambda flag: Attack(eval, f"open({str(flag)!r}, 'w')"),
    "exec": lambda flag: Attack(exec, f"open({str(flag)!r}, 'w')"),
    "open": lambda flag: Attack(open, str(flag), "w"),
    "getattr": lambda flag: Attack(getattr, "text", "upper"),
    "import": lambda flag: Attack(__import__, "os"),
    "popen": lambda flag: Attack(subprocess.Popen, ["touch", str(flag)]),
    "run": lambda flag: Attack(subprocess.run, ["touch", str(flag)]),
    "pickle.loads": lambda flag: Attack(pickle.loads, pickle.dumps(Attack(open, str(flag), "w"))),
    "torch.load": lambda flag: Attack(torch.load, str(flag)),
    "numpy.load": lambda flag: Attack(np.load, str(flag)),
    "Path.touch": lambda flag: Attack(Path.touch, flag),
    "breakpoint": lambda flag: Attack(breakpoint),
}


@pytest.mark.parametrize("form", [*FORMATS, "plain"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_function_is_called(tmp_path, path, form, attack):
    flag = tmp_path / "flag"
    content = {"state_dict": {"w": torch.ones(2)}, "x": ATTACKS[attack](flag)}
    if form == "plain":
        content["state_dict"] = {}
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        save(content, path, form)
    message = refused(path, "refused")
    assert "run code" in message and "state_dict()" in message
    assert not flag.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_pickled_network_is_refused_by_name(path, form):
    save(torch.nn.Linear(2, 2), path, form)
    message = refused(path)
    assert "torch.nn.modules.linear" in message or "not a storage" in message


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


BAD_PROGRAMS = {
    "global alone": global_("os", "system") + b".",
    "global by attribute": b"\x80\x04\x8c\x08builtins\x8c\x0bdict.update\x93.",
    "inst": b"(S'touch x'\nios\nsystem\n.",
    "obj": b"(" + global_("os", "system") + b"S'touch x'\no.",
    "newobj_ex": b"\x80\x04" + global_("collections", "OrderedDict") + b")}\x92.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id as text": b"Pabc\n.",
    "persistent id of a module": b"\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\nNNtQ.",
    "state of a function": global_("torch._utils", "_rebuild_tensor_v2")
    + b"}X\x0c\x00\x00\x00__defaults__(K\x01tsb.",
    "state of a list": b"]}b.",
    "call of data": b"K\x01)R.",
    "call with no tuple": global_("collections", "OrderedDict") + b"]R.",
    "call with too much": global_("torch", "Size") + b"(K\x01K\x02tR.",
    "tensor without storage": global_("torch._utils", "_rebuild_tensor_v2")
    + b"(K\x01K\x02K\x03K\x04tR.",
    "call of a tensor's type": global_("torch", "Tensor") + b"(K\x01tR.",
    "tensor of any function": global_("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + global_("collections", "OrderedDict")
    + global_("torch", "Tensor")
    + b")}tR.",
    "tensor of any type": global_("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + global_("torch._utils", "_rebuild_tensor_v2")
    + global_("torch", "Size")
    + b")}tR.",
    "tensor in itself": global_("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + global_("torch._tensor", "_rebuild_from_type_v2")
    + global_("torch", "Tensor")
    + b")}tR.",
    "call of a storage type": global_("torch", "FloatStorage") + b"(K\x01tR.",
    "append to a tuple": b")K\x01a.",
    "fill a list": b"]K\x01K\x02s.",
    "odd fill": b"}(K\x01u.",
    "tuple as a key": b"})K\x01s.",
    "empty": b"",
    "stop": b".",
    "two results": b"K\x01K\x02.",
    "pop nothing": b"0.",
    "tuple of nothing": b"\x85.",
    "tuple of a mark": b"(\x85.",
    "mark left": b"(.",
    "memo of nothing": b"h\x05.",
    "put of nothing": b"q\x05.",
    "no mark": b"K\x01t.",
    "unknown instruction": b"\xff.",
    "text longer than the file": b"X\xff\xff\xff\x7fabc.",
    "bytes longer than memory": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "bytearray": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.",
    "bytearray longer than memory": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fabc.",
    "text that is no UTF-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "long of wrong length": b"\x8b\xff\xff\xff\xff.",
    "int that is none": b"Iabc\n.",
    "int of many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "int of many bytes": b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".",
}


@pytest.mark.parametrize("program", BAD_PROGRAMS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_programs_are_refused(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PickleError) as caught:
        read_pickle(io.BytesIO(BAD_PROGRAMS[program]))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def bombs():
    nested = b")" + b"\x85" * 200_000
    doubling = b")q\x00" + b"0h\x00h\x00\x86q\x00" * 60
    long_list = b"](" + b"K\x01K\x01\x86" * 1000 + b"eq\x00"
    copies = b"q\x01" + b"h\x01h\x00\x85R" * 100_000
    return {
        "deep tuple as a key": (b"}" + nested + b"K\x01s.", "key"),
        "exponential tuple as a key": (b"}" + doubling + b"K\x01s.", "key"),
        "exponential tuple as a shape": (
            global_("torch", "Size") + doubling + b"\x85R.",
            "impossible",
        ),
        "copies of a list": (
            long_list + global_("collections", "OrderedDict") + copies + b".",
            "instructions",
        ),
        "endless instructions": (b"N0" * 3_000_000 + b"N.", "instructions"),
        "memo far out": (b"Nr\xff\xff\xff\x7f0.", "damaged"),
    }


@pytest.mark.parametrize("bomb", bombs())
def test_bombs_do_not_go_off(bomb, monkeypatch):
    monkeypatch.setattr(pickles_module, "MAX_INSTRUCTIONS", 1_000_000)
    program, word = bombs()[bomb]
    with pytest.raises(PickleError, match=word):
        read_pickle(io.BytesIO(program))


def test_deep_nesting_is_harmless():
    value, _ = read_pickle(io.BytesIO(b")" + b"\x85" * 200_000 + b"."))
    del value
    value, _ = read_pickle(io.BytesIO(b"]q\x00h\x00a."))  # a list in itself
    assert value[0] is value


@pytest.mark.parametrize("form", FORMATS)
def test_no_import_and_no_unpickler_is_used(path, form, monkeypatch):
    """The strongest statement: with unpickling and imports switched off, reading works."""
    tensors = {"a": torch.arange(4.0)}
    save(tensors, path, form)
    read_all(path)

    def forbidden(*arguments, **options):
        raise AssertionError(f"called with {arguments[:1]}")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", forbidden)
        found = read_all(path)
    assert same(tensors["a"], found[("a",)])


_PIECES = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None),
    *(
        b"h\x00",
        b"h\x01",
        b"q\x00",
        b"q\x01",
        b"K\x01",
        b"X\x01\x00\x00\x00a",
        b"C\x01a",
        b"\x80\x02",
    ),
    *(global_("collections", n) for n in ("OrderedDict", "Counter", "defaultdict")),
    *(global_("torch._utils", n) for n in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(global_("torch", "Tensor"), global_("torch._tensor", "_rebuild_from_type_v2")),
    *(global_("torch", n) for n in ("FloatStorage", "Size", "float32")),
    *(global_(*n) for n in (("os", "system"), ("builtins", "set"), ("argparse", "Namespace"))),
    b"X\x07\x00\x00\x00storage",
]


@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=40))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_program_is_data_or_an_error(pieces):
    try:
        read_pickle(io.BytesIO(b"".join(pieces) + b"."))
    except PickleError as error:
        assert "\n" not in str(error)


@given(program=st.binary(max_size=60))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_bytes_are_data_or_an_error(program):
    try:
        read_pickle(io.BytesIO(program))
    except PickleError as error:
        assert "\n" not in str(error)


def test_mutated_pickles_are_data_or_an_error():
    rng = random.Random(0)
    whole = io.BytesIO()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, whole)
    with zipfile.ZipFile(whole) as archive:
        good = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            read_pickle(io.BytesIO(bytes(bad)))
        except PickleError as error:
            assert "\n" not in str(error)


# ---------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\xfd7zXZ\x00", ["compressed", "unpack"]),
        (b"\x1f\x8b\x08", ["compressed"]),
        (b"\x89HDF\r\n\x1a\n", ["HDF5"]),
        (b"<!DOCTYPE html>", ["web page"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", ["safetensors"]),
        (bytes(257) + b"ustar" + bytes(250), ["tar archive"]),
        (b"hello", ["starts as no file of PyTorch, safetensors or Keras"]),
        (b"\x08\x08\x12\x06minitl", ["looks like ONNX"]),
        (b"PK\x03\x04", ["zip"]),
        (b"PK\x03\x04" + bytes(1000), ["zip"]),
        (pickle.dumps([1, 2], protocol=2), ["not one of torch.save"]),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), ["damaged or cut off"]),
    ],
)
def test_other_files_are_refused(path, content, words):
    path.write_bytes(content)
    refused(path, *words)


def test_absent_files_and_folders_are_refused(path, tmp_path):
    refused(path, "does not exist")
    refused(tmp_path, "not a file")


def small_checkpoint(path, form):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2).half(), "c": torch.arange(3)}
    save({"epoch": 3, "state_dict": tensors}, path, form)
    return path.read_bytes(), read_all(path)


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_is_noticed(path, form):
    whole, _ = small_checkpoint(path, form)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused(path)


def same_found(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


def test_no_flipped_byte_of_a_zip_changes_what_is_read(path):
    whole, good = small_checkpoint(path, "zip")
    for position in range(0, len(whole), 3):
        for bit in (0, 6):
            wrong = bytearray(whole)
            wrong[position] ^= 1 << bit
            path.write_bytes(wrong)
            try:
                assert same_found(read_all(path), good), position
            except WeightsFileError as error:
                assert "\n" not in str(error)


def test_flipped_bytes_of_the_legacy_format_are_clear_errors(path):
    """That format has no checksums: other values may come out, other kinds of errors may not."""
    whole, _ = small_checkpoint(path, "legacy")
    for position in range(0, len(whole), 2):
        for bit in (position % 3, 3 + position % 5):
            wrong = bytearray(whole)
            wrong[position] ^= 1 << bit
            path.write_bytes(wrong)
            try:
                read_all(path)
            except WeightsFileError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_an_error_or_harmless(path, form, data):
    whole, good = small_checkpoint(path, form)
    image = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    path.write_bytes(image)
    try:
        found = read_all(path)
    except WeightsFileError as error:
        assert "\n" not in str(error)
    else:
        assert form == "legacy" or same_found(found, good)


def rezip(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive anew with members changed by `change(name, content)` (None: left out)."""
    result = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            content = change(name.split("/", 1)[1], old.read(name))
            if content is not None:
                new.writestr(name, content)
    path.write_bytes(result.getvalue())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, c: None if n == "data.pkl" else c, ["no data.pkl"]),
        (lambda n, c: None if n == "data/0" else c, ["lacks the storage '0'"]),
        (lambda n, c: c[:-1] if n == "data/0" else c, ["storage '0' should have"]),
        (lambda n, c: c + b"\0" if n == "data/0" else c, ["storage '0' should have"]),
        (lambda n, c: b"middle" if n == "byteorder" else c, ["byte order"]),
        (lambda n, c: b"" if n == "data.pkl" else c, ["cut off"]),
        (lambda n, c: pickle.dumps(os.getcwd, 2) if n == "data.pkl" else c, ["getcwd"]),
    ],
)
def test_archives_with_wrong_members_are_refused(path, change, words):
    small_checkpoint(path, "zip")
    rezip(path, change)
    refused(path, *words)


def test_programs_of_torchscript_are_refused(path):
    small_checkpoint(path, "zip")
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/constants.pkl", b"")
        # PyTorch compresses the source code.
        archive.writestr(f"{folder}/code/a.py", b"pass" * 99, zipfile.ZIP_DEFLATED)
    refused(path, "TorchScript")


def test_a_compressed_bomb_is_not_unpacked(path):
    save({"a": torch.zeros(5_000_000)}, path)
    rezip(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "compressed")


def test_members_that_share_their_bytes_are_refused(path):
    """Many entries in the table of contents for one run of bytes, as in the densest of zip bombs."""
    save({"a": torch.zeros(5000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
        for i in range(100):
            copy = zipfile.ZipInfo(f"{member.filename}{i}")
            for field in ("header_offset", "file_size", "compress_size", "CRC", "flag_bits"):
                setattr(copy, field, getattr(member, field))
            archive.filelist.append(copy)
        archive._didModify = True
    refused(path, "claims members larger than itself")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(path):
    small_checkpoint(path, "zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"")
    refused(path, "two members")


def patched_numbers(path, replace):
    """Rewrite the pickle of {"a": tensor} with other numbers for offset, shape or stride."""
    rezip(path, lambda n, c: replace(c) if n == "data.pkl" else c)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # (4, 5) with stride (5, 1) on a storage of 20, offset 0
        (b"QK\x00K\x04K\x05\x86", b"QK\x01K\x04K\x05\x86", ["reaches beyond"]),
        (b"K\x04K\x05\x86", b"K\x05K\x05\x86", ["reaches beyond"]),
        (b"K\x05K\x01\x86", b"K\x07K\x01\x86", ["reaches beyond"]),
        (b"K\x05K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86", ["impossible stride"]),
        (b"K\x04K\x05\x86", b"J\xff\xff\xff\xffK\x05\x86", ["impossible shape"]),
        (b"K\x04K\x05\x86", b"\x88K\x05\x86", ["impossible shape"]),
        (b"K\x05K\x01\x86", b"K\x05\x85", ["stride"]),
        (b"K\x04K\x05\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", ["reaches beyond"]),
        (b"K\x14", b"K\x15", ["should have 21"]),
        (b"FloatStorage", b"HalfStorage", ["should have 20"]),
        (b"FloatStorage", b"QInt8Storage", ["torch.QInt8Storage"]),
    ],
)
def test_tensors_beyond_their_storage_are_refused(path, old, new, words):
    save([torch.arange(20.0).reshape(4, 5)], path)

    def replace(content):
        assert old in content
        return content.replace(old, new)

    patched_numbers(path, replace)
    refused(path, *words)


@pytest.mark.parametrize("form", FORMATS)
def test_a_number_repeated_to_terabytes_is_refused(path, form):
    save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, path, form)
    refused(path, "larger than itself")


@pytest.mark.parametrize("form", FORMATS)
def test_many_windows_on_one_storage_are_refused(path, form):
    base = torch.zeros(1 << 18)
    save([base[i:] for i in range(200)], path, form)
    refused(path, "larger than itself")


# ---------------------------------------------------------------------------- names


def record(*shape):
    storage = pickles_module.Storage("0", "float32", 100, 100)
    return TensorRecord(storage, "float32", 0, shape, (0,) * len(shape))


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model", "model_state_dict", "net", "model_ema", None]
)
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "backbone.", "_orig_mod.", "module._orig_mod.", "_orig_mod.model."],
)
def test_wrappers_and_prefixes(wrapper, prefix):
    state = {f"{prefix}conv.weight": record(2), f"{prefix}bn.num_batches_tracked": record()}
    content = state if wrapper is None else {"epoch": 3, wrapper: state}
    found = find_state(content, "w.pth")
    assert list(found.tensors) == ["conv.weight"]
    assert (found.prefix, found.entry) == (prefix, wrapper or "")
    assert list(found.ignored) == ["bn.num_batches_tracked"]
    assert found.beside == ([] if wrapper is None else ["epoch"])


def test_the_mean_of_weights_is_converted(path, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    found = find_state(read_torch(save({"model_ema": averaged.state_dict()}, path)).content, "w")
    assert list(found.tensors) == ["0.weight", "0.bias"] and found.prefix == "module."
    assert found.ignored == {"n_averaged": "a counter that has no effect"}
    state = {f"module.{name}": tensor for name, tensor in cifar_state().items()}
    save({"n_averaged": torch.tensor(7)} | state, path)
    assert convert(path, tmp_path / "w.h5").complete


@pytest.mark.parametrize("names", [["module.a", "b"], ["module.a", "module.b", "b"]])
def test_a_prefix_that_few_names_have_or_that_tells_two_apart_stays(names):
    found = find_state({name: record(1) for name in names}, "w.pth")
    assert list(found.tensors) == names and found.prefix == ""


def test_a_prefix_is_taken_from_the_network_beside_which_a_loss_has_weights():
    # As PyTorch Lightning keeps them, for a loss with a weight for each class.
    names = ["model.module.a.weight", "model.module.b.weight", "criterion.weight"]
    found = find_state({"state_dict": {name: record(1) for name in names}}, "w.ckpt")
    assert list(found.tensors) == ["a.weight", "b.weight", "criterion.weight"]
    assert found.prefix == "model.module."


def test_wrappers_in_wrappers_and_a_chosen_entry():
    content = {"model": {"state_dict": {"a": record(1)}}, "model_ema": {"b": record(1)}}
    assert find_state(content, "w.pth").entry == "model/state_dict"
    assert list(find_state(content, "w.pth", "model_ema").tensors) == ["b"]
    with pytest.raises(WeightsFileError, match=r"no entry 'x'.*model, model_ema"):
        find_state(content, "w.pth", "x")


def test_numbers_among_the_weights_are_ignored():
    found = find_state({"a": record(1), "version": 3}, "w.pth")
    assert list(found.tensors) == ["a"] and found.ignored == {"version": "not a tensor"}


@pytest.mark.parametrize(
    "content", [None, 3, [], {}, {"epoch": 1}, record(2), {"state_dict": {}}, {1: record(2)}]
)
def test_checkpoints_without_weights_are_refused(content):
    with pytest.raises(WeightsFileError, match=r"w\.pth holds no weights"):
        find_state(content, "w.pth")


def test_the_report():
    report = match(
        {"a.weight": (2,), "b.weight": (3, 1), "c.weight": (4,)},
        {"a.weight": (2,), "b.weight": (1, 3), "c.weigth": (4,)},
        "w.pth as net",
    )
    assert not report.complete
    text = str(report)
    for line in (
        "w.pth as net",
        "matched           1",
        "c.weight  missing         is it c.weigth?",
        "c.weigth  unexpected",
        "b.weight  misshapen       has (1, 3), needs (3, 1)",
    ):
        assert line in text, text


def test_names_cannot_command_a_terminal():
    text = str(Report("w", unexpected=["\x1b[2Jx", "y\nz", "u" * 1000], notes=["\x07"]))
    assert "\x1b" not in text and "\x07" not in text and "y\\nz" in text
    assert max(map(len, text.splitlines())) < 150


# ---------------------------------------------------------------------------- conversion


def cifar_state(classes=10, seed=0):
    """Weights of a CIFAR ResNet-20 with an option-A shortcut, as PyTorch tensors."""
    rng = np.random.default_rng(seed)
    model = models.create("cifar_resnet20", num_classes=classes, seed=None)
    state = {}
    for name, array in model.state_dict().items():
        values = rng.standard_normal(array.shape).astype(np.float32)
        state[name] = torch.from_numpy(np.abs(values) if "running_var" in name else values)
    return state


@pytest.mark.parametrize("form", FORMATS)
def test_convert(path, tmp_path, form):
    state = cifar_state(classes=7)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    wrapped["module.bn1.num_batches_tracked"] = torch.tensor(5)
    save({"epoch": 3, "state_dict": wrapped}, path, form)
    target = tmp_path / "w.h5"
    names = [f"class {i}" for i in range(7)]
    report = convert(path, target, arch="cifar_resnet20", class_names=names, license="MIT")
    assert report.complete and len(report.matched) == len(state)
    assert "module." in str(report) and "epoch" in str(report)
    back = hdf5.read(target)
    assert back.arch == "cifar_resnet20" and back.class_names == names and back.license == "MIT"
    assert back.arch_options == {"shortcut": "A", "width": 16}
    assert back.source == "w.pth" and len(back.source_sha256) == 64
    assert back.preprocessing == models.cifar_resnet20().preprocessing
    assert back.state.keys() == state.keys()
    assert all(same(tensor, back.state[name]) for name, tensor in state.items())
    assert models.load_model(target).num_classes == 7


def test_other_precisions_become_float32(path, tmp_path):
    state = cifar_state()
    for form in ("float16", "bfloat16", "float64"):
        other = {name: tensor.to(getattr(torch, form)) for name, tensor in state.items()}
        save(other, path)
        report = convert(path, tmp_path / "w.h5", arch="cifar_resnet20", overwrite=True)
        assert ("rounded from float64" in str(report)) == (form == "float64")
        back = hdf5.read(tmp_path / "w.h5").state
        assert all(same(tensor.float(), back[name]) for name, tensor in other.items())


def test_all_that_does_not_fit_is_reported_together(path, tmp_path):
    state = cifar_state()
    state["bn1.weigth"] = state.pop("bn1.weight")
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    save(state, path)
    with pytest.raises(ConversionError) as caught:
        convert(path, tmp_path / "w.h5", arch="cifar_resnet20")
    report = caught.value.report
    assert report.missing == ["bn1.weight"] and report.unexpected == ["bn1.weigth"]
    assert report.misshapen == {"conv1.weight": ((16, 1, 3, 3), (16, 3, 3, 3))}
    assert str(path) in str(caught.value) and "is it bn1.weigth?" in str(caught.value)
    assert not (tmp_path / "w.h5").exists()


def test_a_conversion_that_fails_ends_with_a_line_that_says_why(path, tmp_path, capsys):
    target = tmp_path / "w.h5"
    for changes, words in (
        ({"aux.weight": torch.zeros(3)}, "1 unexpected; --drop-unexpected"),
        ({"conv1.weight": torch.zeros(16, 1, 3, 3)}, "1 misshapen; if it is another network"),
    ):
        save(cifar_state() | changes, path)
        assert main(["convert", str(path), str(target)]) == 1
        *above, last = capsys.readouterr().err.splitlines()
        assert last.startswith(f"minitl: {path} does not fit cifar_resnet20: {words}")
        assert any(next(iter(changes)) in line for line in above)
    assert not target.exists()


def test_what_is_left_over_is_dropped_only_when_asked(path, tmp_path):
    save(cifar_state() | {"aux.weight": torch.zeros(3)}, path)
    with pytest.raises(ConversionError, match=r"aux\.weight"):
        convert(path, tmp_path / "w.h5", arch="cifar_resnet20")
    report = convert(path, tmp_path / "w.h5", arch="cifar_resnet20", drop_unexpected=True)
    assert report.complete and "aux.weight" in report.ignored


def test_an_existing_file_is_kept_unless_asked(path, tmp_path):
    save(cifar_state(), path)
    target = tmp_path / "w.h5"
    target.write_text("precious")
    with pytest.raises(UserError, match=r"w\.h5 exists"):
        convert(path, target, arch="cifar_resnet20")
    assert target.read_text() == "precious"
    convert(path, target, arch="cifar_resnet20", overwrite=True)
    assert hdf5.read(target).arch == "cifar_resnet20"


def test_the_source_is_never_replaced(path, tmp_path):
    save(cifar_state(), path)
    whole = path.read_bytes()
    (tmp_path / "link.pth").symlink_to(path)
    for target in (path, tmp_path / "link.pth"):
        with pytest.raises(UserError, match="is the file to be converted"):
            convert(path, target, overwrite=True)
    assert path.read_bytes() == whole


def test_two_candidates_for_one_name(path, tmp_path):
    state = cifar_state()
    save(state | {"module.linear.bias": torch.zeros(10)}, path)
    words = r"two candidates for linear\.bias: linear\.bias and module\.linear\.bias"
    with pytest.raises(ConversionError, match=words):
        convert(path, tmp_path / "w.h5")
    assert not (tmp_path / "w.h5").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "nonsense"}, "unknown architecture 'nonsense'"),
        ({"arch_options": {"shortcut": "C"}}, "shortcut"),
        ({"arch_options": {"nonsense": 1}}, "nonsense"),
        ({"class_names": ["a", "b"]}, "2 class names.*10 classes"),
        ({"class_names": [*"abcdefgh", "a\n", "a\n"]}, r"several classes have the name a\\n;"),
        ({"preprocessing": {"resize": 3}}, "preprocessing"),
        ({"entry": "ema"}, "ema"),
    ],
)
def test_wrong_arguments_are_explained(path, tmp_path, changes, words):
    save(cifar_state(), path)
    with pytest.raises(UserError, match=words):
        convert(path, tmp_path / "w.h5", **({"arch": "cifar_resnet20"} | changes))
    assert not (tmp_path / "w.h5").exists()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([1.0] * 9 + [float("nan")]), "NaN"),
        (torch.tensor([1.0] * 9 + [1e300], dtype=torch.float64), "infinities"),
        (torch.ones(10, dtype=torch.int8), "int8"),
        (torch.ones(10, dtype=torch.complex64), "complex64"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(path, tmp_path, tensor, words):
    save(cifar_state() | {"linear.bias": tensor}, path)
    with pytest.raises(WeightsFileError, match=rf"linear\.bias.*{words}"):
        convert(path, tmp_path / "w.h5", arch="cifar_resnet20")


def test_reading_needs_no_torch(path, tmp_path):
    save(cifar_state(), path)
    root = Path(__file__).parent.parent
    script = f"""
import sys
sys.path.insert(0, {str(root)!r})
sys.modules["torch"] = None
from minitl.convert import convert
assert "h5py" not in sys.modules
convert({str(path)!r}, {str(tmp_path / "w.h5")!r}, arch="cifar_resnet20")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---------------------------------------------------------------------------- real files


@pytest.mark.real_data
def test_a_real_legacy_checkpoint(tmp_path):
    source = DATA / "cifar_resnet20_akamaster.th"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    content = read_torch(source).content
    assert all(name.startswith("module.") for name in content["state_dict"])
    report = convert(source, tmp_path / "w.h5", arch="cifar_resnet20")
    assert report.missing == report.unexpected == [] and len(report.matched) == 97
    back = hdf5.read(tmp_path / "w.h5").state
    reference = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    assert all(
        same(tensor, back[name.removeprefix("module.")]) for name, tensor in reference.items()
    )


@pytest.mark.real_data
def test_a_real_zip_checkpoint(tmp_path):
    import lzma

    source = DATA / "imagenet_resnet18_ktb_dense.pth.xz"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    unpacked = tmp_path / "resnet18.pth"
    unpacked.write_bytes(lzma.decompress(source.read_bytes()))
    report = convert(unpacked, tmp_path / "w.h5", arch="resnet18")
    assert report.complete and len(report.matched) == 102 and len(report.ignored) == 20
    back = hdf5.read(tmp_path / "w.h5").state
    reference = torch.load(unpacked, map_location="cpu", weights_only=True)
    assert all(same(reference[name], back[name]) for name in back)
