"""Weights to PyTorch, safetensors and ONNX: other programs read them and compute the same."""

import io
import json
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitl import hdf5, models, nn, no_grad, ops, save_model, tensor
from minitl.cli import main
from minitl.convert import convert
from minitl.convert.export import export
from minitl.convert.export_onnx import onnx_file
from minitl.convert.export_torch import torch_file
from minitl.convert.torch_files import read_torch
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models import ARCHITECTURES, Classifier
from minitl.weights import STROKES
from tests.reference import torch_resnet

NAMES = ["ash", "birch", "cedar"]


def small(arch="cifar_resnet20", seed=1, **options):
    if arch == "cifar_resnet20":
        options.setdefault("width", 4)
    model = models.create(arch, num_classes=3, seed=seed, **options)
    model.class_names = NAMES
    rng = np.random.default_rng(seed)
    for name, buffer in model.named_buffers():  # or a batch normalisation would do nothing
        low = 0.5 if name.endswith("var") else -0.5
        buffer[...] = rng.uniform(low, low + 1, buffer.shape)
    return model


@pytest.fixture
def source(tmp_path):
    save_model(small(), tmp_path / "m.h5", source="a forest", license="MIT")
    return tmp_path / "m.h5"


# ---------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("options", [{}, {"mmap": True}])
def test_torch_loads_the_file_with_nothing_but_weights(source, options):
    target = source.with_suffix(".pth")
    assert export(source, target) == "torch"
    state = torch.load(target, weights_only=True, **options)
    reference = torch_resnet.make("cifar_resnet20", shortcut="A", width=4, num_classes=3)
    reference.load_state_dict(state, strict=True)
    for name, array in hdf5.read(source).state.items():
        assert state[name].numpy().tobytes() == array.tobytes(), name


def test_the_torch_file_comes_back_to_the_bit(source, tmp_path):
    export(source, tmp_path / "m.pth")
    convert(
        tmp_path / "m.pth",
        tmp_path / "back.h5",
        arch="cifar_resnet20",
        arch_options={"shortcut": "A", "width": 4},
    )
    before, after = hdf5.read(source).state, hdf5.read(tmp_path / "back.h5").state
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


def test_any_shape_and_integers_are_written_as_torch_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    state = {
        "a": rng.standard_normal((2, 3, 1, 5)).astype(np.float32),
        "transposed": rng.standard_normal((4, 6)).astype(np.float32).T,
        "none": np.zeros((0, 3), np.float32),
        "counter": np.array(2**40, np.int64),
        "ä.name": np.float32([-0.0, np.inf]),
    }
    path = tmp_path / "m.pth"
    path.write_bytes(torch_file(state))
    loaded = torch.load(path, weights_only=True)
    ours = read_torch(path)
    assert list(loaded) == list(state)
    for name, array in state.items():
        for read in (loaded[name].numpy(), ours.array(ours.content[name])):
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == np.ascontiguousarray(array).tobytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():  # as torch.save aligns them
            start = info.header_offset + 30 + len(info.filename) + len(info.extra)
            assert start % 64 == 0


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
        st.lists(st.integers(0, 4), max_size=5),
        max_size=8,
    )
)
def test_any_state_comes_back(shapes):
    state = {
        name: np.full(shape, number, np.float32)
        for number, (name, shape) in enumerate(shapes.items())
    }
    content = torch_file(state)
    loaded, ours = torch.load(io.BytesIO(content), weights_only=True), read_torch("m.pth", content)
    assert list(loaded) == list(ours.content) == list(state)
    for name, array in state.items():
        assert np.array_equal(loaded[name].numpy(), array)
        assert np.array_equal(ours.array(ours.content[name]), array)


def test_equal_weights_make_equal_torch_files():
    state = {"a": np.ones(3, np.float32)}
    assert torch_file(state) == torch_file(state)


# ---------------------------------------------------------------------------- safetensors


def test_safetensors_carry_the_weights_and_what_is_known_of_them(source, tmp_path):
    from safetensors import safe_open

    assert export(source, tmp_path / "m.safetensors") == "safetensors"
    contents = hdf5.read(source)
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        metadata = file.metadata()
        for name, array in contents.state.items():
            assert file.get_tensor(name).tobytes() == array.tobytes(), name
        assert file.get_tensor("bn1.num_batches_tracked") == 0
    assert (metadata["format"], metadata["arch"]) == ("pt", "cifar_resnet20")
    assert (metadata["source"], metadata["license"]) == ("a forest", "MIT")
    assert json.loads(metadata["class_names"]) == NAMES
    assert json.loads(metadata["preprocessing"]) == contents.preprocessing


