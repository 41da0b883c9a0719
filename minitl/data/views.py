"""Several views of each picture, for predictions that are averaged over them (test-time augmentation)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitl.data.dataset import Sample
from minitl.data.decode import ImageError
from minitl.data.loader import Batch, Loader
from minitl.data.preprocessing import Picture, Preprocessing
from minitl.errors import UserError

AT_ONCE = 32  # views, about: what a batch holds


@dataclass(frozen=True)
class Views:
    """Which views: crops 1 (the middle) or 5 (the corners as well), each mirrored too with `flip`.

    These are the ten crops of Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional
    Neural Networks".
    """

    crops: int = 1
    flip: bool = False

    @property
    def count(self) -> int:
        """Number of views of each picture."""
        return self.crops * (2 if self.flip else 1)

    @classmethod
    def parse(cls, text: str) -> "Views":
        """Read "flip", "crops:5" or both with a comma. Raises UserError for anything else."""
        words = text.split(",")
        if not words or set(words) - {"flip", "crops:5"} or len(set(words)) < len(words):
            raise UserError(f"--tta cannot be {text!r}; choose flip, crops:5, or flip,crops:5")
        return cls(crops=5 if "crops:5" in words else 1, flip="flip" in words)

    def check(self, preprocessing: Preprocessing) -> None:
        """Raise UserError where corners would be no other views than the middle."""
        if self.crops > 1 and preprocessing.resize == preprocessing.crop:
            raise UserError(
                f"--tta crops:5 needs a margin, and these weights want pictures resized to "
                f"{preprocessing.crop} pixels, all of which are used; choose --tta flip"
            )

    def __call__(self, preprocessing: Preprocessing, picture: Picture) -> np.ndarray:
        """Return the views of a picture: (count, crop, crop, 3) uint8, RGB."""
        crops = preprocessing.evaluation_crops(picture, corners=self.crops > 1)
        if self.flip:
            crops = [*crops, *(crop[:, ::-1] for crop in crops)]
        return np.stack(crops)


class ViewLoader(Loader):
    """Batches of all views of some pictures, each once and in their order.

    Images are (n * views, crop, crop, 3), the views of a picture one after the other, labels repeated in
    the same way; indices are of the n pictures. Nothing is kept in memory.

    skip_bad: go on past pictures that cannot be read; their views are black, and `bad` has the reason by
    index. Else ImageError is raised.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        root: str | Path,
        preprocessing: Preprocessing,
        views: Views | None = None,
        *,
        skip_bad: bool = False,
        workers: int = 1,
        normalise: bool = True,
    ) -> None:
        self.views = views or Views()
        self.views.check(preprocessing)
        self.skip_bad = skip_bad
        self.bad: dict[int, str] = {}
        super().__init__(
            samples,
            root,
            preprocessing,
            max(1, AT_ONCE // self.views.count),
            workers=workers,
            normalise=normalise,
            cache_bytes=0,
        )

    def _empty(self, indices: np.ndarray) -> Batch:
        crop, count = self.preprocessing.crop, self.views.count
        kind = np.float32 if self.normalise else np.uint8
        images = np.empty((len(indices) * count, crop, crop, 3), kind)
        return Batch(images, np.repeat(self.labels[indices], count, axis=0), indices)

    def _fill(self, batch: Batch, epoch: int, start: int, stop: int) -> None:
        count = self.views.count
        for place in range(start, min(stop, len(batch.indices))):
            index = int(batch.indices[place])
            own = batch.images[place * count : (place + 1) * count]
            try:
                views = self.views(self.preprocessing, self._decode(index))
            except ImageError as error:
                if not self.skip_bad:
                    raise
                self.bad[index] = error.reason
                own[...] = 0
                continue
            if self.normalise:
                self.preprocessing.normalise(views, out=own)
            else:
                own[...] = self.preprocessing.in_channel_order(views)


__all__ = ["ViewLoader", "Views"]
