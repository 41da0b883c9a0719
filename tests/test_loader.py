"""Batches: the same bits whatever the threads, and nothing left behind."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minitl.data import loader as module
from minitl.data.augment import Augmentation
from minitl.data.dataset import Sample
from minitl.data.decode import ImageError, decode, decode_image
from minitl.data.folder import scan
from minitl.data.loader import BATCHES_AHEAD, Batch, Loader
from minitl.data.preprocessing import Preprocessing
from tests.interrupts import listen_to_ctrl_c

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"
SMALL = Preprocessing(resize=20, crop=16)
COUNT = 23


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 pictures of different sizes and kinds; some are large enough to be decoded smaller."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        size = (int(rng.integers(10, 120)), int(rng.integers(10, 120)), 3)
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(root / f"{number}.{'png' if number % 2 else 'jpg'}")
    return root


def samples(count: int = COUNT) -> list[Sample]:
    return [Sample(f"{i}.{'png' if i % 2 else 'jpg'}", i % 3) for i in range(count)]


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("minitl-decode")]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# What is in a batch


def test_batches_of_evaluation(root: Path) -> None:
    loader = Loader(samples(), root, SMALL, 5, workers=2)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 5
    assert [len(b.labels) for b in batches] == [5, 5, 5, 5, 3]
    assert np.concatenate([b.indices for b in batches]).tolist() == list(range(COUNT))
    for batch in batches:
        assert batch.images.dtype == np.float32 and batch.images.shape[1:] == (16, 16, 3)
        assert batch.images.flags.c_contiguous
        assert batch.labels.dtype == batch.indices.dtype == np.int64
        for image, label, index in zip(*batch, strict=True):
            sample = samples()[index]
            assert label == sample.label
            expected = SMALL.evaluation(decode(root / sample.path, SMALL.resize))
            np.testing.assert_array_equal(image, expected)


def test_absolute_paths(root: Path) -> None:
    """For prediction: files from anywhere."""
    files = [Sample(str(root / sample.path), -1) for sample in samples(3)]
    assert_same(
        [b._replace(labels=b.indices) for b in Loader(files, ".", SMALL, 3).epoch(0)],
        [b._replace(labels=b.indices) for b in Loader(samples(3), root, SMALL, 3).epoch(0)],
    )


def test_drop_last(root: Path) -> None:
    loader = Loader(samples(), root, SMALL, 5, drop_last=True, workers=0)
    assert len(loader) == 4 == len(list(loader.epoch(0)))
    with pytest.raises(ValueError, match="no full batch"):
        Loader(samples(4), root, SMALL, 5, drop_last=True)


def test_shuffle(root: Path) -> None:
    loader = Loader(samples(), root, SMALL, 5, shuffle=True, seed=1)
    orders = [loader.order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    again = Loader(samples(), root, SMALL, 4, shuffle=True, seed=1, augment=Augmentation())
    assert again.order(2).tolist() == orders[2]
    assert Loader(samples(), root, SMALL, 5, shuffle=True, seed=2).order(0).tolist() != orders[0]
    taken = np.concatenate([batch.indices for batch in loader.epoch(1)])
    assert taken.tolist() == orders[1]


def test_every_picture_varies_by_itself(tmp_path: Path) -> None:
    """The same picture differs between epochs and, listed twice, within one."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    loader = Loader([Sample("x.png", 0)] * 4, tmp_path, SMALL, 4, augment=Augmentation(), workers=0)
    first, second = (next(loader.epoch(epoch)).images for epoch in (0, 1))
    seen = [image.tobytes() for image in (*first, *second)]
    assert len(set(seen)) == 8


# Determinism


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_workers_and_cache_change_nothing(root: Path, augment: Augmentation | None) -> None:
    def epochs(workers: int, cache_bytes: int) -> list[Batch]:
        loader = Loader(
            samples(), root, SMALL, 4, seed=3, augment=augment, shuffle=True, workers=workers,
            cache_bytes=cache_bytes,
        )  # fmt: skip
        return [batch for epoch in range(3) for batch in loader.epoch(epoch)]

    expected = epochs(0, 0)
    for workers in (0, 1, 4):
        for cache_bytes in (0, 20_000, 10**9):
            assert_same(epochs(workers, cache_bytes), expected)


@pytest.mark.parametrize("start", range(7))
def test_resuming_inside_an_epoch(root: Path, start: int) -> None:
    def loader() -> Loader:
        return Loader(samples(), root, SMALL, 4, augment=Augmentation(), shuffle=True, workers=2)

    assert_same(list(loader().epoch(3, start)), list(loader().epoch(3))[start:])


