"""Files of Keras in every layout it has had: the same numbers, or one clear line."""

import dataclasses
import functools
import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl import Tensor, hdf5, models, no_grad
from minitl.cli import main
from minitl.convert import ConversionError, convert
from minitl.convert import keras_files as files_module
from minitl.convert.keras import source_of
from minitl.convert.keras_files import is_keras, read_keras
from minitl.convert.presets import PRESETS
from minitl.convert.source import Request
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.train.evaluate import evaluate

pytest.importorskip("torch")

from tests import keras_writer as writer
from tests.reference import keras as reference
from tests.reference.keras import Net

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pictures(size, count=2, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (count, size, size, 3)).astype(np.float32)


def check(path, net, size=None, bound=1e-5, **options):
    """Convert a file, compare the logits with the reference's, and return the report."""
    target = path.parent / "out.h5"
    report = convert(path, target, overwrite=True, **options)
    assert report.complete and report.written
    x = pictures(size or net.size)
    with no_grad():
        found = models.load_model(target).eval()(Tensor(x)).data
    expected = net.logits(x)
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    return report


# ---------------------------------------------------------------------------- layouts

LAYOUTS = {
    "full": lambda path, net: writer.write_legacy(path, net, writer.config_2(net), optimizer=True),
    "full, names in pieces": lambda path, net: writer.write_legacy(
        path, net, writer.config_2(net), chunk=4
    ),
    "full, by Keras 3": lambda path, net: writer.write_legacy(
        path, net, writer.config_3(net), style="3"
    ),
    "weights": lambda path, net: writer.write_legacy(path, net, root=True),
    "weights, names in pieces": lambda path, net: writer.write_legacy(
        path, net, root=True, chunk=7
    ),
    "weights, in a group": lambda path, net: writer.write_legacy(path, net),
    "weights, by Keras 1": lambda path, net: writer.write_legacy(path, net, root=True, style="1"),
    "keras": lambda path, net: writer.write_keras(path, net, writer.config_3(net)),
    "keras, compressed": lambda path, net: writer.write_keras(
        path, net, writer.config_3(net), zipfile.ZIP_DEFLATED
    ),
    "keras, no names": lambda path, net: writer.write_keras(
        path, net, writer.config_3(net), names=False
    ),
    "keras, first releases": lambda path, net: writer.write_keras(
        path, net, writer.config_3(net), names=False, top="_layer_checkpoint_dependencies"
    ),
    "weights of Keras 3": lambda path, net: path.write_bytes(writer.weights_3(net)) and path,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, tmp_path):
    net = reference.resnet8()
    path = LAYOUTS[layout](tmp_path / "any.name", net)
    report = check(path, net)
    assert report.arch == "mlperf_resnet8" and not report.missing
    assert "ASSUMED raw" in report.preprocessing_from
    assert report.preprocessing["scale"] == 1.0


def test_the_source_is_recorded(tmp_path):
    net = reference.resnet8()
    path = writer.write_legacy(tmp_path / "r8.h5", net, writer.config_2(net), optimizer=True)
    names = [f"class {i}" for i in range(10)]
    report = convert(path, tmp_path / "out.h5", class_names=names, license="MIT")
    assert report.ignored["optimizer_weights/Adam/iter:0"] == "the optimiser's"
    assert "saved by Keras 2.4.0" in report.notes
    contents = hdf5.read(tmp_path / "out.h5")
    assert contents.source == "r8.h5" and contents.class_names == names
    assert len(contents.source_sha256) == 64 and contents.license == "MIT"


def test_formats_are_told_by_contents(tmp_path):
    net = reference.resnet8()
    path = writer.write_keras(tmp_path / "model.pth", net, writer.config_3(net))
    assert is_keras(path.read_bytes())
    assert is_keras(writer.weights_3(net))
    assert (
        not is_keras(b"PK\x03\x04 and no archive")
        and not is_keras(b"")
        and not is_keras(b"\x80\x02")
    )
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert not is_keras(other.getvalue())


# ---------------------------------------------------------------------------- the applications


def test_resnet50_by_its_present_names(tmp_path):
    net = reference.resnet50(64)
    path = writer.write_legacy(tmp_path / "w.h5", net, root=True, chunk=100)
    report = check(path, net)
    assert report.arch == "resnet50"
    assert report.arch_options == {"stride_in_1x1": True, "bn_eps": 1.001e-5}
    assert any("53 biases folded" in note for note in report.notes)
    assert report.preprocessing == {
        "resize": 256,
        "crop": 224,
        "interpolation": "bilinear",
        "channel_order": "BGR",
        "scale": 1.0,
        "mean": [103.939, 116.779, 123.68],
        "std": [1.0, 1.0, 1.0],
    }
    assert "ASSUMED caffe" in report.preprocessing_from


