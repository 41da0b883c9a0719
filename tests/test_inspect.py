"""`minitl inspect`: what a file holds, how two differ, and whether the network computes what it did."""

import json

import numpy as np
import pytest
import torch

from minitl import hdf5, models, save_model
from minitl.cli import main
from minitl.convert import convert
from minitl.convert.golden import golden_picture, make_golden, self_test
from minitl.convert.inspection import compare
from minitl.errors import UserError
from minitl.models.saving import to_weights_file
from minitl.weights import STROKES
from tests.reference import torch_resnet


def contents_of(seed=1, **fields):
    model = models.create("cifar_resnet20", num_classes=3, width=4, seed=seed)
    contents = to_weights_file(model, source="a forest", license="MIT", **fields)
    contents.golden = make_golden(contents, "m.h5")
    return contents


@pytest.fixture
def path(tmp_path):
    hdf5.write(tmp_path / "m.h5", contents_of())
    return tmp_path / "m.h5"


def inspect(*arguments):
    return main(["inspect", *map(str, arguments)])


# ---------------------------------------------------------------------------- the picture


def test_the_picture_is_the_one_that_is_described():
    picture = golden_picture()
    assert (picture.shape, picture.dtype) == ((64, 80, 3), np.uint8)
    for y, x, c in ((0, 0, 0), (63, 79, 2), (17, 40, 1)):
        assert picture[y, x, c] == (x * x + 2 * y * y + (c + 1) * x * y) // 16 % 256


def test_a_conversion_stores_what_pytorch_computes(tmp_path):
    """The logits are those of the source's framework, on the picture as the source prepares it."""
    network = torch_resnet.randomise(torch_resnet.make("cifar_resnet20", shortcut="B", width=4))
    torch.save(network.state_dict(), tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "m.h5")
    golden = hdf5.read(tmp_path / "m.h5").golden
    assert np.array_equal(golden.picture, golden_picture())
    from PIL import Image

    picture = Image.fromarray(golden.picture).resize((40, 32), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture.crop((4, 0, 36, 32)), np.float32) / 255
    x = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = network.eval()(torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float32))
    assert np.abs(golden.logits - expected.numpy()[0]).max() <= 1e-5 * expected.abs().max()


def test_without_preprocessing_there_is_nothing_to_test():
    contents = contents_of()
    contents.preprocessing = {}
    assert make_golden(contents, "m.h5") is None


def test_a_network_that_cannot_take_its_pictures_is_named():
    contents = to_weights_file(models.create("inception_v3", num_classes=2, seed=None))
    contents.preprocessing |= {"resize": 40, "crop": 40}
    with pytest.raises(UserError, match=r"m\.h5: inception_v3 cannot take pictures of 40 pixels"):
        make_golden(contents, "m.h5")


# ---------------------------------------------------------------------------- the self-test


def test_a_good_file_passes(path, capsys):
    assert inspect(path, "--self-test") == 0
    assert "passed: largest difference 0 " in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["exact", "f2", "f4"])
def test_another_algorithm_passes(path, algorithm):
    from minitl.backend import kernel_module

    kernels = kernel_module("cpu")
    kernels.set_conv_algorithm(algorithm)
    try:
        assert self_test(hdf5.read(path), "m.h5").difference < 1e-4
    finally:
        kernels.set_conv_algorithm("auto")


def swapped(contents):
    contents.preprocessing["channel_order"] = "BGR"


def rescaled(contents):
    contents.preprocessing["scale"] = 1 / 127.5


def resized(contents):
    contents.preprocessing["resize"] = 36


def bicubic(contents):
    contents.preprocessing["interpolation"] = "bicubic"


def perturbed(contents):
    contents.state["layer2.0.conv1.weight"] = contents.state["layer2.0.conv1.weight"] * 1.05


@pytest.mark.parametrize("change", [swapped, rescaled, resized, bicubic, perturbed])
def test_what_is_wrong_fails(path, capsys, change):
    contents = hdf5.read(path)
    change(contents)
    hdf5.write(path, contents)
    assert inspect(path, "--self-test") == 1
    output = capsys.readouterr()
    assert "FAILED" in output.out
    assert "does not pass its self-test" in output.err
    assert inspect(path, "--self-test", "--json") == 1
    assert json.loads(capsys.readouterr().out)["self_test"]["passed"] is False


