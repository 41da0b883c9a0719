"""The layers of ResNet-18, ResNet-50 and VGG-16: what runs at which size, and how often.

Sizes are those of pictures of 224 x 224; `Layer.size` is the height and width of the layer's input.
"""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer; layers that compare equal take the same time.

    channels: of the input, or the number of classes (loss) or of parameters (sgd, adam). filters: channels of
    the result, where they can differ. first: nobody needs dx.
    """

    op: str
    size: int
    channels: int
    filters: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    bias: bool = False
    first: bool = False

    @property
    def label(self) -> str:
        """Name of the shape within its operation."""
        if self.op == "conv2d":
            step = f" /{self.stride}" if self.stride > 1 else ""
            bias = " +b" if self.bias else ""
            window = f"{self.kernel}x{self.kernel}"
            return f"{window} {self.channels}-{self.filters} {self.size}px{step}{bias}"
        if self.op in ("maxpool2d", "batchnorm_relu_maxpool"):
            return f"{self.kernel}x{self.kernel} {self.channels} {self.size}px /{self.stride}"
        if self.op == "linear":
            return f"{self.channels}-{self.filters}"
        if self.op in ("sgd", "adam"):
            return f"{self.channels / 1e6:.1f}M parameters"
        if self.op == "softmax_cross_entropy":
            return f"{self.channels} classes"
        return f"{self.channels} {self.size}px"


def resnet(bottleneck: bool, depths: tuple[int, ...]) -> Counter[Layer]:
    """Return the layers of a ResNet, as `minitl.models.resnet` runs them."""
    layers = [
        Layer("conv2d", 224, 3, 64, 7, 2, 3, first=True),
        Layer("batchnorm_relu_maxpool", 112, 64, 64, 3, 2, 1),
    ]
    c, size = 64, 56
    for stage, depth in enumerate(depths):
        width = 64 << stage
        out = width * 4 if bottleneck else width
        for number in range(depth):
            stride = 2 if stage and not number else 1
            after = size // stride
            if bottleneck:
                layers += [
                    Layer("conv2d", size, c, width),
                    Layer("batchnorm_relu", size, width),
                    Layer("conv2d", size, width, width, 3, stride, 1),
                    Layer("batchnorm_relu", after, width),
                    Layer("conv2d", after, width, out),
                ]
            else:
                layers += [
                    Layer("conv2d", size, c, width, 3, stride, 1),
                    Layer("batchnorm_relu", after, width),
                    Layer("conv2d", after, width, width, 3, 1, 1),
                ]
            if stride > 1 or c != out:
                layers += [Layer("conv2d", size, c, out, 1, stride), Layer("batchnorm", after, out)]
            layers.append(Layer("batchnorm_add_relu", after, out))
            c, size = out, after
    layers += [Layer("global_avgpool2d", size, c), Layer("linear", 1, c, 1000, bias=True)]
    return _with_training(layers)


def vgg16() -> Counter[Layer]:
    """Return the layers of VGG-16 without batch normalisation (Simonyan and Zisserman 2014).

    Its two dropouts (65,536 random numbers each) and the flattening of 16 x 7 x 7 x 512 are left out.
    """
    layers: list[Layer] = []
    c, size = 3, 224
    for k, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers.append(Layer("conv2d", size, c, k, 3, 1, 1, bias=True, first=c == 3))
            layers.append(Layer("relu", size, k))
            c = k
        layers.append(Layer("maxpool2d", size, c, c, 2, 2))
        size //= 2
    for i, o in ((size * size * c, 4096), (4096, 4096), (4096, 1000)):
        layers.append(Layer("linear", 1, i, o, bias=True))
    layers += [Layer("relu", 1, 4096)] * 2
    return _with_training(layers)


def _with_training(layers: list[Layer]) -> Counter[Layer]:
    """Add the loss and a step of each optimizer over all parameters."""
    parameters = 0
    for layer in layers:
        if layer.op in ("conv2d", "linear"):
            weights = layer.kernel**2 * layer.channels * layer.filters
            parameters += weights + layer.bias * layer.filters
        elif layer.op.startswith("batchnorm"):
            parameters += 2 * layer.channels
    layers.append(Layer("softmax_cross_entropy", 1, 1000))
    layers += [Layer("sgd", 1, parameters), Layer("adam", 1, parameters)]
    return Counter(layers)


NETWORKS = {
    "resnet18": resnet(False, (2, 2, 2, 2)),
    "resnet50": resnet(True, (3, 4, 6, 3)),
    "vgg16": vgg16(),
}


def distinct(networks: dict[str, Counter[Layer]] = NETWORKS) -> dict[Layer, dict[str, int]]:
    """Return every distinct layer, with how often each network uses it."""
    uses: dict[Layer, dict[str, int]] = {}
    for name, layers in networks.items():
        for layer, count in layers.items():
            uses.setdefault(layer, {})[name] = count
    return uses