def test_augmentation_does_not_depend_on_order(root: Path) -> None:
    options = {"augment": Augmentation(), "workers": 0}
    plain = next(Loader(samples(), root, SMALL, COUNT, **options).epoch(2))
    mixed = next(Loader(samples(), root, SMALL, COUNT, shuffle=True, **options).epoch(2))
    np.testing.assert_array_equal(plain.images[mixed.indices], mixed.images)


# Cache and prefetch


class Counter:
    """Counts calls of `decode_image`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delay: float = 0) -> None:
        self.calls = 0
        self.lock = threading.Lock()
        self.delay = delay
        monkeypatch.setattr(module, "decode_image", self)

    def __call__(self, path: Path, min_side: int) -> Image.Image:
        with self.lock:
            self.calls += 1
        time.sleep(self.delay)
        return decode_image(path, min_side)


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_cache(root: Path, monkeypatch: pytest.MonkeyPatch, augment) -> None:
    counter = Counter(monkeypatch)
    loader = Loader(samples(), root, SMALL, 5, augment=augment, shuffle=True, workers=3)
    list(loader.epoch(0))
    assert counter.calls == COUNT
    list(loader.epoch(1))
    assert counter.calls == COUNT


def test_cache_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    crop = 16 * 16 * 3
    loader = Loader(samples(), root, SMALL, 5, workers=2, cache_bytes=10 * crop + 5)
    list(loader.epoch(0))
    list(loader.epoch(1))
    assert counter.calls == COUNT + (COUNT - 10)
    held = loader._cache._pictures.values()
    assert sum(p.nbytes for p in held) == 10 * crop
    assert all(p.base is None or (isinstance(p.base, bytes) and len(p.base) == crop) for p in held)


def test_reduced_pictures_suffice_for_the_smallest_crop(root: Path) -> None:
    assert module._min_side(SMALL, None) == 20
    for scale in (0.08, 0.35, 1.0):
        side = module._min_side(SMALL, Augmentation(scale=(scale, 1)))
        shortest = module.KEEP * side * (scale * 0.75) ** 0.5
        assert shortest >= SMALL.crop and side >= SMALL.crop


def test_decoding_runs_ahead_but_not_far(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    epoch = Loader(samples(), root, SMALL, 2, workers=2, cache_bytes=0).epoch(0)
    assert counter.calls == 0  # nothing before the first batch is asked for
    for number in range(3):
        next(epoch)
        limit = 2 * (number + 1 + BATCHES_AHEAD)
        deadline = time.monotonic() + 10
        while counter.calls < limit and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # would it go further?
        assert counter.calls == limit
    epoch.close()


def test_waiting_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counter(monkeypatch, delay=0.05)
    slow = Loader(samples(6), root, SMALL, 2, workers=0)
    list(slow.epoch(0))
    assert slow.wait_seconds >= 6 * 0.05
    quick = Loader(samples(6), root, SMALL, 2, workers=6)
    for _ in quick.epoch(0):
        time.sleep(0.2)  # "training": the threads finish meanwhile
    assert quick.wait_seconds < slow.wait_seconds / 2


# Errors and endings


def broken(tmp_path: Path, root: Path) -> list[Sample]:
    (tmp_path / "bad.jpg").write_bytes((root / "0.jpg").read_bytes()[:300])
    return [Sample(str(root / s.path), 0) for s in samples(9)] + [Sample("bad.jpg", 0)]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_error_names_the_file(root: Path, tmp_path: Path, workers: int) -> None:
    loader = Loader(broken(tmp_path, root), tmp_path, SMALL, 2, workers=workers)
    seen = 0
    with pytest.raises(ImageError, match=r"bad\.jpg: cannot be decoded"):
        for _ in loader.epoch(0):
            seen += 1
    assert seen == 4  # the batches before it arrive
    assert threads() == []


def test_our_own_faults_name_the_file_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode_image", lambda *_, **__: np.zeros((3, 3)))
    with pytest.raises(ValueError, match="uint8") as caught:
        list(Loader(samples(2), root, SMALL, 2, workers=1).epoch(0))
    assert caught.value.__notes__ == [f"while preparing {root / '0.jpg'}"]


def test_no_threads_after_the_end(root: Path) -> None:
    loader = Loader(samples(), root, SMALL, 2, workers=4)
    list(loader.epoch(0))
    assert threads() == []


def test_no_threads_after_giving_up(root: Path) -> None:
    loader = Loader(samples(), root, SMALL, 2, workers=4)
    for _ in loader.epoch(0):
        break
    assert threads() == []
    epoch = loader.epoch(0)
    next(epoch)
    assert threads()
    del epoch
    assert threads() == []
    never_started = loader.epoch(0)
    del never_started
    assert threads() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_threads_after_an_error_in_the_loop(root: Path, error: type[BaseException]) -> None:
    loader = Loader(samples(), root, SMALL, 2, workers=4)

    def train() -> None:
        for _ in loader.epoch(0):
            raise error

    with contextlib.suppress(error):
        train()
    assert threads() == []
    assert len(list(loader.epoch(0))) == len(loader)  # and it can be used again


def test_two_epochs_at_once(root: Path) -> None:
    loader = Loader(samples(), root, SMALL, 4, shuffle=True, augment=Augmentation(), workers=2)
    expected = list(loader.epoch(0)), list(loader.epoch(1))
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert_same([a for a, _ in pairs], expected[0])
    assert_same([b for _, b in pairs], expected[1])


SCRIPT = """
import sys
from minitl.data.dataset import Sample
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
samples = [Sample(name, 0) for name in sys.argv[3:]] * 50
loader = Loader(samples, sys.argv[1], Preprocessing(20, 16), 2, workers=4, cache_bytes=0)
if sys.argv[2] == "abandon":
    epoch = loader.epoch(0)
    next(epoch)
    raise RuntimeError("the traceback keeps the iteration alive")
