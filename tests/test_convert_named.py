"""Safetensors files, names of other implementations, heads, dry runs: what leads to a weights file."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitl import hdf5, models
from minitl.cli import main
from minitl.convert import ConversionError, convert
from minitl.convert.export import export
from minitl.convert.names import FAMILIES, family_of, to_our_names, to_their_names
from minitl.convert.safetensors_files import is_safetensors, read_safetensors
from minitl.convert.source import StoredArray
from minitl.errors import UserError, WeightsFileError
from tests import reference_models


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def cifar_state(dtype=torch.float32, **options):
    options = {"shortcut": "B", "width": 4, "num_classes": 3} | options
    network = reference_models.randomise(reference_models.make("cifar_resnet20", **options))
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }


# ---------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_come_over_to_the_bit(path, tmp_path, dtype):
    state = cifar_state(dtype)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    safetensors.torch.save_file(prefixed, path, {"format": "pt"})
    report = convert(path, tmp_path / "w.h5")
    assert report.complete and report.arch == "cifar_resnet20"
    assert report.arch_options == {"shortcut": "B", "width": 4}
    assert "module." in str(report) and len(report.ignored) == 21
    back = hdf5.read(tmp_path / "w.h5").state
    for name, array in back.items():
        assert array.tobytes() == state[name].float().numpy().tobytes(), name


def test_the_format_is_told_from_the_contents_not_the_name(tmp_path):
    state = cifar_state()
    safetensors.torch.save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.h5", _use_new_zipfile_serialization=False)
    files = [tmp_path / name for name in ("a.pth", "b.safetensors", "c.h5")]
    for number, file in enumerate(files):
        convert(file, tmp_path / f"{number}.h5")
    contents = [hdf5.read(tmp_path / f"{number}.h5").state for number in range(3)]
    for name, array in contents[0].items():
        assert all(array.tobytes() == other[name].tobytes() for other in contents)


def test_scalars_and_integers_and_nothing(path):
    tensors = {
        "a": torch.tensor(3.5),
        "b": torch.arange(4),
        "c": torch.zeros(0, 2),
        "": torch.ones(1),
    }
    safetensors.torch.save_file(tensors, path, {"note": "naïve"})
    arrays, texts = read_safetensors(path, path.read_bytes())
    assert texts == {"note": "naïve"}
    for name, tensor in tensors.items():
        read = arrays[name].read()
        assert read.shape == tuple(tensor.shape) and np.array_equal(read, tensor.numpy())
        assert read.flags.writeable


def header(text, data=b""):
    text = text if isinstance(text, bytes) else text.encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = '{"a":{"dtype":"F32","shape":%s,"data_offsets":%s}}'
HOSTILE = {
    "empty header": header("{}"),
    "no weights": header('{"__metadata__":{"a":"b"}}'),
    "not JSON": header("{nonsense}"),
    "not UTF-8": header(b'{"\xff\xfe":1}'),
    "nested": header('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "header longer than the file": (10**7).to_bytes(8, "little") + b"{}",
    "huge header": (10**8 + 1).to_bytes(8, "little") + b"{}",
    "cut off": header(ONE % ("[4]", "[0,16]"), bytes(15)),
    "too long": header(ONE % ("[4]", "[0,16]"), bytes(17)),
    "shape and size differ": header(ONE % ("[5]", "[0,16]"), bytes(16)),
    "shape overflows": header(ONE % (f"[{2**63},{2**63},16]", "[0,16]"), bytes(16)),
    "negative shape": header(ONE % ("[-4]", "[0,16]"), bytes(16)),
    "offsets turned round": header(ONE % ("[4]", "[16,0]"), bytes(16)),
    "offsets beyond": header(ONE % ("[4]", f"[{2**64 - 16},{2**64}]"), bytes(16)),
    "gap": header(ONE % ("[4]", "[4,20]"), bytes(20)),
    "overlap": header(
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        '"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}',
        bytes(24),
    ),
    "unknown type": header(ONE.replace("F32", "X9") % ("[4]", "[0,16]"), bytes(16)),
    "metadata of numbers": header('{"__metadata__":{"a":1}}'),
    "name of control characters": header(
        ONE.replace('"a"', '"\\u001b[2J"') % ("[4]", "[0,16]"), bytes(16)
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_give_one_clear_line(path, tmp_path, case):
    path.write_bytes(HOSTILE[case])
    with pytest.raises(UserError) as caught:
        convert(path, tmp_path / "w.h5")
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "\x1b" not in message
    assert len(message) < 500
    assert not (tmp_path / "w.h5").exists()


def outcome(path, target, content):
    """Convert a file of any bytes; what may be raised is an error that is explained."""
    path.write_bytes(content)
    try:
        convert(path, target, overwrite=True, dry_run=True)
    except UserError as error:
        assert str(error) and "\x1b" not in str(error)
        return False
    return True


def test_changed_files_are_weights_or_an_error(path, tmp_path):
    """Bytes of the header changed, and cuts: that format has no checksums of the numbers."""
    safetensors.torch.save_file({"linear.weight": torch.ones(2, 3), "b": torch.zeros(2)}, path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(600):
        wrong = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            wrong[rng.randrange(len(wrong))] = rng.choice(b'{}[]",:0179ab\x00\xff')
        assert not outcome(path, tmp_path / "w.h5", bytes(wrong))
    for length in range(len(whole)):
        assert not outcome(path, tmp_path / "w.h5", whole[:length])


@given(
    entry=st.recursive(
        st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(["F32", "BF16", "dtype"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a.weight"]),
                inner,
            )
        ),
        max_leaves=12,
    ),
    data=st.binary(max_size=16),
)
def test_any_header_is_weights_or_an_error(tmp_path_factory, entry, data):
    folder = tmp_path_factory.mktemp("any")
    assert not outcome(folder / "w", folder / "w.h5", header(json.dumps({"a": entry}), data))


def test_what_looks_like_safetensors(path):
    assert is_safetensors(header("{}")) and not is_safetensors(header("[]"))
    assert not is_safetensors(b"") and not is_safetensors(b"PK\x03\x04" + bytes(8))


def test_quantised_safetensors_are_refused(path, tmp_path):
    state = cifar_state() | {"linear.bias": torch.ones(3).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(state, path)
    with pytest.raises(WeightsFileError, match=r"linear\.bias is F8_E4M3"):
        convert(path, tmp_path / "w.h5")


def test_without_the_library_the_error_names_it(path, tmp_path):
    safetensors.torch.save_file(cifar_state(), path)
    script = f"""
