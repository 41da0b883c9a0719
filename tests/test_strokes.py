"""The pictures that the shipped weights were pretrained on."""

import numpy as np
import pytest

from minitl.weights import strokes


@pytest.fixture(scope="module")
def alphabet():
    return strokes.make_alphabet(20, np.random.default_rng(0))


def test_the_same_seed_draws_the_same_pictures(alphabet):
    first, labels = strokes.draw(alphabet, 16, np.random.default_rng(1))
    again, labels_again = strokes.draw(alphabet, 16, np.random.default_rng(1))
    other, _ = strokes.draw(alphabet, 16, np.random.default_rng(2))
    assert np.array_equal(first, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(first, other)


def test_shapes_types_and_range(alphabet):
    rng = np.random.default_rng(3)
    ink = strokes.write_letters(alphabet, np.arange(20), rng)
    assert ink.shape == (20, 32, 32)
    assert ink.dtype == np.float32
    assert ink.min() >= 0
    assert ink.max() == 1
    assert (ink.max((1, 2)) > 0.2).all()  # no empty sheet
    pictures, labels = strokes.draw(alphabet, 50, rng)
    assert pictures.shape == (50, 32, 32, 3)
    assert pictures.dtype == np.float32
    assert np.isfinite(pictures).all()
    assert pictures.min() > -0.5
    assert pictures.max() < 1.5
    assert set(labels) <= set(range(20))


def test_one_letter_looks_more_like_itself_than_like_others(alphabet):
    rng = np.random.default_rng(4)
    letters = np.repeat(np.arange(20), 40)
    ink = strokes.write_letters(alphabet, letters, rng).reshape(20, 40, -1)
    means, fresh = ink[:, :30].mean(1), ink[:, 30:]
    distance = ((fresh[:, :, None] - means) ** 2).sum(-1)  # (letter, writing, mean of a letter)
    assert (distance.argmin(-1) == np.arange(20)[:, None]).mean() > 0.4  # chance is 0.05


def test_letters_have_one_to_three_strokes_and_absent_ones_leave_no_ink():
    alphabet = strokes.make_alphabet(200, np.random.default_rng(5))
    assert set(alphabet.present.sum(1)) == {1, 2, 3}
    rng = np.random.default_rng
    one = strokes.Alphabet(alphabet.control, np.arange(3) < np.ones((200, 1)))
    moved = one.control.copy()
    moved[:, 1:] += 100
    letters = np.arange(8)
    same = strokes.Alphabet(moved, one.present)
    assert np.array_equal(
        strokes.write_letters(one, letters, rng(6)), strokes.write_letters(same, letters, rng(6))
    )


def test_enlarging_is_bilinear():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32), (1, 8, 8))
    enlarged = strokes._enlarge(ramp)
    expected = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    np.testing.assert_allclose(enlarged[0], np.broadcast_to(expected, (32, 32)), atol=1e-5)
