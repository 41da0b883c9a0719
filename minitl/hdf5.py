"""The weights file: read, write, validate. weights/README.md describes the format, version 1.

Reading trusts nothing. Only what version 1 writes is accepted (hard links, plain little-endian
numbers, no filter but the checksum), every size is compared with what the file really stores before
memory is asked for, and the digest must agree in the end. Writing is atomic.

h5py is imported here, in feature_file.py and in convert/keras_survey.py, which runs by itself; import this
module only where files are read or written.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minitl.errors import UserError, WeightsFileError
from minitl.files import write_atomically
from minitl.text import near_miss, one_line

FORMAT = "minitl"
FORMAT_VERSION = 1

_TEXTS = ("arch", "source", "source_sha256", "license")
_JSONS: dict[str, tuple[type, ...]] = {
    "arch_options": (dict,),
    "class_names": (list, type(None)),
    "preprocessing": (dict,),
}
_SECTIONS = ("optimizer", "progress")
_GOLDEN = "golden"  # its two datasets are named as the fields of `Golden`

# The name of a parameter, as modules are named in Python; nothing in it can act as a path.
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)

# Numbers as stored, by the name used in the digest.
_TYPES = {
    "float16": h5py.h5t.IEEE_F16LE,
    "float32": h5py.h5t.IEEE_F32LE,
    "float64": h5py.h5t.IEEE_F64LE,
    "int8": h5py.h5t.STD_I8LE,
    "int16": h5py.h5t.STD_I16LE,
    "int32": h5py.h5t.STD_I32LE,
    "int64": h5py.h5t.STD_I64LE,
    "uint8": h5py.h5t.STD_U8LE,
    "uint16": h5py.h5t.STD_U16LE,
    "uint32": h5py.h5t.STD_U32LE,
    "uint64": h5py.h5t.STD_U64LE,
}
# Kinds of numbers that HDF5 has no plain type for: stored as unsigned integers of the same size, and
# named in the dataset's attribute `dtype`.
_DISGUISED = {"bfloat16": "uint16", "bool": "uint8"}
_STATE_TYPES = ("float32", "float16", "bfloat16")

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHUNK_BYTES = 16 << 20
_MAX_TEXT = 16 << 20
_MAX_OBJECTS = 100_000
_MAX_CHUNKS = 1000
_MAX_DEPTH = 32
_MAX_PICTURE = 1024
_MAX_LISTED = 20
_MAX_GUESSES = 10

# What h5py raises on a damaged file. Each of these has been seen, depending on the byte that is wrong.
_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    NotImplementedError,
    MemoryError,
)


@dataclass
class Golden:
    """A picture and what the network said of it when the file was made: the self-test of a weights file.

    picture: (height, width, 3) uint8, RGB, before any preprocessing, sides up to 1024.
    logits: (classes,) float32, the network's output for it.
    """

    picture: np.ndarray
    logits: np.ndarray


@dataclass
class WeightsFile:
    """What a weights file holds.

    arch, arch_options: the network, as `minitl.models.create(arch, **arch_options)` takes them.
    state: parameters and statistics by torchvision's names, filters as (out, in, height, width). Written
        and read as float32 (a file may hold float16 or bfloat16, which read as float32).
    class_names: name of each output in order, or None.
    preprocessing: how a picture becomes an input: resize, crop, interpolation, channel_order, scale,
        mean, std.
    source, source_sha256, license: where the weights came from.
    golden: a picture and its logits, or None.
    digest: SHA-256 of everything above and below; filled by `read`, computed anew by `write`.
    appended: number of bytes behind the end of the HDF5 file, which nothing protects; filled by `read`.
    optimizer, progress: present in a checkpoint. Any nesting of dict (with text keys), list, text, number,
        bool, None and NumPy arrays; tuples come back as lists, all else to the bit.
    """

    arch: str
    state: dict[str, np.ndarray]
    arch_options: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    source_sha256: str = ""
    license: str = ""
    golden: Golden | None = None
    digest: str = ""
    appended: int = 0
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None


@dataclass(frozen=True)
class Prepared:
    """Contents that have been checked and laid out for a file.

    texts: its attributes by name, all but the digest. arrays: its datasets by path.
    """

    texts: dict[str, str]
    arrays: "dict[str, _Stored]"

    def write(self, path: str | os.PathLike[str]) -> str:
        """Write the file, whole or not at all, and return its digest.

        Raises WeightsFileError where the system refuses; an earlier file of that name is then unchanged.
        """
        digest = _digest(self.texts, self.arrays)
        image = _image(self.texts | {"digest": digest}, self.arrays)
        try:
            write_atomically(path, image)
        except UserError as error:
            raise WeightsFileError(str(error)) from error
        return digest


def prepare(content: WeightsFile) -> Prepared:
    """Return what is left to be written, whatever becomes of the arrays until then.

    Raises ValueError or TypeError where `content` does not fit the format.
    """
    return Prepared(attributes(content), _arrays_of(content, copy=True))


def write(path: str | os.PathLike[str], content: WeightsFile) -> str:
    """Write a weights file, whole or not at all, and return its digest.

    Raises ValueError or TypeError where `content` does not fit the format, and WeightsFileError where
    the system refuses to write; an earlier file of that name is then unchanged.
    """
    return Prepared(attributes(content), _arrays_of(content)).write(path)


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Read and check a weights file; WeightsFileError says in one line what is wrong with it."""
    path = Path(path)
    _check_beginning(path)
    try:
        # HDF5 1.14 and later leave files of others unlocked on systems that cannot lock.
        with h5py.File(path, "r", locking="best-effort") as file:
            texts = _read_texts(file, path)
            arrays = dict(_read_arrays(file, path))
    except WeightsFileError:
        raise
    except _DAMAGE as error:
        raise WeightsFileError(f"{path} {_explain(error)}; get or make it anew") from error
    stored_digest = texts.pop("digest")
    if _digest(texts, arrays) != stored_digest:
        raise WeightsFileError(
            f"{path} was altered after it was written: its contents do not have the digest it states; "
            "get or make it anew"
        )
    try:
        content = _content(texts, arrays, stored_digest)
        content.appended = _appended(path)
        return content
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsFileError(
            f"{path} is not a valid weights file: {one_line(error)}; get or make it anew"
        ) from error