import sys
from minitl.convert import convert
from minitl.errors import UserError
assert "safetensors" not in sys.modules
sys.modules["safetensors"] = None
try:
    convert({str(path)!r}, {str(tmp_path / "w.h5")!r})
except UserError as error:
    assert "pip install safetensors" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("arch", "options", "family"),
    [
        ("vgg11", {"hidden": 8, "timm": True}, "timm's VGG"),
        ("vgg16_bn", {"hidden": 8, "timm": True}, "timm's VGG"),
        ("resnetv2_50", {}, "timm's pre-activation ResNet"),
        ("resnet50", {}, None),
        ("vgg11", {"hidden": 8}, None),
        ("cifar_resnet20", {"shortcut": "B"}, None),
        ("inception_v3", {}, None),
    ],
)
def test_names_go_there_and_back(arch, options, family):
    theirs = {
        name: value.numpy()
        for name, value in reference_models.make(arch, num_classes=3, **options)
        .state_dict()
        .items()
        if "num_batches" not in name
    }
    found = family_of(theirs)
    assert (found.title if found else None) == family
    stored = {name: StoredArray(a.shape, "float32", lambda a=a: a) for name, a in theirs.items()}
    ours, title = to_our_names(stored, "w")
    assert title == family
    known = {"hidden": 8} if "vgg" in arch else {"shortcut": "B"} if "cifar" in arch else {}
    model = models.create(arch, num_classes=3, seed=None, **known)
    assert {n: a.shape for n, a in ours.items()} == {
        n: a.shape for n, a in model.state_dict().items()
    }
    if found:
        assert any(arch.startswith(prefix) for prefix in found.archs)
        back = to_their_names({name: array.read() for name, array in ours.items()}, found)
        assert back.keys() == theirs.keys()
        for name, array in theirs.items():
            assert back[name].shape == array.shape and np.array_equal(back[name], array), name


