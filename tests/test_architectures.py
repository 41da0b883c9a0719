"""Every architecture: converted from PyTorch's files, it computes what the original does."""

import dataclasses
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import minitl
from minitl import hdf5, models
from minitl.convert import convert
from minitl.convert.export import export
from minitl.convert.recognise import recognise
from minitl.errors import UserError, WeightsFileError
from minitl.models.saving import empty_model
from tests import reference_models

# Name: architecture, options of the reference, options of the network that shapes cannot tell, pixels.
CASES = {
    "resnet18": ("resnet18", {}, {}, 64),
    "resnet50": ("resnet50", {}, {}, 64),
    "resnet26 v1": (
        "resnet26",
        {"stride_in_1x1": True, "bn_eps": 1e-3},
        {"stride_in_1x1": True, "bn_eps": 1e-3},
        64,
    ),
    "resnet18 same": ("resnet18", {"same_padding": True}, {"same_padding": True}, 64),
    "resnext50": ("resnext50_32x4d", {}, {}, 64),
    "resnet18d": ("resnet18d", {}, {}, 64),
    "resnet18d odd": ("resnet18d", {}, {}, 77),
    "resnet26d": ("resnet26d", {}, {}, 64),
    "resnet26 32x8": ("resnet26", {"groups": 32, "base": 8, "deep_stem": 16}, {}, 64),
    "resnetv2 timm": ("resnetv2_50", {}, {}, 64),
    "resnetv2 Keras": (
        "resnetv2_50",
        {"keras": True},
        {"stride_last": True, "zero_pool": True, "bn_eps": 1.001e-5},
        64,
    ),
    "vgg11": ("vgg11", {"hidden": 24}, {}, 32),
    "vgg16_bn": ("vgg16_bn", {"hidden": 24}, {}, 64),
    "vgg13 timm": ("vgg13", {"hidden": 24, "timm": True}, {}, 32),
    "inception auxiliary": ("inception_v3", {"auxiliary": True}, {}, 76),
    "inception Keras": (
        "inception_v3",
        {"count_include_pad": False},
        {"count_include_pad": False},
        75,
    ),
    "resnet8": ("mlperf_resnet8", {}, {}, 32),
    "cifar A": ("cifar_resnet20", {"shortcut": "A"}, {}, 32),
    "cifar B": ("cifar_resnet32", {"shortcut": "B", "width": 8}, {}, 32),
}


ROUND_TRIPS = (
    "resnet18",
    "resnet18d",
    "resnetv2 timm",
    "vgg16_bn",
    "vgg13 timm",
    "inception auxiliary",
    "resnet8",
    "cifar A",
    "cifar B",
)


@pytest.mark.parametrize("case", CASES)
def test_converted_weights_give_the_same_logits(case, tmp_path):
    arch, options, told, size = CASES[case]
    theirs = reference_models.randomise(
        reference_models.make(arch, num_classes=7, **options)
    ).eval()
    if list(CASES).index(case) % 2:
        save_file(theirs.state_dict(), tmp_path / "w")
    else:
        torch.save({"model": theirs.state_dict()}, tmp_path / "w")
    small = {"resize": size, "crop": size}  # the file's golden picture is of this size
    report = convert(tmp_path / "w", tmp_path / "w.h5", arch_options=told, preprocessing=small)
    assert report.complete and report.arch == arch
    compare(models.load_model(tmp_path / "w.h5"), theirs, size)
    if case in ROUND_TRIPS:
        names = "timm" if "timm" in case else "torchvision"
        export(tmp_path / "w.h5", tmp_path / "back.pth", names=names)
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        original = {name: value.clone() for name, value in theirs.state_dict().items()}
        theirs.load_state_dict(back, strict=True)
        for name, value in original.items():
            assert "num_batches" in name or torch.equal(back[name], value), name
        convert(tmp_path / "back.pth", tmp_path / "back.h5", arch_options=told, preprocessing=small)
        first, second = (hdf5.read(tmp_path / name) for name in ("w.h5", "back.h5"))
        assert (first.arch, first.arch_options) == (second.arch, second.arch_options)
        assert first.state.keys() == second.state.keys()
        for name, array in first.state.items():
            assert array.tobytes() == second.state[name].tobytes(), name


