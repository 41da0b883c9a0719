"""Batches of pictures, decoded in threads while the network computes on earlier ones.

Threads are enough because Pillow lets go of the interpreter lock while it decodes and resizes.

Nothing depends on their number or timing: the order of an epoch comes from (seed, epoch), the
variation of a picture from (seed, epoch, its index), and each result has its own place in the batch.
So training can be stopped after any batch and resumed there, bit for bit: `epoch(e, start_batch=b)`
gives what an uninterrupted epoch would have given from batch b on.

Tasks never wait for anything: they are handed out a few batches ahead and no more, so an iteration
that is abandoned leaves nothing running but the pictures being decoded at that moment.
"""

import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from minitl.data.augment import Augmentation
from minitl.data.dataset import Sample
from minitl.data.decode import KEEP, decode_image
from minitl.data.preprocessing import Preprocessing

PICTURES_PER_TASK = 4  # a small picture decodes in the time that handing over a task takes
BATCHES_AHEAD = 2

# What a random stream is for; the first word of its key.
_ORDER, _PICTURE = 0, 1  # 2: minitl/train/mixing.py, 3: dropout, in minitl/train/trained_model.py


class Batch(NamedTuple):
    """Pictures and their labels.

    images: (n, crop, crop, 3) float32, or uint8 from a loader that does not normalise. labels: (n,) int64,
        or the rows of targets (n, columns) float64.
    indices: (n,) int64, into the samples.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


class Loader:
    """Makes batches of samples, epoch by epoch.

    samples: pictures with labels, their paths relative to `root` (or absolute).
    preprocessing: what the network wants; see there.
    batch_size: pictures per batch. The last batch of an epoch may be smaller, or is left out with
        `drop_last`.
    seed: decides order and variations, together with the epoch's number.
    augment: how pictures are varied; None: each is prepared as for evaluation.
    shuffle: a new order in each epoch; else the samples' own. balanced: a new choice in each epoch as
        well, as many pictures as there are samples, of all classes equally many (to one).
    workers: threads; 0 prepares each batch when it is asked for. None: one per core, at most 8.
    cache_bytes: memory for pictures that need not be decoded again: whole ones where they are varied,
        else the finished crops. When it is full, further pictures are decoded anew in each epoch.

    normalise: turn bytes into the network's numbers; else leave that to who takes the batches, whose
        channels are then in the network's order all the same.
    targets: rows that the samples' labels are the numbers of, where there are several tasks.

    wait_seconds: how long the consumer has waited for batches so far. Where this is a good part of the
        time, decoding is what limits.

    Raises ValueError for a batch size below 1, for no samples, for `drop_last` with fewer samples than a
    batch, and for what must not be negative and is; while iterating, ImageError that names the file for a
    picture that cannot be decoded, and ValueError for an epoch or batch that is not there.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        root: str | Path,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augmentation | None = None,
        shuffle: bool = False,
        workers: int | None = None,
        drop_last: bool = False,
        cache_bytes: int = 512 * 2**20,
        normalise: bool = True,
        balanced: bool = False,
        targets: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if not samples:
            raise ValueError("a loader needs at least one sample; got none")
        if drop_last and len(samples) < batch_size:
            raise ValueError(
                f"{len(samples)} samples make no full batch of {batch_size}, and drop_last leaves out "
                "smaller ones; use a smaller batch_size"
            )
        if seed < 0 or cache_bytes < 0 or (workers is not None and workers < 0):
            raise ValueError(
                f"seed, workers and cache_bytes must not be negative; got {seed}, {workers}, {cache_bytes}"
            )
        self.samples = list(samples)
        self.root = Path(root)
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.shuffle = shuffle
        self.balanced = balanced
        self.drop_last = drop_last
        self.normalise = normalise
        self.workers = min(usable_cores(), 8) if workers is None else workers
        self.wait_seconds = 0.0
        numbers = np.array([sample.label for sample in self.samples], np.int64)
        self.labels = numbers if targets is None else targets[numbers]
        self._min_side = _min_side(preprocessing, augment)
        self._cache = _Cache(cache_bytes)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.samples), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch: indices into the samples, int64."""
        if self.balanced:
            return self._balanced_order(self._rng(_ORDER, epoch))
        if not self.shuffle:
            return np.arange(len(self.samples), dtype=np.int64)
        return self._rng(_ORDER, epoch).permutation(len(self.samples)).astype(np.int64)

    def _balanced_order(self, rng: np.random.Generator) -> np.ndarray:
        """Draw equally many indices of each class, none of them again before all of its class were drawn."""
        classes = rng.permutation(np.unique(self.labels))  # the first ones get what does not divide
        share, rest = divmod(len(self.samples), len(classes))
        drawn = []
        for number, label in enumerate(classes):
            own, wanted = np.flatnonzero(self.labels == label), share + (number < rest)
            rounds = [rng.permutation(own) for _ in range(-(-wanted // len(own)))]
            drawn += [np.concatenate(rounds)[:wanted]] if wanted else []
        return rng.permutation(np.concatenate(drawn)).astype(np.int64)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, from `start_batch` on.

        Raises ImageError, which names the file, for a picture that cannot be decoded.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(
                f"no batch {start_batch} in epoch {epoch}: an epoch has {len(self)} batches, and both "
                "are counted from 0"
            )
        chosen = self.order(epoch)[start_batch * self.batch_size : len(self) * self.batch_size]
        return self.pictures(chosen, epoch, self.batch_size)

    def pictures(
        self, chosen: np.ndarray, epoch: int, batch_size: int
    ) -> Generator[Batch, None, None]:
        """Yield these samples in this order, varied as in an epoch; the last batch may be smaller.

        Raises ImageError as `epoch`.
        """
        starts = range(0, len(chosen), batch_size)
        return self._batches([chosen[start : start + batch_size] for start in starts], epoch)

    def _batches(self, chosen: list[np.ndarray], epoch: int) -> Generator[Batch, None, None]:
        if self.workers == 0:
            for indices in chosen:
                started = time.perf_counter()
                batch = self._empty(indices)
                self._fill(batch, epoch, 0, len(indices))
                self.wait_seconds += time.perf_counter() - started
                yield batch
            return

        executor = ThreadPoolExecutor(self.workers, thread_name_prefix="minitl-decode")
        under_way: deque[tuple[Batch, list[Future[None]]]] = deque()
        remaining = iter(chosen)
        try:
            for indices in itertools.islice(remaining, BATCHES_AHEAD):
                under_way.append(self._submit(executor, indices, epoch))
            while under_way:
                batch, futures = under_way.popleft()
                for indices in itertools.islice(remaining, 1):
                    under_way.append(self._submit(executor, indices, epoch))
                started = time.perf_counter()
                for future in futures:
                    future.result()
                self.wait_seconds += time.perf_counter() - started
                yield batch
        finally:
            # Also on Ctrl-C, on an error, and when the consumer stops early (the generator is closed).
            executor.shutdown(wait=True, cancel_futures=True)

    def _submit(
        self, executor: ThreadPoolExecutor, indices: np.ndarray, epoch: int
    ) -> tuple[Batch, list["Future[None]"]]:
        batch = self._empty(indices)
        starts = range(0, len(indices), PICTURES_PER_TASK)
        return batch, [
            executor.submit(self._fill, batch, epoch, start, start + PICTURES_PER_TASK)
            for start in starts
        ]

    def _empty(self, indices: np.ndarray) -> Batch:
        crop = self.preprocessing.crop
        kind = np.float32 if self.normalise else np.uint8
        images = np.empty((len(indices), crop, crop, 3), kind)
        return Batch(images, self.labels[indices], indices)

    def _fill(self, batch: Batch, epoch: int, start: int, stop: int) -> None:
        """Prepare the pictures start..stop of a batch in their places."""
        for place in range(start, min(stop, len(batch.indices))):
            index = int(batch.indices[place])
            try:
                crop = self.crop(index, epoch)
                if self.normalise:
                    self.preprocessing.normalise(crop, out=batch.images[place])
                else:
                    batch.images[place] = self.preprocessing.in_channel_order(crop)
            except Exception as error:
                error.add_note(f"while preparing {self.root / self.samples[index].path}")
                raise

    def crop(self, index: int, epoch: int) -> np.ndarray:
        """Return what the network is shown of a picture in an epoch: (crop, crop, 3) uint8, RGB."""
        picture: np.ndarray | Image.Image | None = self._cache.get(index)
        if self.augment is None:
            if isinstance(picture, np.ndarray):
                return picture
            crop = self.preprocessing.evaluation_crop(self._decode(index))
            self._cache.put(index, crop)
            return crop
        if picture is None:
            picture = self._decode(index)
            self._cache.put(index, picture)
        rng = self._rng(_PICTURE, epoch, index)
        return self.preprocessing.training_crop(picture, rng, self.augment)

    def _decode(self, index: int) -> Image.Image:
        return decode_image(self.root / self.samples[index].path, min_side=self._min_side)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key))
        )


class _Cache:
    """Pictures by index, up to a number of bytes. Nothing is thrown out: each is used once an epoch."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._pictures: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> np.ndarray | None:
        return self._pictures.get(index)

    def put(self, index: int, picture: np.ndarray | Image.Image) -> None:
        height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size
        size = 3 * height * width
        with self._lock:
            if index in self._pictures or self._used + size > self._limit:
                return
            self._used += size  # reserved; the copying is done outside of the lock
        self._pictures[index] = np.asarray(picture)


def _min_side(preprocessing: Preprocessing, augment: Augmentation | None) -> int:
    """Return the pixels that are needed along a picture's shorter side; more only take time and memory.

    A square picture with p pixels a side has random crops down to p * sqrt(scale * ratio) along their
    shorter side. `decode` keeps KEEP times what is asked for; that suffices here if not even the
    smallest crop has to be enlarged.
    """
    if augment is None:
        return preprocessing.resize
    narrow = min(augment.ratio[0], 1 / augment.ratio[1], 1.0)
    smallest = math.sqrt(augment.scale[0] * narrow)
    return max(preprocessing.crop, math.ceil(preprocessing.crop / smallest / KEEP))


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine has in containers and batch jobs."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


__all__ = ["Batch", "Loader", "usable_cores"]
