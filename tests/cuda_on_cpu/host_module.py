"""Kernels of a .cu file as functions on NumPy arrays, called as CuPy's RawModule has them called.

    module = HostModule("kernels/cuda/elementwise.cu", "check", ("T=float",))
    module.get_function("relu_forward")((blocks,), (threads,), (x, y, np.int64(x.size)))

Mode "check" watches every access to memory and raises KernelError where a kernel does what CUDA does not
define; mode "fast" only computes. What is compiled is kept in the user's cache folder.
"""

import ctypes
import fcntl
import functools
import hashlib
import math
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
# The runtime of a library knows one launch, and memory is kept for one.
_one_at_a_time = threading.Lock()

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

    So other processes never see half a file; they wait for it, as with two cores to compile it twice takes
    longer.
    """
    target = _cache_folder() / name
    if target.exists():
        return target
    with target.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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


class _Parameter(NamedTuple):
    """A kernel's parameter, as shim/cushim.h describes it: "f4" a float, "cpf4" a pointer to const ones."""

    text: str
    pointer: bool
    constant: bool
    kind: str
    size: int

    @classmethod
    def of(cls, text: str) -> "_Parameter":
        element = text.lstrip("cp")
        return cls(text, "p" in text, text[0] == "c", element[0], int(element[1:]))


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
        self._parameters = [_Parameter.of(p) for p in describe().decode().split(",") if p]
        self.max_dynamic_shared_size_bytes = (
            USUAL_SHARED_MEMORY  # as on CuPy's kernels: may be raised
        )

    @property
    def parameters(self) -> list[str]:
        """What it takes, each in the words of `_Parameter`."""
        return [p.text for p in self._parameters]

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
        with _one_at_a_time:
            arena = _Arena(args, [p.constant for p in self._parameters])
            values = [self._value(i, arg, arena) for i, arg in enumerate(args)]
            parameters, pointers = _in_memory(values)
            buffers = arena.buffers()
            launch = _Launch(
                (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))),
                (ctypes.c_uint * 3)(*block, *(1,) * (3 - len(block))),
                shared_mem, order, seed, self.module.mode == "check", async_late,
                buffers, len(buffers), arena.base, arena.size,
                ctypes.addressof(parameters), ctypes.sizeof(parameters), ctypes.pointer(_stacks),
            )  # fmt: skip
            failed = self._run(ctypes.byref(launch), pointers)
            messages = self.module.messages() if failed else ""
            arena.copy_back()
            clean = self.module.mode == "check" or arena.gaps_untouched()
        if failed:
            raise KernelError(f"{self.name}: {messages}")
        if not clean:
            raise KernelError(f'{self.name} wrote out of bounds; mode "check" says where')

    def _check_launch(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int
    ) -> None:
        for what, sizes in (("grid", grid), ("block", block)):
            if not (1 <= len(sizes) <= 3 and all(int(n) == n and n >= 1 for n in sizes)):
                raise KernelError(f"{self.name}: {what} {sizes} must be 1 to 3 positive numbers")
        threads = math.prod(block)
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
        if len(args) != len(self._parameters):
            raise KernelError(
                f"{self.name}: {len(args)} arguments; it takes {len(self._parameters)}: "
                f"{', '.join(self.parameters)}"
            )
        for i, arg in enumerate(args):
            if isinstance(arg, np.ndarray) and not arg.flags.c_contiguous:
                raise KernelError(f"{self.name}: argument {i} is not C-contiguous")

    def _value(self, i: int, arg: Any, arena: "_Arena") -> bytes:
        """Return the bytes that the kernel gets for an argument."""
        parameter = self._parameters[i]
        if isinstance(arg, np.ndarray):
            if parameter.kind == "s":  # vectors, bfloat16, void
                fits = parameter.pointer and arg.nbytes % parameter.size == 0
            else:
                alike = (arg.dtype.kind, arg.itemsize) == (parameter.kind, parameter.size)
                fits = parameter.pointer and alike
            value = arena.places[i].to_bytes(8, "little")
        elif isinstance(arg, bytes | np.void):
            value = bytes(arg)
            fits = parameter.text == f"s{len(value)}"
        elif isinstance(arg, np.generic):
            value = arg.tobytes()
            null = parameter.pointer and arg.dtype == np.uintp and arg == 0
            fits = bool(null) or parameter.text == f"{arg.dtype.kind}{arg.itemsize}"
        else:
            raise KernelError(
                f"{self.name}: argument {i} is a {type(arg).__name__}; pass an array or a NumPy scalar "
                "such as np.int32 (CuPy would send 8 bytes)"
            )
        if not fits:
            given = getattr(arg, "dtype", f"{len(value)} bytes")
            what = "array" if isinstance(arg, np.ndarray) else "value"
            raise KernelError(
                f"{self.name}: argument {i}, {what} of {given}, for a {parameter.text}"
            )
        return value


