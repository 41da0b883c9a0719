"""Kernels of a .cu file as functions on NumPy arrays, called as CuPy's RawModule has them called.

    module = HostModule("kernels/cuda/elementwise.cu", "check", ("T=float",))
    module.get_function("relu_forward")((blocks,), (threads,), (x, y, np.int64(x.size)))

Mode "check" watches every access to memory and raises KernelError where a kernel does what CUDA does not
define; mode "fast" only computes. What is compiled is kept in the user's cache folder.
"""

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

SHIM = Path(__file__).parent / "shim"
KERNELS = Path(__file__).parents[2] / "kernels" / "cuda"
COMPILER = shutil.which("g++")
HERE_IT_RUNS = COMPILER is not None
REASON = "the kernels' checker needs g++, which is not on this machine"

COMMON_FLAGS = ["-std=c++17", "-g1", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-gnu-unique"]
MODE_FLAGS = {
    "fast": ["-O2"],
    "check": [
        "-O1",
        "-fsanitize=thread",
        "-fsanitize=bounds,alignment,shift,signed-integer-overflow,integer-divide-by-zero",
        "--param=tsan-instrument-func-entry-exit=0",
    ],
}
_one_at_a_time = threading.Lock()  # the runtime of a library knows one launch

GAP = 4096  # bytes that belong to nobody before, between and after the arrays
ALIGNMENT = 256  # of a device allocation
LARGEST_BLOCK = 1024
USUAL_SHARED_MEMORY, MOST_SHARED_MEMORY = (
    48 * 1024,
    227 * 1024,
)  # the latter on sm_90; sm_80: 163 KB


class KernelError(RuntimeError):
    """A kernel, or the way it was launched, is wrong."""


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("read_only", ctypes.c_int),
    )


class _Stacks(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("count", ctypes.c_size_t))


class _Launch(ctypes.Structure):  # cushim::Launch in shim/runtime.h
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_size", ctypes.c_size_t),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("check", ctypes.c_int),
        ("async_late", ctypes.c_int),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int),
        ("arena", ctypes.c_void_p),
        ("arena_size", ctypes.c_size_t),
        ("parameters", ctypes.c_void_p),
        ("parameters_size", ctypes.c_size_t),
        ("stacks", ctypes.POINTER(_Stacks)),
    )


# Around each of them lies a page that nobody may touch, and Linux lets a process have 65,530 pieces of
# memory: a set for each library would soon be too many.
_stacks = _Stacks()


# -------------------------------------------------------------------------------------- compiling


def _cache_folder() -> Path:
    folder = platformdirs.user_cache_path("minitl") / "kernels-cuda-on-cpu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _compiler_version() -> str:
    assert COMPILER, REASON
    return subprocess.run(
        [COMPILER, "--version"], capture_output=True, text=True, check=True
    ).stdout


def _digest(files: Sequence[Path], *texts: object) -> str:
    digest = hashlib.sha256(repr((_compiler_version(), texts)).encode())
    for name, content in sorted({(file.name, file.read_bytes()) for file in files}):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:20]


