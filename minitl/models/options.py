"""Checks of what an architecture is told about itself: options come from files that others made."""

from typing import Any


def whole(value: Any, name: str, least: int, most: int) -> int:
    """Return `value` if it is a whole number from `least` to `most`; ValueError names it otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(
            f"{name} must be a whole number from {least:,} to {most:,}, not {_short(value)}"
        )
    return value


def switch(value: Any, name: str) -> bool:
    """Return `value` if it is true or false; ValueError names it otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {_short(value)}")
    return value


def fraction(value: Any, name: str) -> float:
    """Return `value` if it is a number from 0 up to, not including, 1; ValueError otherwise."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number from 0 up to below 1, not {_short(value)}")
    return float(value)


def changed(options: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """Return the options that differ from what is usual: those that a weights file has to state."""
    return {name: value for name, value in options.items() if value != usual[name]}


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text[:80]