# The others consist of the same blocks as those above, only of more or wider ones.
LARGE = sorted(set(models.ARCHITECTURES) - {case[0] for case in CASES.values()} - {"sequential"})


@pytest.mark.slow
@pytest.mark.parametrize("arch", LARGE)
def test_converted_weights_of_the_other_networks(arch, tmp_path):
    family = arch.split("_")[0]
    options = {"cifar": {"shortcut": "A"}}.get(family, {"hidden": 24} if "vgg" in arch else {})
    size = 32 if family == "cifar" else 64
    theirs = reference_models.randomise(
        reference_models.make(arch, num_classes=7, **options)
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "w")
    small = {"resize": size, "crop": size}
    report = convert(tmp_path / "w", tmp_path / "w.h5", preprocessing=small)
    assert report.complete and report.arch == arch
    compare(models.load_model(tmp_path / "w.h5"), theirs, size)
    names = "timm" if family == "resnetv2" else "torchvision"
    export(tmp_path / "w.h5", tmp_path / "back.pth", names=names)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    for name, value in theirs.state_dict().items():
        assert "num_batches" in name or torch.equal(back[name], value), name


def compare(ours, theirs, size):
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with minitl.no_grad(), torch.no_grad():
        logits = ours.eval()(minitl.tensor(x)).numpy()
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.ptp(logits, axis=0).max() > 1e-3 * np.abs(logits).max()  # pictures make a difference


def test_a_cifar_network_with_torchvisions_names(tmp_path):
    theirs = reference_models.randomise(reference_models.make("cifar_resnet20", shortcut="B"))
    state = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): value
        for name, value in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "w")
    report = convert(tmp_path / "w", tmp_path / "w.h5")
    assert report.arch == "cifar_resnet20" and report.arch_options["shortcut"] == "B"
    compare(models.load_model(tmp_path / "w.h5"), theirs.eval(), 32)


