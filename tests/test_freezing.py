"""What is frozen does not move, to the bit; and the table says what that is."""

import numpy as np
import pytest

from minitl import hdf5, models, nn
from minitl.errors import UserError
from minitl.train.freezing import apply_freeze, parts_table, refuse_untrained_head
from minitl.train.unfreezing import unfreeze_for
from tests.test_finetune import expect_error, pictures, run, weights

__all__ = ["pictures", "run", "weights"]  # fixtures


def small():
    return models.create("cifar_resnet20", num_classes=5, seed=1, width=4, shortcut="B")


@pytest.mark.parametrize(
    "options",
    [
        ("--freeze", "layer1,conv1,bn1"),
        ("--freeze", "*.bn?.*,bn1"),  # all normalisations but those of shortcuts
        ("--freeze-until", "layer3"),
        ("--freeze-until", "layer2.1", "--freeze", "layer3"),
        ("--freeze", "backbone", "--optimizer", "adamw", "--weight-decay", 0.5),
        ("--freeze-until", "layer2", "--ema", 0.9, "--decay-norms", "--weight-decay", 0.5),
        ("--freeze-until", "layer3", "--clip-norm", 1, "--mixup", 0.2, "--layer-decay", 0.5),
        ("--unfreeze-schedule", "linear:0,layer3.2:1", "--momentum", 0.99),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_frozen_parameters_and_statistics_keep_their_bits(run, weights, options):
    code, folder = run(*options)
    assert code == 0
    model = small()
    if "--unfreeze-schedule" in options:
        model.freeze()
        model.unfreeze("linear", "layer3.2")
    else:
        given = dict(zip(options[::2], options[1::2], strict=False))
        words = tuple(given.get("--freeze", "none").split(","))
        apply_freeze(model, words, given.get("--freeze-until"))
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    before = hdf5.read(weights).state
    for file in ("last.h5", "best.h5"):
        after = hdf5.read(folder / file).state
        moved = 0
        for name, array in before.items():
            if name in parameters:
                frozen = not parameters[name].requires_grad
            else:
                layer = modules[name.rpartition(".")[0]]
                frozen = not (layer.weight.requires_grad or layer.bias.requires_grad)
            if frozen:
                assert after[name].tobytes() == array.tobytes(), (file, name)
            else:
                moved += not np.array_equal(after[name], array)
        assert moved


def test_the_parts_before_one():
    model = models.create("resnet18", num_classes=3)
    frozen = apply_freeze(model, ("none",), "layer3")
    assert {name.split(".")[0] for name in frozen} == {"conv1", "bn1", "layer1", "layer2"}
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4", "fc"}
    batchnorms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(m.frozen == (not n.startswith("layer3") and not n.startswith("layer4"))
               for n, m in batchnorms.items())  # fmt: skip
    apply_freeze(model, ("fc",), "layer2")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        *("layer2", "layer3", "layer4")
    }
    for part, words in (("layer9", "no such part"), ("conv1", "nothing comes before")):
        with pytest.raises(UserError, match=words):
            apply_freeze(model, ("none",), part)
    with pytest.raises(UserError, match="nothing to train"):
        apply_freeze(model, ("fc",), "fc")


def test_a_head_that_helps_to_train_may_be_frozen_with_the_backbone():
    model = models.create("inception_v3", num_classes=3, seed=None, auxiliary=True)
    apply_freeze(model, ("backbone",))
    assert not any(p.requires_grad for p in model.parameters_named("AuxLogits").values())
    refuse_untrained_head(model)
    apply_freeze(model, ("fc",))
    with pytest.raises(UserError, match="fc, never trains"):
        refuse_untrained_head(model)


def test_the_table_says_what_trains_and_whose_statistics_are_fixed(run, capsys):
    model = small()
    apply_freeze(model, ("bn1.weight",), "layer2.1")
    lines = [line.split() for line in parts_table(model)]
    assert lines[0] == ["part", "parameters", "statistics"]
    assert lines[1:4] == [
        ["conv1", "108", "frozen"],
        ["bn1", "8", "frozen", "fixed"],
        ["layer1", "912", "frozen", "fixed"],
    ]
    states = {line[0]: line[2:] for line in lines[1:]}
    assert states["layer2.0"] == ["frozen", "fixed"]
    assert states["layer2.1"] == states["layer2.2"] == states["layer3"] == ["trains", "move"]
    assert states["linear"] == ["trains"]
    assert sum(int(line[1].replace(",", "")) for line in lines[1:]) == sum(
        p.data.size for p in model.parameters()
    )
    apply_freeze(model, ("bn1.weight",))
    states = {line.split()[0]: line.split()[2:] for line in parts_table(model)[1:]}
    assert states["bn1.weight"] == ["frozen"]  # one of two: its statistics still move
    assert states["bn1.bias"] == ["trains"]
    assert run("--freeze", "layer1", "--epochs", 1)[0] == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["layer1", "912", "frozen", "fixed"] in shown
    assert run("--epochs", 1, out="all")[0] == 0
    assert "fixed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--freeze-until", "layer9"], ["layer9", "layer1"]),
        (["--freeze-until", "conv1"], ["--freeze-until", "nothing"]),
        (["--freeze-until", "layer2", "--unfreeze-schedule", "linear:0"], ["--freeze-until"]),
    ],
)
def test_bad_options(run, capsys, arguments, words):
    code, folder = run(*arguments)
    expect_error(capsys, code, *words)
    assert not folder.exists()


def test_a_network_that_is_a_head_alone_trains_it_whatever_the_backbone_does():
    layers = [{"type": "flatten"}, {"type": "dense", "units": 3}]
    model = models.create("sequential", input=[4, 4], layers=layers)
    assert apply_freeze(model, ("backbone",)) == []
    assert all(p.requires_grad for p in model.parameters())
    model.freeze()
    unfreeze_for(model, ("head:1", "backbone:0"), 0)
    assert not any(p.requires_grad for p in model.parameters())