while True:
    for number, _ in enumerate(loader.epoch(0)):
        if number == 3:
            print("running", flush=True)
"""


def start(root: Path, mode: str) -> subprocess.Popen[str]:
    names = [sample.path for sample in samples()]
    command = [sys.executable, "-c", SCRIPT, str(root), mode, *names]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c if os.name == "posix" else None,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_the_process(root: Path) -> None:
    with start(root, "loop") as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode != 0


@pytest.mark.parametrize("workers", [0, 1])
def test_waiting_for_slow_pictures_is_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def slowly(path: Path, min_side: int) -> Image.Image:
        time.sleep(0.01)
        return decode_image(path, min_side=min_side)

    monkeypatch.setattr(module, "decode_image", slowly)
    loader = Loader(samples(), root, SMALL, 4, workers=workers)
    assert sum(len(batch.labels) for batch in loader.epoch(0)) == COUNT
    assert loader.wait_seconds > 0.2 * 0.01 * COUNT  # less than all of it on a busy machine


def test_an_abandoned_epoch_does_not_keep_the_process(root: Path) -> None:
    with start(root, "abandon") as process:
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 1 and "the traceback keeps" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"samples": []}, "at least one sample"),
        ({"seed": -1}, "negative"),
        ({"workers": -1}, "negative"),
        ({"cache_bytes": -1}, "negative"),
    ],
)
def test_senseless_arguments(root: Path, arguments: dict, message: str) -> None:
    given = {"samples": samples(), "root": root, "preprocessing": SMALL, "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        Loader(**(given | arguments))


@pytest.mark.parametrize(("epoch", "batch"), [(-1, 0), (0, -1), (0, 13)])
def test_no_such_batch(root: Path, epoch: int, batch: int) -> None:
    with pytest.raises(ValueError, match="no batch"):
        Loader(samples(), root, SMALL, 2).epoch(epoch, batch)


@pytest.mark.real_data
def test_real_pictures() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    data = scan(DATA / "signdigits")
    p = Preprocessing(resize=64, crop=56)
    runs = [
        list(Loader(data.val, data.root, p, 64, workers=workers).epoch(0)) for workers in (0, 3)
    ]
    assert_same(*runs)
    images = np.concatenate([batch.images for batch in runs[0]])
    assert images.shape == (200, 56, 56, 3)
    assert np.isfinite(images).all() and 0.3 < images.std() < 2


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_batches_of_bytes_need_only_be_normalised(root: Path, order: str) -> None:
    preprocessing = dataclasses.replace(SMALL, channel_order=order)
    arguments: dict[str, Any] = {"augment": Augmentation(), "shuffle": True, "seed": 3}
    whole = Loader(samples(), root, preprocessing, 5, **arguments)
    bytes_only = Loader(samples(), root, preprocessing, 5, normalise=False, **arguments)
    for batch, raw in zip(whole.epoch(1), bytes_only.epoch(1), strict=True):
        assert raw.images.dtype == np.uint8
        np.testing.assert_array_equal(raw.labels, batch.labels)
        # Their channels are in the network's order already.
        np.testing.assert_array_equal(SMALL.normalise(raw.images), batch.images)