def test_resnet50_by_its_first_names(tmp_path):
    net = reference.resnet50(64, first_names=True, eps=1e-3)
    path = writer.write_legacy(tmp_path / "w.h5", net, root=True, style="1")
    report = check(path, net)
    assert report.arch_options == {"stride_in_1x1": True, "bn_eps": 1e-3}
    assert any(note.startswith("assumed: epsilon 1e-3") for note in report.notes)
    report = convert(path, tmp_path / "other.h5", arch_options={"bn_eps": 1e-5}, dry_run=True)
    assert report.arch_options == {"stride_in_1x1": True}  # what is said goes before


def test_resnet50_under_a_head_of_its_own(tmp_path):
    """As users build it: the application without its top in a Sequential model, stride where they like."""
    net = reference.resnet50(64, head=None, stride_in="3x3", eps=2e-4)
    x = net.add("GlobalAveragePooling2D", net.layers[-1][0], name="pool")
    net.add("Dense", net.add("Dropout", x), name="mine", units=3, activation="softmax")
    trunk = Net(64, name="resnet50")
    trunk.layers = net.layers[:-3]
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "outer",
            "layers": [
                writer.config_2(trunk),
                *({"class_name": layer[1], "config": layer[2]} for layer in net.layers[-3:]),
            ],
        },
    }
    path = writer.write_nested(tmp_path / "m.h5", trunk, config, net.layers[-1])
    report = check(path, net, preprocessing="torch")
    assert (report.arch, report.arch_options) == ("resnet50", {"bn_eps": 2e-4})
    assert report.preprocessing["crop"] == report.preprocessing["resize"] == 64
    with pytest.raises(UserError, match="does not say how pictures were prepared"):
        convert(path, tmp_path / "other.h5")  # strides elsewhere than Keras' application: not it


def test_a_padding_that_no_architecture_has_is_a_difference(tmp_path):
    """With all names and shapes of ResNet-50; only the configuration tells."""
    net = reference.resnet50(64, stride_in="3x3 same")
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    with pytest.raises(UserError, match=r"no architecture for \(53 convolutions.*16 places where"):
        convert(path, tmp_path / "out.h5")


def test_resnet50_v2(tmp_path):
    net = reference.resnet50_v2(64)
    report = check(writer.write_legacy(tmp_path / "w.h5", net, root=True), net)
    assert report.arch == "resnetv2_50" and "ASSUMED tf" in report.preprocessing_from
    assert report.preprocessing["scale"] == 1 / 127.5 and report.preprocessing["mean"] == [1.0] * 3
    report = check(writer.write_keras(tmp_path / "m.keras", net, writer.config_3(net)), net)
    assert report.arch_options == {
        "stride_last": True,
        "zero_pool": True,
        "conv_bias": True,
        "bn_eps": 1.001e-5,
    }


def test_inception_v3(tmp_path):
    net = reference.inception_v3(75)
    report = check(writer.write_legacy(tmp_path / "w.h5", net, root=True), net)
    assert report.arch == "inception_v3" and report.arch_options == {"count_include_pad": False}
    assert report.preprocessing["crop"] == 299 and "ASSUMED tf" in report.preprocessing_from
    path = tmp_path / "m.keras"
    check(writer.write_keras(path, net, writer.config_3(net), names=False), net)