def test_a_torch_sequential(tmp_path):
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 5, stride=2),
        torch.nn.BatchNorm2d(6, eps=1e-2),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        torch.nn.Conv2d(6, 8, 3, groups=2, bias=False),
        torch.nn.MaxPool2d(2, 1),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8 * 4 * 4, 5),
    )
    torch.save(reference_models.randomise(theirs).state_dict(), tmp_path / "w")
    layers = [
        {"type": "conv", "channels": 6, "kernel": 5, "stride": 2},
        {"type": "batchnorm", "eps": 1e-2},
        {"type": "relu"},
        {"type": "avgpool", "kernel": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"type": "conv", "channels": 8, "kernel": [3, 3], "groups": 2, "bias": False},
        {"type": "maxpool", "kernel": 2, "stride": 1},
        {"type": "flatten"},
        {"type": "dropout"},
        {"type": "dense", "units": 5},
    ]
    with pytest.raises(WeightsFileError, match=r"--arch sequential --arch-option input=.*layers="):
        convert(tmp_path / "w", tmp_path / "w.h5")
    options = {"input": [30, 30], "layers": layers}
    convert(tmp_path / "w", tmp_path / "w.h5", arch="sequential", arch_options=options)
    ours, theirs = models.load_model(tmp_path / "w.h5").eval(), theirs.eval()
    x = np.random.default_rng(0).standard_normal((2, 30, 30, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours(minitl.tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


PARAMETERS = {  # as published by torchvision and timm; that of the ResNet-8 without statistics
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet50d": 25_576_264,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "inception_v3": 23_834_568,
    "mlperf_resnet8": 78_186,
    "sequential": 62_006,  # LeNet-5 for pictures of three channels
}


@pytest.mark.parametrize("arch", PARAMETERS)
def test_numbers_of_parameters_are_the_published_ones(arch):
    assert parameters(models.create(arch, seed=None)) == PARAMETERS[arch]


def test_numbers_of_parameters_with_options():
    with_aux = models.create("inception_v3", seed=None, auxiliary=True)
    assert parameters(with_aux) == 27_161_264
    # Keras counts 25,613,800 with the statistics of 22,720 channels.
    keras = models.create("resnetv2_50", seed=None, conv_bias=True)
    assert parameters(keras) + 2 * 22_720 == 25_613_800


def parameters(model):
    return sum(p.data.size for p in model.parameters())


def shapes_of(model):
    return {name: array.shape for name, array in model.state_dict().items()}


@pytest.mark.parametrize("arch", [a for a in models.ARCHITECTURES if a != "sequential"])
def test_every_architecture_is_recognised(arch):
    network = recognise(shapes_of(models.create(arch, seed=None)), "w")
    assert (network.arch, network.options) == (arch, {})


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet50", {"deep_stem": 32}),
        ("resnet50d", {"groups": 8, "width_per_group": 12}),
        ("resnext50_32x4d", {"deep_stem": 24}),
        ("inception_v3", {"auxiliary": True}),
        ("vgg13_bn", {"hidden": 64}),
        ("resnetv2_101", {"conv_bias": True}),
        ("cifar_resnet44", {"shortcut": "B", "width": 3}),
    ],
)
def test_options_are_recognised(arch, options):
    network = recognise(shapes_of(models.create(arch, seed=None, **options)), "w")
    assert (network.arch, network.options) == (arch, options)


def test_what_shapes_cannot_tell_is_said():
    network = recognise(shapes_of(models.create("resnet50", seed=None)), "w")
    assert network.assumed.keys() == {"stride_in_1x1", "bn_eps"}


@pytest.mark.parametrize(
    "state",
    [
        {"cls_token": (1, 1, 8), "blocks.0.attn.qkv.weight": (24, 8), "head.weight": (2, 8)},
        {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.weight": (64,),
            "layer1.0.conv1.weight": (64, 64, 3, 3),
        },
        {"features.0.weight": (4, 3, 3, 3), "classifier.0.weight": (8, 512 * 49)},
        {"conv1.weight": (), "bn1.weight": ()},
        {"\x1b[2J": (1,)},
    ],
)
def test_unknown_networks_are_described(state):
    with pytest.raises(WeightsFileError) as caught:
        recognise(state, "w.pth")
    message = str(caught.value)
    assert "w.pth" in message and "--arch" in message and f"{len(state)} arrays" in message
    assert "\n" not in message and "\x1b" not in message


def test_an_ambiguous_network_is_not_guessed():
    state = shapes_of(models.create("vgg11", seed=None, hidden=2))
    state |= shapes_of(models.create("inception_v3", seed=None))
    with pytest.raises(WeightsFileError, match="could be vgg11 or inception_v3; say which"):
        recognise(state, "w.pth")


# ---------------------------------------------------------------------------- heads


SMALL = {"vgg11": {"hidden": 8}, "vgg16_bn": {"hidden": 8}, "inception_v3": {"auxiliary": True}}


@pytest.mark.parametrize(
    "arch", ["resnet18d", "resnetv2_50", "vgg11", "vgg16_bn", "inception_v3", "sequential"]
)
def test_a_head_can_be_replaced_and_the_rest_frozen(arch):
    model = models.create(arch, seed=None, **SMALL.get(arch, {}))
    before = shapes_of(model)
    model.class_names = ["a"]
    model.replace_head(3)
    assert model.num_classes == 3 and model.class_names is None
    heads = tuple(f"{head}." for head in model.heads)
    for name, shape in shapes_of(model).items():
        expected = (3, *before[name][1:]) if name.startswith(heads) else before[name]
        assert shape == expected, name
    model.freeze(*model.backbone_parameters())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{model.head_name}.weight", f"{model.head_name}.bias"}


@pytest.mark.parametrize("arch", ["vgg11", "sequential", "inception_v3"])
def test_a_model_comes_back_from_its_file(arch, tmp_path):
    model = models.create(arch, num_classes=3, seed=1, **SMALL.get(arch, {}))
    models.save_model(model, tmp_path / "m.h5")
    back = models.load_model(tmp_path / "m.h5")
    assert back.arch_options == model.arch_options
    for name, array in model.state_dict().items():
        assert np.array_equal(array, back.state_dict()[name]), name


# ---------------------------------------------------------------------------- options from files


CONV = {"type": "conv", "channels": 2, "kernel": 3}
DENSE = {"type": "dense", "units": 2}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "1 to 200 layers"),
        ([CONV] * 201, "1 to 200 layers"),
        ("conv", "1 to 200 layers"),
        ([CONV], "last layer must be dense"),
        ([3], "last layer must be dense"),
        ([CONV, DENSE], "layer 1: needs a row of features"),
        ([{"type": "flatten"}, CONV, DENSE], "layer 1: comes after a flatten"),
        ([{"type": "lstm"}, DENSE], "layer 0: needs a type.*'lstm'"),
        ([{"type": ["conv"]}, DENSE], "layer 0: needs a type"),
        ([{}, DENSE], "layer 0: needs a type"),
        ([{"type": "conv"}, DENSE], "layer 0: conv needs channels, kernel"),
        ([CONV | {"kernal": 3}, DENSE], "layer 0: conv has no setting 'kernal'"),
        ([CONV | {"channels": 1e9}, DENSE], "channels must be a whole number"),
        ([CONV | {"channels": True}, DENSE], "channels must be a whole number"),
        ([CONV | {"channels": 1 << 40}, DENSE], "channels must be a whole number"),
        ([CONV | {"kernel": 0}, DENSE], "kernel must be"),
        ([CONV | {"kernel": [1, 2, 3]}, DENSE], "kernel must be a number or two"),
        ([CONV | {"kernel": 40}, DENSE], "layer 0: a window of 40 does not fit"),
        ([CONV | {"padding": "full"}, DENSE], "padding must be"),
        ([CONV | {"padding": [1, 2]}, {"type": "flatten"}, CONV, DENSE], "layer 2"),
        ([CONV | {"padding": [[1, 2], 3, 4]}, DENSE], "padding must be"),
        ([CONV | {"groups": 2}, DENSE], "groups=2 must divide 3 and 2"),
        ([CONV | {"bias": "yes"}, DENSE], "bias must be true or false"),
        ([CONV | {"channels": 65536, "kernel": 64, "padding": 64}, DENSE], "limit is"),
        ([CONV | {"channels": 65536, "padding": 64}, DENSE], "values; the limit"),
        ([{"type": "maxpool", "kernel": 2, "padding": 2}, DENSE], "smaller than the kernel"),
        ([{"type": "dropout", "p": 1}, DENSE], "p must be a number from 0"),
        ([{"type": "dropout", "p": float("nan")}, DENSE], "p must be a number from 0"),
        ([{"type": "batchnorm", "eps": -1}, DENSE], "eps must be"),
        ([{"type": "flatten"}, {**DENSE, "units": 0}], "units must be"),
        ([{"type": "flatten"}, *[{**DENSE, "units": 65536}] * 3], "parameters; the limit"),
    ],
)
def test_descriptions_that_cannot_be_are_explained(layers, words):
    with pytest.raises(ValueError, match=words):
        models.create("sequential", seed=None, input=[32, 32], layers=layers)


