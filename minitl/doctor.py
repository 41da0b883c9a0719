"""Does the GPU work? What is installed, what is missing, and whether it computes what the CPU does.

Every operation runs forward and backward on small, awkward shapes on both, in each number format, then the
optimizers and the preparation of pictures. The kernels are compiled on the way, where that was not done.
"""

import ctypes
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np

from minitl import ops, optim
from minitl.backend import BFLOAT16, Array, like, narrow, widen
from minitl.data.preprocessing import Preprocessing
from minitl.device import (
    CPU,
    Device,
    architecture,
    capability,
    cupy,
    dtype_of,
    get_device,
    version,
)
from minitl.errors import UserError
from minitl.tensor import Tensor

# Largest error allowed, as a root of mean squares and in parts of that of the right values. What is in
# float32 is rounded 2^-24 at a time; factors have 11 significant bits in tf32, and 8 in bf16.
TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}

# What a GPU needs, by the modules that are imported: in which package they come (for CUDA 12 or 13), and
# what for.
NEEDED = {
    "cupy": ("cupy-cuda{}x", "memory on the GPU and launches"),
    "cuda.bindings.nvrtc": ("cuda-bindings=={}.*", "calls the compiler"),
    "numba_cuda": ("numba-cuda[cu{}]", "average pooling"),
}
PROGRESS = 5.0  # seconds between lines while kernels are compiled
FAMILIES = ("conv2d", "batchnorm", "")  # of checks that share kernels, by how their names begin

Say = Callable[[str], object]


class Check(NamedTuple):
    """An operation and the shapes of what it is given: activations and parameters."""

    name: str
    operation: Callable[..., Tensor]
    activations: tuple[tuple[int, ...], ...]
    parameters: tuple[tuple[int, ...], ...] = ()


def examine(name: str, say: Say) -> None:
    """Say what is there, and check every kernel on the device called `name`, such as "cuda".

    Raises UserError, in words, for what is missing, or if a kernel is wrong.
    """
    _say_software(say)
    device = get_device(name)
    if device.kind == "cpu":
        raise UserError("minitl doctor looks at GPUs; give --device cuda or cuda:N")
    _say_card(device, say)
    _compile(device, say)
    warpgroups = _cuda("warpgroups")
    if warpgroups.capable(device.number):
        say(f"warpgroups {warpgroups.verdict(device.number)}")
    started, wrong = time.monotonic(), 0
    for precision, tolerance in TOLERANCES.items():
        try:
            with device.computing(precision):
                for what, error_of in _checks(device, precision):
                    bad, found = _judge(error_of, tolerance)
                    wrong += bad
                    say(f"{precision:8} {what:33} {'WRONG' if bad else 'ok':6} {found}")
        except Exception as problem:  # after some errors CUDA refuses even to wait for the card
            wrong += 1
            say(f"{precision:8} {'waiting for the card':33} WRONG  {_first_line(problem)}")
    if wrong:
        raise UserError(
            f"{device}: {wrong} checks failed (listed above); do not trust it with training. Update the "
            "driver, and report this if it stays"
        )
    say(f"{device} works: everything agrees with the CPU ({time.monotonic() - started:.1f} s)")


