"""Small files, written so that a reader sees the old contents or the new, never a part."""

import contextlib
import os
import tempfile
from pathlib import Path

from minitl.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically: temporary file, fsync, rename.

    Raises UserError naming the file if it cannot be written; what was there before is left as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; free space or choose another place") from None
