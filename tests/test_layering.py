"""Imports run one way, `import minitl` stays light, and backends keep their interface."""

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"minitl": "minitl", "kernels": "minitl.kernels", "weights": "minitl.weights"}

# Part of the package: the parts that it may import. Imports inside functions count as well.
LOW = {"errors", "shapes", "backend"}
ALLOWED = {
    "errors": set(),
    "shapes": set(),
    "backend": set(),  # finds kernels by name, on first use
    "kernels": LOW,
    "changing_numbers": set(),
    "device": {"backend", "errors"},
    "tensor": {"backend", "device"},
    "ops": LOW | {"tensor"},
    "init": set(),
    "nn": LOW | {"tensor", "ops", "init", "device", "changing_numbers"},
    "optim": LOW | {"tensor", "changing_numbers"},
    "text": set(),
    "run_files": set(),
    "files": {"errors"},
    "hdf5": {"errors", "files", "text"},
    "feature_file": {"errors", "files", "text"},
    "tasks": {"errors", "text"},
    "data": {"errors", "files", "run_files", "text", "tasks"},
    "weights": set(),  # where the shipped files are
    "models": LOW | {"tensor", "ops", "init", "nn", "files", "hdf5", "tasks", "weights"},
}
ALLOWED["doctor"] = LOW | {"tensor", "ops", "optim", "device", "data"}
ALLOWED["convert"] = ALLOWED["models"] | {"models", "data", "run_files", "text"}
ALLOWED["train"] = set(ALLOWED) - {"kernels"}
ALLOWED["serve"] = ALLOWED["train"] | {"train"}
ALLOWED["cli"] = set(ALLOWED) | {""}
ALLOWED["__main__"] = {"cli"}  # python -m minitl
ALLOWED["recipes"] = ALLOWED["train"] | {"train"}  # programs in weights/, which nothing imports
ALLOWED[""] = {"tensor", "ops", "nn", "models", "optim"}  # minitl/__init__.py itself


def modules():
    """Yield (dotted name, file) of every module of the package."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


DATA = {"STROKES", "CATALOGUE", "IMAGENET_CLASSES"}  # where files are, in minitl.weights itself


def part_of(name):
    """Return the part that a module belongs to: "ops" for minitl.ops.conv2d, "" for minitl."""
    if name.startswith("minitl.weights.") and name.split(".")[-1] not in DATA:
        return "recipes"
    return [*name.split("."), ""][1]


def imports(path):
    """Yield (line, dotted name) of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


MODULES = dict(modules())


def imported_part(name):
    """Return the part that `name` (a module, or something in one) lies in."""
    part = part_of(name)
    return part if part in ALLOWED else ""  # `from minitl import Tensor` is of minitl itself


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    part = part_of(name)
    assert part in ALLOWED, f"{name} is new: say in this file what it may import"
    for line, imported in imports(MODULES[name]):
        if imported.split(".")[0] == "minitl":
            target = imported_part(imported)
            assert target == part or target in ALLOWED[part], (
                f"{MODULES[name]}:{line}: {part or 'minitl'} must not import {imported}"
            )


def test_the_check_sees_what_is_forbidden(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "from minitl import nn\ndef f():\n    import minitl.train.loop\n    from minitl import tensor\n"
    )
    parts = [imported_part(name) for _, name in imports(file)]
    assert parts == ["nn", "train", "tensor"]
    assert not {"nn", "train"} & ALLOWED["ops"]


@pytest.mark.parametrize("name", MODULES)
def test_libraries_are_imported_where_they_belong(name):
    homes = {
        "torch": (),  # only tests compare with it
        "tensorflow": (),
        "numba": ("kernels",),
        "llvmlite": ("kernels",),
        "cupy": ("kernels",),
        "cuda": ("kernels",),
        "h5py": ("hdf5", "feature_file", "convert"),
        "safetensors": ("convert",),
        "onnx": ("convert",),
        "pooch": ("convert",),
        "requests": ("convert",),
        "PIL": ("data", "train"),
        "sklearn": ("data", "train", "recipes"),
    }
    for line, imported in imports(MODULES[name]):
        library = imported.split(".")[0]
        assert part_of(name) in homes.get(library, (part_of(name),)), (
            f"{MODULES[name]}:{line}: {library} is imported by {homes[library] or 'tests'} only"
        )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/reference").glob("*.py")), ids=lambda p: p.stem
)
def test_references_import_nothing_of_minitl(path):
    assert not [name for _, name in imports(path) if name.split(".")[0] in FOLDERS]