def _say_software(say: Say) -> None:
    """Say which CuPy, driver and compiler there are; UserError naming all that is missing."""
    driver = _driver_version()
    say(f"driver     {f'supports CUDA {version(driver)}' if driver else 'none'}")
    line = 12 if 12000 <= driver < 13000 else 13  # of CUDA
    missing = []
    for name, (package, purpose) in NEEDED.items():
        problem = _problem_with(name)
        if problem:
            missing.append(package.format(line))
            say(f"{name:10} {problem} ({purpose})")
    extra = f"pip install 'minitl[cuda{line}]'"
    if missing:
        raise UserError(
            f"{', '.join(missing)}: not installed, or does not load (see above); {extra} brings all that is "
            f"needed, pip install {' '.join(map(repr, missing))} these alone"
        )
    module = cupy()
    runtime = module.cuda.runtime
    say(f"CuPy       {getattr(module, '__version__', 'of unknown version')}")
    say(f"CUDA       {version(runtime.runtimeGetVersion())} is what CuPy was built for")
    try:
        compiler = _cuda("compiler").version()
    except Exception as error:  # each release of the bindings has another for this
        raise UserError(
            f"the library of NVRTC, which compiles the kernels, does not load ({_first_line(error)}): "
            f"pip install 'cuda-toolkit[nvrtc,cudart]=={line}.*' (part of minitl[cuda{line}])"
        ) from error
    say(f"NVRTC      {'.'.join(map(str, compiler))}")
    say(f"NVVM       {_nvvm(line)}")


def _nvvm(line: int) -> str:
    """Return the version of what Numba compiles with, or what to do without it: all but one kernel works."""
    try:
        module = importlib.import_module("numba.cuda.cudadrv.nvvm")
        return ".".join(map(str, module.NVVM().get_version()))
    except Exception as error:  # each release has another for a library that is missing
        package = NEEDED["numba_cuda"][0].format(line)
        return f"does not load: {_first_line(error)} (average pooling); pip install '{package}'"


def _driver_version() -> int:
    """Return the CUDA that the driver supports, 13000 for 13.0, and 0 without a driver; asks no CuPy."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        number = ctypes.c_int()
        return 0 if library.cuDriverGetVersion(ctypes.byref(number)) else number.value
    except (OSError, AttributeError):
        return 0


def _problem_with(name: str) -> str:
    """Say why a module cannot be imported; nothing if it can."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        return "is not installed" if own else f"does not load: {_first_line(error)}"
    except ImportError as error:
        return f"does not load: {_first_line(error)}"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cuda(name: str) -> Any:
    """Return a module of the CUDA kernels."""
    return importlib.import_module(f"minitl.kernels.cuda.{name}")


def _compile(device: Device, say: Say) -> None:
    """Compile what the checks launch and no cache holds, on all cores."""
    compiler = _cuda("compiler")
    target = architecture(device.number)
    forms = [
        (stem, macros) for stem, macros in compiler.variants(target) if macros["T"] != "double"
    ]
    beside: list[BaseProcess] = []

    def begin() -> None:
        say(f"compiling kernels, {os.cpu_count()} at a time: once, up to some minutes ...")
        beside.extend(start_compiling_references())

    compiler.on_first_compile(begin)
    shown = time.monotonic()
    # An error, if there is one, comes again where the kernel is checked.
    for done, _ in enumerate(compiler.compile_ahead(forms, target), start=1):
        if time.monotonic() - shown > PROGRESS:
            shown = time.monotonic()
            say(f"  {done} of {len(forms)}")
    for process in beside:
        process.join()