@pytest.mark.parametrize("size", [[0, 3], [32], "32", [32, 1 << 20], None, [3.0, 3], [32, 30]])
def test_impossible_inputs_are_explained(size):
    with pytest.raises(ValueError, match="input must be"):
        models.create("sequential", seed=None, input=size)


@pytest.mark.parametrize(
    ("arch", "options", "words"),
    [
        ("resnet18", {"groups": 2}, "basic blocks"),
        ("resnet18", {"stride_in_1x1": True}, "basic blocks"),
        ("resnet50", {"groups": 0}, "groups must be"),
        ("resnet50", {"width_per_group": 1 << 20}, "width_per_group must be"),
        ("resnet50", {"deep_stem": -1}, "deep_stem must be"),
        ("resnet50", {"bn_eps": "tiny"}, "bn_eps must be"),
        ("resnet50", {"average_down": 1}, "average_down must be true or false"),
        ("resnet50", {"nonsense": 1}, "nonsense"),
        ("vgg11", {"hidden": 1 << 30}, "hidden must be"),
        ("vgg11", {"dropout": 1.5}, "dropout must be"),
        ("vgg11", {"nonsense": 1}, "nonsense"),
        ("inception_v3", {"auxiliary": "yes"}, "auxiliary must be"),
        ("inception_v3", {"bn_eps": float("inf")}, "bn_eps must be"),
        ("resnetv2_50", {"zero_pool": None}, "zero_pool must be"),
        ("resnetv2_50", {"nonsense": None}, "nonsense"),
        ("mlperf_resnet8", {"nonsense": None}, "nonsense"),
        ("cifar_resnet20", {"width": True}, "width must be .*, not True"),
        ("cifar_resnet20", {"width": 1 << 20}, "width must be a whole number from 1 to 1,024"),
    ],
)
def test_options_that_cannot_be_are_explained(arch, options, words):
    with pytest.raises(ValueError, match=words):
        models.create(arch, seed=None, **options)


