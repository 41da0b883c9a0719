"""Text in messages: short, on one line, and without power over a terminal."""

import io

import pytest

from minitl.text import coloured, listed, one_line, printable, shown


def test_control_characters_are_spelled_out() -> None:
    assert printable("grün") == "grün"
    assert printable("\x1b[31m") == r"\x1b[31m" and printable("\udc80") == r"\udc80"


def test_the_rest_of_a_message_stays_readable() -> None:
    message = "it's the same picture (grün/1.png, caf\udce9/2.png,\nx\u202ey.png)"
    shown = printable(message)
    assert shown == r"it's the same picture (grün/1.png, caf\udce9/2.png,\nx\u202ey.png)"
    assert shown.isprintable()


def test_long_text_is_cut() -> None:
    assert shown("x" * 120) == "x" * 120
    assert len(shown("x" * 500)) == 120 and shown("x" * 500).endswith("...")


def test_errors_are_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 500), 40) == "x" * 40
    assert "\x1b" not in one_line(ValueError("\x1b[2J"))


def test_long_lists_say_how_many_more() -> None:
    assert listed("abc") == "a, b, c"
    assert listed((str(i) for i in range(8)), limit=3) == "0, 1, 2 and 5 more"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("no", "red", io.StringIO()) == "no"
    assert coloured("no", "red", Terminal()) == "\x1b[31mno\x1b[0m"
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("no", "red", Terminal()) == "no"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("no", "red", Terminal()) == "no"
