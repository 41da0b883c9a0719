"""Survey an untrusted HDF5 file: what lies where. A program of its own, run by keras_files.py.

Keras writes HDF5's oldest format, whose internal records carry no checksums: on a wrong byte the HDF5
library may crash or never return. So it works in a process that may be killed, and only finds out where
in the file the numbers lie; the parent reads them itself.

    standard input     the file
    standard output    JSON: {"attributes": {path: {name: text or list of texts}},
                              "datasets": [{"path", "dtype", "shape", "offset"}]}
                       or {"error": what is wrong, "advice": what to do}

No link is followed, no array is read, no filter runs.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import h5py

MAX_OBJECTS = 100_000
MAX_DEPTH = 32
MAX_NAME = 512
MAX_TEXT = 16 << 20
MAX_SECONDS = 30

# The attributes that Keras writes and the conversion needs; lists that are too long for one attribute
# are cut into layer_names0, layer_names1, ...
_ATTRIBUTES = re.compile(
    r"(format|model_config|keras_version|name|(layer_names|weight_names)\d{0,4})",
    re.ASCII,
)
_TYPES = {
    "<f2": h5py.h5t.IEEE_F16LE,
    "<f4": h5py.h5t.IEEE_F32LE,
    "<f8": h5py.h5t.IEEE_F64LE,
    "<i4": h5py.h5t.STD_I32LE,
    "<i8": h5py.h5t.STD_I64LE,
    "<u4": h5py.h5t.STD_U32LE,
    "<u8": h5py.h5t.STD_U64LE,
    "|u1": h5py.h5t.STD_U8LE,
}
# What h5py raises on damaged files.
_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    MemoryError,
)


_ADVICE = "get it anew, or save it with Keras"


class Refused(Exception):
    """Something that no weights of Keras contain; the message is for the user, who is given advice."""

    def __init__(self, message: str, advice: str = _ADVICE) -> None:
        super().__init__(message)
        self.advice = advice


def survey(file: h5py.File) -> dict[str, Any]:
    """Return the attributes and datasets of a whole file. Raises Refused."""
    attributes: dict[str, dict[str, Any]] = {"": _attributes(file, "")}
    if attributes[""].get("format") == "minitl":
        raise Refused("is a weights file of minitl already", "it can be used as it is")
    datasets = []
    for path, item in _objects(file):
        if isinstance(item, h5py.Dataset):
            datasets.append(_dataset(item, path))
        if found := _attributes(item, path):
            attributes[path] = found
    return {"attributes": attributes, "datasets": datasets}


def _objects(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Yield everything in the file with its path, each object once."""
    seen = {_address(file)}
    groups: list[tuple[str, Any]] = [("", file)]
    while groups:
        prefix, group = groups.pop()
        for part in group:
            path = f"{prefix}{part}"
            if len(path) > MAX_NAME or path.count("/") >= MAX_DEPTH or not part.isprintable():
                raise Refused(f"has an object with the name {path[:60]!a}, too long or too deep")
            link = group.get(part, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise Refused(f"refers to another file at {path}: {str(link.filename)[:80]!r}")
            if not isinstance(link, h5py.HardLink):
                raise Refused(f"has a link at {path}, which Keras does not write")
            item = group[part]
            if _address(item) in seen:
                raise Refused(
                    f"has a second name for one object, {path}, which Keras does not write"
                )
            seen.add(_address(item))
            if len(seen) > MAX_OBJECTS:
                raise Refused(f"holds more than {MAX_OBJECTS} objects")
            if isinstance(item, h5py.Group):
                groups.append((f"{path}/", item))
            elif not isinstance(item, h5py.Dataset):
                raise Refused(f"holds {path}, which is neither a group nor an array")
            yield path, item


def _address(item: Any) -> int:
    address: int = h5py.h5o.get_info(item.id).addr
    return address


def _dataset(item: h5py.Dataset, path: str) -> dict[str, Any]:
    """Return type, shape and place of an array; `offset` is None where nothing is stored."""
    plan = item.id.get_create_plist()
    layout = plan.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED, h5py.h5d.COMPACT):
        raise Refused(f"holds {path}, a virtual dataset, assembled from elsewhere")
    if plan.get_external_count():
        raise Refused(f"keeps the numbers of {path} in another file")
    if layout != h5py.h5d.CONTIGUOUS:
        raise Refused(f"holds {path} in pieces or compressed, which Keras does not write")
    if item.shape is None:
        raise Refused(f"holds {path}, an array without a shape")
    stored = item.id.get_type()
    # None: not a number, as the record of a step in text; only wrong if it is needed.
    dtype = next((name for name, kind in _TYPES.items() if stored.equal(kind)), None)
    return {
        "path": path,
        "dtype": dtype,
        "shape": [int(size) for size in item.shape],
        "offset": item.id.get_offset(),
    }


def _attributes(item: Any, path: str) -> dict[str, Any]:
    found = {}
    for name in item.attrs:
        if _ATTRIBUTES.fullmatch(name):
            found[name] = _texts(item, name, f"the attribute {name} of {path or 'the file'}")
    return found


def _texts(item: Any, name: str, what: str) -> str | list[str]:
    """Return one text, or a list of texts."""
    attribute = item.attrs.get_id(name)
    if attribute.shape == (0,):  # an empty list of texts is stored as one of numbers
        return []
    if len(attribute.shape) > 1 or attribute.get_storage_size() > MAX_TEXT:
        raise Refused(f"holds {what}, too long to be true")
    if h5py.check_string_dtype(attribute.dtype) is None:
        raise Refused(f"holds {what}, which is not text")
    value = item.attrs[name]
    texts = [_decoded(text) for text in ([value] if attribute.shape == () else value)]
    if sum(map(len, texts)) > MAX_TEXT:
        raise Refused(f"holds {what}, too long to be true")
    return texts[0] if attribute.shape == () else texts


def _decoded(text: Any) -> str:
    return bytes(text).decode() if isinstance(text, bytes) else str(text)


def main() -> None:
    """Survey standard input."""
    data = sys.stdin.buffer.read()
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS + 1))
        room = 3 * len(data) + (8 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            result = survey(file)
    except Refused as error:
        result = {"error": str(error), "advice": error.advice}
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        result = {"error": f"is damaged ({reason})", "advice": _ADVICE}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