def test_vgg16_rearranges_what_follows_the_flattening(tmp_path):
    net = reference.vgg(224, (2, 2, 3, 3, 3), hidden=32)
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    target = tmp_path / "out.h5"
    report = convert(path, target)
    assert report.arch == "vgg16" and report.arch_options == {"hidden": 32}
    assert "ASSUMED caffe" in report.preprocessing_from
    x = pictures(224, count=1)
    with no_grad():
        found = models.load_model(target).eval()(Tensor(x)).data
    expected = net.logits(x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("full", [True, False])
def test_vgg16_without_its_dense_layers_gets_a_head_on_request(full, tmp_path):
    """By its configuration also where it is a narrower one."""
    net = reference.vgg(32, (2, 2, 3, 3, 3), width=4 if full else 64)
    config = writer.config_2(net) if full else None
    path = writer.write_legacy(tmp_path / "w.h5", net, config)
    with pytest.raises(ConversionError, match="no head; --new-head N"):
        convert(path, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()
    report = convert(path, tmp_path / "out.h5", new_head=4)
    assert report.arch == "sequential" and len(report.reinitialised) == 2
    assert report.preprocessing["channel_order"] == "BGR"
    model = models.load_model(tmp_path / "out.h5").eval()
    x = pictures(32)
    with no_grad():
        found = model.features(Tensor(x)).data
    expected = net.run(x).mean((1, 2))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert model.num_classes == 4 and model.head.weight.data.any()


@pytest.mark.parametrize("full", [True, False])
def test_a_missing_head_is_made_on_request_only(full, tmp_path):
    net = reference.resnet8(head=False) if full else reference.resnet50(64, head=None)
    config = writer.config_2(net) if full else None
    path = writer.write_legacy(tmp_path / "w.h5", net, config)
    with pytest.raises(ConversionError, match="no head; --new-head N"):
        convert(path, tmp_path / "out.h5")
    report = convert(path, tmp_path / "out.h5", new_head=3)
    assert report.arch == ("mlperf_resnet8" if full else "resnet50")
    assert report.reinitialised == ["fc.weight", "fc.bias"]
    assert models.load_model(tmp_path / "out.h5").num_classes == 3


def test_a_head_is_replaced_on_request(tmp_path):
    net = reference.resnet8()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    report = convert(path, tmp_path / "out.h5", new_head=3)
    assert report.reinitialised == ["fc.weight", "fc.bias"]
    assert models.load_model(tmp_path / "out.h5").num_classes == 3


# ---------------------------------------------------------------------------- chains of layers


def lenet():
    net = Net(32, name="lenet")
    x = net.input
    for filters in (6, 16):
        x = net.add("Conv2D", x, filters=filters, kernel_size=[5, 5], activation="relu")
        x = net.add("MaxPooling2D", x)
    x = net.add("Flatten", x)
    for units in (120, 84):
        x = net.add("Dense", x, units=units, activation="relu")
    net.add("Dense", x, units=10, activation="softmax")
    return net


@pytest.mark.parametrize("as_list", [True, False])
def test_lenet_as_a_sequential_model(as_list, tmp_path):
    net = lenet()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.sequential_config(net, as_list))
    report = check(path, net, preprocessing="unit")
    assert report.arch == "sequential"
    assert report.preprocessing["scale"] == 1 / 255 and report.preprocessing["crop"] == 32


@st.composite
def chains(draw):
    """Draw a network of one layer after another, with everything that such a network may have."""
    net = Net(draw(st.integers(8, 14)), seed=draw(st.integers(0, 100)))
    x = net.input
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "max", "avg", "bn", "relu", "pad", "dropout"]))
        sides = net.run(np.zeros((1, net.size, net.size, 3)), x).shape[1:3]
        kernel = [draw(st.integers(1, min(3, side))) for side in sides]
        strides = [draw(st.integers(1, 2)) for _ in range(2)]
        padding = draw(st.sampled_from(["same", "valid"]))
        if kind == "conv":
            options = {
                "filters": 3 * draw(st.integers(1, 2)),
                "groups": draw(st.sampled_from([1, 3])),
                "use_bias": draw(st.booleans()),
                "activation": draw(st.sampled_from(["relu", "linear"])),
            }
            x = net.add(
                "Conv2D", x, kernel_size=kernel, strides=strides, padding=padding, **options
            )
        elif kind in ("max", "avg"):
            layer = {"max": "MaxPooling2D", "avg": "AveragePooling2D"}[kind]
            x = net.add(layer, x, pool_size=kernel, strides=strides, padding=padding)
        elif kind == "bn":
            flags = {"scale": draw(st.booleans()), "center": draw(st.booleans())}
            x = net.add(
                "BatchNormalization", x, epsilon=draw(st.sampled_from([1e-3, 0.1])), **flags
            )
        elif kind == "relu":
            x = net.add(draw(st.sampled_from(["ReLU", "Activation"])), x, activation="relu")
        elif kind == "pad":
            around = [[draw(st.integers(0, 2)) for _ in range(2)] for _ in range(2)]
            x = net.add("ZeroPadding2D", x, padding=around)
            x = net.add("Conv2D", x, filters=3, kernel_size=kernel, strides=strides)
        else:
            x = net.add("Dropout", x)
    if draw(st.booleans()):
        x = net.add("GlobalAveragePooling2D", x)
    else:
        x = net.add("Flatten", x)
    if draw(st.booleans()):
        x = net.add("Dropout", x)
        x = net.add("BatchNormalization", x, axis=[1])
        x = net.add("Dense", x, units=5, activation="relu", use_bias=draw(st.booleans()))
    x = net.add("Dense", x, units=4, activation=draw(st.sampled_from(["softmax", "linear"])))
    if net.layers[-1][2]["activation"] == "linear" and draw(st.booleans()):
        net.add("Activation", x, activation="softmax")
    return net


