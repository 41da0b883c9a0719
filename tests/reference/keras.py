"""Networks of Keras: what its layers compute, in float64 with PyTorch, and the configuration they have.

Written after the documentation of Keras and TensorFlow: pictures are N, H, W, C; filters are (rows,
columns, in, out); dense weights (in, out); "same" gives ceil(size / stride) windows and puts the odd pixel
below and to the right; the mean over a padded window is over its pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F


class Net:
    """A network under construction: each `add` makes a layer behind others and returns its name."""

    def __init__(self, size, seed=0, name="model"):
        self.size, self.name = size, name
        self.rng = np.random.default_rng(seed)
        self.layers = []  # (name, class, config, names of inputs, weights by role)
        self.channels = {}
        self.counts = {}
        self.input = self.add("InputLayer", name="input_1", batch_input_shape=[None, size, size, 3])

    def add(self, kind, *inputs, name=None, **config):
        """Add a layer with random weights; `inputs` are names of layers."""
        if name is None:
            stem = SNAKE[kind]
            number = self.counts[stem] = self.counts.get(stem, -1) + 1
            name = f"{stem}_{number}" if number else stem
        full = {"name": name, "trainable": True} | DEFAULTS.get(kind, {}) | config
        weights = self._weights(kind, full, inputs)
        self.layers.append((name, kind, full, list(inputs), weights))
        return name

    def _weights(self, kind, config, inputs):
        c = self.channels.get(inputs[0]) if inputs else 3
        rng, weights = self.rng, {}
        out = c
        if kind == "Conv2D":
            out, (r, s) = config["filters"], config["kernel_size"]
            inner = c // config["groups"]
            scale = np.sqrt(2 / (r * s * inner))
            weights["kernel"] = rng.normal(0, scale, (r, s, inner, out))
        elif kind == "Dense":
            out = config["units"]
            weights["kernel"] = rng.normal(0, np.sqrt(2 / c), (c, out))
        elif kind == "BatchNormalization":
            if config["scale"]:
                weights["gamma"] = rng.uniform(0.5, 1.5, c)
            if config["center"]:
                weights["beta"] = rng.normal(0, 0.3, c)
            weights["moving_mean"] = rng.normal(0, 0.3, c)
            weights["moving_variance"] = rng.uniform(0.5, 1.5, c)
        elif kind == "Flatten":
            size = self.run(np.zeros((1, self.size, self.size, 3)), inputs[0]).shape
            out = int(np.prod(size[1:]))
        elif kind == "Concatenate":
            out = sum(self.channels[i] for i in inputs)
        if config.get("use_bias"):
            weights["bias"] = rng.normal(0, 0.3, out)
        self.channels[config["name"]] = out
        return {role: array.astype(np.float32) for role, array in weights.items()}

    def run(self, x, until=None):
        """Return the result of the last layer, or of `until`, for pictures x (N, H, W, 3)."""
        results = {}
        for name, kind, config, inputs, weights in self.layers:
            values = [results[i] for i in inputs] or [torch.tensor(np.asarray(x, np.float64))]
            w = {role: torch.tensor(a.astype(np.float64)) for role, a in weights.items()}
            y = LAYERS[kind](values if kind in ("Add", "Concatenate") else values[0], config, w)
            results[name] = activated(y, config.get("activation", "linear"))
            if name == until:
                break
        return results[name].numpy()

    def logits(self, x):
        """Return the result without a softmax at the end."""
        _, kind, config, _, _ = self.layers[-1]
        if kind == "Activation":
            return self.run(x, self.layers[-2][0])
        softmax = config.get("activation") == "softmax"
        config["activation"] = "linear" if softmax else config.get("activation", "linear")
        result = self.run(x)
        config["activation"] = "softmax" if softmax else config["activation"]
        return result


SNAKE = {
    "Conv2D": "conv2d",
    "Dense": "dense",
    "BatchNormalization": "batch_normalization",
    "Activation": "activation",
    "Add": "add",
    "Concatenate": "concatenate",
    "MaxPooling2D": "max_pooling2d",
    "AveragePooling2D": "average_pooling2d",
    "GlobalAveragePooling2D": "global_average_pooling2d",
    "Flatten": "flatten",
    "Dropout": "dropout",
    "ZeroPadding2D": "zero_padding2d",
    "ReLU": "re_lu",
    "Normalization": "normalization",
    "Rescaling": "rescaling",
    "RandomFlip": "random_flip",
    "InputLayer": "input_layer",
}
_WINDOW = {"padding": "valid", "data_format": "channels_last"}
DEFAULTS = {
    "Conv2D": {
        "strides": [1, 1],
        "dilation_rate": [1, 1],
        "groups": 1,
        "activation": "linear",
        "use_bias": True,
        **_WINDOW,
    },
    "Dense": {"activation": "linear", "use_bias": True},
    "BatchNormalization": {
        "axis": [3],
        "momentum": 0.99,
        "epsilon": 0.001,
        "center": True,
        "scale": True,
    },
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2], **_WINDOW},
    "AveragePooling2D": {"pool_size": [2, 2], "strides": [2, 2], **_WINDOW},
    "Dropout": {"rate": 0.5, "seed": None},
    "ReLU": {"max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "ZeroPadding2D": {"padding": [[1, 1], [1, 1]], "data_format": "channels_last"},
    "Rescaling": {"scale": 1 / 255, "offset": 0.0},
    "RandomFlip": {"mode": "horizontal"},
    "Concatenate": {"axis": -1},
}


def activated(x, name):
    """Apply an activation."""
    if name == "softmax":
        return torch.softmax(x, -1)
    return torch.relu(x) if name == "relu" else x


def same(size, kernel, stride):
    """Return TensorFlow's padding before and after along one axis."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def padded(x, config, kernel, value):
    """Return pictures N, C, H, W of N, H, W, C, padded as the layer asks."""
    x = x.permute(0, 3, 1, 2)
    if config["padding"] == "same":
        (top, bottom), (left, right) = (
            same(x.shape[2 + i], kernel[i], config["strides"][i]) for i in range(2)
        )
        x = F.pad(x, (left, right, top, bottom), value=value)
    return x