def check_state(
    expected: Mapping[str, Sequence[int]], state: Mapping[str, np.ndarray], what: str
) -> None:
    """Compare a state with the names and shapes that a network expects.

    expected: name -> shape. what: how the message names the state, as "w.h5, loaded into resnet18".

    Raises WeightsFileError that lists all missing, unexpected and misshapen names together.
    """
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        name for name in expected if name in state and state[name].shape != tuple(expected[name])
    ]
    if not (missing or unexpected or misshapen):
        return
    lines = [f"{what}: the weights do not fit the network"]
    lines += _table(
        "missing", [_with_near_miss(name, unexpected, len(missing)) for name in missing]
    )
    lines += _table("unexpected", unexpected)
    lines += _table(
        "misshapen",
        [f"{name}: has {state[name].shape}, needs {tuple(expected[name])}" for name in misshapen],
    )
    lines += _advice(expected, state, missing, unexpected, misshapen)
    raise WeightsFileError("\n".join(lines))


# ---------------------------------------------------------------------------- writing


def attributes(content: WeightsFile) -> dict[str, str]:
    """Return the texts of the file's attributes by name, all but the digest.

    Raises ValueError or TypeError where `content` does not fit the format.
    """
    texts = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    for name in _TEXTS:
        texts[name] = getattr(content, name)
    for name, types in _JSONS.items():
        value = getattr(content, name)
        if not isinstance(value, types):
            raise TypeError(f"{name} must be a {types[0].__name__}, not {type(value).__name__}")
        texts[name] = _to_json(value, name)
    _check_meaning(texts)
    for name, text in texts.items():
        if not isinstance(text, str) or "\0" in text or len(text) > _MAX_TEXT:
            raise ValueError(f"{name} must be text of at most {_MAX_TEXT} characters without NUL")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is not valid Unicode: {text!r}") from error
    return texts


