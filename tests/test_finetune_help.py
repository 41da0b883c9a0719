"""What `minitl finetune --help` says of defaults is what holds."""

import argparse
import dataclasses
import re

import pytest

from minitl.cli import finetune
from minitl.train.config import Config
from minitl.train.optimisation import WEIGHT_DECAY

# Settings whose default is a value; the others are off, or depend on something else.
DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if isinstance(field.default, str | int | float | tuple)
    and not isinstance(field.default, bool)
    and field.default != ()
    and field.name != "feature_cache"  # a word for the user's own folder
}


def options():
    command = finetune.add(argparse.ArgumentParser().add_subparsers())
    return {a.option_strings[0]: a for a in command._actions if a.option_strings}


VALUED = [name for name, action in options().items() if action.dest in DEFAULTS]


def stated(text):
    """Return what a text may say that the default is: before "(default)", or at the start of brackets."""
    words = re.findall(r"([\w.-]+) \(default\)", text)
    return [*words, *re.findall(r"\((?:default: )?([\w.,-]+?)[:;]?(?: [^()]*)?\)", text)]


def agrees(word, default):
    if isinstance(default, str):
        return word == default
    if default == ("none",):
        return word == "none"
    try:
        numbers = tuple(map(float, word.split(",")))
    except ValueError:
        return False
    values = default if isinstance(default, tuple) else (default,)
    return numbers == values or (len(numbers) == 1 and {*numbers} == {*values})  # 0 for 0,0,0,0


@pytest.mark.parametrize("name", VALUED)
def test_the_default_that_is_named_is_that_of_the_settings(name):
    action = options()[name]
    said, default = stated(action.help), DEFAULTS[action.dest]
    assert any(agrees(word, default) for word in said), (action.help, default)


def test_the_weight_decay_that_is_named_is_that_of_each_optimizer():
    found = dict(re.findall(r"(\w+): ([\d.e-]+)", options()["--weight-decay"].help))
    assert {name: float(value) for name, value in found.items()} == WEIGHT_DECAY


def test_most_options_are_looked_at():
    assert {"--momentum", "--freeze", "--crop-scale", "--color-jitter", "--save-every"} <= {*VALUED}
    assert len(VALUED) > 30


@pytest.mark.parametrize(
    ("text", "default", "right"),
    [
        ("of sgd (0.9)", 0.9, True),
        ("of sgd (0.8)", 0.9, False),
        ("of sgd", 0.9, False),
        ("sgd (default), adam", "sgd", True),
        ("adam (default), sgd", "sgd", False),
        ("that it keeps (0.35,1)", (0.35, 1.0), True),
        ("that it keeps (0.3,1)", (0.35, 1.0), False),
        ("of each (0)", (0.0, 0.0, 0.0, 0.0), True),
        ("after so many steps, or 30s (5m); and after each epoch", "5m", True),
        ("Beta(A, A); 0.2 is usual (0: never)", 0.0, True),
        ("pictures (1; with a GPU one for each core)", 1, True),
    ],
)
def test_the_comparison_sees_a_difference(text, default, right):
    assert any(agrees(word, default) for word in stated(text)) == right
