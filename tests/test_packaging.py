"""What installing minitl brings with it."""

import re
import tomllib
from importlib import metadata, resources
from pathlib import Path

import minitl

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower() for requirement in requirements}


def test_a_plain_install_pulls_no_cuda_package_and_no_other_engine():
    plain = [r for r in metadata.requires("minitl") if "extra ==" not in r]
    assert names(plain) == names(PROJECT["dependencies"])
    assert not [name for name in names(plain) if re.search(r"cu|nvidia|torch|jax|triton", name)]


def test_every_dependency_has_a_lower_bound():
    for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        for requirement in group:
            assert re.search(r">=|==", requirement), requirement


def test_the_version_is_said_once_in_two_places():
    assert PROJECT["version"] == minitl.__version__ == metadata.version("minitl")


def test_packages_carry_their_data():
    assert (resources.files("minitl") / "py.typed").is_file()
    for name in ("strokes_resnet20.h5", "catalogue.toml", "imagenet_classes.txt", "README.md"):
        assert (resources.files("minitl.weights") / name).is_file()
    for name in ("elementwise.cu", "common.cuh"):
        assert (resources.files("minitl.kernels") / "cuda" / name).is_file()
