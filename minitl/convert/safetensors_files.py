"""Read safetensors files: a header in JSON, then the numbers, nothing that could be executed.

The library `safetensors` reads and checks the header: that it is complete, that the arrays lie in the
file one behind the other without gaps, that their sizes are those of their shapes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from minitl.convert.source import StoredArray
from minitl.errors import UserError, WeightsFileError
from minitl.text import shown

# The format's names of types and NumPy's; bfloat16, which NumPy lacks, is read as its bits.
_DTYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "i1"),
    "U8": ("uint8", "u1"),
}
_MAX_HEADER = 100_000_000  # bytes, the library's limit too
_MAX_ARRAYS = 200_000


def is_safetensors(data: bytes) -> bool:
    """Whether a file begins as safetensors files do: the length of a JSON object, and the object."""
    return 2 <= int.from_bytes(data[:8], "little") <= _MAX_HEADER and data[8:9] == b"{"


def read_safetensors(path: Path, data: bytes) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Return a file's arrays by name, and the texts that it has beside them.

    Raises WeightsFileError for whatever is damaged, cut off or too large, UserError without the library.
    """
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise UserError(
            f"{path} is a safetensors file: reading it needs the library, pip install safetensors"
        ) from None
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, OverflowError, MemoryError) as error:
        raise WeightsFileError(
            f"{path} is a damaged safetensors file: {shown(str(error))}; get it anew"
        ) from None
    if len(found) > _MAX_ARRAYS:
        raise WeightsFileError(f"{path} has more than {_MAX_ARRAYS:,} arrays; it is no network")
    # The library gives them in any order.
    return {name: _stored(entry) for name, entry in sorted(found, key=lambda f: f[0])}, _texts(data)


def _stored(entry: Any) -> StoredArray:
    name, kind = _DTYPES.get(entry["dtype"], (str(entry["dtype"]), ""))
    shape = tuple(entry["shape"])

    def read() -> np.ndarray:
        numbers = np.frombuffer(entry["data"], kind).reshape(shape)
        if name == "bfloat16":
            # bfloat16 is the upper half of float32.
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(numbers.dtype.newbyteorder("="))

    return StoredArray(shape, name, read)


def _texts(data: bytes) -> dict[str, str]:
    """Return the header's `__metadata__`; the library has checked the header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    texts = header.get("__metadata__") or {}
    return {str(name): str(text) for name, text in texts.items()}


__all__ = ["is_safetensors", "read_safetensors"]
