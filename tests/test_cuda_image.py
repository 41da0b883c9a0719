"""From bytes to a network's input on CUDA, on the checker and on a GPU."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.data.preprocessing import Preprocessing
from minitl.kernels.cuda import image as launchers
from tests.cuda_launch import ROUNDING, Launchers, bf16, each_device, widened

cuda = Launchers(launchers)
device = each_device()

MEAN, STD, SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255


def pictures(n, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


def normalised(images):
    return (images.astype(np.float64) * SCALE - MEAN) / STD


def close(found, expected):
    ctype = "bf16" if found.dtype == np.uint16 else "float"
    np.testing.assert_allclose(
        widened(found), expected, rtol=1.01 * ROUNDING[ctype], atol=16 * ROUNDING["float"]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 7), (3, 8, 8), (1, 3, 67)])
def test_whole_pictures(size, dtype):
    images = pictures(*size)
    out = cuda.normalize_images(images, MEAN, STD, SCALE, None, None, None, size[1:], dtype)
    assert out.dtype == dtype
    assert out.shape == images.shape
    close(out, normalised(images))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("crop", [1, 3, 8, (5, 8), (9, 11)])
def test_parts_and_mirrors(crop, dtype):
    images = pictures(6, 9, 11)
    rows, columns = (crop, crop) if isinstance(crop, int) else crop
    rng = np.random.default_rng(1)
    flip = np.arange(6) % 2 == 0
    top = rng.integers(0, 9 - rows, 6, np.int32, endpoint=True)
    left = rng.integers(0, 11 - columns, 6, np.int32, endpoint=True)
    out = cuda.normalize_images(images, MEAN, STD, SCALE, flip, top, left, crop, dtype)
    parts = [x[t : t + rows, c : c + columns] for x, t, c in zip(images, top, left, strict=True)]
    expected = [x[:, ::-1] if f else x for x, f in zip(parts, flip, strict=True)]
    close(out, normalised(np.array(expected)))


def test_without_a_place_it_is_the_middle():
    images = pictures(2, 8, 10)
    out = cuda.normalize_images(images, MEAN, STD, SCALE, None, None, None, 4, np.float32)
    close(out, normalised(images[:, 2:6, 3:7]))


def test_it_is_what_preprocessing_computes_on_the_cpu():
    images, preprocessing = pictures(2, 16, 16), Preprocessing(crop=16, resize=16)
    p = preprocessing
    out = cuda.normalize_images(images, p.mean, p.std, p.scale, None, None, None, 16, np.float32)
    np.testing.assert_allclose(out, p.normalise(images), rtol=1e-6, atol=2e-7)
    narrow = cuda.normalize_images(images, p.mean, p.std, p.scale, None, None, None, 16, np.uint16)
    np.testing.assert_array_equal(narrow, bf16(out))


def test_what_does_not_fit_is_refused():
    images = pictures(2, 4, 4)
    settings = MEAN, STD, SCALE
    with pytest.raises(ValueError, match="cannot cut 5 x 5 out of pictures of 4 x 4"):
        cuda.normalize_images(images, *settings, None, None, None, 5, np.float32)
    with pytest.raises(TypeError, match=r"top must be int32 \(2,\); got int64 \(2,\)"):
        cuda.normalize_images(images, *settings, None, np.zeros(2, "q"), None, 4, np.float32)
    with pytest.raises(TypeError, match=r"images must be \(N, H, W, 3\) bytes"):
        cuda.normalize_images(images.astype("f"), *settings, None, None, None, 4, np.float32)
    with pytest.raises(TypeError, match="float32 or bfloat16, not float64"):
        cuda.normalize_images(images, *settings, None, None, None, 4, np.float64)
