"""The contact sheet of a run that has not been started yet."""

import io
from pathlib import Path

import numpy as np

from minitl import models
from minitl.convert.locate import find_weights
from minitl.data.dataset import Dataset
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.data.preview import contact_sheet, draw_sheet
from minitl.errors import UserError
from minitl.files import write_atomically
from minitl.train.batches import Inputs
from minitl.train.config import Config
from minitl.train.console import say
from minitl.train.mixing import mix
from minitl.train.prepared_pictures import load_with_preprocessing
from minitl.train.source import dataset_of
from minitl.train.usable_data import without_bad_images

NARROWEST = 150  # pixels that the shares of two classes take


def preview(config: Config, out: Path, pictures: int, columns: int) -> None:
    """Write a PNG of what a run with these settings shows the network, in its first epochs.

    pictures: rows; columns: epochs. Where batches are mixed, these are the first pictures of each epoch.
    Raises UserError for bad data, weights or settings.
    """
    dataset = dataset_of(config)
    if config.skip_bad:  # which pictures there are decides their order
        dataset = without_bad_images(dataset, config)
    if config.cached_views:  # further epochs show these again
        columns = min(columns, config.cached_views)
    loader = Loader(
        dataset.train,
        dataset.root,
        _preprocessing(config),
        config.batch_size,
        seed=config.seed,
        augment=config.augmentation(),
        shuffle=True,
        balanced=config.sampler == "balanced",
        workers=0,
    )
    pictures = min(pictures, len(dataset.train))
    if config.mixup or config.cutmix:
        pictures = min(pictures, config.batch_size)
        mixed = [_mixed(dataset, loader, config, epoch)[:pictures] for epoch in range(columns)]
        sheet = draw_sheet(list(zip(*mixed, strict=True)), NARROWEST)
    else:
        sheet = contact_sheet(dataset, loader, pictures=pictures, epochs=columns)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(out, buffer.getvalue())
    say(f"{out}: {pictures} training pictures in {columns} epochs")


def _mixed(
    dataset: Dataset, loader: Loader, config: Config, epoch: int
) -> list[tuple[np.ndarray, str]]:
    """Return the pictures of an epoch's first batch as they are mixed, and what is in each."""
    chosen = loader.order(epoch)[: loader.batch_size]
    crops = np.stack([loader.crop(int(index), epoch) for index in chosen]).astype(np.float32)
    inputs = Inputs(crops, chosen, chosen)  # numbers of samples in the place of labels
    mixed = mix(inputs, config.mixup, config.cutmix, seed=config.seed, epoch=epoch, batch=0)
    assert mixed.mixed is not None
    share = mixed.mixed.share
    names = [dataset.label_of(loader.samples[index]) for index in chosen]
    captions = [
        f"{share:.0%} {own}, {1 - share:.0%} {other}"
        for own, other in zip(names, names[::-1], strict=True)
    ]
    return list(zip(np.rint(mixed.x).astype(np.uint8), captions, strict=True))


def _preprocessing(config: Config) -> Preprocessing:
    if config.preprocessing is not None:
        return Preprocessing.from_dict(config.preprocessing)
    if config.weights is not None:
        model = load_with_preprocessing(find_weights(config.weights, say))
    elif config.arch is not None:
        try:
            model = models.create(config.arch, seed=None)
        except ValueError as error:
            raise UserError(f"--arch: {error}") from None
    else:
        usual = Preprocessing()
        say(
            f"pictures as most networks want them, {usual.crop} x {usual.crop} pixels; --weights or --arch "
            "shows those of yours"
        )
        return usual
    return Preprocessing.from_dict(model.preprocessing)


__all__ = ["preview"]
