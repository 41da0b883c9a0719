"""The digits that come without a download."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from minitl.data import digits
from minitl.data.digits import write_digits
from minitl.data.folder import scan
from minitl.errors import UserError


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "all")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_all_of_them(everything: Path) -> None:
    data = scan(everything, val_fraction=0)
    assert data.classes == [str(digit) for digit in range(10)]
    assert data.counts("train") == np.bincount(load_digits().target).tolist()
    image = Image.open(everything / "0" / "0000.png")
    assert image.size == (32, 32) and image.mode == "L"
    assert [p.name for p in everything.parent.iterdir()] == ["all"]


def test_pictures_are_the_scans(everything: Path) -> None:
    """Shade 16 is white; bilinear between the 8 x 8 points, which lie in the middle of 4 x 4 pixels."""
    scans = load_digits()
    places = (np.arange(32) + 0.5) / 4 - 0.5
    for number in (0, 500, 1796):
        path = everything / str(scans.target[number]) / f"{number:04}.png"
        shades = scans.images[number] * 255 / 16
        rows = np.stack([np.interp(places, np.arange(8), row) for row in shades])
        expected = np.stack([np.interp(places, np.arange(8), column) for column in rows.T]).T
        assert np.abs(np.asarray(Image.open(path)) - expected).max() < 2  # rounded three times


def test_few_labels(tmp_path: Path, everything: Path) -> None:
    data = scan(write_digits(tmp_path / "few", labels_per_class=10, seed=3))
    assert data.counts("train") == [10] * 10
    assert data.counts("val") == [10] * 10
    assert len(data.test) == 1797 - 200 and data.seed is None
    few, whole = contents(tmp_path / "few"), contents(everything)
    assert {name.partition("/")[2]: content for name, content in few.items()} == whole


def test_deterministic_and_repeatable(tmp_path: Path) -> None:
    first = write_digits(tmp_path / "one", labels_per_class=2, seed=1)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*.png")}
    write_digits(tmp_path / "one", labels_per_class=2, seed=1)
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*.png")} == before
    second = write_digits(tmp_path / "two", labels_per_class=2, seed=1)
    assert contents(first) == contents(second)
    other = write_digits(tmp_path / "three", labels_per_class=2, seed=2)
    assert set(contents(other)) != set(contents(first))


def test_an_empty_folder_is_filled_and_another_is_left(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(contents(write_digits(tmp_path / "empty", 1))) == 1797
    with pytest.raises(UserError, match="something other"):
        write_digits(tmp_path / "empty", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="something other"):
        write_digits(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    with pytest.raises(UserError, match="is a file"):
        write_digits(tmp_path / "mine" / "thesis.txt")


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    fromarray = digits.Image.fromarray

    def fail(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1797 + 100:  # each picture is made once to enlarge it and once to save it
            raise KeyboardInterrupt
        return fromarray(*args)

    monkeypatch.setattr(digits.Image, "fromarray", fail)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [0, -1, 87, 5000])
def test_labels_per_class_is_checked(tmp_path: Path, labels: int) -> None:
    with pytest.raises(UserError, match="from 1 to 86"):
        write_digits(tmp_path / "x", labels)
    assert list(tmp_path.iterdir()) == []