def conv2d(x, config, w):
    """Convolve with stride, groups and bias."""
    x = padded(x, config, config["kernel_size"], 0.0)
    kernel = w["kernel"].permute(3, 2, 0, 1)
    y = F.conv2d(x, kernel, w.get("bias"), tuple(config["strides"]), groups=config["groups"])
    return y.permute(0, 2, 3, 1)


def max_pooling2d(x, config, w):
    """Take the largest pixel of each window; padding is never the largest."""
    x = padded(x, config, config["pool_size"], -torch.inf)
    return F.max_pool2d(x, config["pool_size"], config["strides"]).permute(0, 2, 3, 1)


def average_pooling2d(x, config, w):
    """Take the mean of each window, over the pixels that are there."""
    ones = torch.ones_like(x[:1, :, :, :1])
    total = F.avg_pool2d(
        padded(x, config, config["pool_size"], 0.0), config["pool_size"], config["strides"]
    )
    share = F.avg_pool2d(
        padded(ones, config, config["pool_size"], 0.0), config["pool_size"], config["strides"]
    )
    return (total / share).permute(0, 2, 3, 1)


def batch_normalization(x, config, w):
    """Normalise with the moving statistics."""
    y = (x - w["moving_mean"]) / torch.sqrt(w["moving_variance"] + config["epsilon"])
    return y * w.get("gamma", 1.0) + w.get("beta", 0.0)


def dense(x, config, w):
    """Multiply by (in, out)."""
    return x @ w["kernel"] + w.get("bias", 0.0)


def zero_padding2d(x, config, w):
    """Pad with zeros."""
    (top, bottom), (left, right) = config["padding"]
    return F.pad(x, (0, 0, left, right, top, bottom))


def tensor(value):
    """Return a number, or one for each channel, as float64."""
    return torch.tensor(value, dtype=torch.float64)


LAYERS = {
    "InputLayer": lambda x, config, w: x,
    "Conv2D": conv2d,
    "Dense": dense,
    "BatchNormalization": batch_normalization,
    "Activation": lambda x, config, w: x,
    "ReLU": lambda x, config, w: torch.relu(x),
    "Add": lambda xs, config, w: sum(xs[1:], xs[0]),
    "Concatenate": lambda xs, config, w: torch.cat(xs, -1),
    "MaxPooling2D": max_pooling2d,
    "AveragePooling2D": average_pooling2d,
    "GlobalAveragePooling2D": lambda x, config, w: x.mean((1, 2)),
    "Flatten": lambda x, config, w: x.reshape(len(x), -1),
    "Dropout": lambda x, config, w: x,
    "RandomFlip": lambda x, config, w: x,
    "ZeroPadding2D": zero_padding2d,
    "Normalization": lambda x, config, w: (
        (x - tensor(config["mean"])) / tensor(config["variance"]).sqrt()
    ),
    "Rescaling": lambda x, config, w: x * tensor(config["scale"]) + tensor(config["offset"]),
}


# ---------------------------------------------------------------------------- networks of Keras


