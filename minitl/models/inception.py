"""Inception v3, with torchvision's names.

Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision". Its blocks A to E are
named as in torchvision, in the order of the published weights.

Pictures come as (byte / 255 - 0.5) / 0.5, the range in which the weights were trained. torchvision's
network can be told (`transform_input`) to take pictures normalised with ImageNet's mean and deviation
and to bring them to that range itself; here that is part of the preprocessing, once.
"""

from collections.abc import Sequence
from typing import Any

from minitl import init, nn, ops
from minitl.init import Rng
from minitl.models.classifier import Classifier, Stage, preprocessing, run_stages
from minitl.models.options import changed, fraction, switch
from minitl.shapes import Pair
from minitl.tensor import Tensor

USUAL = {"auxiliary": False, "count_include_pad": True, "bn_eps": 1e-3, "dropout": 0.5}
MIN_SIZE = 75  # pixels: with fewer the last maps are empty
BRANCH = "Mixed_6e"  # the second head begins behind it


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self,
        c: int,
        k: int,
        size: Pair,
        eps: float,
        rng: Rng,
        *,
        stride: int = 1,
        padding: Pair = 0,
    ) -> None:
        self.conv = nn.Conv2d(c, k, size, stride=stride, padding=padding, bias=False, rng=rng)
        self.bn = nn.BatchNorm2d(k, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, P, Q, k)."""
        return self.bn.after(self.conv, x, relu=True)


class Pieces:
    """What the parts of one network are made with."""

    def __init__(self, eps: float, count_include_pad: bool, rng: Rng) -> None:
        self.eps, self.rng = eps, rng
        self.average = nn.AvgPool2d(3, 1, 1, count_include_pad)

    def conv(self, c: int, k: int, size: Pair, stride: int = 1, padding: Pair = 0) -> ConvBlock:
        """Return convolution, batch normalisation and ReLU."""
        return ConvBlock(c, k, size, self.eps, self.rng, stride=stride, padding=padding)


class InceptionA(nn.Module):
    """Four branches: 1x1, 5x5, two of 3x3, pooling. The map keeps its size."""

    def __init__(self, make: Pieces, c: int, pool_features: int) -> None:
        self.branch1x1 = make.conv(c, 64, 1)
        self.branch5x5_1 = make.conv(c, 48, 1)
        self.branch5x5_2 = make.conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = make.conv(c, 64, 1)
        self.branch3x3dbl_2 = make.conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = make.conv(96, 96, 3, padding=1)
        self.branch_pool = make.conv(c, pool_features, 1)
        self.average = make.average

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H, W, 224 + pool_features)."""
        return ops.concat(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(self.average(x)),
            ]
        )


class InceptionB(nn.Module):
    """Half the map: a 3x3, two of 3x3, max pooling."""

    def __init__(self, make: Pieces, c: int) -> None:
        self.branch3x3 = make.conv(c, 384, 3, stride=2)
        self.branch3x3dbl_1 = make.conv(c, 64, 1)
        self.branch3x3dbl_2 = make.conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = make.conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, (H - 1) / 2, (W - 1) / 2, 480 + c)."""
        return ops.concat(
            [
                self.branch3x3(x),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                ops.maxpool2d(x, 3, 2),
            ]
        )


class InceptionC(nn.Module):
    """7x7 convolutions taken apart into 1x7 and 7x1. The map keeps its size."""

    def __init__(self, make: Pieces, c: int, c7: int) -> None:
        row: dict[str, Any] = {"size": (1, 7), "padding": (0, 3)}
        column: dict[str, Any] = {"size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = make.conv(c, 192, 1)
        self.branch7x7_1 = make.conv(c, c7, 1)
        self.branch7x7_2 = make.conv(c7, c7, **row)
        self.branch7x7_3 = make.conv(c7, 192, **column)
        self.branch7x7dbl_1 = make.conv(c, c7, 1)
        self.branch7x7dbl_2 = make.conv(c7, c7, **column)
        self.branch7x7dbl_3 = make.conv(c7, c7, **row)
        self.branch7x7dbl_4 = make.conv(c7, c7, **column)
        self.branch7x7dbl_5 = make.conv(c7, 192, **row)
        self.branch_pool = make.conv(c, 192, 1)
        self.average = make.average

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H, W, 768)."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return ops.concat(
            [
                self.branch1x1(x),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
                self.branch_pool(self.average(x)),
            ]
        )


class InceptionD(nn.Module):
    """Half the map: a 3x3, a 7x7 taken apart with a 3x3, max pooling."""

    def __init__(self, make: Pieces, c: int) -> None:
        self.branch3x3_1 = make.conv(c, 192, 1)
        self.branch3x3_2 = make.conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = make.conv(c, 192, 1)
        self.branch7x7x3_2 = make.conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = make.conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = make.conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, (H - 1) / 2, (W - 1) / 2, 512 + c)."""
        apart = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return ops.concat(
            [
                self.branch3x3_2(self.branch3x3_1(x)),
                self.branch7x7x3_4(apart),
                ops.maxpool2d(x, 3, 2),
            ]
        )