def _check_meaning(texts: Mapping[str, str]) -> None:
    """Check what both the writer and the reader demand of the attributes."""
    if not texts["arch"]:
        raise ValueError("arch is empty; name the network, as resnet18")
    names = json.loads(texts["class_names"])
    if names is not None and not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be a list of text")


def _to_json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be stored as JSON: {one_line(error)}") from error


@dataclass(frozen=True)
class _Stored:
    """Numbers as a dataset holds them: `kind` may be a disguised one, `data` is what HDF5 sees."""

    kind: str
    data: np.ndarray


def _arrays_of(content: WeightsFile, copy: bool = False) -> dict[str, _Stored]:
    """Return everything that becomes a dataset, by its path. copy: not views of what may change."""
    arrays: dict[str, _Stored] = {}
    for key, value in content.state.items():
        _check_key(key)
        array = np.asarray(value)
        if array.dtype != np.float32:
            raise TypeError(
                f"{key} is {array.dtype}; weights are written as float32: convert with .astype(numpy.float32)"
            )
        arrays[key.replace(".", "/")] = _stored(np.array(array, order="C") if copy else array, key)
    if content.golden is not None:
        for name, array in vars(content.golden).items():
            arrays[f"{_GOLDEN}/{name}"] = _stored(array, f"{_GOLDEN}, {name}")
        _golden_of(arrays)
    folders = {path[:i] for path in arrays for i, c in enumerate(path) if c == "/"}
    if clash := sorted(folders & arrays.keys()):
        raise ValueError(f"{clash[0].replace('/', '.')} is both a parameter and a module")
    for section in _SECTIONS:
        value = getattr(content, section)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise TypeError(f"{section} must be a dict, not {type(value).__name__}")
        found: list[np.ndarray] = []
        text = _to_json(_packed(value, found, section), section).encode()
        if len(text) > _MAX_TEXT:
            raise ValueError(
                f"{section} holds {len(text)} bytes of text; put large data into NumPy arrays"
            )
        arrays[f"{section}/json"] = _Stored("uint8", np.frombuffer(text, np.uint8))
        for i, array in enumerate(found):
            arrays[f"{section}/{i}"] = _stored(array, f"{section}, array {i}")
    return arrays


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key) or len(key) > 512:
        raise ValueError(
            f"{str(key)[:80]!r} is not a valid parameter name; use letters, digits, _ and - with dots between"
        )
    if key.count(".") >= _MAX_DEPTH:
        raise ValueError(f"{key} is nested deeper than {_MAX_DEPTH} modules")
    if key.split(".")[0] in (*_SECTIONS, _GOLDEN):
        raise ValueError(
            f"{key}: the names {', '.join(_SECTIONS)} and {_GOLDEN} have another meaning in the file; "
            "rename the module"
        )


def _stored(array: np.ndarray, name: str) -> _Stored:
    array = np.asarray(array, order="C")
    if array.dtype == np.bool_:
        return _Stored("bool", array.view(np.uint8))
    kind = array.dtype.name
    if kind not in _TYPES:
        raise TypeError(
            f"{name} is {array.dtype}; a weights file holds floats of 16 to 64 bits, integers and bools"
        )
    return _Stored(kind, array.astype(array.dtype.newbyteorder("<"), copy=False))


