"""Files of Keras in every layout it has had: the same numbers, or one clear line."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl import Tensor, hdf5, models, no_grad
from minitl.cli import main
from minitl.convert import ConversionError, convert
from minitl.convert.keras_files import is_keras
from minitl.convert.presets import PRESETS
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.train.evaluate import evaluate

pytest.importorskip("torch")

from tests import keras_writer as writer
from tests.keras_checks import check, pictures, refused
from tests.reference import keras as reference
from tests.reference.keras import Net

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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


@pytest.mark.slow
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


@pytest.mark.slow
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
