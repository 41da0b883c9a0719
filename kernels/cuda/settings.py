"""Settings that the CPU has and a GPU has no use for: they are checked and remembered, and change nothing."""

ALGORITHMS = ("auto", "exact", "f2", "f4")  # as on the CPU, so that a run's settings fit both
_setting = "auto"


def set_conv_algorithm(name: str) -> str:
    """Accept what the CPU can be told about 3x3 convolutions; return what held before.

    Convolutions on a GPU never use Winograd's algorithm; see `set_precision` for what they do choose.

    Raises ValueError for any other name.
    """
    global _setting
    if name not in ALGORITHMS:
        raise ValueError(
            f"no convolution algorithm {name!r}; choose one of {', '.join(ALGORITHMS)}"
        )
    before, _setting = _setting, name
    return before


def set_threads(count: int | None) -> int:
    """Accept a number of threads; return 1: a single one starts the kernels.

    Raises ValueError for less than one.
    """
    if count is not None and count < 1:
        raise ValueError(f"cannot compute with {count} threads; give 1 or more, or None for all")
    return 1
