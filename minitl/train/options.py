"""Settings as they are given on the command line, for messages."""

from typing import Any

SEVERAL = ("lr_for", "task", "task_weight")  # options that are given once for each of their values


def option(name: str, value: Any = None) -> str:
    """Return the option of a setting by its name. value: where it is False or "off", the option says so."""
    if name == "data":
        return "DATA"
    off = value is False or value == "off"
    return f"--{'no-' if off else ''}{name.replace('_', '-')}"


def as_given(name: str, value: Any) -> str:
    """Return a setting and its value, such as "--rotation 10", "--crop-scale 0.5,1" or "--no-flip"."""
    words = option(name, value)
    if isinstance(value, bool) or value == "off":
        return words
    if name in SEVERAL:
        return " ".join(f"{words} {one}" for one in value)
    parts = value if isinstance(value, tuple) else (value,)
    return f"{words} {','.join(format(p, 'g') if isinstance(p, float) else str(p) for p in parts)}"


__all__ = ["as_given", "option"]
