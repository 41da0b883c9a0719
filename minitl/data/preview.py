"""A contact sheet: what the network will see of some pictures, with their labels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from minitl.data.dataset import Dataset, Sample
from minitl.data.loader import Loader

MARGIN = 4
CAPTION = 14  # pixels of a line of text
LARGEST = 160  # side of a picture on the sheet
TITLE = 48  # pixels that "epoch 10" takes


def contact_sheet(
    dataset: Dataset, loader: Loader, *, pictures: int = 8, epochs: int = 6
) -> Image.Image:
    """Return a sheet with a row for each picture and a column for each epoch.

    The rows go through the classes in turn. loader: of the dataset's training part; decides how pictures
    are prepared and varied, and they are exactly those that training with it will see.
    """
    rows = []
    for index in _by_turns(loader.samples, pictures):
        sample = loader.samples[index]
        captions = [f"{dataset.label_of(sample)}: {sample.path}", *[""] * (epochs - 1)]
        crops = [loader.crop(index, epoch) for epoch in range(epochs)]
        rows.append(list(zip(crops, captions, strict=True)))
    return draw_sheet(rows)


def draw_sheet(rows: Sequence[Sequence[tuple[np.ndarray, str]]], narrowest: int = 0) -> Image.Image:
    """Draw rows of square pictures (s, s, 3) uint8, each with a line of text below, a column for each epoch.

    narrowest: pixels that a column has at least, for its text.
    """
    epochs, crop = len(rows[0]), len(rows[0][0][0])
    side = min(crop, LARGEST)
    step_x, step_y = max(side, narrowest) + MARGIN, side + MARGIN + CAPTION
    size = MARGIN + epochs * step_x, MARGIN + CAPTION + len(rows) * step_y
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for column in range(epochs):
        title = f"epoch {column + 1}" if step_x >= TITLE else str(column + 1)
        draw.text((MARGIN + column * step_x, 0), title, fill=(0, 0, 0))
    for number, row in enumerate(rows):
        top = CAPTION + MARGIN + number * step_y
        for column, (picture, caption) in enumerate(row):
            left = MARGIN + column * step_x
            image = Image.fromarray(np.ascontiguousarray(picture))
            sheet.paste(image.resize((side, side)) if crop > side else image, (left, top))
            draw.text((left, top + side), _drawable(caption), fill=(0, 0, 0))
    return sheet


def _by_turns(samples: list[Sample], count: int) -> list[int]:
    """Return indices of up to `count` samples, one of each class, then a second one of each ..."""
    seen: dict[int, int] = {}
    turns = []
    for index, sample in enumerate(samples):
        seen[sample.label] = seen.get(sample.label, 0) + 1
        turns.append((seen[sample.label], sample.label, index))
    return [index for _, _, index in sorted(turns)[:count]]


def _drawable(text: str) -> str:
    """Keep what Pillow's built-in font can draw."""
    return text.encode("latin-1", "replace").decode("latin-1")


__all__ = ["contact_sheet", "draw_sheet"]