def test_a_file_without_the_golden_part(path, capsys):
    contents = hdf5.read(path)
    contents.golden = None
    hdf5.write(path, contents)
    assert inspect(path, "--self-test") == 1
    assert "no picture and logits" in capsys.readouterr().err


def test_golden_logits_of_another_number(path, capsys):
    contents = hdf5.read(path)
    contents.golden.logits = contents.golden.logits[:2]
    hdf5.write(path, contents)
    assert inspect(path, "--self-test") == 1
    assert "2 logits" in capsys.readouterr().err


# ---------------------------------------------------------------------------- what a file holds


def test_json_says_all(path, capsys):
    assert inspect(path, "--json", "--keys") == 0
    found = json.loads(capsys.readouterr().out)
    contents = hdf5.read(path)
    assert found["arch"] == "cifar_resnet20"
    assert (found["source"], found["license"]) == ("a forest", "MIT")
    assert found["digest"] == contents.digest
    assert found["preprocessing"] == contents.preprocessing
    model = models.create("cifar_resnet20", num_classes=3, width=4)
    assert found["parameters"] == sum(p.data.size for p in model.parameters())
    assert found["arrays"]["linear.weight"] == [3, 16]
    assert found["golden"] is True and found["appended_bytes"] == 0
    assert "compare" not in found and "self_test" not in found


def test_bytes_behind_the_end_are_told(path, capsys):
    with path.open("ab") as file:
        file.write(b"x" * 1234)
    assert inspect(path) == 0
    assert "1,234 bytes behind the file's end" in capsys.readouterr().out


def test_the_shipped_weights_by_run_folder_and_file(tmp_path, capsys):
    (tmp_path / "best.h5").write_bytes(STROKES.read_bytes())
    for place in (STROKES, tmp_path):
        assert inspect(place) == 0
        assert "cifar_resnet20" in capsys.readouterr().out


# ---------------------------------------------------------------------------- two files


def test_equal_files(path, tmp_path, capsys):
    assert inspect(path, "--compare", path) == 0
    assert "equal to the bit: 97 arrays" in capsys.readouterr().out
    found = compare(path, path)
    assert not any(found[name] for name in ("attributes", "only_here", "only_there", "different"))


def test_every_kind_of_difference(path, tmp_path, capsys):
    contents = hdf5.read(path)
    state = contents.state
    state["bn1.weight"] = state["bn1.weight"] + np.float32([0, 0.5, 0, -0.25])
    state["bn1.bias"] = np.float32([np.nan, 0, 0, 0])
    state["linear.bias"] = np.zeros(4, np.float32)
    state["more"] = state.pop("conv1.weight")
    contents.license = ""
    other = tmp_path / "other.h5"
    hdf5.write(other, contents)
    found = compare(path, other)
    assert found["attributes"] == {"license": ["MIT", ""]}
    assert (found["only_here"], found["only_there"]) == (["conv1.weight"], ["more"])
    assert found["misshapen"] == {"linear.bias": [[3], [4]]}
    assert found["different"]["bn1.weight"] == {"max_abs": 0.5, "relative": 0.5}
    assert found["different"]["bn1.bias"] == {"max_abs": None, "relative": None}
    assert found["equal"] == len(hdf5.read(path).state) - 4

    assert inspect(path, "--compare", other) == 0
    text = capsys.readouterr().out
    for part in (
        'license: "MIT" | ""',
        f"only in {path}: conv1.weight",
        f"only in {other}: more",
        "linear.bias: shape (3,) | (4,)",
        "not finite",
    ):
        assert part in text
    assert inspect(path, "--compare", other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["compare"]["equal"] == found["equal"]


def test_a_file_that_is_not_there(path, tmp_path, capsys):
    assert inspect(path, "--compare", tmp_path / "none.h5") == 1
    assert "none.h5" in capsys.readouterr().err


def test_a_saved_model_keeps_its_origin(tmp_path):
    from minitl import load_model

    contents = contents_of()
    contents.source_sha256 = "ab" * 32
    hdf5.write(tmp_path / "m.h5", contents)
    save_model(load_model(tmp_path / "m.h5"), tmp_path / "again.h5")
    again = hdf5.read(tmp_path / "again.h5")
    assert (again.source, again.license) == ("a forest", "MIT")
    assert again.source_sha256 == "ab" * 32
