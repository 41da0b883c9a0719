"""Write a network of tests/reference/keras.py in the layouts that Keras has had."""

import io
import json
import zipfile

import h5py
import numpy as np

from tests.reference.keras import SNAKE


def config_2(net):
    """Return the configuration of a functional model as Keras 2 wrote it."""
    layers = []
    for name, kind, config, inputs, _ in net.layers:
        nodes = [[[i, 0, 0, {}] for i in inputs]] if inputs else []
        layers.append({"class_name": kind, "config": config, "name": name, "inbound_nodes": nodes})
    inner = {
        "name": net.name,
        "layers": layers,
        "input_layers": [[net.layers[0][0], 0, 0]],
        "output_layers": [[net.layers[-1][0], 0, 0]],
    }
    return {"class_name": "Functional", "config": inner}


def config_3(net):
    """Return the configuration of a functional model as Keras 3 writes it."""
    layers = []
    for name, kind, config, inputs, _ in net.layers:
        if kind == "InputLayer":
            config = {"name": name, "batch_shape": config["batch_input_shape"], "dtype": "float32"}
        tensors = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [i, 0, 0]}}
            for i in inputs
        ]
        args = [tensors] if len(tensors) > 1 else tensors
        layers.append(
            {
                "module": "keras.layers",
                "class_name": kind,
                "config": config,
                "registered_name": None,
                "name": name,
                "inbound_nodes": [{"args": args, "kwargs": {}}] if inputs else [],
            }
        )
    inner = {
        "name": net.name,
        "layers": layers,
        "input_layers": [net.layers[0][0], 0, 0],
        "output_layers": [net.layers[-1][0], 0, 0],
    }
    return {"module": "keras.src.models.functional", "class_name": "Functional", "config": inner}


def sequential_config(net, as_list=False):
    """Return a chain of layers as a Sequential model; before Keras 2.2.3 it was a bare list."""
    layers = [
        {"class_name": kind, "config": dict(config)}
        for _, kind, config, _, _ in net.layers
        if kind != "InputLayer"
    ]
    layers[0]["config"]["batch_input_shape"] = net.layers[0][2]["batch_input_shape"]
    inner = layers if as_list else {"name": net.name, "layers": layers}
    return {"class_name": "Sequential", "config": inner}


def write_legacy(path, net, config=None, *, root=False, chunk=None, style="2", optimizer=False):
    """Write the layout of Keras 1 and 2, and of Keras 3 for files that end in .h5.

    config: of a full model, None for weights alone. root: weights at the root instead of in
    /model_weights. chunk: write layer_names in lists of so many. style: "1" for names as conv1_W:0,
    "2" for conv1/kernel:0, "3" for model/conv1/kernel.
    """
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["keras_version"] = "2.4.0"
            file.attrs["backend"] = "tensorflow"
            file.attrs["model_config"] = json.dumps(config)
        group = file if root else file.create_group("model_weights")
        names = [name.encode() for name, *_ in net.layers]
        parts = (
            [names]
            if chunk is None
            else [names[i : i + chunk] for i in range(0, len(names), chunk)]
        )
        for i, part in enumerate(parts):
            group.attrs["layer_names" if chunk is None else f"layer_names{i}"] = texts(part, style)
        group.attrs["keras_version"] = b"2.4.0"
        for name, _, _, _, weights in net.layers:
            layer = group.create_group(name)
            paths = {role: _path(name, role, style, net.name) for role in weights}
            layer.attrs["weight_names"] = texts([path.encode() for path in paths.values()], style)
            for role, array in weights.items():
                layer.create_dataset(paths[role], data=array)
        if optimizer:
            file.create_dataset("optimizer_weights/Adam/iter:0", data=np.int64(3))
            file.create_dataset("optimizer_weights/Adam/conv2d/kernel/m:0", data=np.zeros(5, "f4"))
    return path


def texts(names, style):
    """Return a list as Keras stores it: of fixed length, and of any length since Keras 3."""
    return np.array(names) if style != "3" else names


def _path(layer, role, style, model):
    if style == "1":
        first = {
            "kernel": "W",
            "bias": "b",
            "moving_mean": "running_mean",
            "moving_variance": "running_std",
        }
        return f"{layer}_{first.get(role, role)}:0"
    return f"{layer}/{role}:0" if style == "2" else f"{model}/{layer}/{role}"


def write_nested(path, net, config, head):
    """Write a Sequential model of `net` and a dense layer in the legacy layout.

    head: the dense layer, as a layer of a Net.
    """
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [net.name.encode(), head[0].encode()]
        inner = group.create_group(net.name)
        names = []
        for name, _, _, _, weights in net.layers:
            for role, array in weights.items():
                names.append(f"{name}/{role}:0")
                inner.create_dataset(names[-1], data=array)
        inner.attrs["weight_names"] = [name.encode() for name in names]
        outer = group.create_group(head[0])
        outer.attrs["weight_names"] = [f"{head[0]}/{role}:0".encode() for role in head[4]]
        for role, array in head[4].items():
            outer.create_dataset(f"{head[0]}/{role}:0", data=array)
    return path


def weights_3(net, *, names=True, top="layers"):
    """Return the bytes of a Keras 3 weights file.

    names: note the layers' names, as releases from 3.5 or so do. top: the first releases said
    "_layer_checkpoint_dependencies".
    """
    content = io.BytesIO()
    counts = {}
    with h5py.File(content, "w") as file:
        for name, kind, _, _, weights in net.layers:
            stem = SNAKE[kind]
            number = counts[stem] = counts.get(stem, -1) + 1
            group = file.create_group(
                f"{top}/{stem}_{number}/vars" if number else f"{top}/{stem}/vars"
            )
            if names:
                group.attrs["name"] = name
            for i, array in enumerate(weights.values()):
                group.create_dataset(str(i), data=array)
        seeds = file.create_group(f"{top}/dropout/seed_generator/vars")
        seeds.create_dataset("0", data=np.zeros(2, np.uint32))
        file.create_dataset("optimizer/vars/0", data=np.int64(3))
    return content.getvalue()


def write_keras(path, net, config, compression=zipfile.ZIP_STORED, **options):
    """Write a Keras 3 model."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.5.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights_3(net, **options))
    return path