def start_compiling_references() -> list[BaseProcess]:
    """Compile what the checks run on the CPU: for a minute of one core, in processes that are returned."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=_run_family, args=(f,), daemon=True) for f in FAMILIES
    ]
    for process in processes:
        process.start()
    return processes


def _run_family(family: str) -> None:
    """Run the checks of a family on the CPU; the last family is of all that no other one has."""
    for check in (*CHECKS, *TILED):
        if family == next(f for f in FAMILIES if check.name.startswith(f)):
            _operation_error(check, CPU, "float32")


def _say_card(device: Device, say: Say) -> None:
    properties = cupy().cuda.runtime.getDeviceProperties(device.number)
    name = properties["name"]
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    major, minor = capability(device.number)
    say(f"device     {device}: {text}, {properties['totalGlobalMem'] / 2**30:.1f} GiB")
    say(f"kernels    {architecture(device.number)}, for compute capability {major}.{minor}")


def _judge(error_of: Callable[[], float], tolerance: float) -> tuple[bool, str]:
    """Return whether a check failed, and what was found."""
    try:
        error = error_of()
    except Exception as problem:  # whatever it is: the others are still worth knowing
        return True, f"{type(problem).__name__}: {_first_line(problem)}"
    return not error <= tolerance, f"error {error:.1e}"  # NaN has failed


def _checks(device: Device, precision: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield what is checked, and what computes its error."""
    for check in CHECKS:
        if precision == "tf32" and not check.name.startswith(("conv2d", "linear")):
            continue  # the same code as in float32
        yield check.name, partial(_operation_error, check, device, precision)
    plans = _cuda("conv2d_plan")
    by_warpgroup = precision == "bf16" and _cuda("warpgroups").usable()
    for tile in plans.TILES + (plans.WARPGROUP_TILES if by_warpgroup else ()):
        for check in TILED:
            name = f"{check.name}, {tile.m}x{tile.n}{' by warpgroups' if tile.by_warpgroup else ''}"
            yield name, partial(_tiled_error, tile, check, device, precision)
    if precision == "float32":
        for name, optimizer in OPTIMIZERS.items():
            yield name, partial(_optimizer_error, optimizer, device)
        yield "average of weights", partial(_average_error, device)
        yield "clipped gradients", partial(_clipping_error, device)
    if precision != "tf32":
        yield "pictures", partial(_pictures_error, device, precision)
        for name, change in CHANGES.items():
            yield name, partial(_change_error, change, device, precision)


def _operation_error(check: Check, device: Device, precision: str) -> float:
    random = np.random.default_rng(0)
    given = [random.normal(size=s).astype(np.float32) for s in check.activations]
    parameters = [random.normal(size=s).astype(np.float32) for s in check.parameters]
    narrowed = [narrow(array) if precision == "bf16" else array for array in given]
    there = [device.array(array) for array in narrowed + parameters]
    here = [widen(array) for array in narrowed] if precision == "bf16" else given
    results = zip(_run(check, there), _run(check, here + parameters, precision), strict=True)
    return max(_error(a, b) for a, b in results)


def _tiled_error(tile: Any, check: Check, device: Device, precision: str) -> float:
    """Return the error of a convolution in these tiles, which else only large ones are cut into."""
    plans = _cuda("conv2d_plan")
    with plans.forced(plans.Plan(tile, splits=3)):
        return _operation_error(check, device, precision)


def _run(check: Check, arrays: list[Array], precision: str = "") -> list[np.ndarray]:
    """Return the result and the gradients of all inputs, with some numbers for the result's own gradient.

    precision: what these are rounded to first; the result's own unless it is given.
    """
    inputs = [Tensor(array, requires_grad=True) for array in arrays]
    y = check.operation(*inputs)
    seed = np.cos(np.arange(y.data.size, dtype=np.float32)).reshape(y.shape)
    if y.dtype == BFLOAT16:
        seed = narrow(seed)
    elif precision == "bf16" and y.ndim:
        seed = widen(narrow(seed))
    y.backward(like(y.data, seed))
    return [y.numpy(), *(Tensor(x.grad).numpy() for x in inputs if x.grad is not None)]


def _optimizer_error(make: Callable[..., optim.Optimizer], device: Device) -> float:
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=37), random.normal(size=(3, 37))
    results = []
    for where in (device, CPU):
        parameter = Tensor(where.array(start.astype(np.float32)), requires_grad=True)
        optimizer = make([parameter], lr=0.1)
        for gradient in gradients.astype(np.float32):
            parameter.grad = where.array(gradient)
            optimizer.step()
        results.append(parameter.numpy())
    return _error(*results)


def _average_error(device: Device) -> float:
    averages = []
    for where in (device, CPU):
        average, value = (where.array(np.cos(np.arange(37, dtype=np.float32) + i)) for i in (0, 1))
        where.kernels.average_step(average, value, 0.3)
        averages.append(Tensor(average).numpy())
    return _error(*averages)


