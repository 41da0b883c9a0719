"""Read the files of `torch.save` without PyTorch and without running anything in them.

Two formats, told apart by their first bytes:

    zip (PyTorch 1.6 and later)  an uncompressed zip archive: NAME/data.pkl, the pickle;
                                 NAME/data/KEY, the bytes of each storage; NAME/byteorder
    legacy                       four pickles (a magic number, the protocol, the machine, the object), a
                                 fifth with the keys of the storages, then for each its number of
                                 elements as int64 and its bytes, little-endian

The zip format carries a checksum of everything, the legacy one of nothing: there a wrong byte within a
storage cannot be noticed.
"""

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minitl.convert import zip_archives
from minitl.convert.pickles import DTYPES, PickleError, Storage, TensorRecord, read_pickle
from minitl.errors import WeightsFileError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_FILE = 16 << 30
MAX_MEMBERS = 200_000


class TorchFile:
    """What a file of `torch.save` holds.

    content: the saved object, of plain Python types, with a TensorRecord for each tensor.
    """

    def __init__(
        self, path: Path, size: int, content: Any, contents_of: Callable[[Storage], memoryview]
    ) -> None:
        self.path = path
        self.content = content
        self._contents_of = contents_of
        # Tensors may share storage and overlap, so all together may exceed the file, but not wildly.
        self._room = max(16 * size, 64 << 20)

    def array(self, record: TensorRecord) -> np.ndarray:
        """Return the numbers of a tensor, C-contiguous, own memory.

        bfloat16 comes as float32, exactly; all other types as they are. Raises WeightsFileError for a
        tensor that reaches beyond its storage or does not fit into the file.
        """
        dtype = DTYPES[record.dtype]
        count = math.prod(record.shape)
        extent = (
            record.offset
            + 1
            + sum(
                (size - 1) * stride
                for size, stride in zip(record.shape, record.stride, strict=True)
            )
        )
        contents = self._contents_of(record.storage)
        if count == 0:
            return np.empty(record.shape, _result_dtype(record.dtype))
        if extent * dtype.itemsize > len(contents):
            raise WeightsFileError(
                f"{self.path}: a tensor of shape {record.shape} reaches beyond its storage; "
                "the file is damaged: get it anew"
            )
        self._room -= count * dtype.itemsize
        if self._room < 0:
            raise WeightsFileError(
                f"{self.path} claims tensors far larger than itself (one has shape {record.shape}); "
                "it is damaged, or made to harm: get it anew"
            )
        flat = np.frombuffer(contents, dtype, extent)
        window = np.lib.stride_tricks.as_strided(
            flat[record.offset :],
            record.shape,
            [stride * dtype.itemsize for stride in record.stride],
            writeable=False,
        )
        return _decoded(window, record.dtype)


def read_torch(path: str | os.PathLike[str], data: bytes | None = None) -> TorchFile:
    """Read a file of `torch.save`, of either format.

    data: the file's bytes, if they have been read already.

    Raises WeightsFileError for whatever is not data, damaged, cut off, or of another kind.
    """
    path = Path(path)
    if data is None:
        data = read_bytes(path)
    if data.startswith(zip_archives.MAGIC):
        return _read_zip(path, data)
    if data[:1] == b"\x80":
        return _read_legacy(path, data)
    raise WeightsFileError(f"{path} is not a PyTorch checkpoint: it {_guess(data)}")


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; WeightsFileError where it is absent, unreadable or absurdly large."""
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise WeightsFileError(f"{path} {problem}; give the path of a checkpoint")
        if path.stat().st_size > MAX_FILE:
            raise WeightsFileError(
                f"{path} is larger than {MAX_FILE >> 30} GiB; save the weights alone"
            )
        return path.read_bytes()
    except OSError as error:
        raise WeightsFileError(f"cannot read {path}: {error.strerror or error}") from error


def _guess(data: bytes) -> str:
    if not data:
        return "is empty; get it anew"
    if data.startswith(b"\x89HDF"):
        return "is an HDF5 file"
    if data.startswith((b"\xfd7zXZ", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd")):
        return "is compressed; unpack it first"
    if data[257:262] == b"ustar":
        return (
            "is a tar archive, PyTorch's format before 0.1.10; save it again with a newer PyTorch"
        )
    if data.lstrip()[:1] == b"<":
        return "is a web page; the download went wrong"
    if data.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; fetch the file itself with git lfs pull"
    if data[8:9] == b"{":
        return "looks like a safetensors file"
    if data[:1] == b"\x08" and data[2:3] == b"\x12":  # version of ONNX, name of the producer
        return "looks like ONNX; convert the checkpoint it was made from"
    return "starts as no file of PyTorch, safetensors or Keras does; is it damaged?"


def _pickle(stream: io.BytesIO, path: Path) -> tuple[Any, dict[str, Storage]]:
    try:
        return read_pickle(stream)
    except PickleError as error:
        raise WeightsFileError(f"{path} is refused: {error}") from error


# ---------------------------------------------------------------------------- zip


def _read_zip(path: Path, data: bytes) -> TorchFile:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(path, archive, len(data))
            contents = {name: archive.read(member) for name, member in members.items()}
    except WeightsFileError:
        raise
    except zip_archives.DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsFileError(
            f"{path} is a damaged or cut-off zip archive ({reason}); get it anew"
        ) from error
    pickles = [name for name in contents if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsFileError(
            f"{path} is a zip archive but not one of torch.save: it has no data.pkl"
        )
    folder = pickles[0].removesuffix("data.pkl")
    order = contents.get(f"{folder}byteorder", b"little").strip()
    if order not in (b"little", b"big"):
        raise WeightsFileError(f"{path} has the unknown byte order {order[:20]!r}; get it anew")

    def contents_of(storage: Storage) -> memoryview:
        stored = contents.get(f"{folder}data/{storage.key}")
        if stored is None:
            raise WeightsFileError(f"{path} lacks the storage {storage.key[:80]!r}; get it anew")
        if order == b"big":
            stored = _swapped(path, stored, storage)
        return _part(path, memoryview(stored), storage, _itemsize(storage))

    content, _ = _pickle(io.BytesIO(contents[pickles[0]]), path)
    return TorchFile(path, len(data), content, contents_of)


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's members by name, once their sizes are known to be honest."""
    infos = archive.infolist()
    members = {info.filename: info for info in infos}
    if any(name.endswith("/constants.pkl") for name in members):
        raise WeightsFileError(
            f"{path} is a TorchScript program, not a checkpoint; in PyTorch, save the weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), ...)"
        )
    if len(members) != len(infos) or len(infos) > MAX_MEMBERS:
        raise WeightsFileError(f"{path} has two members of one name, or too many; get it anew")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise WeightsFileError(
                f"{path} holds {info.filename[:80]!r} compressed or encrypted, which torch.save does not "
                "write; save it again with PyTorch"
            )
    if any(info.file_size != info.compress_size for info in infos) or (
        sum(info.file_size for info in infos) > size
    ):
        raise WeightsFileError(f"{path} claims members larger than itself; get it anew")
    return members


