"""The steps of every network's trunk, where it can be cut."""

import numpy as np
import pytest

from minitl import models
from minitl.tensor import Tensor, no_grad

SMALL = ("resnet18", "resnet50d", "resnetv2_50", "cifar_resnet20", "mlperf_resnet8", "vgg11_bn")
SIDES = {"cifar_resnet20": 32, "mlperf_resnet8": 32, "inception_v3": 80, "sequential": 32}


@pytest.mark.parametrize("arch", [*SMALL, "inception_v3", "sequential"])
def test_stages_name_every_part_of_the_trunk_once(arch):
    model = models.create(arch, num_classes=3, seed=None)
    stages = model.stages()
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    modules = dict(model.named_modules())
    used = [name for stage in stages for name in stage.modules]
    assert set(used) <= modules.keys()
    found = [
        name
        for name in model.backbone_parameters()
        for module in used
        if name.startswith(f"{module}.")
    ]
    assert found == list(model.backbone_parameters())


@pytest.mark.parametrize("arch", [*SMALL, "inception_v3", "sequential"])
def test_a_network_cut_anywhere_computes_the_same(arch):
    model = models.create(arch, num_classes=3, seed=1).eval()
    side = SIDES.get(arch, 64)
    x = Tensor(np.random.default_rng(0).random((2, side, side, 3), np.float32))
    with no_grad():
        stages = model.stages()
        logits = model(x).numpy()
        for cut in range(0, len(stages), 3):
            middle = Tensor(models.run_stages(stages[:cut], x).numpy())
            rest = model.head(models.run_stages(stages[cut:], middle))
            assert np.array_equal(rest.numpy(), logits)