def resnet8(seed=0, head=True):
    """Build MLPerf Tiny's ResNet-8, whose layers have numbered names."""
    net = Net(32, seed)

    def conv(x, filters, size, stride):
        return net.add(
            "Conv2D",
            x,
            filters=filters,
            kernel_size=[size, size],
            strides=[stride, stride],
            padding="same",
        )

    def bn(x):
        return net.add("BatchNormalization", x)

    def relu(x):
        return net.add("Activation", x, activation="relu")

    x = relu(bn(conv(net.input, 16, 3, 1)))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = relu(bn(conv(x, filters, 3, stride)))
        y = bn(conv(y, filters, 3, 1))
        x = conv(x, filters, 1, stride) if stride > 1 else x
        x = relu(net.add("Add", x, y))
    x = net.add("AveragePooling2D", x, pool_size=[8, 8], strides=[8, 8])
    x = net.add("Flatten", x)
    if head:
        net.add("Dense", x, units=10, activation="softmax")
    return net


def resnet50(size, *, first_names=False, eps=1.001e-5, head=1000, seed=0, stride_in="1x1"):
    """Build Keras' ResNet-50 with its present names, or those of its first releases.

    stride_in: "1x1" as in Keras, "3x3" as in torchvision, or "3x3 same" with TensorFlow's padding there.
    """
    net = Net(size, seed, "resnet50")

    def conv_bn(x, filters, kernel, stride, conv_name, bn_name, padding="valid"):
        kernel, strides = [kernel, kernel], [stride, stride]
        geometry = {"kernel_size": kernel, "strides": strides, "padding": padding}
        x = net.add("Conv2D", x, name=conv_name, filters=filters, **geometry)
        return net.add("BatchNormalization", x, name=bn_name, epsilon=eps)

    def names(stage, block, number):
        if first_names:
            place = f"{stage}{chr(ord('a') + block)}_branch"
            place += "1" if number == 0 else f"2{chr(ord('a') + number - 1)}"
            return f"res{place}", f"bn{place}"
        return tuple(f"conv{stage}_block{block + 1}_{number}_{kind}" for kind in ("conv", "bn"))

    def relu(x):
        return net.add("Activation", x, activation="relu")

    x = net.add("ZeroPadding2D", net.input, name="conv1_pad", padding=[[3, 3], [3, 3]])
    first = ("conv1", "bn_conv1") if first_names else ("conv1_conv", "conv1_bn")
    x = relu(conv_bn(x, 64, 7, 2, *first))
    x = net.add("ZeroPadding2D", x, name="pool1_pad")
    x = net.add("MaxPooling2D", x, name="pool1_pool", pool_size=[3, 3])
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(depth):
            stride = 2 if block == 0 and stage > 0 else 1
            at = [names(stage + 2, block, number) for number in range(4)]
            shortcut = conv_bn(x, 4 * width, 1, stride, *at[0]) if block == 0 else x
            first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
            x = relu(conv_bn(x, width, 1, first, *at[1]))
            x = net.add("ZeroPadding2D", x) if stride_in == "3x3" else x
            padding = "valid" if stride_in == "3x3" else "same"
            x = relu(conv_bn(x, width, 3, second, *at[2], padding=padding))
            x = conv_bn(x, 4 * width, 1, 1, *at[3])
            x = relu(net.add("Add", shortcut, x))
    if head:
        x = net.add("GlobalAveragePooling2D", x, name="avg_pool")
        name = "fc1000" if first_names else "predictions"
        net.add("Dense", x, name=name, units=head, activation="softmax")
    return net


def resnet50_v2(size, head=1000, seed=0):
    """Build Keras' ResNet-50 V2."""
    net = Net(size, seed, "resnet50v2")

    def conv(x, filters, kernel, stride, name, bias=True):
        kernel, strides = [kernel, kernel], [stride, stride]
        geometry = {"kernel_size": kernel, "strides": strides, "use_bias": bias}
        return net.add("Conv2D", x, name=name, filters=filters, **geometry)

    def bn_relu(x, name):
        x = net.add("BatchNormalization", x, name=name, epsilon=1.001e-5)
        return net.add("Activation", x, activation="relu")

    x = net.add("ZeroPadding2D", net.input, name="conv1_pad", padding=[[3, 3], [3, 3]])
    x = conv(x, 64, 7, 2, "conv1_conv")
    x = net.add("ZeroPadding2D", x, name="pool1_pad")
    x = net.add("MaxPooling2D", x, name="pool1_pool", pool_size=[3, 3])
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(depth):
            name = f"conv{stage + 2}_block{block + 1}"
            stride = 2 if block == depth - 1 and stage < 3 else 1
            y = bn_relu(x, f"{name}_preact_bn")
            if block == 0:
                x = conv(y, 4 * width, 1, 1, f"{name}_0_conv")
            elif stride > 1:
                x = net.add("MaxPooling2D", x, pool_size=[1, 1])
            y = bn_relu(conv(y, width, 1, 1, f"{name}_1_conv", False), f"{name}_1_bn")
            y = net.add("ZeroPadding2D", y, name=f"{name}_2_pad")
            y = bn_relu(conv(y, width, 3, stride, f"{name}_2_conv", False), f"{name}_2_bn")
            x = net.add("Add", x, conv(y, 4 * width, 1, 1, f"{name}_3_conv"), name=f"{name}_out")
    x = net.add("GlobalAveragePooling2D", bn_relu(x, "post_bn"), name="avg_pool")
    net.add("Dense", x, name="predictions", units=head, activation="softmax")
    return net