def _pictures_error(device: Device, precision: str) -> float:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 9, 11, 3), dtype=np.uint8)
    p = Preprocessing(resize=8, crop=8)
    dtype = dtype_of(precision)
    x = device.kernels.normalize_images(
        device.array(images), p.mean, p.std, p.scale, None, None, None, p.crop, dtype
    )
    return _error(Tensor(x).numpy(), p.normalise(images[:, 0:8, 2:10]))


def _clipping_error(device: Device) -> float:
    clipped = []
    for where in (device, CPU):
        gradients = [where.array(np.cos(np.arange(size, dtype=np.float32))) for size in (37, 5)]
        where.kernels.clip_norm(gradients, 0.5)
        clipped.append(np.concatenate([Tensor(gradient).numpy() for gradient in gradients]))
    return _error(*clipped)


def _change_error(change: Callable[..., Array], device: Device, precision: str) -> float:
    given = np.random.default_rng(0).normal(size=(3, 5, 8, 3)).astype(np.float32)
    there, here = given, given
    if precision == "bf16":
        there, here = narrow(given), widen(narrow(given))
    changed = Tensor(change(device.kernels, device.array(there))).numpy()
    return _error(changed, change(CPU.kernels, here))


def _error(a: np.ndarray, b: np.ndarray) -> float:
    right = b.astype(np.float64)
    return float(np.sqrt(((a - right) ** 2).mean() / max((right**2).mean(), 1e-30)))


def _normalised(form: str, training: bool, *inputs: Tensor, **options: Any) -> Tensor:
    """Apply a normalisation; of the inputs its weight and bias come last."""
    *first, weight, bias = inputs
    running = _running(weight)
    function: Callable[..., Tensor] = getattr(ops, form)
    return function(*first, weight, bias, *running, training=training, **options)


def _conv2d_batchnorm(training: bool, *inputs: Tensor) -> Tensor:
    x, residual, weight, bn_weight, bn_bias = inputs
    if not training:  # frozen
        bn_weight, bn_bias = bn_weight.detach(), bn_bias.detach()
    options: dict[str, Any] = {"residual": residual, "padding": 1, "training": training}
    return ops.conv2d_batchnorm(x, weight, bn_weight, bn_bias, *_running(bn_weight), **options)


def _running(weight: Tensor) -> tuple[Array, Array]:
    mean = np.linspace(-0.5, 0.5, weight.shape[0], dtype=np.float32)
    return like(weight.data, mean), like(weight.data, np.exp(mean))


OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": optim.SGD,
    "SGD, momentum": partial(optim.SGD, momentum=0.9, nesterov=True),
    "Adam": partial(optim.Adam, weight_decay=0.1),
}

# What may be done to a batch of pictures, by the kernels of a device.
_LIMITS = (0.1, 0.2, 0.3), (-1.0, -1.5, -2.0), (1.0, 1.5, 2.0)
CHANGES: dict[str, Callable[..., Array]] = {
    "mixup": lambda kernels, x: kernels.mixup_forward(x, 0.3),
    "cutmix": lambda kernels, x: kernels.cutmix_forward(x, 1, 4, 2, 7),
    "attack, start": lambda kernels, x: kernels.attack_start(x, *_LIMITS, 5),
    "attack, step": lambda kernels, x: kernels.attack_step(x, x, x, (0.05, 0.1, 0.3), *_LIMITS),
}

_X = (3, 9, 7, 24)
_C = (24,)

# Convolutions whose results and whose weight's gradient are more than one of the largest tiles each way, not
# all of them full, by filters with taps both ways: once as in training, and once without statistics.
_TILED = (2, 7, 8, 40), (2, 8, 9, 136)
_FILTERS = (136, 2, 2, 40), (136,), (136,)
TILED = (
    Check("conv2d_batchnorm", partial(_conv2d_batchnorm, True), _TILED, _FILTERS),
    Check("conv2d_batchnorm, frozen", partial(_conv2d_batchnorm, False), _TILED, _FILTERS),
)