def _swapped(path: Path, stored: bytes, storage: Storage) -> bytes:
    if storage.dtype is None:
        raise WeightsFileError(f"{path} holds big-endian bytes of unknown type; save it again")
    dtype = DTYPES[storage.dtype]
    # The two halves of a complex number are swapped each by itself.
    size = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    if len(stored) % size:
        raise WeightsFileError(f"{path} has a storage of broken length; get it anew")
    return np.frombuffer(stored, f"u{size}").byteswap().tobytes()


# ---------------------------------------------------------------------------- legacy


def _read_legacy(path: Path, data: bytes) -> TorchFile:
    stream = io.BytesIO(data)
    magic, _ = _pickle(stream, path)
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise WeightsFileError(
            f"{path} is a pickle but not one of torch.save; in PyTorch: torch.save(model.state_dict(), FILE)"
        )
    protocol, _ = _pickle(stream, path)
    if type(protocol) is not int or protocol != LEGACY_PROTOCOL:
        raise WeightsFileError(f"{path} has an unknown protocol number; get it anew")
    system, _ = _pickle(stream, path)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise WeightsFileError(
            f"{path} was written on a big-endian machine in the old format; save it again in the new one"
        )
    content, known = _pickle(stream, path)
    keys, _ = _pickle(stream, path)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise WeightsFileError(f"{path} has no list of storages; get it anew")
    itemsizes = {key: _itemsize(storage) for key, storage in known.items()}
    storages: dict[str, memoryview] = {}
    view, position = memoryview(data), stream.tell()
    for key in keys:
        header = view[position : position + 8]
        count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
        if key in storages or key not in itemsizes or count < 0:
            raise WeightsFileError(f"{path} is damaged or cut off at byte {position}; get it anew")
        end = position + 8 + count * itemsizes[key]
        if end > len(data):
            raise WeightsFileError(
                f"{path} is damaged or cut off: it should go on to byte {end}; get it anew"
            )
        storages[key] = view[position + 8 : end]
        position = end
    if position != len(data):
        raise WeightsFileError(
            f"{path} is damaged: it goes on after its last storage, at byte {position}; get it anew"
        )

    def contents_of(storage: Storage) -> memoryview:
        if storage.key not in storages:
            raise WeightsFileError(f"{path} lacks the storage {storage.key[:80]!r}; get it anew")
        return _part(path, storages[storage.key], storage, itemsizes[storage.key])

    return TorchFile(path, len(data), content, contents_of)


# ---------------------------------------------------------------------------- both


def _itemsize(storage: Storage) -> int:
    return 1 if storage.dtype is None else DTYPES[storage.dtype].itemsize


def _part(path: Path, contents: memoryview, storage: Storage, itemsize: int) -> memoryview:
    """Return a storage's bytes, once their number is what the pickle says."""
    end = storage.offset + storage.length
    if len(contents) != storage.owner_length * itemsize or end > storage.owner_length:
        raise WeightsFileError(
            f"{path}: storage {storage.key[:80]!r} should have {storage.owner_length} elements of "
            f"{itemsize} bytes and has {len(contents)} bytes; get it anew"
        )
    return contents[storage.offset * itemsize : end * itemsize]


def _result_dtype(name: str) -> np.dtype:
    special = {"bfloat16": np.dtype(np.float32), "bool": np.dtype(np.bool_)}
    return special.get(name, DTYPES[name].newbyteorder("="))


def _decoded(window: np.ndarray, name: str) -> np.ndarray:
    if name == "bfloat16":
        # bfloat16 is the upper half of float32.
        return (window.astype(np.uint32, order="C") << 16).view(np.float32)
    if name == "bool":
        return np.ascontiguousarray(window != 0).reshape(window.shape)
    return window.astype(_result_dtype(name), order="C", copy=True)


__all__ = ["TorchFile", "read_bytes", "read_torch"]