def _compile(*arguments: str | Path) -> str:
    command = [str(COMPILER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"g++ failed: {' '.join(command)}\n{done.stderr[:6000]}")
    return done.stdout


def _build(name: str, make: Any) -> Path:
    """Return the file `name` of the cache; if it is absent, `make(folder, file)` makes it elsewhere first.

    So other processes never see half a file, and the last of several that make it wins.
    """
    target = _cache_folder() / name
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            file = Path(folder) / name
            make(Path(folder), file)
            file.replace(target)
    return target


def _runtime() -> Path:
    """Return the runtime's object file."""
    sources = [*SHIM.glob("*.cpp"), *SHIM.glob("*.h")]

    def make(folder: Path, file: Path) -> None:
        objects = []
        for source in sorted(SHIM.glob("*.cpp")):
            objects.append(folder / f"{source.stem}.o")
            _compile(*COMMON_FLAGS, "-O2", "-c", source, "-o", objects[-1])
        _compile("-r", "-nostdlib", *objects, "-o", file)

    return _build(f"runtime-{_digest(sources, COMMON_FLAGS)}.o", make)


def _library(path: Path, mode: str, defines: Sequence[str]) -> Path:
    flags = ["-DCUSHIM", f"-I{SHIM}", f"-I{KERNELS}"]
    runtime = _runtime()
    headers = [*path.parent.glob("*.cuh"), *KERNELS.glob("*.cuh"), *SHIM.glob("*.h")]
    digest = _digest([path, *headers], mode, defines, COMMON_FLAGS, MODE_FLAGS[mode], runtime.name)

    def make(folder: Path, file: Path) -> None:
        wrapper, kernels = folder / "wrapper.cpp", folder / "kernels.o"
        wrapper.write_text(_wrapped(path, defines))
        listed = _compile("-std=c++17", "-E", "-P", "-DCUSHIM_LIST_KERNELS", *flags, wrapper)
        names = re.findall(r'extern\s+"C"\s+__global__\s+void\s+(\w+)\s*\(', listed)
        if not names:
            raise KernelError(f'{path} has no kernel: extern "C" __global__ void name(...)')
        wrapper.write_text(_wrapped(path, defines, names))
        _compile(*COMMON_FLAGS, *MODE_FLAGS[mode], *flags, "-c", wrapper, "-o", kernels)
        _compile("-shared", "-Wl,-Bsymbolic", kernels, runtime, "-o", file)

    return _build(f"{path.stem}-{mode}-{digest}.so", make)


def _wrapped(path: Path, defines: Sequence[str], exported: Sequence[str] = ()) -> str:
    """Return a C++ file that includes a .cu file and exports kernels of it.

    `defines` come after our own header, which they may well disagree with ("T=float"). The unnamed
    namespace keeps everything of the kernels' file, whether `static` or not, to this library.
    """
    lines = ['#include "cushim.h"']
    lines += [f"#define {' '.join(define.split('=', 1))}" for define in defines]
    lines += ["namespace {", f'#include "{path}"', "}"]
    lines += [f"#undef {define.split('=')[0]}" for define in defines]
    lines += [f"CUSHIM_EXPORT({name})" for name in exported]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------- calling


class HostModule:
    """The kernels of one .cu file, compiled with `defines` such as "T=float"."""

    def __init__(self, path: str | Path, mode: str = "check", defines: Sequence[str] = ()) -> None:
        self.path, self.mode = Path(path).resolve(), mode
        self.library_path = _library(self.path, mode, tuple(defines))
        self.library = ctypes.CDLL(str(self.library_path))
        self.library.cushim_messages.restype = ctypes.c_char_p
        self._functions: dict[str, HostKernel] = {}

    def get_function(self, name: str) -> "HostKernel":
        """Return a kernel by its name."""
        if name not in self._functions:
            self._functions[name] = HostKernel(self, name)
        return self._functions[name]

    def messages(self) -> str:
        """Return what the last launch was blamed for, with code addresses turned into file:line."""
        text = self.library.cushim_messages().decode().strip()
        addresses = sorted(set(re.findall(r"pc=(0x[0-9a-f]+)", text)))
        if addresses:
            for address, place in zip(addresses, self._places(addresses), strict=True):
                text = text.replace(f"pc={address}", place)
        return text

    def _places(self, addresses: Sequence[str]) -> list[str]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        base = next(int(line.split("-")[0], 16) for line in maps if str(self.library_path) in line)
        places = []
        for address in addresses:
            # A return address: the instruction that calls is the one before.
            offset = hex(int(address, 16) - base - 1)
            done = subprocess.run(
                ["addr2line", "-i", "-e", str(self.library_path), offset],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            frames = [Path(line.split(" ")[0]).name for line in done.stdout.split("\n") if line]
            own = [f for f in frames if not f.startswith(("cushim.h", "ptx.cuh"))]
            places.append(own[0] if own else frames[0])
        return places


class HostKernel:
    """One kernel; calling it launches it and returns when it is done."""

    def __init__(self, module: HostModule, name: str) -> None:
        self.module, self.name = module, name
        try:
            self._run = getattr(module.library, f"cushim_run_{name}")
            describe = getattr(module.library, f"cushim_signature_{name}")
        except AttributeError:
            raise KernelError(f"{module.path.name} has no kernel {name}") from None
        describe.restype = ctypes.c_char_p
        self.parameters = [p for p in describe().decode().split(",") if p]
        self.max_dynamic_shared_size_bytes = (
            USUAL_SHARED_MEMORY  # as on CuPy's kernels: may be raised
        )

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_mem: int = 0,
        *,
        order: int = 0,
        seed: int = 0,
        async_late: int = 1,
    ) -> None:
        """Launch.

        grid, block: one to three numbers.
        args: C-contiguous arrays for pointers (uint16 ones for 16-bit structs such as bfloat16, or
            np.uintp(0) for none), NumPy scalars of exactly the parameter's type, bytes for structs.
        order: in which blocks and threads run: 0 forward, 1 backward, 2 random by `seed`.
        async_late: whether cp.async copies when it is waited for (1) or at once (0).

        Raises KernelError for arguments that do not fit and for whatever the checker found.
        """
        self._check_launch(grid, block, args, shared_mem)
        arena = _Arena([a for a in args if isinstance(a, np.ndarray)])
        values = [self._value(i, arg, arena) for i, arg in enumerate(args)]
        parameters, pointers = _parameters(values)
        constant = {
            id(a) for a, p in zip(args, self.parameters, strict=True) if p.startswith("cp")
        } - {id(a) for a, p in zip(args, self.parameters, strict=True) if p.startswith("p")}
        buffers = arena.buffers(args, constant)
        launch = _Launch(
            (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))),
            (ctypes.c_uint * 3)(*block, *(1,) * (3 - len(block))),
            shared_mem, order, seed, self.module.mode == "check", async_late,
            buffers, len(buffers), arena.base, arena.size,
            ctypes.addressof(parameters), ctypes.sizeof(parameters), ctypes.pointer(_stacks),
        )  # fmt: skip
        with _one_at_a_time:
            failed = self._run(ctypes.byref(launch), pointers)
            messages = self.module.messages() if failed else ""
        arena.copy_back()
        if failed:
            raise KernelError(f"{self.name}: {messages}")
        if self.module.mode == "fast" and not arena.gaps_untouched():
            raise KernelError(f'{self.name} wrote out of bounds; mode "check" says where')

    def _check_launch(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int
    ) -> None:
        for what, sizes in (("grid", grid), ("block", block)):
            if not (1 <= len(sizes) <= 3 and all(int(n) == n and n >= 1 for n in sizes)):
                raise KernelError(f"{self.name}: {what} {sizes} must be 1 to 3 positive numbers")
        threads = int(np.prod(block))
        if threads > LARGEST_BLOCK:
            raise KernelError(
                f"{self.name}: {threads} threads; a block has at most {LARGEST_BLOCK}"
            )
        if grid[0] >= 2**31 or any(n > 65535 for n in grid[1:]):
            raise KernelError(f"{self.name}: grid {grid} is too large")
        if shared_mem > min(self.max_dynamic_shared_size_bytes, MOST_SHARED_MEMORY):
            raise KernelError(
                f"{self.name}: {shared_mem} bytes of shared memory are more than "
                "max_dynamic_shared_size_bytes, or than a card has"
            )
        if len(args) != len(self.parameters):
            raise KernelError(
                f"{self.name}: {len(args)} arguments; it takes {len(self.parameters)}: "
                f"{', '.join(self.parameters)}"
            )

    def _value(self, i: int, arg: Any, arena: "_Arena") -> bytes:
        """Return the bytes that the kernel gets for an argument."""
        parameter = self.parameters[i]
        fits = False
        if isinstance(arg, np.ndarray):
            kind, size = parameter.lstrip("cp")[0], int(parameter.lstrip("cp")[1:])
            if not arg.flags.c_contiguous:
                raise KernelError(f"{self.name}: argument {i} is not C-contiguous")
            if "p" in parameter and kind == "s":  # vectors, bfloat16, void
                fits = arg.nbytes % size == 0
            elif "p" in parameter:
                fits = arg.dtype.itemsize == size and arg.dtype.kind == kind
            value = arena.address(arg).to_bytes(8, "little")
        elif isinstance(arg, bytes | np.void):
            value = bytes(arg)
            fits = parameter == f"s{len(value)}"
        elif isinstance(arg, np.generic):
            value = arg.tobytes()
            null = "p" in parameter and arg.dtype == np.uintp and arg == 0
            fits = null or parameter == f"{arg.dtype.kind}{arg.dtype.itemsize}"
        else:
            raise KernelError(
                f"{self.name}: argument {i} is a {type(arg).__name__}; pass an array or a NumPy scalar "
                "such as np.int32 (CuPy would send 8 bytes)"
            )
        if not fits:
            given = getattr(arg, "dtype", f"{len(value)} bytes")
            what = "array" if isinstance(arg, np.ndarray) else "value"
            raise KernelError(f"{self.name}: argument {i}, {what} of {given}, for a {parameter}")
        return value


