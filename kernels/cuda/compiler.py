"""From a .cu file to machine code for one architecture: NVRTC, and a cache on disk.

No driver and no card is needed: NVRTC is a library that compiles text. What it made is kept in a file
named after everything that went in (source, headers, options, architecture, NVRTC's version) and after
the digest of its own content. So a stale entry is never found and a damaged one never loaded, and
processes that compile the same thing at once write equal files, each moved into place whole.
"""

import hashlib
import importlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import platformdirs

from minitl.errors import UserError

FOLDER = Path(__file__).parent
OLDEST = (8, 0)  # mma.sync with bfloat16 and tf32, ldmatrix, cp.async: from sm_80 on
WITH_WARPGROUPS = "sm_90a"  # the one architecture that has wgmma
# A lambda in a kernel carries no __device__; "default-device" takes it for one all the same.
OPTIONS = ("--std=c++17", "-default-device", "-lineinfo", "--ptxas-options=-v")

Defines = Mapping[str, object]


class Resources(NamedTuple):
    """What one kernel takes: registers of a thread, bytes spilled to memory, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


class Compiled(NamedTuple):
    """Machine code, and what the compiler said about it."""

    cubin: bytes
    log: str

    def resources(self) -> dict[str, Resources]:
        """Return what each kernel takes, by its name."""
        found = {}
        for part in self.log.split("Compiling entry function '")[1:]:
            spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
            registers = re.search(r"Used (\d+) registers", part)
            shared = re.search(r"(\d+) bytes smem", part)
            found[part.split("'", 1)[0]] = Resources(
                int(registers[1]) if registers else 0,
                int(spilled[1]) + int(spilled[2]) if spilled else 0,
                int(shared[1]) if shared else 0,
            )
        return found


def nvrtc() -> ModuleType:
    """Return the bindings of NVRTC; UserError where they are not installed."""
    try:
        from cuda.bindings import nvrtc as module
    except ImportError as error:
        raise UserError(
            "the CUDA kernels are compiled by NVRTC, which is not installed: "
            "pip install 'minitl[cuda13]' (or cuda12, to fit the driver)"
        ) from error
    return module  # type: ignore[no-any-return]


def _call(name: str, *args: Any) -> Any:
    """Call a function of NVRTC; return its result (if any), or raise RuntimeError."""
    status, *result = getattr(nvrtc(), name)(*args)
    if int(status):
        raise RuntimeError(f"{name}: {status.name}")
    return result[0] if result else None


@cache
def version() -> tuple[int, int]:
    """Return NVRTC's version, such as (13, 0)."""
    status, major, minor = nvrtc().nvrtcVersion()
    if int(status):
        raise RuntimeError(f"nvrtcVersion: {status.name}")
    return int(major), int(minor)


def architecture(capability: tuple[int, int]) -> str:
    """Return what to compile for on a card of this compute capability, such as "sm_90a" for (9, 0).

    Raises UserError for cards that are too old, and for those that this NVRTC is too old for.
    """
    if capability < OLDEST:
        raise UserError(
            "the CUDA kernels need a card of compute capability 8.0 or later (Ampere: A100, RTX 30); "
            f"this one has {capability[0]}.{capability[1]}; use --device cpu"
        )
    number = 10 * capability[0] + capability[1]
    if number not in _supported():
        raise UserError(
            f"NVRTC {version()[0]}.{version()[1]} cannot compile for compute capability "
            f"{capability[0]}.{capability[1]}; install a newer CUDA toolkit: "
            "pip install --upgrade 'cuda-toolkit[nvrtc,cudart]'"
        )
    return "sm_90a" if capability == (9, 0) else f"sm_{number}"


@cache
def _supported() -> tuple[int, ...]:
    count = _call("nvrtcGetNumSupportedArchs")
    return tuple(_call("nvrtcGetSupportedArchs"))[:count]


def _source(stem: str, defines: Defines) -> bytes:
    return with_defines((FOLDER / f"{stem}.cu").read_bytes(), f"{stem}.cu", defines)


def _headers() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.cuh"))}


