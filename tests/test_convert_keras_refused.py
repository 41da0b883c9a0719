"""Files of Keras that are damaged, hostile or not understood: one clear line, and nothing written."""

import dataclasses
import functools
import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl import hdf5, models
from minitl.convert import ConversionError, convert
from minitl.convert import keras_files as files_module
from minitl.convert.keras import source_of
from minitl.convert.keras_files import read_keras
from minitl.convert.source import Request
from minitl.errors import UserError

pytest.importorskip("torch")

from tests import keras_writer as writer
from tests.keras_checks import check, refused
from tests.reference import keras as reference
from tests.reference.keras import Net

# ---------------------------------------------------------------------------- what is refused


def small():
    """Return a network whose file has few numbers and all kinds of records."""
    net = Net(8)
    x = net.add("Conv2D", net.input, filters=4, kernel_size=[3, 3], use_bias=False)
    x = net.add("BatchNormalization", x)
    x = net.add("MaxPooling2D", net.add("Activation", x, activation="relu"))
    net.add("Dense", net.add("Flatten", x), units=2, activation="softmax")
    return net


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