def test_the_table_is_one_to_one():
    for family in FAMILIES:
        for side in (0, 1):
            for rows in (family.begins, family.inside):
                names = [row[side] for row in rows]
                assert len(set(names)) == len(names), family.title


def test_two_candidates_for_one_name_are_refused(path, tmp_path):
    state = reference_models.make("vgg11", hidden=4, num_classes=2, timm=True).state_dict()
    state["classifier.6.weight"] = torch.zeros(2, 4)
    safetensors.torch.save_file(state, path)
    with pytest.raises(
        WeightsFileError, match=r"two candidates for classifier\.6\.weight: .*head\.fc"
    ):
        convert(path, tmp_path / "w.h5")


# ---------------------------------------------------------------------------- arch, heads, dry runs


def test_arch_overrules_and_keeps_what_is_seen(path, tmp_path):
    safetensors.torch.save_file(cifar_state(), path)
    with pytest.raises(ConversionError, match="does not fit resnet18"):
        convert(path, tmp_path / "w.h5", arch="resnet18")
    report = convert(path, tmp_path / "w.h5", arch="cifar_resnet20")
    assert report.arch_options["shortcut"] == "B" and "recognised" not in str(report)
    with pytest.raises(ConversionError, match="shortcut"):
        convert(path, tmp_path / "b.h5", arch_options={"shortcut": "A"})


def test_a_new_head_takes_the_place_of_the_old(path, tmp_path):
    state = cifar_state()
    safetensors.torch.save_file(state, path)
    report = convert(path, tmp_path / "w.h5", new_head=5)
    assert report.reinitialised == ["linear.weight", "linear.bias"]
    assert "linear.weight  " in str(report) and "re-initialised" in str(report)
    model = models.load_model(tmp_path / "w.h5")
    assert model.num_classes == 5 and np.ptp(model.head.weight.data) > 0
    for name, array in model.state_dict().items():
        if not name.startswith("linear."):
            assert np.array_equal(array, state[name].numpy()), name


def test_a_file_without_a_head_needs_a_new_one(path, tmp_path):
    state = {name: value for name, value in cifar_state().items() if "linear" not in name}
    safetensors.torch.save_file(state, path)
    with pytest.raises(ConversionError, match="--new-head N"):
        convert(path, tmp_path / "w.h5")
    assert convert(path, tmp_path / "w.h5", new_head=2).complete
    with pytest.raises(UserError, match="--new-head 0"):
        convert(path, tmp_path / "b.h5", new_head=0)


def test_a_head_larger_than_the_file_is_not_made(tmp_path):
    state = cifar_state()
    state["linear.weight"] = torch.zeros(1).expand(1 << 40, 16)
    state["linear.bias"] = torch.zeros(1).expand(1 << 40)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConversionError, match=r"linear\.weight .*has \(1099511627776, 16\)"):
        convert(tmp_path / "w.pth", tmp_path / "w.h5")


def test_both_heads_of_inception_are_new(path, tmp_path):
    state = reference_models.make("inception_v3", num_classes=2, auxiliary=True).state_dict()
    safetensors.torch.save_file(state, path)
    report = convert(path, tmp_path / "w.h5", new_head=3, dry_run=True)
    assert sorted(report.reinitialised) == [
        "AuxLogits.fc.bias",
        "AuxLogits.fc.weight",
        "fc.bias",
        "fc.weight",
    ]