# ---------------------------------------------------------------------------- ONNX


def onnx_logits(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": x.transpose(0, 3, 1, 2)})
    return logits


def assert_onnx_agrees(model, path, batch=2):
    path.write_bytes(onnx_file(model, {}, "m.h5"))
    crop = model.preprocessing["crop"]
    x = np.random.default_rng(0).standard_normal((batch, crop, crop, 3)).astype(np.float32)
    with no_grad():
        expected = model.eval()(tensor(x)).numpy()
    found = onnx_logits(path, x)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def quick_weights(arch, **options):
    """Make a network with weights that repeat a few random numbers: large ones take no time then."""
    model = models.create(arch, num_classes=3, seed=None, **options)
    numbers = np.random.default_rng(4).standard_normal(10_007).astype(np.float32)
    for name, array in model.state_dict().items():
        noise = np.resize(numbers, array.shape)
        if array.ndim > 1:
            array[...] = noise * (2 / array[0].size) ** 0.5
        elif name.endswith(("running_var", "weight")):
            array[...] = 1 + 0.2 * np.abs(noise)
        else:
            array[...] = 0.1 * noise
    return model


# These consist of the same blocks as the others, only more or wider ones.
LARGE = re.compile("26|34|50d|101|152|200|wide|vgg1[369]")
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES if THOROUGH or not LARGE.search(a)])
def test_onnx_computes_the_same(tmp_path, arch):
    model = quick_weights(arch, **({"hidden": 64} if arch.startswith("vgg") else {}))
    # Smaller pictures than usual: the operations are the same, and the tests quick.
    if model.preprocessing["crop"] > 96:
        model.preprocessing |= {"resize": 96, "crop": 96}
    assert_onnx_agrees(model, tmp_path / "m.onnx")


def test_onnx_knows_shortcut_b(tmp_path):
    assert_onnx_agrees(quick_weights("cifar_resnet20", shortcut="B", width=4), tmp_path / "m.onnx")


def test_onnx_carries_what_is_known_and_is_valid(source, tmp_path):
    import onnx

    assert export(source, tmp_path / "m.onnx") == "onnx"
    network = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(network, full_check=True)
    found = {entry.key: entry.value for entry in network.metadata_props}
    assert (found["arch"], found["license"]) == ("cifar_resnet20", "MIT")
    assert json.loads(found["class_names"]) == NAMES
    assert json.loads(found["preprocessing"])["crop"] == 32
    names = {constant.name for constant in network.graph.initializer}
    assert {"conv1.weight", "bn1.running_mean", "linear.bias"} <= names
    assert not any(node.op_type == "Softmax" for node in network.graph.node)


class Patchwork(Classifier):
    """What no registered network may use: the remaining operations and their rarer options."""

    def __init__(self):
        preprocessing = {"resize": 13, "crop": 13, "interpolation": "bilinear"}
        preprocessing |= {"channel_order": "RGB", "scale": 1.0, "mean": [0] * 3, "std": [1] * 3}
        super().__init__("patchwork", {}, preprocessing)
        rng = np.random.default_rng(3)
        self.conv = nn.Conv2d(3, 4, (2, 3), stride=(2, 1), padding=((0, 1), (2, 1)), rng=rng)
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2, rng=rng)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.bn1d = nn.BatchNorm2d(8 * 3 * 2)
        self.bn1d.running_mean[...] = rng.standard_normal(8 * 3 * 2)
        self.hidden = nn.Linear(8 * 3 * 2, 5, rng=rng, bias=False)
        self.fc = nn.Linear(5, 3, rng=rng)

    def features(self, x):
        x = self.conv(x)
        x = ops.concat([ops.relu(x), ops.add(self.dilated(x), x)])
        x = self.bn(x)
        x = ops.avgpool2d(x, 3, 1, 1, count_include_pad=False)
        x = ops.avgpool2d(x, 2, 1, ((1, 0), (0, 1)))
        x = ops.maxpool2d(x, (2, 3), 1, ((0, 1), (1, 0)))
        return self.hidden(self.bn1d(ops.flatten(ops.adaptive_avgpool2d(x, (3, 2)))))


