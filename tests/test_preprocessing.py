"""Preprocessing as torchvision does it, repeated here step by step with Pillow alone."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minitl.data.augment import Augmentation
from minitl.data.preprocessing import Preprocessing, _random_box
from minitl.errors import UserError

IMAGENET = Preprocessing()
PLAIN = {"scale": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_hand(image: np.ndarray, p: Preprocessing, filter_: Image.Resampling) -> np.ndarray:
    """torchvision: Resize(p.resize), CenterCrop(p.crop), ToTensor(), Normalize(mean, std)."""
    pil = Image.fromarray(image)
    w, h = pil.size
    short, long = (w, h) if w <= h else (h, w)
    new_short, new_long = p.resize, int(p.resize * long / short)
    new_w, new_h = (new_short, new_long) if w <= h else (new_long, new_short)
    pil = pil.resize((new_w, new_h), filter_)
    top = round((new_h - p.crop) / 2.0)
    left = round((new_w - p.crop) / 2.0)
    pil = pil.crop((left, top, left + p.crop, top + p.crop))
    x = np.asarray(pil, np.float64)
    if p.channel_order == "BGR":
        x = x[..., ::-1]
    return (x * p.scale - np.array(p.mean)) / np.array(p.std)


@pytest.mark.parametrize(
    "size", [(300, 400), (400, 300), (256, 256), (257, 511), (31, 47), (1000, 260), (225, 224)]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos", "box"])
def test_evaluation(size: tuple[int, int], interpolation: str) -> None:
    p = Preprocessing(interpolation=interpolation)
    image = picture(*size)
    result = p.evaluation(image)
    assert result.shape == (224, 224, 3) and result.dtype == np.float32
    assert result.flags.c_contiguous
    expected = by_hand(image, p, Image.Resampling[interpolation.upper()])
    assert np.abs(result - expected).max() < 1e-6


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 9))
def test_evaluation_of_any_size(height: int, width: int, crop: int, margin: int) -> None:
    p = Preprocessing(resize=crop + margin, crop=crop, **PLAIN)
    image = picture(height, width)
    np.testing.assert_array_equal(
        p.evaluation(image), by_hand(image, p, Image.Resampling.BILINEAR).astype(np.float32)
    )


@pytest.mark.parametrize(
    "p",
    [
        Preprocessing(32, 32, scale=1.0, mean=(103.9, 116.8, 123.7), std=(1, 1, 1), channel_order="BGR"),
        Preprocessing(32, 32, scale=1 / 127.5, mean=(1, 1, 1), std=(1, 1, 1)),
        Preprocessing(32, 32, scale=1, mean=(125.307, 122.95, 113.865), std=(62.9932, 62.0887, 66.7048)),
    ],
)  # fmt: skip
def test_other_houses(p: Preprocessing) -> None:
    """Caffe, TensorFlow's [-1, 1], and statistics given in bytes."""
    image = picture(32, 32)
    expected = by_hand(image, p, Image.Resampling.BILINEAR)
    assert np.abs(p.evaluation(image) - expected).max() < 2e-7 * max(1, np.abs(expected).max()) * 4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_no_resize_is_the_identity(interpolation: str) -> None:
    image = picture(32, 32)
    p = Preprocessing(32, 32, interpolation, **PLAIN)
    np.testing.assert_array_equal(p.evaluation(image), image.astype(np.float32))
    whole = Augmentation(scale=(1, 1), ratio=(1, 1), flip=0)
    np.testing.assert_array_equal(p.training(image, np.random.default_rng(0), whole), image)


def test_normalise_writes_where_told() -> None:
    images = picture(8, 16).reshape(2, 8, 8, 3)
    out = np.full((2, 8, 8, 3), np.nan, np.float32)
    result = IMAGENET.normalise(images, out)
    assert result is out
    np.testing.assert_array_equal(out[1], IMAGENET.normalise(images[1]))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        IMAGENET.evaluation(image)
    with pytest.raises(ValueError, match="uint8"):
        IMAGENET.training(image, np.random.default_rng(0))


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 99))
def test_pillow_pictures_give_the_same(height: int, width: int, seed: int) -> None:
    p = Preprocessing(14, 12)
    image = picture(height, width)
    pil = Image.fromarray(image)
    np.testing.assert_array_equal(p.evaluation(image), p.evaluation(pil))
    first, second = (p.training(x, np.random.default_rng(seed)) for x in (image, pil))
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=r"mode RGB.*got L"):
        p.evaluation(pil.convert("L"))


# Training


def test_training_is_decided_by_the_generator() -> None:
    image = picture(60, 80)
    p = Preprocessing(32, 32)
    first = p.training(image, np.random.default_rng(5))
    assert first.shape == (32, 32, 3) and first.dtype == np.float32 and first.flags.c_contiguous
    np.testing.assert_array_equal(first, p.training(image, np.random.default_rng(5)))
    assert (first != p.training(image, np.random.default_rng(6))).any()


