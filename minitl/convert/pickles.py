"""Read PyTorch's pickles as data.

A pickle is a program for a small stack machine, and Python's own machine calls whatever functions the
program names. This one calls nothing: it understands the instructions that build numbers, text, lists,
tuples and dicts, and gives meaning itself to the few names below, of which it makes plain records.
Any other name is refused before anything is done with it. So there is no function to reach, no
attribute to set (`__setstate__`, `__dict__`), and nothing is imported.

What is left is to exhaust memory or time, and the machine has no instruction that could: every value
is either copied out of the pickle or refers to one that exists, so memory grows with the pickle's
length; dict keys are text or numbers, so hashing never walks through nested tuples; the number of
instructions is bounded; and an array stays a record until its size has been compared with the file.
"""

import io
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitl.text import one_line

MAX_INSTRUCTIONS = 5_000_000
MAX_BITS = 1024
MAX_NDIM = 16

# Element types by PyTorch's names. NumPy has no bfloat16: its bits are read as uint16.
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("u1"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}

_STORAGE_DTYPES: dict[str, str | None] = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": None,  # bytes; the tensor says what they are
}


class PickleError(ValueError):
    """What is wrong with a pickle, without the file's name, which the caller knows."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that the pickle names. It stays a name."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file. dtype: None for bytes. offset and length count elements."""

    key: str
    dtype: str | None
    length: int
    owner_length: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor, not yet read: a strided window on a storage. offset and stride count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that checkpoints hold beside the weights and nobody needs here."""

    name: str


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element type, by PyTorch's name."""

    name: str


class _Mark:
    """Where the items of a list, tuple or dict begin on the stack."""


_MARK = _Mark()


# ---------------------------------------------------------------------------- names