def _packed(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    """Return `value` for JSON, its arrays moved to the list.

    JSON has no arrays, NaN or infinities; {"$array": number} and {"$float": text} stand for them.
    """
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"$array": len(arrays) - 1}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(
                    f"{where} has the key {key!r}; keys must be text that does not start with $"
                )
        return {key: _packed(v, arrays, f"{where}/{key}") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(v, arrays, f"{where}/{i}") for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a weights file cannot hold")


def _image(texts: Mapping[str, str], arrays: Mapping[str, _Stored]) -> bytes:
    """Return the bytes of the HDF5 file.

    Built in memory, so that a full disk is an ordinary OSError of `write_atomically` and never meets
    the HDF5 library. Version 1.10 of HDF5's own format, whose internal records carry checksums.
    """
    room = sum(stored.data.nbytes for stored in arrays.values()) + (1 << 20)
    with h5py.File(
        "image", "w", driver="core", backing_store=False, block_size=room, libver=("v110", "v110")
    ) as file:
        for name, text in texts.items():
            encoded = text.encode()
            # Of fixed length: texts of variable length lie in a heap that has no checksum.
            kind = h5py.string_dtype("utf-8", max(1, len(encoded)))
            file.attrs.create(name, np.array(encoded, kind), dtype=kind)
        with_folders = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        with_folders.set_create_intermediate_group(True)
        for path in sorted(arrays):
            _create_dataset(file, path, arrays[path], with_folders)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _create_dataset(file: h5py.File, path: str, stored: _Stored, links: h5py.h5p.PropLCID) -> None:
    """Make a dataset and the groups above it, by HDF5's own calls: h5py's take longer than a small array."""
    data = stored.data
    kind = _TYPES[_DISGUISED.get(stored.kind, stored.kind)]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if chunks := _chunks(data):
        plan.set_chunk(chunks)
        plan.set_fletcher32()
    space = h5py.h5s.create_simple(data.shape) if data.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(file.id, path.encode(), kind, space, dcpl=plan, lcpl=links)
    if data.size:
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)
    if stored.kind in _DISGUISED:
        h5py.Dataset(dataset).attrs.create("dtype", np.array(stored.kind.encode()))