CHECKS = (
    Check("conv2d", partial(ops.conv2d, padding=1), ((2, 7, 5, 32),), ((40, 3, 3, 32), (40,))),
    Check(
        "conv2d, 7x7 of RGB",
        partial(ops.conv2d, stride=2, padding=3),
        ((2, 21, 19, 3),),
        ((16, 7, 7, 3),),
    ),
    Check(
        "conv2d, groups",
        partial(ops.conv2d, stride=2, padding=1, groups=3),
        ((2, 9, 7, 15),),
        ((9, 3, 3, 5),),
    ),
    Check("conv2d, 1x1", ops.conv2d, ((3, 7, 5, 64),), ((136, 1, 1, 64),)),
    Check("conv2d_batchnorm", partial(_conv2d_batchnorm, True), (_X, _X), ((24, 3, 3, 24), _C, _C)),
    Check(
        "conv2d_batchnorm, frozen",
        partial(_conv2d_batchnorm, False),
        (_X, _X),
        ((24, 3, 3, 24), _C, _C),
    ),
    Check("linear", ops.linear, ((5, 33),), ((10, 33), (10,))),
    Check("batchnorm", partial(_normalised, "batchnorm", True), (_X,), (_C, _C)),
    Check("batchnorm, evaluation", partial(_normalised, "batchnorm", False), (_X,), (_C, _C)),
    Check(
        "batchnorm_relu, evaluation", partial(_normalised, "batchnorm_relu", False), (_X,), (_C, _C)
    ),
    Check("batchnorm_relu", partial(_normalised, "batchnorm_relu", True), (_X,), (_C, _C)),
    Check(
        "batchnorm_add_relu", partial(_normalised, "batchnorm_add_relu", True), (_X, _X), (_C, _C)
    ),
    Check(
        "batchnorm_relu_maxpool",
        partial(_normalised, "batchnorm_relu_maxpool", True, kernel_size=3, stride=2, padding=1),
        (_X,),
        (_C, _C),
    ),
    Check(
        "batchnorm_relu_maxpool, frozen",
        partial(_normalised, "batchnorm_relu_maxpool", False, kernel_size=3, stride=2, padding=1),
        (_X,),
        (_C, _C),
    ),
    Check("maxpool2d", lambda x: ops.maxpool2d(x, 3, 2, 1), (_X,)),
    Check("avgpool2d", lambda x: ops.avgpool2d(x, 3, 2, 1), (_X,)),
    Check("adaptive_avgpool2d", partial(ops.adaptive_avgpool2d, size=(4, 3)), (_X,)),
    Check("global_avgpool2d", ops.global_avgpool2d, (_X,)),
    Check("flatten", ops.flatten, ((2, 3, 4, 5),)),
    Check("add", ops.add, (_X, _X)),
    Check("scale", partial(ops.scale, factor=-0.7), (_X,)),
    Check("relu", ops.relu, (_X,)),
    Check("concat", lambda *x: ops.concat(x), ((2, 3, 3, 5), (2, 3, 3, 8))),
    Check("dropout", partial(ops.dropout, p=0.3, seed=5, offset=7), (_X,)),
    Check(
        "softmax_cross_entropy",
        lambda x: ops.softmax_cross_entropy(x, np.arange(6) % 5, label_smoothing=0.1),
        ((6, 5),),
    ),
    Check(
        "softmax_cross_entropy, weighted",
        lambda x: ops.softmax_cross_entropy(
            x, np.arange(6) % 5, class_weights=np.linspace(0.5, 1.5, 5)
        ),
        ((6, 5),),
    ),
    Check(
        "sigmoid_binary_cross_entropy",
        lambda x: ops.sigmoid_binary_cross_entropy(x, np.eye(6, 5, dtype=np.float32)),
        ((6, 5),),
    ),
    Check(
        "mean_squared_error",
        lambda x: ops.mean_squared_error(x, np.eye(6, 5, dtype=np.float32)),
        ((6, 5),),
    ),
)
