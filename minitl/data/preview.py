"""A contact sheet: what the network will see of some pictures, with their labels."""

import numpy as np
from PIL import Image, ImageDraw

from minitl.data.folder import Dataset, Sample
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
    chosen = _by_turns(loader.samples, pictures)
    side = min(loader.preprocessing.crop, LARGEST)
    step_x, step_y = side + MARGIN, side + MARGIN + CAPTION
    size = MARGIN + epochs * step_x, MARGIN + CAPTION + len(chosen) * step_y
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for column in range(epochs):
        title = f"epoch {column + 1}" if side >= TITLE else str(column + 1)
        draw.text((MARGIN + column * step_x, 0), title, fill=(0, 0, 0))
    for row, index in enumerate(chosen):
        top = CAPTION + MARGIN + row * step_y
        for column in range(epochs):
            crop = Image.fromarray(np.ascontiguousarray(loader.crop(index, column)))
            shown = crop.resize((side, side)) if crop.width > side else crop
            sheet.paste(shown, (MARGIN + column * step_x, top))
        sample = loader.samples[index]
        caption = f"{dataset.label_of(sample)}: {sample.path}"
        draw.text((MARGIN, top + side), _drawable(caption), fill=(0, 0, 0))
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


__all__ = ["contact_sheet"]
