"""Write a state dict as `torch.save` does, without PyTorch.

The file is an uncompressed zip archive: `archive/data.pkl`, a pickle that names each tensor's storage,
and `archive/data/0`, `archive/data/1`, ... with the storages' bytes. The pickle is written here, instruction
by instruction, because Python's own pickler would have to import the functions that it names. It says

    OrderedDict([("conv1.weight", _rebuild_tensor_v2(storage 0, offset, shape, stride, ...)), ...])

and `torch.load(FILE, weights_only=True)` reads it.
"""

import io
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

# The instructions of pickle's stack machine, protocol 2, under the names of the pickletools module.
_PROTO_2 = b"\x80\x02"
_MARK, _TUPLE, _EMPTY_TUPLE = b"(", b"t", b")"
_SETITEMS, _REDUCE, _BINPERSID, _NEWFALSE, _STOP = b"u", b"R", b"Q", b"\x89", b"."

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}
_ALIGNMENT = 64  # of a storage within the file, as torch.save aligns it: so that it can be mapped
_PADDING = 0x4246  # torch.save's mark of the extra field that fills up


def torch_file(state: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a PyTorch file.

    state: name -> float32 or int64 array, of any shape; the names keep their order.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, out.tell(), "data.pkl", _pickle(arrays))
        _add(archive, out.tell(), "byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            _add(archive, out.tell(), f"data/{number}", content)
        _add(archive, out.tell(), "version", b"3\n")
    return out.getvalue()


def _add(archive: zipfile.ZipFile, position: int, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")  # of 1980, so that equal weights make equal files
    # A member's bytes come after 30 bytes of header, the name and the extra field (4 bytes and padding).
    start = position + 30 + len(info.filename) + 4
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    archive.writestr(info, content)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    items = b"".join(
        _text(name) + _tensor(number, array) for number, (name, array) in enumerate(arrays.items())
    )
    return b"".join([_PROTO_2, _ordered_dict(), _MARK, items, _SETITEMS, _STOP])


def _tensor(number: int, array: np.ndarray) -> bytes:
    storage = _tuple(
        _text("storage"),
        _global("torch", _STORAGES[array.dtype.name]),
        _text(str(number)),
        _text("cpu"),
        _integer(array.size),
    )
    arguments = _tuple(
        storage + _BINPERSID,
        _integer(0),  # offset in the storage
        _tuple(*map(_integer, array.shape)),
        _tuple(*(_integer(stride // array.itemsize) for stride in array.strides)),
        _NEWFALSE,  # requires_grad
        _ordered_dict(),  # hooks of backward
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + _REDUCE


def _ordered_dict() -> bytes:
    return _global("collections", "OrderedDict") + _EMPTY_TUPLE + _REDUCE


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return b"".join([_MARK, *items, _TUPLE])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


__all__ = ["torch_file"]