def test_a_dry_run_says_all_and_writes_nothing(path, tmp_path, capsys):
    safetensors.torch.save_file(cifar_state(), path)
    before = sorted(tmp_path.iterdir())
    target = tmp_path / "w.h5"
    command = ["convert", str(path), str(target)]
    assert main([*command, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    assert main(command) == 0
    assert target.exists()
    wet = capsys.readouterr().out
    assert dry.replace("not written (dry run):", "written") == wet
    for words in (
        "matched",
        "recognised as cifar_resnet20",
        'architecture: cifar_resnet20 {"shortcut": "B", "width": 4}',
        "classes: 3: not named; --class-names FILE names them",
        "preprocessing, usual for cifar_resnet20; the file does not say: {",
    ):
        assert words in wet, wet
    names = tmp_path / "names.txt"
    names.write_text("ash\nbirch\ncedar\n")
    assert main([*command, "--overwrite", "--class-names", str(names)]) == 0
    assert "classes: 3: ash, birch, cedar" in capsys.readouterr().out


def test_the_names_of_imagenet_are_at_hand(path, tmp_path, capsys):
    model = models.cifar_resnet20(num_classes=1000, width=4)
    arrays = model.state_dict().items()
    state = {name: torch.tensor(array).contiguous() for name, array in arrays}
    safetensors.torch.save_file(state, path)
    target = tmp_path / "w.h5"
    assert main(["convert", str(path), str(target)]) == 0
    assert (
        "1000: not named" in (said := capsys.readouterr().out) and "--class-names imagenet" in said
    )
    assert hdf5.read(target).class_names is None  # nobody has said so
    assert (
        main(["convert", str(path), str(target), "--overwrite", "--class-names", "imagenet"]) == 0
    )
    names = hdf5.read(target).class_names
    assert (len(names), names[0], names[368]) == (1000, "tench", "gibbon")
    safetensors.torch.save_file(cifar_state(), path)
    code = main(["convert", str(path), str(tmp_path / "other.h5"), "--class-names", "imagenet"])
    assert code == 1 and "1000 class names were given" in capsys.readouterr().err


def test_preprocessing_is_said_with_its_origin(path, tmp_path, capsys):
    safetensors.torch.save_file(cifar_state(), path)
    target = tmp_path / "w.h5"
    fields = ["--preprocessing", '{"resize": 40, "interpolation": "bicubic"}']
    assert main(["convert", str(path), str(target), *fields]) == 0
    assert "resize, interpolation as you said, else usual for" in capsys.readouterr().out
    written = hdf5.read(target).preprocessing
    assert (written["resize"], written["crop"], written["interpolation"]) == (40, 32, "bicubic")
    with pytest.raises(SystemExit):
        main(["convert", str(path), str(target), "--preprocessing", "{1"])
    with pytest.raises(UserError, match="unknown resise"):
        convert(path, tmp_path / "b.h5", preprocessing={"resise": 40})


def test_what_minitl_exported_says_itself_what_it_is(path, tmp_path):
    from minitl.convert.export import export

    model = models.create("resnetv2_50", num_classes=2, seed=1, stride_last=True, zero_pool=True)
    model.class_names, model.preprocessing["resize"] = ["a", "b"], 300
    models.save_model(model, tmp_path / "m.h5", license="MIT")
    export(tmp_path / "m.h5", path)
    report = convert(path, tmp_path / "back.h5")
    assert report.preprocessing_from == "as the file says"
    before, after = hdf5.read(tmp_path / "m.h5"), hdf5.read(tmp_path / "back.h5")
    for name in ("arch", "arch_options", "class_names", "preprocessing", "license"):
        assert getattr(before, name) == getattr(after, name), name
    for name, array in before.state.items():
        assert array.tobytes() == after.state[name].tobytes(), name


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("class_names", "[1, 2, 3]", "class_names must be a list of text"),
        ("class_names", "[[1], [2], [3]]", "class_names must be a list of text"),
        ("class_names", '{"a": 1}', "class_names must be a list"),
        ("arch_options", "[]", "arch_options must be a dict"),
        ("preprocessing", '{"scale": NaN}', "preprocessing cannot be stored"),
        ("preprocessing", "{", "Expecting"),
        ("license", "M\0IT", "license must be text"),
        ("arch", "", "arch is empty"),
    ],
)
def test_broken_words_of_an_exported_file_are_refused(path, tmp_path, name, text, words):
    described = {"arch": "cifar_resnet20", "license": "", "preprocessing": "{}"}
    described |= {"arch_options": '{"shortcut": "B", "width": 4}', "class_names": "null"}
    safetensors.torch.save_file(cifar_state(), path, described)
    assert convert(path, tmp_path / "w.h5").complete
    safetensors.torch.save_file(cifar_state(), path, described | {name: text})
    with pytest.raises(WeightsFileError, match=rf"broken words \({words}.*export it again"):
        convert(path, tmp_path / "x.h5")


