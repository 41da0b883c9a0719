"""Models to weights files and back."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import minitl
from minitl import hdf5, models, nn
from minitl.cli import main
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models.saving import to_weights_file


@pytest.mark.parametrize(
    ("arch", "options"),
    [("resnet18", {}), ("cifar_resnet20", {"shortcut": "A", "width": 4}), ("resnext50_32x4d", {})],
)
def test_a_model_comes_back_to_the_bit(tmp_path, arch, options):
    model = models.create(arch, num_classes=3, seed=5, **options)
    model.class_names = ["ash", "birch", "cedar"]
    minitl.save_model(model, tmp_path / "m.h5", source="here", license="MIT")
    again = minitl.load_model(tmp_path / "m.h5")
    assert (again.arch, again.arch_options) == (model.arch, model.arch_options)
    assert again.class_names == model.class_names
    assert again.preprocessing == model.preprocessing
    state = again.state_dict()
    for name, array in model.state_dict().items():
        assert array.tobytes() == state[name].tobytes(), name
    contents = hdf5.read(tmp_path / "m.h5")
    assert (contents.source, contents.license) == ("here", "MIT")


def test_saving_replaces_an_older_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "m.h5"
    for seed in (1, 2):
        minitl.save_model(models.cifar_resnet20(width=4, seed=seed), path)
    expected = models.cifar_resnet20(width=4, seed=2).state_dict()["conv1.weight"]
    assert np.array_equal(minitl.load_model(path).state_dict()["conv1.weight"], expected)
    assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]


def test_weights_that_do_not_fit_their_architecture_are_refused(tmp_path):
    contents = hdf5.WeightsFile(
        arch="cifar_resnet32",
        arch_options={"shortcut": "A", "width": 4},
        state=models.cifar_resnet20(width=4).state_dict(),
    )
    hdf5.write(tmp_path / "m.h5", contents)
    with pytest.raises(UserError, match=r"m\.h5.*(?s:.*)layer1\.3"):
        minitl.load_model(tmp_path / "m.h5")
    contents.arch = "perceptron"
    hdf5.write(tmp_path / "m.h5", contents)
    with pytest.raises(UserError, match="perceptron"):
        minitl.load_model(tmp_path / "m.h5")


def test_inspect_shows_what_a_file_holds(tmp_path, capsys):
    model = models.cifar_resnet20(num_classes=2, width=4)
    model.class_names = ["cat", "dog"]
    minitl.save_model(model, tmp_path / "m.h5", license="MIT")
    assert main(["inspect", str(tmp_path / "m.h5"), "--keys"]) == 0
    text = capsys.readouterr().out
    parameters = sum(p.data.size for p in model.parameters())
    for part in (
        "cifar_resnet20",
        f"{parameters:,}",
        "cat, dog",
        "MIT",
        "layer3.2.bn2.running_var",
    ):
        assert part in text
    (tmp_path / "m.h5").write_bytes(b"nonsense")
    assert main(["inspect", str(tmp_path / "m.h5")]) == 1
    assert "m.h5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{"width": 10**7}, {"width": 0}, {"seed": 3}, {"width": "x"}, {"depth": 3}]
)
def test_hostile_options_of_an_architecture_are_refused(tmp_path, options):
    contents = hdf5.WeightsFile("cifar_resnet20", {"linear.weight": np.ones((2, 4), "f")}, options)
    hdf5.write(tmp_path / "m.h5", contents)
    with pytest.raises(UserError, match=r"m\.h5"):
        minitl.load_model(tmp_path / "m.h5")


def test_whole_numbers_beyond_float64_are_refused():
    with pytest.raises(ValueError, match="bn_eps must be a number from 0"):
        models.create("resnet18", seed=None, bn_eps=10**400)
    usual = models.cifar_resnet20(width=4).preprocessing
    with pytest.raises(UserError, match="scale"):
        Preprocessing.from_dict(usual | {"scale": 10**400})


def test_a_head_that_is_none_in_a_file_is_refused(tmp_path):
    model = models.cifar_resnet20(num_classes=3, width=4)
    model.arch_options["head"] = None
    hdf5.write(tmp_path / "m.h5", to_weights_file(model))
    with pytest.raises(UserError, match=r"m\.h5: head must be a list .* got None"):
        minitl.load_model(tmp_path / "m.h5")


@pytest.mark.parametrize("hidden", [[], [8]])
@pytest.mark.parametrize("rows, width", [(4_000_000, 0), (1 << 40, 0), (0, None), (300, 9)])
def test_a_head_of_another_shape_is_not_made(tmp_path, hidden, rows, width):
    model = models.create("cifar_resnet20", num_classes=3, width=4, head=hidden)
    last = f"{model.last_name}.weight"
    right = model.state_dict()[last].shape[1]
    shape = (rows, right if width is None else width)
    state = model.state_dict() | {last: np.zeros(shape, "f")}
    hdf5.write(tmp_path / "m.h5", hdf5.WeightsFile(model.arch, state, model.arch_options))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"m\.h5.*\n.*misshapen.*\n.*{last}: has \({rows}"):
            minitl.load_model(tmp_path / "m.h5")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_too_few_class_names_are_refused(tmp_path):
    model = models.cifar_resnet20(num_classes=3, width=4)
    model.class_names = ["ash"]
    hdf5.write(tmp_path / "m.h5", to_weights_file(model))
    with pytest.raises(UserError, match="1 class names for 3"):
        minitl.load_model(tmp_path / "m.h5")


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(16, 5),
        nn.Linear(16, 3, bias=False),
        nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Identity(),
    ],
)
def test_a_model_that_could_not_be_loaded_is_not_written(tmp_path, head):
    model = models.cifar_resnet20(num_classes=3, width=4)
    model.class_names = ["ash", "birch", "cedar"]
    model.linear = head
    with pytest.raises(UserError, match=r"Nothing was written(?s:.*)model\.replace_head"):
        minitl.save_model(model, tmp_path / "m.h5")
    assert not list(tmp_path.iterdir())
    model.linear = nn.Linear(16, 3)
    minitl.save_model(model, tmp_path / "m.h5")
    minitl.load_model(tmp_path / "m.h5")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no device files here")
def test_what_is_not_a_file_is_never_replaced(tmp_path):
    for target in ("/dev/null", tmp_path):
        with pytest.raises(UserError, match="not a file"):
            minitl.save_model(models.cifar_resnet20(width=4), target)
    assert not Path("/dev/null").is_file()