def _parameters(values: Sequence[bytes]) -> tuple[Any, Any]:
    """Lay out the arguments, each aligned to 16; return their memory and the pointers to them."""
    offsets, end = [], 0
    for value in values:
        offsets.append(end)
        end += -(-len(value) // 16) * 16
    memory = (ctypes.c_char * (end + 16 + 8 * len(values)))()
    start = ctypes.addressof(memory) + -ctypes.addressof(memory) % 16
    for offset, value in zip(offsets, values, strict=True):
        ctypes.memmove(start + offset, value, len(value))
    pointers = (ctypes.c_void_p * len(values)).from_address(start + end)
    pointers[:] = [start + offset for offset in offsets]
    return memory, pointers


class _Arena:
    """Copies of a launch's arrays with unused gaps around them, so that every step outside is seen.

    Arrays that share memory (an output that is also an input, views of one array) share it here too.
    A view keeps its offset in the array it was made from, and with it its alignment on a device.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes, device_offset(a)) for a in arrays)
        self.segments: list[list[int]] = []  # begin and end of what is copied, and its new address
        for begin, end, offset in spans:
            if self.segments and begin < self.segments[-1][1]:
                self.segments[-1][1] = max(end, self.segments[-1][1])
            else:
                self.segments.append([begin, end, offset])
        self.size = GAP + sum(
            _round_up(end - begin) + ALIGNMENT + GAP for begin, end, _ in self.segments
        )
        self._memory = np.full(self.size + ALIGNMENT, 0xFF, np.uint8)
        self.base = _round_up(self._memory.ctypes.data)
        place = self.base + GAP
        for segment in self.segments:
            begin, end, offset = segment
            segment[2] = place + offset % ALIGNMENT
            place += _round_up(end - begin) + ALIGNMENT + GAP
            ctypes.memmove(segment[2], begin, end - begin)
        self._written: list[list[int]] = self.segments

    def address(self, array: np.ndarray) -> int:
        """Return where an array's copy lies."""
        data = array.ctypes.data
        for begin, end, place in self.segments:
            if begin <= data < end or (data == begin and not array.nbytes):
                return place + data - begin
        raise AssertionError("an array that is not of this launch")

    def buffers(self, args: Sequence[Any], constant: set[int]) -> Any:
        """Return what may be touched. `constant`: ids of arrays that are only passed as const."""
        writable = {
            self.address(a) for a in args if isinstance(a, np.ndarray) and id(a) not in constant
        }
        found, self._written = [], []
        for segment in self.segments:
            begin, end, place = segment
            if any(place <= address < place + max(end - begin, 1) for address in writable):
                self._written.append(segment)
            names = [
                f"argument {i}"
                for i, a in enumerate(args)
                if isinstance(a, np.ndarray) and place <= self.address(a) < place + (end - begin)
            ]
            read_only = segment not in self._written
            name = " = ".join(names[:3]).encode()
            found.append(_Buffer(place, end - begin, name, read_only))
        return (_Buffer * len(found))(*found)

    def copy_back(self) -> None:
        """Bring what the kernel wrote to the arrays."""
        for begin, end, place in self._written:
            ctypes.memmove(begin, place, end - begin)

    def gaps_untouched(self) -> bool:
        """Return whether everything between the arrays is as it was."""
        at = self.base
        for begin, end, place in [*self.segments, [0, 0, self.base + self.size]]:
            start = at - self._memory.ctypes.data
            gap = self._memory[start : start + place - at]
            if not (gap == 0xFF).all():
                return False
            at = place + end - begin
        return True


def _round_up(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def device_offset(array: np.ndarray) -> int:
    """Return where an array begins in the allocation that it is a view of."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return array.ctypes.data - root.ctypes.data
