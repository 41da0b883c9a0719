"""What the frozen front of a network computes for pictures: from the pictures, or from the cache.

A network is cut behind its longest run of stages in which nothing trains, no statistics move and nothing
is drawn at random. What lies before the cut gives the same numbers in every epoch. They are computed for
FEATURE_BATCH pictures at a time, the last ones filled up with black: how kernels compute depends on the
number of pictures, and with it the last bit of a result; in batches of one size it does not depend on the
neighbours. So features are the same bits, whether they come from the pictures or from the cache, and
whatever the batch size of training.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import numpy as np

from minitl import models, nn
from minitl.backend import Array
from minitl.data.loader import Batch, Loader
from minitl.data.stamps import Stamp, stamps
from minitl.device import Device
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.text import printable
from minitl.train.batches import on_device
from minitl.train.console import Progress, say
from minitl.train.feature_cache import FeatureCache, Rebatched
from minitl.train.inference import Inference

FEATURE_BATCH = 32


def frozen_stages(model: Classifier) -> int:
    """Return how many of the first stages give the same for a picture in every epoch of training."""
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    count = 0
    for stage in model.stages():
        prefixes = tuple(f"{name}." for name in stage.modules)
        trained = any(p.requires_grad for n, p in parameters.items() if n.startswith(prefixes))
        inside = [m for n, m in modules.items() if n in stage.modules or n.startswith(prefixes)]
        if trained or any(_changes(module) for module in inside):
            break
        count += 1
    if len(model.heads) > 1 and count < len(model.stages()):
        return 0  # a second head looks at a map in the middle
    return count


def _changes(module: nn.Module) -> bool:
    """Whether a module gives something else each time, even if its parameters stay."""
    if isinstance(module, nn.BatchNorm2d):
        return not module.frozen
    return isinstance(module, nn.Dropout) and module.p > 0


class Features:
    """Features of a loader's pictures behind the first `cut` stages of a model.

    cache: where they are kept; None computes them in each epoch. views: so many variations of each
    picture are kept, and epoch e shows variation e mod views. For the rest as `Forward`.
    """

    def __init__(
        self,
        model: Classifier,
        cut: int,
        loader: Loader,
        label: str,
        device: Device,
        dtype: np.dtype,
        cache: FeatureCache | None = None,
        views: int = 1,
    ) -> None:
        self._model, self._loader, self._label = model, loader, label
        self._device, self._dtype = device, dtype
        self._cache, self._views = cache, views if loader.augment is not None else 1
        self._keys: np.ndarray | None = None  # (views, samples, 32)
        self._inference = Inference(lambda x: models.run_stages(model.stages()[:cut], x), device)

    def prepare(self, quietly: bool = False) -> None:
        """Compute what the cache lacks; say so, and unless `quietly` also that it lacks nothing.

        Raises UserError where a picture is replaced meanwhile, and where the disk has no room for varied
        pictures; without room for others, they are computed in each epoch.
        """
        if self._cache is None or self._keys is not None:
            return
        # Before the digests: a picture that changes in between then looks changed, not the other way round.
        files = stamps(self._loader.root, (sample.path for sample in self._loader.samples))
        keys = self._make_keys()
        missing = [self._cache.missing(view) for view in keys]
        count = sum(map(len, missing))
        if count:
            shape = self.row_shape()
            size, free = self._cache.room(count, shape)
            if size > 0.9 * free:
                self._do_without(size, free)
                return
            there = keys.shape[0] * keys.shape[1] - count
            say(
                f"  features behind {self._cache.about['cut']}, {self._label}: {count} to compute, {there} "
                f"there already; {megabytes(size)} more in {self._cache.folder.parent}"
            )
            with Progress(f"features, {self._label}", count) as progress:
                for view, indices in enumerate(missing):
                    if len(indices):
                        rows = self._unchanged(self._computed(view, indices), indices, files)
                        self._cache.add(keys[view, indices], shape, _counted(rows, progress))
        elif not quietly:
            say(f"  features behind {self._cache.about['cut']}, {self._label}: all kept already")
        self._keys = keys

    def _do_without(self, size: int, free: int) -> None:
        assert self._cache is not None
        problem = (
            f"the features would take {megabytes(size)} in {self._cache.folder.parent}, where "
            f"{megabytes(free)} are free"
        )
        if self._loader.augment is not None:
            raise UserError(
                f"{problem}; choose fewer --cached-views, or another place with --feature-cache DIR"
            )
        say(f"  {problem}; they are computed in each epoch instead (--feature-cache DIR)")
        self._cache = None

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features (n, ...) float32 and labels (n,) of an epoch's batches, in the loader's order."""
        self.prepare(quietly=True)
        loader, size = self._loader, self._loader.batch_size
        chosen = loader.order(epoch)[start_batch * size : len(loader) * size]
        labels = loader.labels[chosen]
        if self._keys is None or self._cache is None:
            parts = self._streamed(epoch, chosen)
        else:
            parts = self._read(epoch, chosen)
        done = 0
        for part in parts:
            yield part, labels[done : done + len(part)]
            done += len(part)

    def _read(self, epoch: int, chosen: np.ndarray) -> Iterator[np.ndarray]:
        assert self._cache is not None
        assert self._keys is not None
        size, keys = self._loader.batch_size, self._keys[epoch % len(self._keys)]
        for start in range(0, len(chosen), size):
            yield self._cache.rows(keys[chosen[start : start + size]])

    def _streamed(self, epoch: int, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the features of these pictures in batches of the training's size."""
        rows = Rebatched(self._computed(epoch, chosen))
        size = self._loader.batch_size
        for start in range(0, len(chosen), size):
            yield np.concatenate(list(rows.take(min(size, len(chosen) - start))))

    def _computed(self, epoch: int, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the features of these pictures, varied as in an epoch where they are varied."""
        pictures = self._loader.pictures(chosen, epoch, FEATURE_BATCH)
        inputs = on_device(
            map(_filled_up, pictures), self._loader.preprocessing, self._device, self._dtype
        )
        with self._inference:
            for start, batch in zip(range(0, len(chosen), FEATURE_BATCH), inputs, strict=True):
                yield self._run(batch.x)[: len(chosen) - start]

    def _unchanged(
        self, parts: Iterator[np.ndarray], chosen: np.ndarray, before: Mapping[str, Stamp]
    ) -> Iterator[np.ndarray]:
        """Pass features on where their pictures are still the files that the keys were made of.

        Raises UserError for others: the cache would keep them for the content that was there before.
        """
        root, done = self._loader.root, 0
        for part in parts:
            paths = [self._loader.samples[i].path for i in chosen[done : done + len(part)]]
            now = stamps(root, paths)
            changed = [path for path in paths if now.get(path) != before.get(path)]
            if changed:
                raise UserError(
                    f"{printable(str(root / changed[0]))} was replaced while its features were computed; "
                    "start again once nothing writes to the pictures"
                )
            yield part
            done += len(part)

    def _run(self, x: Array) -> np.ndarray:
        was_training = self._model.training
        self._model.eval()
        try:
            return self._inference(x).numpy().astype(np.float32, copy=False)
        finally:
            self._model.train(was_training)

    def rows(self, on_rows: Callable[[int], object]) -> Iterator[np.ndarray]:
        """Yield the features of all pictures in the samples' order; computed, whatever is kept."""
        for part in self._computed(0, np.arange(len(self._loader.samples))):
            yield part
            on_rows(len(part))

    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of a picture's features."""
        crop = self._loader.preprocessing.crop
        black = self._device.array(np.zeros((1, crop, crop, 3), np.float32))
        with self._inference:
            return self._run(self._device.kernels.cast(black, self._dtype)).shape[1:]

    def _make_keys(self) -> np.ndarray:
        """Return what stands for each picture in each of its variations: (views, samples, 32) uint8."""
        loader = self._loader
        assert self._cache is not None
        files = self._cache.keys_of(loader.root, loader.samples, max(loader.workers, 1))
        if loader.augment is None:
            return np.frombuffer(b"".join(files), np.uint8).reshape(1, -1, 32)
        # A variation is drawn from seed, epoch and the picture's number.
        how = json.dumps([asdict(loader.augment), loader.seed], sort_keys=True)
        keys = [
            hashlib.sha256(f"{how} {view} {index} {file.hex()}".encode()).digest()
            for view in range(self._views)
            for index, file in enumerate(files)
        ]
        return np.frombuffer(b"".join(keys), np.uint8).reshape(self._views, -1, 32)


def _counted(parts: Iterator[np.ndarray], progress: Progress) -> Iterator[np.ndarray]:
    for part in parts:
        yield part
        progress.update(len(part))


def _filled_up(batch: Batch) -> Batch:
    """Return a batch of FEATURE_BATCH pictures, the missing ones black."""
    lacking = FEATURE_BATCH - len(batch.images)
    if not lacking:
        return batch
    images = np.concatenate([batch.images, np.zeros_like(batch.images[:1]).repeat(lacking, axis=0)])
    return Batch(
        images,
        np.zeros((FEATURE_BATCH, *batch.labels.shape[1:]), batch.labels.dtype),
        batch.indices,
    )


def megabytes(size: int) -> str:
    """Write a number of bytes as 0.3 MB, 45 MB or 1.2 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


__all__ = ["FEATURE_BATCH", "Features", "frozen_stages", "megabytes"]