@pytest.mark.parametrize("flip", [0, 1])
def test_training_crops_then_resizes(flip: int) -> None:
    """As torchvision's resized_crop: what lies outside of the crop has no influence."""
    image = picture(50, 70)
    p = Preprocessing(32, 32, **PLAIN)
    augmentation = Augmentation(flip=flip)
    result = p.training(image, np.random.default_rng(1), augmentation)
    rng = np.random.default_rng(1)
    rng.random()
    top, left, rows, columns = _random_box(50, 70, rng, augmentation)
    expected = Image.fromarray(image).crop((left, top, left + columns, top + rows))
    expected = np.asarray(expected.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(result, expected[:, ::-1] if flip else expected)


def test_flip_probability() -> None:
    image = picture(8, 8)
    p = Preprocessing(8, 8, **PLAIN)
    whole = Augmentation(scale=(1, 1), ratio=(1, 1), flip=0.25)
    rng = np.random.default_rng(0)
    flipped = sum(
        bool((p.training(image, rng, whole) == image[:, ::-1]).all()) for _ in range(1000)
    )
    assert abs(flipped - 250) < 55  # four standard deviations


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(0, 10**6),
    st.sampled_from([0.08, 0.35, 0.9]),
)
def test_random_box_fits(height: int, width: int, seed: int, smallest: float) -> None:
    augmentation = Augmentation(scale=(smallest, 1.0))
    top, left, rows, columns = _random_box(height, width, np.random.default_rng(seed), augmentation)
    assert rows >= 1 and columns >= 1
    assert 0 <= top <= height - rows and 0 <= left <= width - columns


def test_random_box_distribution() -> None:
    """Area uniform, log of the ratio uniform, both within their limits; every place is reached."""
    rng = np.random.default_rng(0)
    augmentation = Augmentation(scale=(0.2, 0.5))
    boxes = np.array([_random_box(1000, 1000, rng, augmentation) for _ in range(3000)])
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    ratio = np.log(boxes[:, 3] / boxes[:, 2])
    assert area.min() > 0.199 and area.max() < 0.501
    assert abs(area.mean() - 0.35) < 0.006  # about four standard errors
    assert abs(ratio).max() < math.log(4 / 3) + 0.01 and abs(ratio.mean()) < 0.013
    assert abs(ratio.std() - math.log(4 / 3) / math.sqrt(3)) < 0.01  # a uniform variable's spread
    for place, size in ((boxes[:, 0], boxes[:, 2]), (boxes[:, 1], boxes[:, 3])):
        share = place / (1000 - size)
        assert share.min() < 0.01 and share.max() > 0.99 and abs(share.mean() - 0.5) < 0.022


@pytest.mark.parametrize(
    ("size", "box"), [((10, 1000), (0, 494, 10, 13)), ((1000, 10), (494, 0, 13, 10))]
)
def test_very_long_pictures_give_their_middle(size, box) -> None:
    augmentation = Augmentation(scale=(0.9, 1.0))
    top, left, rows, columns = _random_box(*size, np.random.default_rng(0), augmentation)
    assert (rows, columns) == box[2:]
    assert abs(top - box[0]) <= 1 and abs(left - box[1]) <= 1


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"scale": (0.9, 0.1)}, "scale"),
        ({"scale": 0.5}, "scale"),
        ({"ratio": (1, float("inf"))}, "ratio"),
        ({"ratio": ("a", 2)}, "ratio"),
        ({"flip": 1.5}, "flip"),
        ({"flip": True}, "flip"),
    ],
)
def test_senseless_augmentation(values: dict, field: str) -> None:
    with pytest.raises(UserError, match=f"^(augmentation: |--crop-){field} must"):
        Augmentation(**values)


# To and from the weights file


def test_round_trip_through_json() -> None:
    p = Preprocessing(342, 299, "bicubic", "BGR", 1 / 127.5, (1.0, 0.9, 0.8), (1.0, 2.0, 3.0))
    assert Preprocessing.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    assert Preprocessing.from_dict(p.to_dict()) == p
    assert hash(p) == hash(Preprocessing.from_dict(p.to_dict()))


def test_every_field_and_no_other() -> None:
    values = IMAGENET.to_dict()
    del values["crop"], values["mean"]
    with pytest.raises(UserError, match="lacks crop, mean and has unknown color"):
        Preprocessing.from_dict(values | {"color": 1})
    with pytest.raises(UserError, match="table"):
        Preprocessing.from_dict([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", 0),
        ("crop", 224.0),
        ("crop", True),
        ("crop", 10**6),
        ("resize", 100),  # below the crop
        ("resize", "256"),
        ("interpolation", "cubic"),
        ("interpolation", None),
        ("channel_order", "rgb"),
        ("scale", 0),
        ("scale", "1/255"),
        ("scale", float("nan")),
        ("mean", [0.5, 0.5]),
        ("mean", 0.5),
        ("mean", [0, 0, float("inf")]),
        ("std", [1, 1, 0]),
        ("std", [1, 1, "1"]),
    ],
)
def test_wrong_values_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"preprocessing: {field} must be"):
        Preprocessing.from_dict(IMAGENET.to_dict() | {field: value})


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (3, 200)])
def test_a_strip_is_cut_before_it_is_resized(shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    rows, columns = (slice(3 * n // 8, 5 * n // 8) if n > 8 else slice(n) for n in shape)
    picture[rows, columns] = 90
    tracemalloc.start()
    result = Preprocessing().evaluation_crop(picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.shape == (224, 224, 3)
    assert result[112, 112].tolist() == [90] * 3  # of the middle
    assert peak < 50 * 2**20
