"""Writing files whole or not at all, and the folder for what was fetched or computed and is kept."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from minitl.errors import UserError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` so that at every moment either the old or the new file is there.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name. A
    symbolic link is followed: the file it points to is replaced. A process killed on the way leaves at
    most a hidden file `.<name>.<random>.tmp`.

    Raises UserError naming the file where the system refuses (no such folder, disk full, no
    permission); an earlier file is then untouched and the temporary one removed.
    """
    with replaced_atomically(path) as temporary, temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replaced_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a temporary file beside `path`; at the end of the block it takes that name.

    The block writes the file and sees to it that its bytes reach the disk. For the rest as
    `write_atomically`, which is for contents that fit into memory.
    """
    target = place_for(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            yield temporary
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        # HDF5 puts a paragraph in the place of the system's words.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"cannot write {path}: {reason}; {advice(error)} (an earlier file of that name is unchanged)"
        ) from error
    _sync_folder(target.parent)


def place_for(path: str | os.PathLike[str]) -> Path:
    """Return where a file will be written, links followed; UserError where no file can be."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {path}: it exists and is not a file; choose another name")
    if not target.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {target.parent}; make it first")
    return target


def advice(error: OSError) -> str:
    """Return what to do about a file that could not be written."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a place where you may write"
    return "free some space or choose another place"


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write `content` as readable JSON, as `write_atomically` does.

    Names that are not valid Unicode are written as backslash escapes.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def user_folder() -> Path:
    """Return the folder for weights and features that can be made or fetched again.

    It is $MINITL_CACHE, or the user's own. Compiled kernels are always in the user's own.
    """
    import platformdirs

    chosen = os.environ.get("MINITL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("minitl")


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can do that (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):  # the file itself is safely in place by now
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


__all__ = [
    "advice",
    "place_for",
    "replaced_atomically",
    "user_folder",
    "write_atomically",
    "write_json",
]
