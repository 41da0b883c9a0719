"""Which weights file a user means, who may name it in several ways."""

import os
from collections.abc import Callable
from pathlib import Path

from minitl.convert.pull import pull, to_stderr
from minitl.errors import UserError
from minitl.run_files import ASIDE, BEST


def find_weights(text: str | os.PathLike[str], say: Callable[[str], object] = to_stderr) -> Path:
    """Return the weights file that a user means: a file, a run folder's best, or a name of the catalogue.

    Raises UserError where it is none of these, or cannot be fetched. A file is not opened here.
    """
    path = Path(text)
    folder = path.parent if path.name == BEST else path
    earlier = folder / ASIDE / BEST
    if earlier.is_file() and not (folder / BEST).exists():
        raise UserError(
            f"{folder} has no {BEST} yet: the run in it was to replace an earlier one, whose weights are "
            f"in {earlier}; copy that file to another place and give the copy"
        )
    if path.is_dir():
        if not (path / BEST).is_file():
            raise UserError(f"{path} is not a run folder: it has no {BEST}")
        return path / BEST
    return pull(str(text), say=say) if is_name(text) else path


def is_name(text: str | os.PathLike[str]) -> bool:
    """Whether a text can only be meant as a name of the catalogue: it is no file or folder, nor like one."""
    path = Path(text)
    return not path.exists() and path.suffix != ".h5" and len(path.parts) == 1


__all__ = ["find_weights", "is_name"]