def _counts(values: Any, what: str) -> tuple[int, ...]:
    valid = (
        type(values) is tuple
        and len(values) <= MAX_NDIM
        and all(type(v) is int and 0 <= v < 1 << 48 for v in values)
    )
    if not valid:
        # The value itself is not shown: it may be anything, endless nesting included.
        raise PickleError(f"a tensor or storage has an impossible {what}")
    return values  # type: ignore[no-any-return]


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> TensorRecord:
    """Stand for torch._utils._rebuild_tensor, which has the first four, and _rebuild_tensor_v2."""
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise PickleError("a tensor has no storage")
    _refuse_lazy(metadata)
    return _checked_tensor(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorRecord:
    """Stand for torch._utils._rebuild_tensor_v3, whose storage holds bytes."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise PickleError("a tensor has no storage or no element type")
    _refuse_lazy(metadata)
    return _checked_tensor(storage, dtype.name, offset, shape, stride)


def _refuse_lazy(metadata: Any) -> None:
    """Refuse a tensor that PyTorch has negated or conjugated in name only: other numbers are stored."""
    if metadata is None:
        return
    if type(metadata) is not dict:
        raise PickleError("what a tensor says of itself is no dict")
    if metadata.get("neg") or metadata.get("conj"):
        raise PickleError(
            "a tensor is stored as the negative or conjugate of what it stands for; in PyTorch, save "
            "{name: tensor.resolve_conj().resolve_neg() for name, tensor in state.items()}"
        )


def _checked_tensor(
    storage: Storage, dtype: str, offset: Any, shape: Any, stride: Any
) -> TensorRecord:
    if dtype not in DTYPES:
        raise PickleError(f"a tensor holds {dtype}, which is not supported")
    (offset,) = _counts((offset,), "offset")
    shape, stride = _counts(shape, "shape"), _counts(stride, "stride")
    if len(shape) != len(stride):
        raise PickleError(f"a tensor has shape {shape} but stride {stride}")
    return TensorRecord(storage, dtype, offset, shape, stride)


def _parameter(data: Any, *rest: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise PickleError("a parameter without a tensor")
    return data


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> TensorRecord:
    """Stand for torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are left."""
    of_tensor = isinstance(function, Name) and function.name in _TENSOR_CALLS
    if not of_tensor or not isinstance(kind, Name) or kind.name not in _TENSOR_TYPES:
        raise PickleError("a tensor with attributes is of an unknown kind")
    return _call(function, arguments)  # type: ignore[no-any-return]


def _dict(items: Any = (), *rest: Any) -> dict[Any, Any]:
    """Stand for OrderedDict and Counter: nothing, a dict (not copied), or pairs."""
    if type(items) is dict:
        return items
    if type(items) not in (list, tuple):
        raise PickleError("a dict is not made of pairs")
    result: dict[Any, Any] = {}
    for pair in items:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise PickleError("a dict is not made of pairs")
        _set_items(result, list(pair))
    return result


def _default_dict(factory: Any = None, items: Any = (), *rest: Any) -> dict[Any, Any]:
    return _dict(items)


def _size(values: Any = ()) -> tuple[int, ...]:
    return _counts(values, "torch.Size")


_TENSOR_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# Arguments of _rebuild_from_type_v2; never called themselves.
_TENSOR_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}

_CALLS: dict[str, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
}

# Common beside the weights (command lines, NumPy scores and arrays, devices). Taken note of, never made.
_UNREAD = {
    "argparse.Namespace",
    "torch.device",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.float64",
    "numpy.float32",
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
    # Arguments of the above.
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.object",
    "__builtin__.dict",
    "__builtin__.list",
    "__builtin__.int",
    "__builtin__.float",
    "__builtin__.object",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
}


def _look_up(module: str, name: str) -> Any:
    full = f"{module}.{name}"
    if full in _CALLS or full in _UNREAD or full in _TENSOR_TYPES:
        return Name(full)
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGE_DTYPES:
        return Name(f"torch.{name}")
    if module == "torch" and name in DTYPES:
        return Dtype(name)
    raise PickleError(
        f"it names {full[:80]!r}, which is more than data (loading it would run code), so it is refused; "
        "in PyTorch, save the weights alone: torch.save(model.state_dict(), FILE)"
    )


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or type(arguments) is not tuple:
        raise PickleError("it calls something that is no function")
    if function.name in _UNREAD:
        return Unread(function.name)
    if function.name not in _CALLS:
        raise PickleError(f"it calls {function.name}")
    try:
        return _CALLS[function.name](*arguments)
    except TypeError as error:  # another number of arguments
        raise PickleError(f"{function.name} has wrong arguments") from error


def _storage(reference: Any) -> Storage:
    """Return the record of ("storage", type, key, device, length[, view])."""
    if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
        raise PickleError("it refers to something that is not a storage of numbers")
    _, kind, key, _device, length = reference[:5]
    view = reference[5] if len(reference) == 6 else None
    name = kind.name.removeprefix("torch.") if isinstance(kind, Name) else ""
    if name not in _STORAGE_DTYPES or type(key) is not str:
        raise PickleError("a storage has no type or no key")
    (length,) = _counts((length,), "length")
    if view is None:
        return Storage(key, _STORAGE_DTYPES[name], length, length)
    # Before PyTorch 0.4 a storage could be a part of another.
    if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str:
        raise PickleError("a storage is an unknown kind of view")
    offset, size = _counts(view[1:], "view")
    return Storage(key, _STORAGE_DTYPES[name], size, length, offset)


# ---------------------------------------------------------------------------- the machine


def _set_items(target: Any, items: list[Any]) -> None:
    if type(target) is Unread:
        return
    if type(target) is not dict or len(items) % 2:
        raise PickleError("it fills something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, float, bool, bytes, type(None)):
            raise PickleError(f"a dict has a {type(key).__name__} as its key")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is Unread:
        return
    if type(target) is not list:
        raise PickleError("it appends to something that is no list")
    target.extend(items)


def _build(target: Any) -> None:
    """Accept that state is set on an object, and leave it: only attributes like _metadata are there."""
    if type(target) not in (dict, Unread, TensorRecord):
        raise PickleError("it sets the state of something that has none")


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Stack, memo and storages of one pickle. work: instructions so far, and items copied by calls."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages
        self.work = 0

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("its stack is in disorder")
        return value

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise PickleError("its stack is in disorder")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction other than STOP."""
        self.work += 1
        if self.work > MAX_INSTRUCTIONS:
            raise PickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")
        push = self.stack.append
        if opcode in _LITERALS:
            if type(argument) is int and argument.bit_length() > MAX_BITS:
                raise PickleError(f"it holds an integer of {argument.bit_length()} bits")
            push(argument)
        elif opcode in _CONSTANTS:
            push(_CONSTANTS[opcode])
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            push(self.memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.top()
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif opcode == "MARK":
            push(_MARK)
        elif opcode in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[opcode])]
            push(tuple(reversed(items)))
        elif opcode == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif opcode == "EMPTY_LIST":
            push([])
        elif opcode == "EMPTY_DICT":
            push({})
        elif opcode == "EMPTY_SET":
            push(Unread("set"))
        elif opcode == "LIST":
            push(self.pop_to_mark())
        elif opcode == "DICT":
            items = self.pop_to_mark()
            push({})
            _set_items(self.top(), items)
        elif opcode == "APPEND":
            item = self.pop()
            _extend(self.top(), [item])
        elif opcode in ("APPENDS", "ADDITEMS"):
            items = self.pop_to_mark()
            _extend(self.top(), items)
        elif opcode == "SETITEM":
            value, key = self.pop(), self.pop()
            _set_items(self.top(), [key, value])
        elif opcode == "SETITEMS":
            items = self.pop_to_mark()
            _set_items(self.top(), items)
        elif opcode == "GLOBAL":
            module, _, name = argument.partition(" ")
            push(_look_up(module, name))
        elif opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            if type(name) is not str or type(module) is not str:
                raise PickleError("it names something without text")
            push(_look_up(module, name))
        elif opcode in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            if type(arguments) is tuple:
                self.work += sum(len(a) for a in arguments if type(a) in (list, tuple))
            push(_call(function, arguments))
        elif opcode == "BUILD":
            self.pop()
            _build(self.top())
        elif opcode == "BINPERSID":
            storage = _storage(self.pop())
            known = self.storages.setdefault(storage.key, storage)
            if (known.dtype, known.owner_length) != (storage.dtype, storage.owner_length):
                raise PickleError(f"it describes the storage {storage.key[:80]!r} in two ways")
            push(storage)
        elif opcode == "POP":
            self.pop()
        elif opcode not in ("PROTO", "FRAME"):
            raise PickleError(f"it uses the instruction {opcode}, which PyTorch does not write")


def read_pickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from `stream`, which must be in memory (reads are as long as the pickle says).

    Returns the object (None, bool, int, float, str, bytes, and lists, tuples, dicts of these and of the
    records above) and the storages it mentions by key. The stream is left after the pickle.

    Raises PickleError.
    """
    machine = _Machine({})
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name != "STOP":
                machine.step(opcode.name, _interned(argument))
        result = machine.pop()
        if machine.stack:
            raise PickleError("its stack is in disorder")
    except PickleError:
        raise
    except (ValueError, KeyError, IndexError, OverflowError, EOFError, MemoryError) as error:
        raise PickleError(f"it is damaged or cut off ({one_line(error, 120)})") from error
    return result, machine.storages


def _interned(argument: Any) -> Any:
    # The same short words (cpu, storage, exp_avg) come thousands of times.
    return sys.intern(argument) if type(argument) is str and len(argument) < 64 else argument


__all__ = [
    "DTYPES",
    "Dtype",
    "Name",
    "PickleError",
    "Storage",
    "TensorRecord",
    "Unread",
    "read_pickle",
]