class InceptionE(nn.Module):
    """Branches that end in a 1x3 and a 3x1 side by side. The map keeps its size."""

    def __init__(self, make: Pieces, c: int) -> None:
        row: dict[str, Any] = {"size": (1, 3), "padding": (0, 1)}
        column: dict[str, Any] = {"size": (3, 1), "padding": (1, 0)}
        self.branch1x1 = make.conv(c, 320, 1)
        self.branch3x3_1 = make.conv(c, 384, 1)
        self.branch3x3_2a = make.conv(384, 384, **row)
        self.branch3x3_2b = make.conv(384, 384, **column)
        self.branch3x3dbl_1 = make.conv(c, 448, 1)
        self.branch3x3dbl_2 = make.conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = make.conv(384, 384, **row)
        self.branch3x3dbl_3b = make.conv(384, 384, **column)
        self.branch_pool = make.conv(c, 192, 1)
        self.average = make.average

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H, W, 2048)."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return ops.concat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.average(x)),
            ]
        )


class AuxiliaryHead(nn.Module):
    """A second classifier on an early map, whose loss helps to train what lies before it."""

    def __init__(self, make: Pieces, c: int, num_classes: int) -> None:
        self.conv0 = make.conv(c, 128, 1)
        self.conv1 = make.conv(128, 768, 5)
        self.fc = nn.Linear(768, num_classes, rng=make.rng)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 17, 17, c) for pictures of 299 pixels -> (N, classes)."""
        x = ops.avgpool2d(x, 5, 3)
        return self.fc(ops.global_avgpool2d(self.conv1(self.conv0(x))))


class InceptionV3(Classifier):
    """Stem, blocks A A A B C C C C D E E, global average, dropout, one dense layer.

    auxiliary: with the second head, for training; the logits do not depend on it.
    count_include_pad: whether the average poolings count their padding as zeros, as in torchvision; in
        TensorFlow and Keras they do not.
    """

    second_head_weight = 0.4  # as in torchvision's recipe for training

    def __init__(
        self,
        num_classes: int,
        seed: int | None,
        *,
        auxiliary: bool,
        count_include_pad: bool,
        bn_eps: float,
        dropout: float,
    ) -> None:
        options = {
            "auxiliary": switch(auxiliary, "auxiliary"),
            "count_include_pad": switch(count_include_pad, "count_include_pad"),
            "bn_eps": fraction(bn_eps, "bn_eps"),
            "dropout": fraction(dropout, "dropout"),
        }
        usual = preprocessing(342, 299) | {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
        super().__init__("inception_v3", changed(options, USUAL), usual)
        rng = init.generator(seed)
        make = Pieces(bn_eps, count_include_pad, rng)
        self.Conv2d_1a_3x3 = make.conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = make.conv(32, 32, 3)
        self.Conv2d_2b_3x3 = make.conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = make.conv(64, 80, 1)
        self.Conv2d_4a_3x3 = make.conv(80, 192, 3)
        self.Mixed_5b = InceptionA(make, 192, pool_features=32)
        self.Mixed_5c = InceptionA(make, 256, pool_features=64)
        self.Mixed_5d = InceptionA(make, 288, pool_features=64)
        self.Mixed_6a = InceptionB(make, 288)
        self.Mixed_6b = InceptionC(make, 768, c7=128)
        self.Mixed_6c = InceptionC(make, 768, c7=160)
        self.Mixed_6d = InceptionC(make, 768, c7=160)
        self.Mixed_6e = InceptionC(make, 768, c7=192)
        self.AuxLogits = AuxiliaryHead(make, 768, num_classes) if auxiliary else None
        self.Mixed_7a = InceptionD(make, 768)
        self.Mixed_7b = InceptionE(make, 1280)
        self.Mixed_7c = InceptionE(make, 2048)
        self.dropout = nn.Dropout(dropout, seed=0)
        self.fc = nn.Linear(2048, num_classes, rng=rng)

    @property
    def heads(self) -> tuple[str, ...]:
        """Where all layers are whose outputs are classes: the head, and what helps to train it."""
        return ("fc",) if self.AuxLogits is None else ("fc", "AuxLogits.fc")

    def stages(self) -> list[Stage]:
        """Return the steps from (N, H, W, 3) to (N, 2048).

        The first raises ValueError for pictures below MIN_SIZE pixels.
        """
        return [
            Stage("Conv2d_1a_3x3", self._first, ("Conv2d_1a_3x3",)),
            *self.stages_of("Conv2d_2a_3x3", "Conv2d_2b_3x3"),
            Stage("maxpool1", _pool),
            *self.stages_of("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
            Stage("maxpool2", _pool),  # 35x35 for 299 pixels
            *self.stages_of("Mixed_5b", "Mixed_5c", "Mixed_5d"),
            *self.stages_of("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", BRANCH),  # 17x17
            *self.stages_of("Mixed_7a", "Mixed_7b", "Mixed_7c"),  # 8x8
            Stage("avgpool", ops.global_avgpool2d),
            *self.stages_of("dropout"),
        ]

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, H, W, 3) -> logits and the second head's, (N, classes) each; None without it.

        The second head needs pictures of 283 pixels or more.
        """
        stages = self.stages()
        early = 1 + [stage.name for stage in stages].index(BRANCH)
        middle = run_stages(stages[:early], x)
        second = None if self.AuxLogits is None else self.AuxLogits(middle)
        return self.head(run_stages(stages[early:], middle)), second

    def _first(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and min(x.shape[1:3]) < MIN_SIZE:
            raise ValueError(
                f"inception_v3 needs pictures of at least {MIN_SIZE} pixels; got {x.shape[1:3]}"
            )
        return self.Conv2d_1a_3x3(x)

    def replace_head(
        self, num_classes: int, *, seed: int | None = 0, hidden: Sequence[int] = ()
    ) -> None:
        """Put freshly initialised heads for `num_classes` classes in place of the old ones."""
        super().replace_head(num_classes, seed=seed, hidden=hidden)
        if self.AuxLogits is not None:
            rng = init.generator(None if seed is None else [seed, 1])
            self.AuxLogits.fc = nn.Linear(768, num_classes, rng=rng)


def _pool(x: Tensor) -> Tensor:
    return ops.maxpool2d(x, 3, 2)


def inception_v3(num_classes: int = 1000, *, seed: int | None = 0, **options: Any) -> InceptionV3:
    """Return an Inception v3, He-initialised from `seed` (None: zeros, for weights to be loaded).

    options: auxiliary, count_include_pad, bn_eps, dropout, as `InceptionV3`.
    """
    return InceptionV3(num_classes, seed, **USUAL | options)