@given(net=chains())
def test_any_chain_of_layers(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "m.keras"
    writer.write_keras(path, net, writer.config_3(net), names=False)
    check(path, net, preprocessing="raw", arch="sequential")


# ---------------------------------------------------------------------------- preprocessing


def scaled(inside=(), **options):
    """Return a small chain that begins with the layers `inside`."""
    net = Net(8)
    x = net.input
    for kind, config in inside:
        x = net.add(kind, x, **config)
    x = net.add("Conv2D", x, filters=3, kernel_size=[3, 3], activation="relu")
    net.add("Dense", net.add("Flatten", x), units=2)
    return net


@pytest.mark.parametrize(
    "layers",
    [
        [("Rescaling", {"scale": 1 / 127.5, "offset": -1.0})],
        [("RandomFlip", {}), ("Rescaling", {"scale": 1 / 255}), ("Rescaling", {"scale": 2.0})],
        [("Rescaling", {"scale": [0.1, 0.2, 0.3], "offset": [1.0, -2.0, 3.0]})],
        [("Normalization", {"mean": [125.0, 120.0, 110.0], "variance": [9.0, 4.0, 16.0]})],
    ],
    ids=["tf", "twice", "channels", "normalization"],
)
def test_scaling_inside_the_network_becomes_preprocessing(layers, tmp_path):
    net = scaled(layers)
    path = writer.write_keras(tmp_path / "m.keras", net, writer.config_3(net))
    target = tmp_path / "out.h5"
    report = convert(path, target)
    assert "own first layers" in report.preprocessing_from
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    x = Preprocessing.from_dict(report.preprocessing).evaluation(picture)
    with no_grad():
        found = models.load_model(target).eval()(Tensor(x[None])).data
    expected = net.run(picture[None])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(UserError, match="scales its input itself"):
        convert(path, target, preprocessing="unit", overwrite=True)


def functions(net, nodes):
    """Put nodes behind the input of a Keras 3 or 2 configuration."""
    config = (
        writer.config_3(net) if "args" in nodes[0]["inbound_nodes"][0] else writer.config_2(net)
    )
    layers = config["config"]["layers"]
    old = json.dumps(net.input)
    layers[1:] = json.loads(
        json.dumps(layers[1:]).replace(f"[{old}, 0, 0", f'["{nodes[-1]["name"]}", 0, 0')
    )
    layers[1:1] = nodes
    return config


def tensor_3(name):
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


def operation_3(kind, name, *args, **config):
    return {
        "module": "keras.src.ops.numpy",
        "class_name": kind,
        "config": {"name": name} | config,
        "name": name,
        "inbound_nodes": [{"args": list(args), "kwargs": {}}],
    }


def caffe_3():
    """`preprocess_input` of ResNet-50 in a model of Keras 3."""
    ellipsis = {"class_name": "__ellipsis__", "config": {}}
    mean = [[[[-103.939, -116.779, -123.68]]]]
    constant = {"class_name": "__tensor__", "config": {"value": mean, "dtype": "float32"}}
    channels = [
        operation_3("GetItem", f"get_{i}", tensor_3("input_1"), [ellipsis, 2 - i]) for i in range(3)
    ]
    stack = operation_3("Stack", "stack", [tensor_3(f"get_{i}") for i in range(3)], axis=-1)
    return [*channels, stack, operation_3("Add", "shift", tensor_3("stack"), constant)]


def function_2(name, function, source, arguments, kind="TFOpLambda"):
    config = {"name": name, "function": function}
    node = {"class_name": kind, "config": config, "name": name}
    return node | {"inbound_nodes": [[source, 0, 0, arguments]]}


def caffe_2():
    """`preprocess_input` of ResNet-50 in a model of TensorFlow's Keras 2."""
    last = {"start": None, "stop": None, "step": -1}
    items = {"class_name": "__tuple__", "items": [{"class_name": "__ellipsis__"}, last]}
    return [
        function_2(
            "tf.getitem",
            "__operators__.getitem",
            "input_1",
            {"slice_spec": items},
            "SlicingOpLambda",
        ),
        function_2(
            "tf.add",
            "nn.bias_add",
            "tf.getitem",
            {"bias": [-103.939, -116.779, -123.68], "name": None},
        ),
    ]


def tf_2():
    """`preprocess_input` of ResNet-50 V2 in a model of TensorFlow's Keras 2."""
    return [
        function_2("tf.div", "math.truediv", "input_1", {"y": 127.5, "name": None}),
        function_2("tf.sub", "math.subtract", "tf.div", {"y": 1.0, "name": None}),
    ]


@pytest.mark.parametrize(("nodes", "name"), [(caffe_3, "caffe"), (caffe_2, "caffe"), (tf_2, "tf")])
def test_preprocess_input_inside_the_network_is_understood(nodes, name, tmp_path):
    net = scaled()
    path = writer.write_legacy(tmp_path / "m.h5", net, functions(net, nodes()))
    report = convert(path, tmp_path / "out.h5")
    found = Preprocessing.from_dict(report.preprocessing)
    fields = PRESETS[name][1]
    wanted = Preprocessing.from_dict(report.preprocessing | fields)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.allclose(found.evaluation(picture), wanted.evaluation(picture), atol=1e-4)
    assert "own first layers" in report.preprocessing_from


def test_an_unknown_preprocessing_must_be_given(tmp_path, capsys):
    net = lenet()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.sequential_config(net))
    target = tmp_path / "out.h5"
    with pytest.raises(UserError, match="does not say how pictures were prepared"):
        convert(path, target)
    with pytest.raises(UserError, match="does not say how pictures were prepared"):
        convert(path, target, preprocessing={"resize": 40})
    with pytest.raises(UserError, match="must say channel_order as well"):
        convert(path, target, preprocessing={"scale": 1, "mean": [0.5] * 3, "std": [0.2] * 3})
    with pytest.raises(UserError, match="unknown preprocessing 'keras'"):
        convert(path, target, preprocessing="keras")
    assert not target.exists()
    assert main(["convert", str(path), str(target), "--preprocessing", "caffe"]) == 0
    assert "caffe (BGR minus ImageNet's mean, not scaled), as you said" in capsys.readouterr().out
    stored = hdf5.read(target).preprocessing
    assert stored["channel_order"] == "BGR" and stored["crop"] == 32
    fields = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.2] * 3, "channel_order": "RGB"}
    report = convert(path, target, preprocessing=fields, overwrite=True)
    assert report.preprocessing["std"] == [0.2] * 3
    assert report.preprocessing_from.endswith("as you said, else usual for sequential")