def test_importing_minitl_is_light():
    code = (
        "import sys, minitl, minitl.ops, minitl.models, minitl.optim\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {
        "numba",
        "llvmlite",
        "h5py",
        "PIL",
        "sklearn",
        "scipy",
        "tqdm",
        "torch",
        "cupy",
        "cuda",
    }
    assert not loaded & heavy
    assert "numpy" in loaded


# The interface of a backend: each function and the names of its arguments, in order.
GEOMETRY = "stride padding dilation groups"
INTERFACE = {
    "on_first_compile": "announce training",
    "compile_seconds": "",
    "release_memory": "",
    "set_conv_algorithm": "name",
    "set_precision": "name",
    "set_threads": "count",
    "conv2d_forward": f"x weight bias {GEOMETRY}",
    "conv2d_dx": f"dy weight x_shape {GEOMETRY} scale rest positive",
    "conv2d_dw": f"dy x weight_shape {GEOMETRY} scale",
    "conv2d_db": "dy",
    "conv2d_scale_shift_forward": f"x weight scale shift residual relu {GEOMETRY}",
    "conv2d_statistics_forward": f"x weight {GEOMETRY}",
    "linear_forward": "x weight bias",
    "linear_dx": "dy weight",
    "linear_dw": "dy x",
    "linear_db": "dy",
    "cast": "x dtype",
    "add_forward": "x y",
    "relu_forward": "x",
    "relu_dx": "dy y",
    "scale_forward": "x factor",
    "adaptive_avgpool2d_forward": "x size",
    "adaptive_avgpool2d_dx": "dy x_shape",
    "dropout_forward": "x p seed offset",
    "dropout_dx": "dy p seed offset",
    "concat_forward": "arrays",
    "concat_dx": "dy sizes",
    "batchnorm_statistics": "x",
    "batchnorm_fold": "mean var weight bias running_mean running_var pixels momentum eps training",
    "batchnorm_apply": "x scale shift residual relu",
    "batchnorm_reduce": "dy y x mean inv_std keep_dz",
    "batchnorm_coefficients": "sum_dz sum_dz_xhat weight mean inv_std pixels training",
    "batchnorm_dx": "dy y x a b c",
    "batchnorm_relu_maxpool_forward": "x scale shift kernel stride padding",
    "batchnorm_relu_maxpool_dx": "dy index x_shape x a b c kernel stride padding",
    "maxpool2d_forward": "x kernel stride padding",
    "maxpool2d_dx": "dy index x_shape kernel stride padding",
    "avgpool2d_forward": "x kernel stride padding count_include_pad",
    "avgpool2d_dx": "dy x_shape kernel stride padding count_include_pad",
    "global_avgpool2d_forward": "x",
    "global_avgpool2d_dx": "dy x_shape",
    "softmax_cross_entropy_forward": "logits labels class_weights label_smoothing",
    "softmax_cross_entropy_dx": "dloss probabilities labels class_weights label_smoothing",
    "sigmoid_binary_cross_entropy_forward": "logits targets pos_weight",
    "sigmoid_binary_cross_entropy_dx": "dloss probabilities targets pos_weight",
    "mean_squared_error_forward": "prediction target",
    "mean_squared_error_dx": "dloss difference",
    "sgd_step": "param grad velocity lr momentum weight_decay nesterov first",
    "average_step": "average value share",
    "clip_norm": "gradients most",
    "mixup_forward": "x share",
    "cutmix_forward": "x top bottom left right",
    "attack_start": "images box darkest brightest seed",
    "attack_step": "x gradient images move box darkest brightest",
    "adam_step": "param grad m v step lr beta1 beta2 eps weight_decay decoupled",
}


# What a backend has beyond that.
ALONE = {
    "cpu": {},
    "cuda": {"normalize_images": "images mean std scale flip top left crop dtype"},
}


@pytest.mark.parametrize("backend", ALONE)
def test_a_backend_has_exactly_the_interface(backend):
    if importlib.util.find_spec(f"minitl.kernels.{backend}") is None:
        pytest.skip(f"there is no {backend} backend yet")
    module = importlib.import_module(f"minitl.kernels.{backend}")
    found = {
        name: " ".join(inspect.signature(getattr(module, name)).parameters)
        for name in module.__all__
    }
    assert found == INTERFACE | ALONE[backend]
    assert (backend == "cuda") == module.FUSES_DX