def test_onnx_knows_every_operation_and_option(tmp_path):
    assert_onnx_agrees(Patchwork(), tmp_path / "m.onnx", batch=3)


def test_a_missing_library_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"minitl\[onnx\]"):
        export(source, tmp_path / "m.onnx")


def test_onnx_finds_the_golden_logits(tmp_path):
    """All the way: the picture, prepared as the graph's own metadata say, through another runtime."""
    import onnx

    export(STROKES, tmp_path / "m.onnx")
    metadata = {e.key: e.value for e in onnx.load(tmp_path / "m.onnx").metadata_props}
    preprocessing = Preprocessing.from_dict(json.loads(metadata["preprocessing"]))
    golden = hdf5.read(STROKES).golden
    found = onnx_logits(tmp_path / "m.onnx", preprocessing.evaluation(golden.picture)[None])[0]
    assert np.abs(found - golden.logits).max() <= 1e-5 * np.abs(golden.logits).max()


# ---------------------------------------------------------------------------- all


@pytest.mark.parametrize(
    ("arch", "options", "names", "ending"),
    [
        ("vgg11_bn", {"hidden": 16}, "timm", ".pth"),
        ("vgg11_bn", {"hidden": 16}, "torchvision", ".safetensors"),
        ("resnet18d", {}, "timm", ".safetensors"),
        ("resnetv2_50", {}, "timm", ".pth"),
    ],
)
def test_names_of_others_come_back_to_the_bit(tmp_path, arch, options, names, ending):
    model = quick_weights(arch, **options)
    model.preprocessing |= {"resize": 64, "crop": 64}  # the picture of the self-test is small then
    save_model(model, tmp_path / "m.h5")
    exported = tmp_path / f"m{ending}"
    export(tmp_path / "m.h5", exported, names=names)
    convert(exported, tmp_path / "back.h5", preprocessing=model.preprocessing)
    before, after = hdf5.read(tmp_path / "m.h5"), hdf5.read(tmp_path / "back.h5")
    assert (after.arch, after.arch_options) == (before.arch, before.arch_options)
    assert before.state.keys() == after.state.keys()
    for name, array in before.state.items():
        assert array.tobytes() == after.state[name].tobytes(), name


def test_unknown_names_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="--names caffe: the choice is torchvision or timm"):
        export(source, tmp_path / "m.pth", names="caffe")


def test_nothing_half_written_is_left(source, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere"):
        export(source, tmp_path / "nowhere" / "m.pth")
    before = sorted(tmp_path.iterdir())
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut off"):
        export(source, tmp_path / "m.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command(source, tmp_path, capsys):
    target = tmp_path / "m.pth"
    assert main(["export", str(source), str(target)]) == 0
    assert "prepare pictures with" in capsys.readouterr().out
    assert torch.load(target, weights_only=True)
    assert main(["export", str(source), str(target)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(source), str(target), "--overwrite", "--to", "onnx"]) == 0
    assert "(onnx)" in capsys.readouterr().out


def test_an_existing_file_is_kept_unless_asked(source, tmp_path):
    target = tmp_path / "m.pth"
    target.write_text("precious")
    with pytest.raises(UserError, match=r"exists.*--overwrite"):
        export(source, target)
    assert target.read_text() == "precious"
    export(source, target, overwrite=True)
    assert torch.load(target, weights_only=True)


def test_the_source_is_never_replaced(source):
    whole = source.read_bytes()
    with pytest.raises(UserError, match="is the file to be exported"):
        export(source, source, to="torch", overwrite=True)
    assert source.read_bytes() == whole


def test_an_unclear_format_is_asked_for(source, tmp_path):
    with pytest.raises(UserError, match="--to torch, --to safetensors, --to onnx"):
        export(source, tmp_path / "m.bin")
    with pytest.raises(UserError, match="the formats are"):
        export(source, tmp_path / "m.bin", to="keras")
    assert export(source, tmp_path / "m.bin", to="torch") == "torch"


def test_without_preprocessing_onnx_has_no_size(tmp_path):
    contents = hdf5.WeightsFile("cifar_resnet20", small().state_dict(), {"width": 4})
    hdf5.write(tmp_path / "m.h5", contents)
    with pytest.raises(UserError, match="how pictures are prepared"):
        export(tmp_path / "m.h5", tmp_path / "m.onnx")