def test_a_head_of_its_own_leaves_the_preprocessing_open(tmp_path):
    """Somebody trained it, perhaps on bytes / 255; the application's preprocessing is a hint only."""
    net = reference.resnet50(32, head=3)
    for config in (writer.config_2(net), None):
        path = writer.write_legacy(tmp_path / "m.h5", net, config)
        refused(path, "does not say how", "(the application takes caffe)", preprocessing=None)
    report = check(path, net, preprocessing="unit")
    assert report.preprocessing["scale"] == 1 / 255 and report.preprocessing["std"] == [1.0] * 3


def test_presets_are_those_of_keras():
    """By hand: white, black and a colour through each mode."""
    picture = np.array([[[255, 255, 255], [0, 0, 0], [10, 20, 30]]], np.uint8)
    usual = models.create("sequential", seed=None).preprocessing
    expected = {
        "raw": picture.astype(float),
        "unit": picture / 255,
        "tf": picture / 127.5 - 1,
        "torch": (picture / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        "caffe": picture[..., ::-1] - [103.939, 116.779, 123.68],
    }
    assert expected.keys() == PRESETS.keys()
    for name, (_, fields) in PRESETS.items():
        found = Preprocessing.from_dict(usual | fields).normalise(picture)
        assert np.allclose(found, expected[name], atol=1e-4), name


# ---------------------------------------------------------------------------- what is refused


def small():
    """Return a network whose file has few numbers and all kinds of records."""
    net = Net(8)
    x = net.add("Conv2D", net.input, filters=4, kernel_size=[3, 3], use_bias=False)
    x = net.add("BatchNormalization", x)
    x = net.add("MaxPooling2D", net.add("Activation", x, activation="relu"))
    net.add("Dense", net.add("Flatten", x), units=2, activation="softmax")
    return net


def refused(path, *words, **options):
    """Convert; demand one line with the file's name and these words, and that nothing was written."""
    folder = {p.name for p in path.parent.iterdir()}
    options = {"preprocessing": "raw"} | options
    with pytest.raises(UserError) as caught:
        convert(path, path.parent / "out.h5", **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.isprintable(), message
    for word in words:
        assert word in message, message
    assert {p.name for p in path.parent.iterdir()} == folder
    return message


def spoil_external_link(file):
    file["model_weights/dense/other"] = h5py.ExternalLink("/etc/passwd", "/x")


def spoil_soft_link(file):
    file["model_weights/dense/other"] = h5py.SoftLink("/model_weights")


def spoil_hard_link(file):
    file["model_weights/dense/other"] = file["model_weights/conv2d"]


def spoil_virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file["model_weights"].create_virtual_dataset("v", layout)


def spoil_external_storage(file):
    file["model_weights"].create_dataset("e", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def spoil_compressed(file):
    del file["model_weights/dense/dense/kernel:0"]
    file["model_weights/dense"].create_dataset(
        "dense/kernel:0", data=np.zeros((36, 2), "f4"), compression="gzip"
    )


def spoil_absurd(file):
    del file["model_weights/dense/dense/kernel:0"]
    file["model_weights/dense"].create_dataset("dense/kernel:0", (1 << 30, 1 << 30), "f4")


def spoil_missing(file):
    del file["model_weights/dense/dense/kernel:0"]


def spoil_list(file):
    del file["model_weights/dense"].attrs["weight_names"]


def spoil_twice(file):
    file["model_weights"].attrs["layer_names"] = [b"dense", b"dense"]


def spoil_both(file):
    file.attrs["layer_names"] = [b"dense"]


def spoil_role_twice(file):
    group = file["model_weights/batch_normalization"]
    group.attrs["weight_names"] = [b"a/bn/gamma:0", b"b/bn/gamma:0"]
    for name in group.attrs["weight_names"]:
        group.create_dataset(name, data=np.ones(4, "f4"))


def spoil_integers(file):
    del file["model_weights/dense/dense/bias:0"]
    file["model_weights/dense"].create_dataset("dense/bias:0", data=np.zeros(2, np.int64))


def spoil_nan(file):
    file["model_weights/dense/dense/bias:0"][0] = np.nan


def spoil_variance(file):
    file["model_weights/batch_normalization/batch_normalization/moving_variance:0"][0] = -1


def spoil_nothing_left(file):
    del file["model_weights"]


def spoil_names(file):
    file["model_weights"].attrs["layer_names"] = np.arange(3)


def spoil_config(file):
    file.attrs["model_config"] = '{"class_name": '


def spoil_config_deep(file):
    file.attrs["model_config"] = '{"a":' * 200_000


def spoil_config_list(file):
    file.attrs["model_config"] = "[1, 2]"


SPOILT = {
    spoil_external_link: "refers to another file",
    spoil_soft_link: "has a link at",
    spoil_hard_link: "second name",
    spoil_virtual: "virtual dataset",
    spoil_external_storage: "in another file",
    spoil_compressed: "in pieces or compressed",
    spoil_absurd: "never written",
    spoil_missing: "but does not hold it",
    spoil_list: "has no list weight_names",
    spoil_twice: "lists the layer dense twice",
    spoil_both: "lists its layers twice",
    spoil_role_twice: "two candidates for the gamma of layer bn",
    spoil_integers: "does not hold floating-point numbers",
    spoil_nan: "NaN or infinities",
    spoil_variance: "negative variance",
    spoil_nothing_left: "without weights of Keras",
    spoil_names: "layer_names of model_weights, which is not text",
    spoil_config: "damaged model configuration",
    spoil_config_deep: "damaged model configuration",
    spoil_config_list: "damaged model configuration",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[6:])
def test_spoilt_files_are_refused(spoil, tmp_path):
    net = small()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    with h5py.File(path, "r+") as file:
        spoil(file)
    refused(path, SPOILT[spoil])


def test_a_shape_beyond_the_file_is_refused(tmp_path):
    net = small()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    data = path.read_bytes()
    shape = np.array([36, 2], "<u8").tobytes()
    assert data.count(shape) >= 1
    path.write_bytes(data.replace(shape, np.array([1 << 40, 2], "<u8").tobytes()))
    refused(path)


def test_a_description_beyond_the_file_is_refused(tmp_path):
    net = small()
    config = writer.config_2(net)
    config["config"]["layers"][1]["config"]["filters"] = 1 << 20
    refused(writer.write_legacy(tmp_path / "m.h5", net, config), "parameters but holds")


def other_layer(kind, **config):
    """Return the configuration of `small` with its ReLU replaced."""

    def change(config_of_all):
        layer = config_of_all["config"]["layers"][3]
        layer["class_name"] = kind
        layer["config"] = {"name": "odd\x1b[2J one", **config}

    return change


def change_settings(number, **settings):
    def change(config):
        config["config"]["layers"][number]["config"].update(settings)

    return change


def change_top(**values):
    return lambda config: config["config"].update(values)


def change_class(name):
    return lambda config: config.update(class_name=name)


def change_nodes(number, nodes):
    def change(config):
        config["config"]["layers"][number]["inbound_nodes"] = nodes

    return change


CHANGES = {
    "Lambda": (other_layer("Lambda", function=["4wEAAA", None, None]), "code, which is never run"),
    "function": (other_layer("TFOpLambda", function="io.write_file"), "code, which is never run"),
    "own class": (other_layer("Mine>Conv2D", filters=3), "a class of its author's own"),
    "own module": (
        lambda c: c["config"]["layers"][3].update(module="mine"),
        "a class of its author's own",
    ),
    "unknown layer": (other_layer("LSTM", units=3), "is a LSTM, which minitl does not know"),
    "unknown activation": (other_layer("Activation", activation="tanh"), "the activation tanh"),
    "own activation": (
        other_layer("Activation", activation={"class_name": "Mine>swish", "config": {}}),
        "the activation mine>swish",
    ),
    "ReLU6 as an activation": (
        change_settings(1, activation={"class_name": "ReLU", "config": {"max_value": 6.0}}),
        "upper limit",
    ),
    "ReLU6": (other_layer("ReLU", max_value=6.0), "upper limit"),
    "softmax in the middle": (
        other_layer("Activation", activation="softmax"),
        "activation softmax",
    ),
    "sigmoid at the end": (change_settings(6, activation="sigmoid"), "activation sigmoid"),
    "channels first": (change_settings(1, data_format="channels_first"), "channels_first"),
    "grey pictures": (change_settings(0, batch_input_shape=[None, 8, 8, 1]), "takes 1 channels"),
    "oblong pictures": (change_settings(0, batch_input_shape=[None, 8, 9, 3]), "8 x 9 pixels"),
    "huge pictures": (change_settings(0, batch_input_shape=[None, 1 << 20, 8, 3]), "pixels a side"),
    "rows": (change_settings(0, batch_input_shape=[None, 8]), "input of shape"),
    "dilation": (change_settings(1, dilation_rate=[2, 2]), "no setting 'dilation'"),
    "padding": (change_settings(1, padding="causal"), "padding causal"),
    "axis": (change_settings(2, axis=[1]), "normalises over axis 1"),
    "no filters": (change_settings(1, filters=0), "damaged model configuration at layer conv2d"),
    "text for a size": (change_settings(1, kernel_size="3"), "damaged model configuration"),
    "stride 0": (change_settings(1, strides=[0, 1]), "damaged model configuration"),
    "no layers": (change_top(layers=[]), "damaged model configuration"),
    "two outputs": (change_top(output_layers=[["dense", 0, 0], ["flatten", 0, 0]]), "2 outputs"),
    "subclass": (change_class("MyModel"), "holds a MyModel, not a Sequential or Functional model"),
    "circle": (change_nodes(1, [[["dense", 0, 0, {}]]]), "does not come before it"),
    "used twice": (change_nodes(2, [[["conv2d", 0, 0, {}]]] * 2), "used more than once"),
    "kernel too large": (change_settings(1, kernel_size=[9, 9]), "does not fit into 8 pixels"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_networks_that_are_not_understood_are_refused(change, tmp_path):
    net = small()
    config = json.loads(json.dumps(writer.config_2(net)))
    CHANGES[change][0](config)
    refused(writer.write_legacy(tmp_path / "m.h5", net, config), CHANGES[change][1])


def test_a_model_of_one_layer_and_a_function_by_its_name(tmp_path):
    """The head as a Sequential model of its own, listed by that name; ReLU as Keras 3 writes functions."""
    net = small()
    relu = {"module": "builtins", "class_name": "function", "config": "relu"}
    config = json.loads(json.dumps(writer.config_2(net)))
    layers = config["config"]["layers"]
    layers[3]["config"]["activation"] = relu | {"registered_name": "function"}
    inner = {"class_name": "Dense", "config": layers[6]["config"]}
    layers[6] |= {"class_name": "Sequential", "name": "head"}
    layers[6]["config"] = {"name": "head", "layers": [inner]}
    config["config"]["output_layers"] = [["head", 0, 0]]
    path = writer.write_legacy(tmp_path / "m.h5", net, config)
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        group.move("dense", "head")
        names = [name.replace(b"dense", b"head") for name in group.attrs["layer_names"]]
        group.attrs["layer_names"] = np.array(names)
    check(path, net, preprocessing="raw")


def test_models_nested_without_end_are_refused(tmp_path):
    net = small()
    config = writer.sequential_config(net)
    for _ in range(50):
        config = {"class_name": "Sequential", "config": {"name": "s", "layers": [config]}}
    refused(writer.write_legacy(tmp_path / "m.h5", net, config), "nested deeper than")


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_spoilt_archives_are_refused(tmp_path):
    net = small()
    config, weights = json.dumps(writer.config_3(net)), writer.weights_3(net)
    path = tmp_path / "m.keras"
    bomb = b" " * (40 << 20)
    good = [("config.json", config), ("model.weights.h5", weights)]
    cases = [
        ([("config.json", bomb), good[1]], "zip bomb"),
        ([good[0], ("model.weights.h5", weights + bomb)], "zip bomb"),
        ([*good, good[1]], "two of one name"),
        ([good[0], ("model.weights.json", "{}")], "split into several files"),
        ([good[0], ("model.weights.npz", b"")], "split into several files"),
        ([good[0], ("model.weights.h5", b"PK")], "no HDF5 file"),
        ([("config.json", "{"), good[1]], "damaged model configuration"),
        ([*good, *((f"assets/{i}", b"") for i in range(1001))], "too many members"),
        ([*good, ("metadata.json", "[]")], "not a JSON object"),
    ]
    for members, word in cases:
        refused(zipped(path, members, zipfile.ZIP_DEFLATED), word)
    whole = zipped(path, good).read_bytes()
    path.write_bytes(whole.replace(weights[-50:], b"x" * 50))
    refused(path, "damaged")


def test_cut_off_files_are_refused(tmp_path):
    net = small()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 600, 8):
        path.write_bytes(whole[:size])
        refused(path, "damaged")


def test_a_gap_among_the_arrays_is_refused(tmp_path):
    net = small()
    path = tmp_path / "m.weights.h5"
    path.write_bytes(writer.weights_3(net))
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/0"]
    refused(path, "arrays of layers/dense are missing")


def test_weights_alone_of_an_unknown_network_are_refused(tmp_path):
    net = small()
    path = writer.write_legacy(tmp_path / "w.h5", net)
    refused(path, "weights alone (3 layers", "model.save")
    refused(path, "do not fit resnet50", arch="resnet50")
    path.write_bytes(writer.weights_3(net, names=False))
    refused(path, "without names of layers")


def test_what_is_said_must_agree_with_the_file(tmp_path):
    net = reference.resnet8()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    refused(path, "is no resnet50", "but a mlperf_resnet8", arch="resnet50")
    refused(path, "class names were given", class_names=["a", "b"])
    with pytest.raises(UserError, match="unknown architecture 'resnet5000'"):
        convert(path, tmp_path / "out.h5", arch="resnet5000")


def test_layers_without_a_place_are_listed(tmp_path):
    net = reference.resnet50(64)
    for name in ("odd_one", "odd_two"):
        net.add("Dense", net.input, name=name, units=2)
    path = writer.write_legacy(tmp_path / "w.h5", net)
    refused(path, "of no application")


def test_filters_in_theanos_order_are_explained(tmp_path):
    net = reference.resnet50(64, first_names=True)
    for _, kind, _, _, weights in net.layers:
        if kind == "Conv2D":
            weights["kernel"] = np.ascontiguousarray(weights["kernel"].transpose(3, 2, 0, 1))
    path = writer.write_legacy(tmp_path / "th.h5", net, root=True, style="1")
    with pytest.raises(ConversionError, match="Theano's order of axes"):
        convert(path, tmp_path / "out.h5")


def test_our_own_files_and_others_are_told_apart(tmp_path):
    path = tmp_path / "own.h5"
    models.save_model(models.create("sequential"), path)
    refused(path, "is a weights file of minitl already; it can be used as it is")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    refused(tmp_path / "other.h5", "without weights of Keras")


def test_a_library_that_crashes_or_hangs_is_an_error(tmp_path, monkeypatch):
    net = small()
    path = writer.write_legacy(tmp_path / "m.h5", net, writer.config_2(net))
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "SURVEY_SECONDS", 0.001)
        refused(path, "did not end within")
    program = tmp_path / "crash.py"
    program.write_text("import os; os.abort()")
    monkeypatch.setattr(files_module, "SURVEY", program)
    refused(path, "the HDF5 library broke off")
    monkeypatch.setattr(files_module.sys, "executable", str(tmp_path / "nothing"))
    refused(path, "cannot start")


# ---------------------------------------------------------------------------- any damage


@functools.cache
def images():
    """Return files of one small network, as bytes, by name."""
    net, content = small(), io.BytesIO()
    writer.write_legacy(content, net, writer.config_2(net))
    archive = io.BytesIO()
    writer.write_keras(archive, net, writer.config_3(net))
    return {
        "legacy": content.getvalue(),
        "keras": archive.getvalue(),
        "vars": writer.weights_3(net),
    }


@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(tmp_path_factory, data):
    image = bytearray(images()[data.draw(st.sampled_from(["keras", "legacy", "vars"]))])
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of HDF5's own records lie in the first part.
        place = data.draw(st.integers(0, len(image) - 1) | st.integers(0, 4000))
        image[place % len(image)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "m.h5"
    path.write_bytes(image)
    try:
        convert(path, folder / "out.h5", preprocessing="raw")
    except ConversionError:
        pass
    except UserError as error:
        message = str(error)
        assert "\n" not in message and message.isprintable()
    else:
        hdf5.read(folder / "out.h5")
        return
    assert [p.name for p in folder.iterdir()] == ["m.h5"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 40), 1 << 40)
    | st.floats()
    | st.sampled_from(["same", "relu", "input_1", "conv2d", "Conv2D", "Flatten", "Functional", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=5,
)


@functools.cache
def read_once(name):
    return read_keras("m.h5", images()[name])


def places(value, path=()):
    """Yield the way to everything in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


@given(data=st.data())
def test_any_configuration_is_a_network_or_an_error(data):
    file = read_once(data.draw(st.sampled_from(["legacy", "keras"])))
    config = json.loads(json.dumps(file.config))
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from([p for p in places(config) if p]))
        holder = config
        for key in parents:
            holder = holder[key]
        if isinstance(holder, dict) and data.draw(st.booleans()):
            del holder[last]
        else:
            holder[last] = data.draw(JSON)
    changed = dataclasses.replace(file, config=config)
    try:
        found = source_of(changed, Request(preprocessing="raw"))
    except UserError as error:
        message = str(error)
        assert "\n" not in message and message.isprintable()
    else:
        assert found.arch in models.ARCHITECTURES


# ---------------------------------------------------------------------------- published weights


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real weights and pictures at {DATA}")
@pytest.mark.parametrize(
    ("name", "options", "correct"),
    [
        ("cifar_resnet8_mlperftiny_keras.h5", [], 445),
        (
            "cifar_lenet_onepixel_keras.h5",
            [
                "--preprocessing",
                '{"scale": 1, "channel_order": "RGB", "mean": [125.307, 122.95, 113.865], '
                '"std": [62.9932, 62.0887, 66.7048]}',
            ],
            373,
        ),
    ],
)
def test_published_weights_keep_their_accuracy(name, options, correct, tmp_path):
    test = DATA / "images" / "cifar10" / "test"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(sorted(folder.name for folder in test.iterdir())))
    target = str(tmp_path / "out.h5")
    source = str(DATA / "weights" / name)
    assert main(["convert", source, target, "--class-names", str(names), *options]) == 0
    figures = evaluate(Path(target), test, None)
    assert figures["images"] == 500
    assert abs(figures["accuracy"] * 500 - correct) <= 1
