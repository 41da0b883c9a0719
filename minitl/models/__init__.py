"""Networks, each file a description of its architecture, and the register of their names."""

from collections.abc import Callable
from typing import Any

from minitl.models.cifar_resnet import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
)
from minitl.models.classifier import (
    Classifier,
    Stage,
    run_stages,
)
from minitl.models.inception import (
    InceptionV3,
    inception_v3,
)
from minitl.models.mlperf_resnet8 import (
    MLPerfResNet8,
    mlperf_resnet8,
)
from minitl.models.resnet import (
    ResNet,
    resnet18,
    resnet18d,
    resnet26,
    resnet26d,
    resnet34,
    resnet34d,
    resnet50,
    resnet50d,
    resnet101,
    resnet101d,
    resnet152,
    resnet152d,
    resnet200d,
    resnext50_32x4d,
    resnext50d_32x4d,
    resnext101_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from minitl.models.resnet_v2 import (
    ResNetV2,
    resnetv2_50,
    resnetv2_101,
    resnetv2_152,
)
from minitl.models.saving import (
    load_model,
    save_model,
)
from minitl.models.sequential import (
    SequentialCNN,
    sequential,
)
from minitl.models.vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)
from minitl.tasks import from_dicts

ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    make.__name__: make
    for make in (
        resnet18,
        resnet18d,
        resnet26,
        resnet26d,
        resnet34,
        resnet34d,
        resnet50,
        resnet50d,
        resnet101,
        resnet101d,
        resnet152,
        resnet152d,
        resnet200d,
        resnext50_32x4d,
        resnext50d_32x4d,
        resnext101_32x4d,
        resnext101_32x8d,
        resnext101_64x4d,
        wide_resnet50_2,
        wide_resnet101_2,
        resnetv2_50,
        resnetv2_101,
        resnetv2_152,
        cifar_resnet20,
        cifar_resnet32,
        cifar_resnet44,
        cifar_resnet56,
        cifar_resnet110,
        mlperf_resnet8,
        vgg11,
        vgg11_bn,
        vgg13,
        vgg13_bn,
        vgg16,
        vgg16_bn,
        vgg19,
        vgg19_bn,
        inception_v3,
        sequential,
    )
}


def create(
    arch: str, *, num_classes: int | None = None, seed: int | None = 0, **options: Any
) -> Classifier:
    """Make the network registered as `arch`.

    num_classes: None for the architecture's usual number. seed: of the initial weights; None leaves
    zeros, for weights that are to be loaded. options: the architecture's own (`arch_options`), and
    head: the widths of dense layers before the last one; tasks: what the outputs stand for, as
    `Task.to_dict` describes it, which also says their number.

    Raises ValueError for an unknown name or option.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; known are: {', '.join(ARCHITECTURES)}")
    if num_classes is not None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        options["num_classes"] = num_classes
    hidden = options.pop("head", ())
    tasks = from_dicts(options.pop("tasks")) if "tasks" in options else ()
    if tasks:
        options["num_classes"] = sum(task.outputs for task in tasks)
    try:
        model = ARCHITECTURES[arch](seed=seed, **options)
    except TypeError as error:
        raise ValueError(f"{arch} does not take these options: {options} ({error})") from None
    if hidden or not isinstance(hidden, list | tuple):  # what is no list is refused there
        model.replace_head(model.num_classes, seed=seed, hidden=hidden)
    if tasks:
        model.set_tasks(tasks)
    return model


__all__ = [
    "ARCHITECTURES",
    "VGG",
    "CifarResNet",
    "Classifier",
    "InceptionV3",
    "MLPerfResNet8",
    "ResNet",
    "ResNetV2",
    "SequentialCNN",
    "Stage",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "create",
    "inception_v3",
    "load_model",
    "mlperf_resnet8",
    "resnet18",
    "resnet18d",
    "resnet26",
    "resnet26d",
    "resnet34",
    "resnet34d",
    "resnet50",
    "resnet50d",
    "resnet101",
    "resnet101d",
    "resnet152",
    "resnet152d",
    "resnet200d",
    "resnetv2_50",
    "resnetv2_101",
    "resnetv2_152",
    "resnext50_32x4d",
    "resnext50d_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "run_stages",
    "save_model",
    "sequential",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
