"""Sizes of windows, against counting, and the forms that spatial arguments may take."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minitl.shapes import (
    Padding2d,
    padding2d,
    pair,
    same_padding,
    window_output_shape,
    window_output_size,
)


@given(
    st.integers(1, 40),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_output_size_is_the_number_of_windows(size, before, after, kernel, stride, dilation):
    last = dilation * (kernel - 1)  # of the pixels of the window that begins at 0
    windows = [
        p for p in range(0, size + before + after, stride) if p + last < size + before + after
    ]
    assume(windows)
    assert window_output_size(size, before, after, kernel, stride, dilation) == len(windows)


def test_output_shape_treats_rows_and_columns_apart():
    assert window_output_shape(224, 100, (7, 3), (2, 1), Padding2d(3, 3, 1, 0), (1, 2)) == (112, 97)


def test_a_window_that_does_not_fit_is_an_error():
    with pytest.raises(
        ValueError, match=r"window of 5 does not fit into 2 pixels padded by 1 \+ 1"
    ):
        window_output_size(2, 1, 1, 3, 1, 2)


def test_forms_of_padding():
    assert padding2d(2) == (2, 2, 2, 2)
    assert padding2d((1, 2)) == (1, 1, 2, 2)
    assert padding2d(((1, 2), (3, 4))) == (1, 2, 3, 4)
    assert padding2d(Padding2d(1, 2, 3, 4)) == (1, 2, 3, 4)


def test_forms_of_pairs():
    assert pair(3, "stride") == pair((3, 3), "stride") == pair([3, 3], "stride") == (3, 3)
    assert type(pair(np.int64(3), "stride")[0]) is int


@pytest.mark.parametrize("value", [0, -1, (1, 0), (1,), (1, 2, 3), 1.5, (1.0, 2), "ab", None])
def test_a_bad_pair_is_an_error_that_names_the_argument(value):
    with pytest.raises(ValueError, match="stride must be an int or two ints, each at least 1"):
        pair(value, "stride")


@pytest.mark.parametrize("value", [-1, (1, -1), ((1, 1), (1, -1)), ((1,), (1, 1)), "same"])
def test_bad_padding_is_an_error(value):
    with pytest.raises(ValueError, match="padding must be"):
        padding2d(value)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_is_the_least_for_its_number_of_windows(size, kernel, stride, dilation):
    top, bottom, left, right = same_padding(size, 1, (kernel, 1), (stride, 1), (dilation, 1))
    windows = -(-size // stride)
    assert (left, right) == (0, 0) and bottom - top in (0, 1)
    assert window_output_size(size, top, bottom, kernel, stride, dilation) == windows
    if top + bottom:
        less = top + bottom - 1
        span = dilation * (kernel - 1) + 1
        assert size + less < span + (windows - 1) * stride


def test_same_padding_is_asymmetric_at_stride_2():
    assert same_padding(32, 33, (3, 3), (2, 2)) == (0, 1, 1, 1)
    assert same_padding(224, 224, (7, 7), (2, 2)) == (2, 3, 2, 3)
    assert same_padding(8, 8, (1, 1), (2, 2)) == (0, 0, 0, 0)
