"""The contact sheet of a run that has not been started yet."""

import io
from pathlib import Path

from minitl import models
from minitl.convert.pull import find_weights
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.data.preview import contact_sheet
from minitl.errors import UserError
from minitl.files import write_atomically
from minitl.train.config import Config
from minitl.train.console import say
from minitl.train.source import dataset_of


def preview(config: Config, out: Path, pictures: int, columns: int) -> None:
    """Write a PNG of what a run with these settings shows the network, in its first epochs.

    pictures: rows; columns: epochs. Raises UserError for bad data, weights or settings.
    """
    dataset = dataset_of(config)
    loader = Loader(
        dataset.train,
        dataset.root,
        _preprocessing(config),
        config.batch_size,
        seed=config.seed,
        augment=config.augmentation(),
        workers=0,
    )
    sheet = contact_sheet(dataset, loader, pictures=pictures, epochs=columns)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(out, buffer.getvalue())
    say(f"{out}: {min(pictures, len(dataset.train))} training pictures in {columns} epochs")


def _preprocessing(config: Config) -> Preprocessing:
    if config.preprocessing is not None:
        return Preprocessing.from_dict(config.preprocessing)
    if config.weights is not None:
        model = models.load_model(find_weights(config.weights, say))
    elif config.arch is not None:
        try:
            model = models.create(config.arch, seed=None)
        except ValueError as error:
            raise UserError(f"--arch: {error}") from None
    else:
        raise UserError("give --weights FILE.h5 or --arch NAME: it says how pictures are prepared")
    return Preprocessing.from_dict(model.preprocessing)


__all__ = ["preview"]