def test_a_head_of_several_layers_comes_back(tmp_path):
    model = models.create("cifar_resnet20", num_classes=2, seed=1, head=[8])
    models.save_model(model, tmp_path / "m.h5")
    export(tmp_path / "m.h5", tmp_path / "m.safetensors")
    report = convert(tmp_path / "m.safetensors", tmp_path / "back.h5")
    assert report.complete and report.arch_options["head"] == [8]
    for name, array in hdf5.read(tmp_path / "m.h5").state.items():
        assert array.tobytes() == hdf5.read(tmp_path / "back.h5").state[name].tobytes(), name


TASKS = [
    {"name": "kind", "kind": "classes", "classes": ["cat", "dog"], "weight": 1.0},
    {"name": "tags", "kind": "labels", "classes": ["red", "round"], "weight": 0.5},
    {"name": "age", "kind": "number", "weight": 1.0, "mean": 3.0, "std": 2.0},
]


@pytest.mark.parametrize("arch", [None, "cifar_resnet20"])
def test_several_tasks_come_back(path, tmp_path, arch):
    model = models.create("cifar_resnet20", seed=1, tasks=TASKS)
    models.save_model(model, tmp_path / "m.h5")
    export(tmp_path / "m.h5", path)
    convert(path, tmp_path / "back.h5", arch=arch)
    back = models.load_model(tmp_path / "back.h5")
    assert back.tasks == model.tasks and len(back.tasks) == 3
    assert back.class_names == model.class_names
    for name, array in model.state_dict().items():
        assert array.tobytes() == back.state_dict()[name].tobytes(), name


def test_tasks_said_of_anybodys_weights(tmp_path):
    model = models.create("cifar_resnet20", seed=1, num_classes=5)
    models.save_model(model, tmp_path / "m.h5")
    export(tmp_path / "m.h5", tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "back.h5", arch_options={"tasks": TASKS})
    back = models.load_model(tmp_path / "back.h5")
    names = ["kind: cat", "kind: dog", "tags: red", "tags: round", "age"]
    assert [task.name for task in back.tasks] == ["kind", "tags", "age"]
    assert back.class_names == names
    with pytest.raises(ConversionError, match="2 misshapen"):
        convert(tmp_path / "m.pth", tmp_path / "x.h5", arch_options={"tasks": TASKS[:2]})
    with pytest.raises(UserError, match="tasks name the outputs"):
        convert(
            tmp_path / "m.pth",
            tmp_path / "x.h5",
            arch_options={"tasks": TASKS},
            class_names=list("abcde"),
        )
    convert(tmp_path / "m.pth", tmp_path / "x.h5", arch_options={"tasks": TASKS}, new_head=3)
    plain = models.load_model(tmp_path / "x.h5")
    assert plain.tasks == () and plain.num_classes == 3 and plain.class_names is None


def test_export_warns_of_what_other_libraries_networks_do_not_have(tmp_path, capsys):
    for number, (options, words) in enumerate(
        [
            ({}, None),
            ({"deep_stem": 8}, None),
            ({"stride_in_1x1": True}, "stride_in_1x1=true"),
            ({"head": [8]}, "fc.0 and fc.2"),
        ]
    ):
        model = models.create("resnet26", num_classes=2, seed=1, **options)
        models.save_model(model, tmp_path / f"{number}.h5")
        target = tmp_path / f"{number}.pth"
        assert main(["export", str(tmp_path / f"{number}.h5"), str(target)]) == 0
        said = capsys.readouterr().err
        assert ("beware" in said and words in said) if words else not said


def test_a_negative_variance_is_refused(path, tmp_path):
    safetensors.torch.save_file(cifar_state() | {"bn1.running_var": -torch.ones(4)}, path)
    with pytest.raises(WeightsFileError, match=r"bn1\.running_var holds a negative variance"):
        convert(path, tmp_path / "w.h5")