def _in_memory(values: Sequence[bytes]) -> tuple[Any, Any]:
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


class _Segment:
    """What is copied as one for a launch: arrays that share memory."""

    def __init__(self, begin: int, offset: int) -> None:
        self.begin, self.end, self.offset = begin, begin, offset
        self.place = 0  # the address of the copy
        self.arguments: list[int] = []
        self.written = False


_UNTOUCHED = b"\xff" * (2 * GAP)
_LARGEST_KEPT = 64 << 20
_kept = np.empty(0, np.uint8)  # of earlier launches: fresh memory costs more than the copies do


class _Arena:
    """Copies of a launch's arrays with unused gaps around them, so that every step outside is seen.

    Arrays that share memory (an output that is also an input, views of one array) share it here too.
    A view keeps its offset in the array it was made from, and with it its alignment on a device.

    constant: for each argument, whether the kernel takes it as const.
    places: by the argument's number, where the copy of an array lies.
    """

    def __init__(self, args: Sequence[Any], constant: Sequence[bool]) -> None:
        arrays = [
            (_address(a), a.nbytes, i) for i, a in enumerate(args) if isinstance(a, np.ndarray)
        ]
        self._segments: list[_Segment] = []
        homes = []
        for begin, nbytes, i in sorted(arrays):
            if not self._segments or begin >= self._segments[-1].end:
                self._segments.append(_Segment(begin, device_offset(args[i])))
            segment = self._segments[-1]
            segment.end = max(segment.end, begin + nbytes)
            segment.written |= not constant[i]
            if nbytes:
                segment.arguments.append(i)
            homes.append((i, segment, begin - segment.begin))
        sizes = [_round_up(s.end - s.begin) + ALIGNMENT + GAP for s in self._segments]
        self.size = GAP + sum(sizes)
        self._memory = _at_least(self.size + ALIGNMENT)
        self._start = _address(self._memory)
        self.base = _round_up(self._start)
        self._gaps: list[slice] = []
        room, last = self.base + GAP, self.base
        for segment, size in zip(self._segments, sizes, strict=True):
            segment.place = room + segment.offset % ALIGNMENT
            ctypes.memmove(segment.place, segment.begin, segment.end - segment.begin)
            self._leave_gap(last, segment.place)
            last = segment.place + segment.end - segment.begin
            room += size
        self._leave_gap(last, self.base + self.size)
        self.places = {i: segment.place + offset for i, segment, offset in homes}

    def _leave_gap(self, begin: int, end: int) -> None:
        gap = slice(begin - self._start, end - self._start)
        self._memory[gap] = 0xFF
        self._gaps.append(gap)

    def buffers(self) -> Any:
        """Return what may be touched."""
        found = []
        for s in self._segments:
            name = " = ".join(f"argument {i}" for i in sorted(s.arguments)[:3]).encode()
            found.append(_Buffer(s.place, s.end - s.begin, name, not s.written))
        return (_Buffer * len(found))(*found)

    def copy_back(self) -> None:
        """Bring what the kernel wrote to the arrays."""
        for s in self._segments:
            if s.written:
                ctypes.memmove(s.begin, s.place, s.end - s.begin)

    def gaps_untouched(self) -> bool:
        """Return whether everything between the arrays is as it was."""
        return all(
            self._memory[gap].tobytes() == _UNTOUCHED[: gap.stop - gap.start] for gap in self._gaps
        )


def _at_least(size: int) -> np.ndarray:
    """Return so many bytes, of the last launch where they suffice."""
    global _kept
    if size > len(_kept):
        memory = np.empty(size, np.uint8)
        if size > _LARGEST_KEPT:
            return memory
        _kept = memory
    return _kept


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _round_up(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def device_offset(array: np.ndarray) -> int:
    """Return where an array begins in the allocation that it is a view of."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return 0 if root is array else _address(array) - _address(root)