def vgg(size, depths, hidden=None, head=1000, seed=0, width=64):
    """Build Keras' VGG, without its dense layers where `hidden` is None; width: of the first stage."""
    net = Net(size, seed, "vgg16")
    x = net.input
    for stage, depth in enumerate(depths):
        for number in range(depth):
            name, filters = f"block{stage + 1}_conv{number + 1}", width << min(stage, 3)
            geometry = {"kernel_size": [3, 3], "padding": "same", "activation": "relu"}
            x = net.add("Conv2D", x, name=name, filters=filters, **geometry)
        x = net.add("MaxPooling2D", x, name=f"block{stage + 1}_pool")
    if hidden is not None:
        x = net.add("Flatten", x, name="flatten")
        for name in ("fc1", "fc2"):
            x = net.add("Dense", x, name=name, units=hidden, activation="relu")
        net.add("Dense", x, name="predictions", units=head, activation="softmax")
    return net


def inception_v3(size, head=1000, seed=0):
    """Build Keras' Inception v3, whose layers have numbered names."""
    net = Net(size, seed, "inception_v3")

    def conv(x, filters, rows, columns, stride=1, padding="same"):
        geometry = {"kernel_size": [rows, columns], "strides": [stride, stride]}
        geometry |= {"padding": padding, "use_bias": False}
        x = net.add("Conv2D", x, filters=filters, **geometry)
        x = net.add("BatchNormalization", x, scale=False)
        return net.add("Activation", x, activation="relu")

    def chain(x, *sizes):
        for size in sizes:
            x = conv(x, *size)
        return x

    def pool(x):
        return net.add("AveragePooling2D", x, pool_size=[3, 3], strides=[1, 1], padding="same")

    def max_pool(x):
        return net.add("MaxPooling2D", x, pool_size=[3, 3])

    x = chain(net.input, (32, 3, 3, 2, "valid"), (32, 3, 3, 1, "valid"), (64, 3, 3))
    x = max_pool(x)
    x = max_pool(chain(x, (80, 1, 1, 1, "valid"), (192, 3, 3, 1, "valid")))
    for features in (32, 64, 64):
        a = conv(x, 64, 1, 1)
        b = chain(x, (48, 1, 1), (64, 5, 5))
        c = chain(x, (64, 1, 1), (96, 3, 3), (96, 3, 3))
        x = net.add("Concatenate", a, b, c, conv(pool(x), features, 1, 1))
    a = conv(x, 384, 3, 3, 2, "valid")
    b = chain(x, (64, 1, 1), (96, 3, 3), (96, 3, 3, 2, "valid"))
    x = net.add("Concatenate", a, b, max_pool(x))
    for c7 in (128, 160, 160, 192):
        a = conv(x, 192, 1, 1)
        b = chain(x, (c7, 1, 1), (c7, 1, 7), (192, 7, 1))
        c = chain(x, (c7, 1, 1), (c7, 7, 1), (c7, 1, 7), (c7, 7, 1), (192, 1, 7))
        x = net.add("Concatenate", a, b, c, conv(pool(x), 192, 1, 1))
    a = chain(x, (192, 1, 1), (320, 3, 3, 2, "valid"))
    b = chain(x, (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2, "valid"))
    x = net.add("Concatenate", a, b, max_pool(x))
    for _ in range(2):
        a = conv(x, 320, 1, 1)
        b = conv(x, 384, 1, 1)
        b = net.add("Concatenate", conv(b, 384, 1, 3), conv(b, 384, 3, 1))
        c = chain(x, (448, 1, 1), (384, 3, 3))
        c = net.add("Concatenate", conv(c, 384, 1, 3), conv(c, 384, 3, 1))
        x = net.add("Concatenate", a, b, c, conv(pool(x), 192, 1, 1))
    x = net.add("GlobalAveragePooling2D", x, name="avg_pool")
    net.add("Dense", x, name="predictions", units=head, activation="softmax")
    return net