def sources_digest() -> str:
    """Return a digest of all kernels, headers and launchers."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.cu*"), *FOLDER.glob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def with_defines(source: bytes, name: str, defines: Defines) -> bytes:
    """Return the source below its macros.

    As options (-D) they would come before NVRTC's own declarations, in which T is a template's parameter.
    """
    lines = [f"#define {macro} {value}\n" for macro, value in sorted(defines.items())]
    return "".join([*lines, f'#line 1 "{name}"\n']).encode() + source


def compile_source(
    source: bytes, name: str, headers: Mapping[str, bytes], architecture: str
) -> Compiled:
    """Compile one text; RuntimeError with the compiler's messages if it is wrong."""
    options = [*OPTIONS, f"--gpu-architecture={architecture}"]
    names = [header.encode() for header in headers]
    program = _call(
        "nvrtcCreateProgram", source, name.encode(), len(names), list(headers.values()), names
    )
    try:
        status = nvrtc().nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = bytes(_call("nvrtcGetProgramLogSize", program))
        _call("nvrtcGetProgramLog", program, log)
        text = log.rstrip(b"\0").decode(errors="replace")
        if int(status[0]):
            raise RuntimeError(f"{name} does not compile for {architecture}:\n{text}")
        cubin = bytes(_call("nvrtcGetCUBINSize", program))
        _call("nvrtcGetCUBIN", program, cubin)
        return Compiled(cubin, text)
    finally:
        nvrtc().nvrtcDestroyProgram(program)


_announce: Callable[[], None] | None = None
_announcing = threading.Lock()
_seconds: list[float] = []  # of each compilation


def compile_seconds() -> float:
    """Return how long this process has compiled kernels so far; those of Numba are left out."""
    return sum(_seconds)


def on_first_compile(announce: Callable[[], None], training: bool = False) -> None:
    """Call `announce` once, as soon as a kernel has to be compiled because no cache holds it.

    An earlier call that nothing had to be compiled for is forgotten: what it would announce is over.

    training: makes no difference here.
    """
    global _announce
    _announce = announce


def _announce_once() -> None:
    global _announce
    with _announcing:
        announce, _announce = _announce, None
        if announce is not None:
            announce()


@cache
def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="minitl-kernels-")  # removed when the process ends


def cache_folder() -> Path:
    """Return where compiled kernels are kept; a temporary folder where the usual one is not writable."""
    folder = platformdirs.user_cache_path("minitl") / "kernels-cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(_temporary_folder().name)


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cubin_path(stem: str, architecture: str, defines: Defines) -> Path:
    """Return the file with the machine code of `stem`.cu, compiled now if no cache holds it.

    defines: names and values of the macros that the source is compiled with, such as {"T": "float"}.
    """
    source, headers = _source(stem, defines), _headers()
    settings = "\n".join([*OPTIONS, architecture, str(version())])
    key = hashlib.sha256()
    for part in (
        source,
        settings.encode(),
        *(x for h in headers.items() for x in (h[0].encode(), h[1])),
    ):
        key.update(b"%d:" % len(part) + part)
    folder, name = cache_folder(), f"{stem}-{architecture}-{key.hexdigest()[:24]}"
    for path in folder.glob(f"{name}-*.cubin"):
        if path.stem.endswith(f"-{_digest(path.read_bytes())}"):
            return path
        path.unlink(missing_ok=True)  # damaged
    _announce_once()
    started = time.perf_counter()
    compiled = compile_source(source, f"{stem}.cu", headers, architecture)
    _seconds.append(time.perf_counter() - started)
    path = folder / f"{name}-{_digest(compiled.cubin)}.cubin"
    write(path, compiled.cubin)
    write(path.with_suffix(".log"), compiled.log.encode())
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def variants(architecture: str) -> list[tuple[str, Defines]]:
    """Return (stem, macros) of everything that a launcher may ask for on this architecture."""
    found: list[tuple[str, Defines]] = []
    for path in sorted(FOLDER.glob("*.cu")):
        launcher: Any = importlib.import_module(f"{__package__}.{path.stem}")
        found += ((path.stem, defines) for defines in launcher.VARIANTS)
    return [f for f in found if not f[1].get("WGMMA") or architecture == WITH_WARPGROUPS]


def compile_ahead(
    forms: Iterable[tuple[str, Defines]], architecture: str
) -> Iterator["Future[Path]"]:
    """Compile on all cores what no cache holds; yield each file's `cubin_path`, or error, when it is done.

    Threads are enough: NVRTC lets go of Python's lock while it compiles.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(cubin_path, stem, architecture, defines) for stem, defines in forms]
        yield from as_completed(jobs)


def compile_kernels(stem: str, architecture: str, defines: Defines) -> Compiled:
    """Compile `stem`.cu, past the cache; for checks of the code and what it takes."""
    return compile_source(_source(stem, defines), f"{stem}.cu", _headers(), architecture)
