"""The contact sheet shows exactly what training sees."""

from pathlib import Path

import numpy as np
from PIL import Image

from minitl.data.augment import Augmentation
from minitl.data.folder import scan
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.data.preview import CAPTION, LARGEST, MARGIN, contact_sheet


def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "d\N{SNOWMAN}g"):
        (tmp_path / name).mkdir()
        for i in range(4):
            array = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    return tmp_path


def make_loader(root: Path, crop: int) -> Loader:
    dataset = scan(root)
    return Loader(
        dataset.train,
        root,
        Preprocessing(crop, crop),
        2,
        seed=5,
        augment=Augmentation(),
        shuffle=True,
    )


def test_every_place_holds_the_picture_of_its_epoch(tmp_path: Path) -> None:
    root = folder(tmp_path)
    loader = make_loader(root, 32)
    sheet = np.asarray(contact_sheet(scan(root), loader, pictures=4, epochs=3))
    # Classes by turns: the first training picture of each, then the second of each.
    labels = [sample.label for sample in loader.samples]
    second = labels.index(1)
    for row, index in enumerate((0, second, 1, second + 1)):
        for epoch in range(3):
            top = CAPTION + MARGIN + row * (32 + MARGIN + CAPTION)
            left = MARGIN + epoch * (32 + MARGIN)
            shown = sheet[top : top + 32, left : left + 32]
            np.testing.assert_array_equal(shown, loader.crop(index, epoch))


def test_there_may_be_fewer_pictures_and_larger_ones(tmp_path: Path) -> None:
    root = folder(tmp_path)
    loader = make_loader(root, 224)
    sheet = contact_sheet(scan(root), loader, pictures=100, epochs=1)
    assert sheet.width == 2 * MARGIN + LARGEST
    assert sheet.height == MARGIN + CAPTION + len(loader.samples) * (LARGEST + MARGIN + CAPTION)