def test_small_pictures_are_explained():
    model = models.create("inception_v3", seed=None)
    with pytest.raises(ValueError, match="at least 75 pixels"):
        model(minitl.tensor(np.zeros((1, 74, 80, 3), np.float32)))


def test_options_are_json_and_only_what_is_unusual():
    model = models.create("resnet50", seed=None, stride_in_1x1=True, bn_eps=1e-5)
    assert json.loads(json.dumps(model.arch_options)) == {"stride_in_1x1": True}
    assert models.create("resnet50d", seed=None, deep_stem=0).arch_options == {"deep_stem": 0}


# ---------------------------------------------------------------------------- any names and shapes


BASES = ("resnet50d", "resnext50_32x4d", "resnetv2_50", "cifar_resnet20", "mlperf_resnet8", "vgg11")
SIDES = (0, 1, 2, 3, 4, 7, 16, 32, 64, 100, 512, 4096, 25088, 65537, 1 << 20, 1 << 47)


@pytest.fixture(scope="module")
def bases():
    return [shapes_of(models.create(arch, seed=None)) for arch in BASES]


def test_any_names_and_shapes_are_a_network_or_an_error(bases):
    rng = random.Random(0)
    outcomes = {True: 0, False: 0}
    for number in range(1000):
        shapes = dict(rng.choice(bases))
        for _ in range(rng.randint(1, 4)):
            name = rng.choice(list(shapes)[:40])
            if rng.random() < 0.2:
                del shapes[name]
            elif rng.random() < 0.1:
                shapes |= rng.choice(bases)
            else:
                shapes[name] = tuple(rng.choice(SIDES) for _ in range(rng.randint(0, 5)))
        try:
            network = recognise(shapes, "w.pth")
            if number % 10 == 0:
                empty_model(network.arch, network.options, "w.pth")
            outcomes[True] += 1
        except UserError as error:
            assert str(error).startswith("w.pth")
            outcomes[False] += 1
    assert min(outcomes.values()) > 100


def usual_options(arch):
    """What the options of an architecture are where none are given."""
    model = models.create(arch, seed=None)
    if isinstance(model, models.ResNet):
        return dataclasses.asdict(model.style)
    if isinstance(model, models.CifarResNet):
        return model.arch_options
    return getattr(sys.modules[type(model).__module__], "USUAL", {})


def documented_options():
    """Yield (arch, options) of the table in weights/README.md; "the same but" is said of its first row."""
    text = (Path(__file__).parent.parent / "weights" / "README.md").read_text(encoding="utf-8")
    table = text.split("| `arch` | Usual options |\n|---|---|\n")[1].split("\n\n")[0]
    first = {}
    for row in table.splitlines():
        _, names, options, _ = row.split("|")
        found = json.loads(options.split("`")[1]) if "`" in options else {}
        first = first or found
        for name in re.findall("`(.+?)`", names):
            yield name, first | found if "the same but" in options else found


def test_the_documented_usual_options_are_those_of_the_code():
    documented = list(documented_options())
    assert sorted(name for name, _ in documented) == sorted(models.ARCHITECTURES)
    for name, options in documented:
        assert options == usual_options(name), name
