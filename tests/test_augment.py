"""Variations of training pictures: geometry by hand, colour by its definition, and what is drawn when."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minitl.data.augment import POLICY, POLICY_LEVELS, Augmentation, _turned_hue, warp
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError

GRAY = (124, 116, 104)
STILL = {"scale": (1, 1), "ratio": (1, 1), "flip": 0}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    channels = [128 + 100 * np.sin(4 * x + 2 * y), 255 * x, 255 * (1 - y)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 8), (31, 17)])
def test_warp_by_nothing_is_the_identity(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    np.testing.assert_array_equal(warp(image, 0, 0, 1, 1), image)


@pytest.mark.parametrize("side", [1, 8, 33])
@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_quarter_turn_is_counter_clockwise(side: int, quarter: int) -> None:
    image = picture(side, side)
    difference = warp(image, 90 * quarter, 0, 1, 1).astype(int) - np.rot90(image, quarter)
    assert np.abs(difference).max() <= 1  # sin and cos are a rounding off, and Pillow rounds down


def test_zoom_above_one_enlarges_each_axis_by_its_own_factor() -> None:
    image = picture(32, 32)
    result = warp(image, 0, 0, 2, 1)
    middle = np.repeat(image[8:24], 2, axis=0)
    # Bilinear interpolation between two equal rows: compare the places it leaves alone.
    difference = np.abs(result.astype(int) - middle).mean()
    assert difference < np.abs(result.astype(int) - image).mean() / 2
    flat = np.full((9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(warp(flat, 13, 20, 0.4, 1.7), flat)


def test_shear_leans_columns_over_by_its_angle() -> None:
    side = 64
    image = np.zeros((side, side, 3), np.uint8)
    image[:, 31:33] = 255
    result = warp(image, 0, 30, 1, 1)[..., 0].astype(float)
    columns = (result * np.arange(side)).sum(axis=1) / result.sum(axis=1)
    slopes = np.diff(columns)
    np.testing.assert_allclose(np.abs(slopes.mean()), math.tan(math.radians(30)), rtol=0.02)


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(-180, 180),
    st.floats(-80, 80),
    st.floats(0.1, 1.9),
    st.floats(0.1, 1.9),
)
def test_nothing_from_outside_comes_into_view(
    height: int, width: int, degrees: float, shear: float, zoom_y: float, zoom_x: float
) -> None:
    bright = np.full((height, width, 3), 200, np.uint8)
    result = warp(bright, degrees, shear, zoom_y, zoom_x)
    assert result.shape == bright.shape
    assert result.min() == result.max() == 200  # no black border


def test_what_is_off_draws_nothing_and_changes_nothing() -> None:
    image, generator = picture(16, 16), rng(3)
    np.testing.assert_array_equal(Augmentation().vary(image, generator, GRAY), image)
    assert generator.bit_generator.state == rng(3).bit_generator.state


@pytest.mark.parametrize(
    "option",
    [
        {"vertical_flip": 1.0},
        {"rotation": 40},
        {"shear": 20},
        {"zoom": 0.5},
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.9},
        {"hue": 0.4},
        {"erase": 1.0},
        {"policy": (2, 15)},
    ],
    ids=lambda option: next(iter(option)),
)
def test_each_option_varies_and_repeats_itself(option: dict) -> None:
    augmentation = Augmentation(**STILL, **option)
    image = smooth(24)
    results = [augmentation.vary(image, rng(seed), GRAY) for seed in (1, 1, 2, 3, 4, 5)]
    np.testing.assert_array_equal(results[0], results[1])
    assert any((result != image).any() for result in results)
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    if "vertical_flip" in option:
        np.testing.assert_array_equal(results[0], image[::-1])
    else:
        assert any((result != results[0]).any() for result in results[2:])


def test_brightness_is_a_factor_within_its_range() -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    values = {
        int(Augmentation(**STILL, brightness=0.3).vary(image, rng(s), GRAY)[0, 0, 0])
        for s in range(60)
    }
    assert 69 <= min(values) < 80 and 120 < max(values) <= 130


def test_a_third_of_the_colour_circle_turns_red_into_green() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for turn, colour in (1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (1.0, (255, 0, 0)):
        turned = np.asarray(_turned_hue(red, turn))
        assert np.abs(turned.astype(int) - colour).max() <= 6  # a hue is a byte


def test_hue_turns_red_and_leaves_gray() -> None:
    red = np.zeros((2, 2, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    gray = np.full((2, 2, 3), 90, np.uint8)
    augmentation = Augmentation(**STILL, hue=0.5)
    turned = [augmentation.vary(red, rng(s), GRAY)[0, 0] for s in range(20)]
    assert len({tuple(t) for t in turned}) > 10 and all(t.max() == 255 for t in turned)
    np.testing.assert_array_equal(augmentation.vary(gray, rng(1), GRAY), gray)


def test_erasing_paints_one_rectangle_of_its_size() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    for seed in range(20):
        result = Augmentation(**STILL, erase=1.0).vary(image, rng(seed), GRAY)
        rows, columns = np.nonzero((result == GRAY).all(axis=-1))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width  # filled
        assert 0.015 < len(rows) / (60 * 80) < 0.34
        assert 0.28 < height / width < 3.5
    assert not image.any()  # the caller's picture is untouched


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (16, 16)])
def test_policy_operations_take_any_picture(name: str, shape: tuple[int, int]) -> None:
    function, most, either_way = POLICY[name]
    source = Image.fromarray(picture(*shape))
    for amount in (0.0, most / POLICY_LEVELS, most, *((-most,) if either_way else ())):
        result = np.asarray(function(source, amount))
        assert result.shape == (*shape, 3) and result.dtype == np.uint8
    if name not in ("autocontrast", "equalize", "solarize"):
        np.testing.assert_array_equal(np.asarray(function(source, 0.0)), np.asarray(source))


def test_shifts_move_by_a_share_of_the_side() -> None:
    image = picture(10, 20)
    moved = np.asarray(POLICY["shift_x"][0](Image.fromarray(image), 0.25))
    np.testing.assert_array_equal(moved[:, 5:], image[:, :-5])
    moved = np.asarray(POLICY["shift_y"][0](Image.fromarray(image), -0.3))
    np.testing.assert_array_equal(moved[:-3], image[3:])


def test_preprocessing_applies_the_variation_to_its_crop() -> None:
    p = Preprocessing(resize=16, crop=16)
    image = picture(16, 16)
    result = p.training_crop(image, rng(), Augmentation(**STILL, vertical_flip=1.0))
    np.testing.assert_array_equal(result, image[::-1])
    bgr = Preprocessing(
        16, 16, scale=1.0, mean=(103.9, 116.8, 123.7), std=(1, 1, 1), channel_order="BGR"
    )
    result = bgr.training_crop(image, rng(1), Augmentation(**STILL, erase=1.0))
    erased = (result != image).any(axis=-1)
    assert set(map(tuple, result[erased])) == {(124, 117, 104)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation": -1},
        {"rotation": 181},
        {"shear": 90},
        {"zoom": 1},
        {"hue": 0.6},
        {"brightness": float("nan")},
        {"erase": 2},
        {"vertical_flip": True},
        {"policy": (2, 31)},
        {"policy": (1.5, 9)},
        {"policy": 2},
        {"policy": (11, 9)},
    ],
)
def test_values_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"(--|: ){next(iter(wrong))} must be"):
        Augmentation(**wrong)
