"""Find the weights in a checkpoint, whatever they are wrapped in and however they are called."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from minitl.convert.pickles import TensorRecord
from minitl.convert.source import StoredArray
from minitl.errors import WeightsFileError
from minitl.nn import is_counter
from minitl.text import shown

# Under these keys training programs put the weights, the first that is there is taken.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "model_ema")
# These come before every name where the network was wrapped: by DataParallel, in a larger module, by
# torch.compile.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
# Beside the prefixed names in torch.optim.swa_utils.AveragedModel: how many weights it is the mean of.
_AVERAGED = "n_averaged"

_MAX_DEPTH = 4

Array = TensorRecord | StoredArray  # of a PyTorch file or of another


@dataclass
class FoundState:
    """The weights of a checkpoint.

    tensors: by name, prefixes taken away; TensorRecords of a PyTorch file, else StoredArrays. entry:
    where they were, as "model/state_dict", "" for the top.
    prefix: what was taken away, of most names or all. ignored: names that are no weights, with the reason.
    beside: keys of the checkpoint next to the weights.
    """

    tensors: dict[str, Any]
    entry: str
    prefix: str
    ignored: dict[str, str]
    beside: list[str]


def find_state(content: Any, what: str, entry: str | None = None) -> FoundState:
    """Return the weights in what a checkpoint holds.

    what: the file, for errors. entry: the key to look under; None for the first of WRAPPERS.

    Raises WeightsFileError where there are none.
    """
    entries: list[str] = []
    beside: list[str] = []
    if entry is not None:
        if not isinstance(content, dict) or entry not in content:
            raise WeightsFileError(f"{what} has no entry {entry!r}; it holds {_summary(content)}")
        content = _inside(content, entry, entries, beside)
    for _ in range(_MAX_DEPTH):
        wrapper = _wrapper(content)
        if wrapper is None:
            break
        content = _inside(content, wrapper, entries, beside)
    if not isinstance(content, dict):
        raise WeightsFileError(f"{what} holds no weights by name, but {_summary(content)}")
    tensors: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for name, value in content.items():
        if name == _AVERAGED:
            ignored[name] = "a counter that has no effect"
        elif isinstance(name, str) and isinstance(value, Array):
            tensors[name] = value
        else:
            ignored[str(name)] = "not a tensor"
    if not tensors:
        raise WeightsFileError(f"{what} holds no weights by name, but {_summary(content)}")
    prefix = _common_prefix(tensors)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    for name in list(tensors):
        if is_counter(name):
            del tensors[name]
            ignored[name] = "a counter that has no effect"
    return FoundState(tensors, "/".join(entries), prefix, ignored, beside)


def _wrapper(content: Any) -> str | None:
    if not isinstance(content, dict):
        return None
    return next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)


def _inside(content: dict[Any, Any], key: str, entries: list[str], beside: list[str]) -> Any:
    entries.append(key)
    beside += [str(other) for other in content if other != key]
    return content[key]


def _common_prefix(names: Collection[str]) -> str:
    """Return the prefix that most names have: a loss with weights of its own may stand beside the network."""
    prefix = ""
    while True:
        for more in (prefix + p for p in PREFIXES):
            inside = [name.removeprefix(more) for name in names if name.startswith(more)]
            if 2 * len(inside) > len(names) and not set(inside) & set(names):
                prefix = more
                break
        else:
            return prefix


def _summary(content: Any) -> str:
    if isinstance(content, dict):
        keys = [shown(str(key)[:40]) for key in list(content)[:6]]
        return (
            f"a dict of {', '.join(keys)}{', ...' if len(content) > 6 else ''}"
            if keys
            else "nothing"
        )
    if isinstance(content, Array):
        return f"one tensor of shape {content.shape}"
    return f"a {type(content).__name__}"


__all__ = ["PREFIXES", "WRAPPERS", "FoundState", "find_state"]