def _chunks(array: np.ndarray) -> tuple[int, ...] | None:
    """Return rows per chunk and the other sizes: one chunk, or equal ones, as the last is stored in full.

    The checksum needs chunks; a single number or an empty array cannot have them.
    """
    if array.ndim == 0 or array.size == 0:
        return None
    number = min(-(-array.nbytes // _CHUNK_BYTES), array.shape[0])
    return (-(-array.shape[0] // number), *array.shape[1:])


def _digest(texts: Mapping[str, str], arrays: Mapping[str, _Stored]) -> str:
    """Return SHA-256 over names, types, shapes and contents; weights/README.md gives the recipe."""
    items: dict[str, tuple[str, bytes | memoryview]] = {}
    for name, text in texts.items():
        encoded = text.encode()
        items[f"@{name}"] = (f"utf8\t{len(encoded)}", encoded)
    for path, stored in arrays.items():
        shape = ",".join(str(size) for size in stored.data.shape)
        flat = np.ascontiguousarray(stored.data).reshape(-1)
        items[path] = (f"{stored.kind}\t{shape}", flat.view(np.uint8).data)
    result = hashlib.sha256()
    for name in sorted(items):
        header, contents = items[name]
        result.update(f"{name}\t{header}\n".encode())
        result.update(contents)
    return result.hexdigest()


# ---------------------------------------------------------------------------- reading


def _check_beginning(path: Path) -> None:
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise WeightsFileError(f"{path} {problem}; give the path of a weights file (.h5)")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsFileError(f"cannot read {path}: {error.strerror or error}") from error
    if not start:
        raise WeightsFileError(f"{path} is empty; get or make it anew")
    if start[:8] != _SIGNATURE:
        raise WeightsFileError(
            f"{path} is not an HDF5 file; weights of PyTorch and Keras are brought over with `minitl convert`"
        )
    if start[8:] != b"\3":
        # Before HDF5 1.10 its internal records carry no checksums. Keras files end here.
        raise WeightsFileError(
            f"{path} is not a minitl weights file (an HDF5 file of an older kind); "
            "weights of PyTorch and Keras are brought over with `minitl convert`"
        )


def _read_texts(file: h5py.File, path: Path) -> dict[str, str]:
    if "format" not in file.attrs or _read_text(file, "format", path) != FORMAT:
        raise WeightsFileError(
            f"{path} is an HDF5 file but not a minitl weights file; "
            "weights of PyTorch and Keras are brought over with `minitl convert`"
        )
    version = _read_text(file, "format_version", path)
    if version != str(FORMAT_VERSION):
        raise WeightsFileError(
            f"{path} has format version {version[:20]!r}; this minitl reads version {FORMAT_VERSION}: "
            "install a newer minitl"
        )
    names = ("format", "format_version", *_TEXTS, *_JSONS, "digest")
    if unknown := sorted(set(file.attrs) - set(names)):
        raise WeightsFileError(
            f"{path} has the attribute {unknown[0][:80]!r}, which version 1 of the format has not"
        )
    return {name: _read_text(file, name, path) for name in names}


def _read_text(owner: h5py.File | h5py.Dataset, name: str, path: Path) -> str:
    if name not in owner.attrs:
        raise WeightsFileError(f"{path} lacks the attribute {name!r}; get or make it anew")
    attribute = owner.attrs.get_id(name)
    kind = attribute.dtype
    # Of fixed length only (kind "S"): on the heap that holds texts of variable length a wrong byte can
    # catch the HDF5 library in an endless loop.
    if attribute.shape != () or kind.kind != "S" or kind.itemsize > _MAX_TEXT:
        raise WeightsFileError(
            f"{path}: the attribute {name!r} is not one text of fixed length; get or make the file anew"
        )
    return bytes(owner.attrs[name]).decode()


def _read_arrays(file: h5py.File, path: Path) -> Iterator[tuple[str, _Stored]]:
    """Yield every dataset with its path, refusing whatever version 1 does not write.

    By HDF5's own calls, as h5py's take longer than small arrays.
    """
    room = path.stat().st_size
    seen = {_identity(file.id)}
    folders: list[tuple[str, h5py.h5g.GroupID]] = [("", h5py.h5g.open(file.id, b"/"))]
    while folders:
        prefix, folder = folders.pop()
        for encoded in folder:
            part = encoded.decode("utf-8", "surrogateescape")
            name = f"{prefix}{part}"
            _check_part(part, name, path)
            if folder.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                target = _link_target(h5py.Group(folder).get(part, getlink=True))
                raise WeightsFileError(
                    f"{path}: {name} is a link to {target}, which a weights file must not have"
                )
            item = h5py.h5o.open(folder, encoded)
            identity = _identity(item)
            if identity in seen or len(seen) > _MAX_OBJECTS:
                raise WeightsFileError(
                    f"{path}: {name} is a second name of another object, or one of too many objects"
                )
            seen.add(identity)
            if isinstance(item, h5py.h5g.GroupID):
                if name.count("/") >= _MAX_DEPTH:
                    raise WeightsFileError(f"{path}: {name[:80]} is nested too deep")
                folders.append((f"{name}/", item))
            elif isinstance(item, h5py.h5d.DatasetID):
                stored = _read_dataset(item, name, room, path)
                # All together must fit as well: chunks that share the same bytes are no way around.
                room -= stored.data.nbytes
                yield name, stored
            else:
                raise WeightsFileError(
                    f"{path}: {name} is neither a group nor a dataset; get or make it anew"
                )


def _check_part(part: str, name: str, path: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", part, re.ASCII) or len(name) > 512:
        raise WeightsFileError(
            f"{path}: {name[:80]!r} is not a valid parameter name; get or make the file anew"
        )


def _identity(item: Any) -> tuple[int, int]:
    info = h5py.h5o.get_info(item)
    return info.fileno, info.addr


def _link_target(link: Any) -> str:
    if isinstance(link, h5py.ExternalLink):
        return f"another file ({str(link.filename)[:80]!r})"
    return f"{str(getattr(link, 'path', 'an unknown place'))[:80]!r}"


def _read_dataset(dataset: h5py.h5d.DatasetID, name: str, room: int, path: Path) -> _Stored:
    def refuse(problem: str) -> WeightsFileError:
        return WeightsFileError(f"{path}: {name} {problem}; get or make the file anew")

    stored_type = dataset.get_type()
    kind = next((k for k, h5type in _TYPES.items() if stored_type.equal(h5type)), None)
    if kind is None:
        raise refuse("does not hold plain little-endian numbers")
    if h5py.h5a.get_num_attrs(dataset):
        named = h5py.Dataset(dataset)
        if others := set(named.attrs) - {"dtype"}:
            raise refuse(f"has the attribute {min(others)[:80]!r}, which is none of the format's")
        disguise = _read_text(named, "dtype", path)
        if _DISGUISED.get(disguise) != kind:
            raise refuse(f"is {kind} but claims to stand for {disguise[:20]!r}")
        kind = disguise
    if name.split("/")[0] not in (*_SECTIONS, _GOLDEN) and kind not in _STATE_TYPES:
        raise refuse(f"is {kind}; weights are {', '.join(_STATE_TYPES)}")

    plan, space = dataset.get_create_plist(), dataset.get_space()
    layout = plan.get_layout()
    if layout not in (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise refuse("is a virtual dataset, assembled from elsewhere")
    if plan.get_external_count():
        raise refuse("keeps its numbers in another file")
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if filters not in ([], [h5py.h5z.FILTER_FLETCHER32]):
        raise refuse("is compressed or filtered, which version 1 of the format is not")
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        raise refuse("has no fixed shape")
    shape, itemsize = space.get_simple_extent_dims(), stored_type.get_size()
    if space.get_simple_extent_dims(True) != shape:
        raise refuse("has no fixed shape")
    if math.prod(shape) * itemsize > room:
        raise refuse(f"claims shape {shape}, more than the file can hold")
    chunks = plan.get_chunk() if layout == h5py.h5d.CHUNKED else None
    _check_storage(dataset, shape, chunks, itemsize, bool(filters), refuse)
    data = np.empty(shape, stored_type.dtype)
    if data.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, data)
    return _Stored(kind, data)


def _check_storage(
    dataset: h5py.h5d.DatasetID,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    itemsize: int,
    checksum: bool,
    refuse: Any,
) -> None:
    """Check that every number is really stored: HDF5 makes up fill values for the rest."""
    if chunks is None:
        complete = dataset.get_storage_size() == math.prod(shape) * itemsize
    else:
        if any(c > s for c, s in zip(chunks, shape, strict=True)):
            raise refuse(f"has chunks {chunks} larger than itself {shape}")
        # Asking for chunk i costs time in proportion to i.
        number = dataset.get_num_chunks()
        if number > _MAX_CHUNKS:
            raise refuse(f"has more than {_MAX_CHUNKS} chunks")
        counts = [-(-s // c) for c, s in zip(chunks, shape, strict=True)]
        chunk_size = math.prod(chunks) * itemsize + 4 * checksum
        complete = number == math.prod(counts) and all(
            dataset.get_chunk_info(i).size == chunk_size for i in range(number)
        )
    if not complete:
        raise refuse(f"claims shape {shape}, of which a part is not there")


def _content(
    texts: Mapping[str, str], arrays: Mapping[str, _Stored], stored_digest: str
) -> WeightsFile:
    values: dict[str, Any] = {name: texts[name] for name in _TEXTS}
    for name, types in _JSONS.items():
        values[name] = _from_json(texts[name], name)
        if not isinstance(values[name], types):
            raise ValueError(f"{name} is not a {types[0].__name__}")
    _check_meaning(texts)
    state: dict[str, np.ndarray] = {}
    for path, stored in arrays.items():
        if path.split("/")[0] not in (*_SECTIONS, _GOLDEN):
            state[path.replace("/", ".")] = _to_float32(stored)
    sections: dict[str, Any] = {
        section: _read_section(section, arrays)
        for section in _SECTIONS
        if any(path.split("/")[0] == section for path in arrays)
    }
    return WeightsFile(
        state=dict(sorted(state.items())),
        digest=stored_digest,
        golden=_golden_of(arrays),
        **values,
        **sections,
    )


def _golden_of(arrays: Mapping[str, _Stored]) -> Golden | None:
    """Return the golden part, if there is one; ValueError where it is not what it must be."""
    found = {path: stored for path, stored in arrays.items() if path.split("/")[0] == _GOLDEN}
    if not found:
        return None
    names = {f"{_GOLDEN}/picture", f"{_GOLDEN}/logits"}
    if found.keys() != names:
        raise ValueError(f"{_GOLDEN} must consist of {' and '.join(sorted(names))}")
    picture, logits = found[f"{_GOLDEN}/picture"], found[f"{_GOLDEN}/logits"]
    shape = picture.data.shape
    if picture.kind != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"{_GOLDEN}/picture must be (height, width, 3) uint8")
    if not all(1 <= size <= _MAX_PICTURE for size in shape[:2]):
        raise ValueError(f"{_GOLDEN}/picture must have sides from 1 to {_MAX_PICTURE}")
    if logits.kind != "float32" or logits.data.ndim != 1 or not logits.data.size:
        raise ValueError(f"{_GOLDEN}/logits must be (classes,) float32")
    if not np.isfinite(logits.data).all():
        raise ValueError(f"{_GOLDEN}/logits holds NaN or infinities")
    return Golden(picture.data, logits.data)


def _appended(path: Path) -> int:
    """Return how many bytes follow the end that the file states: behind it HDF5 reads nothing."""
    # Superblock of version 3: signature (8), version, sizes of offsets and lengths, flags (1 each), then
    # as offsets the base address, the extension's address and the end of the file.
    with path.open("rb") as file:
        start = file.read(36)
    if start[9] != 8:
        return 0
    return path.stat().st_size - int.from_bytes(start[28:36], "little")


def _to_float32(stored: _Stored) -> np.ndarray:
    if stored.kind == "bfloat16":
        # bfloat16 is the upper half of float32.
        return (stored.data.astype(np.uint32) << 16).view(np.float32)
    return stored.data.astype(np.float32, copy=False)


def _from_json(text: str, name: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{name} holds {constant}, which is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {one_line(error)}") from error


def _read_section(section: str, arrays: Mapping[str, _Stored]) -> dict[str, Any]:
    text = arrays[f"{section}/json"]
    if text.kind != "uint8" or text.data.ndim != 1:
        raise ValueError(f"{section}/json is not text")
    value = _unpacked(_from_json(text.data.tobytes().decode(), section), arrays, section, section)
    if not isinstance(value, dict):
        raise ValueError(f"{section} is not a dict")
    return value


def _unpacked(value: Any, arrays: Mapping[str, _Stored], section: str, where: str) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, arrays, section, where) for v in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value and isinstance(value["$array"], int):
        stored = arrays[f"{section}/{value['$array']}"]
        if stored.kind == "bfloat16":
            return _to_float32(stored)
        return stored.data.astype(np.bool_) if stored.kind == "bool" else stored.data
    if "$float" in value:
        return float(value["$float"])
    return {key: _unpacked(v, arrays, section, where) for key, v in value.items()}


def _explain(error: BaseException) -> str:
    text = str(error)
    if "truncated" in text:
        return "is cut off: the file is shorter than it should be"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if "letcher" in text or "checksum" in text:
        return "is damaged: a checksum does not agree"
    return f"is damaged or not a weights file ({one_line(error)})"


# ---------------------------------------------------------------------------- comparing


def _table(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = [f"    and {len(items) - _MAX_LISTED} more"] if len(items) > _MAX_LISTED else []
    return [f"  {title} ({len(items)}):", *(f"    {i}" for i in items[:_MAX_LISTED]), *more]


def _with_near_miss(name: str, candidates: Sequence[str], missing: int) -> str:
    if missing > _MAX_GUESSES:  # another network, not another spelling
        return name
    near = near_miss(name, candidates)
    return f"{name} (is it {near}?)" if near else name


def _advice(
    expected: Mapping[str, Sequence[int]],
    state: Mapping[str, np.ndarray],
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[str],
) -> list[str]:
    """Return what to do, where the pattern is a familiar one."""
    if not missing and not unexpected and len(misshapen) <= 4:
        classes = {
            (state[name].shape[0], expected[name][0])
            for name in misshapen
            if state[name].shape[1:] == tuple(expected[name])[1:] and state[name].ndim in (1, 2)
        }
        if len(classes) == 1 and all(state[name].ndim in (1, 2) for name in misshapen):
            has, needs = classes.pop()
            return [
                f"  these weights are for {has} classes, the network has {needs}: ask for a new head"
            ]
    for name in unexpected:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name[: -len(wanted)]
                return [f"  the names carry the prefix {prefix!r}: take it away"]
    return []


__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Golden",
    "Prepared",
    "WeightsFile",
    "attributes",
    "check_state",
    "prepare",
    "read",
    "write",
]
