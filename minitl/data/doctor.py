"""What is wrong with a folder of pictures, before a network learns from it.

Every file is decoded once. What is found is sorted by what it does to a result:

    error     training would stop, or the result would be a lie: folders that are no dataset to train on,
              unreadable files, the same picture in training and in validation or test, one picture under
              two labels
    warning   the result will be worse than it could be: duplicates, too few or very unequal classes, one
              class written in two ways, pictures far smaller than the network's input
    note      handled, and worth knowing: a suffix that is not the file's format, EXIF orientation,
              gray, CMYK, 16-bit, transparent or animated pictures

Pictures are the same if all their pixels are; near duplicates are found with a perceptual hash (64
bits, of which at most NEAR_BITS may differ) and must also look alike as small gray thumbnails.
"""

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minitl.data.dataset import Dataset, Sample
from minitl.data.decode import FORMATS, ImageError, decode_image
from minitl.data.parts import PARTS, Problem
from minitl.tasks import output_slices

FEW = 10  # pictures of a class in training: below this its results are mostly luck
UNEQUAL = 5.0  # times as many pictures in the largest class as in the smallest
NEAR_BITS = 6
THUMBNAIL = 16
# Mean difference of two thumbnails, in levels of 255. Photographs saved again as JPEG at half the size
# differ by up to 3.6 and by 2 bits; different pictures of four data sets (100 of each, frames of one
# series among them) by at least 9.6.
NEAR_LEVELS = 4.0
TINY = 0.5  # of the network's input side
USUAL_SIDE = 224
COLOURS = {"error": "red", "warning": "yellow", "note": "green"}  # of a finding's severity

# The suffixes that a format's files have; another one is worth a note.
_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".dib", ".bmp"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "AVIF": {".avif"},
}
_MODES = {
    "1": "black and white",
    "L": "grayscale",
    "LA": "grayscale",
    "P": "palette colours",
    "PA": "palette colours",
    "CMYK": "CMYK colours",
    "I": "16-bit grayscale",
    "I;16": "16-bit grayscale",
    "I;16B": "16-bit grayscale",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    severity: "error", "warning" or "note". kind: a short name, stable for programs. message: for people.
    pictures: paths relative to the dataset, all of them.
    """

    severity: str
    kind: str
    message: str
    pictures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    counts: part -> pictures of each class, in the order of `classes`. notes: what was left out and how labels
    were understood, see `Dataset`.
    """

    root: str
    classes: list[str]
    counts: dict[str, list[int]]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"healthy": self.healthy}


@dataclass(frozen=True)
class _Seen:
    """What was read off one picture. pixels: digest of size and content."""

    sample: Sample
    part: str
    size: tuple[int, int]
    pixels: bytes
    near: int
    thumbnail: np.ndarray
    notes: tuple[tuple[str, str], ...]


def diagnose(
    dataset: Dataset,
    *,
    problems: Iterable[Problem] = (),
    input_side: int | None = None,
    workers: int = 2,
    progress: Callable[[int], object] = lambda pictures: None,
) -> Diagnosis:
    """Look at every picture of a dataset.

    problems: what was found wrong with its layout. input_side: what the network wants; much smaller pictures
    are reported; None for the usual one. workers: decoding threads.
    progress: called with 1 after every picture.
    """
    tasks = _tasks(dataset)
    seen: list[_Seen] = []
    bad: list[tuple[str, str]] = []
    executor = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="minitl-doctor")
    try:
        for result in executor.map(lambda task: _look(dataset.root, *task), tasks):
            if isinstance(result, _Seen):
                seen.append(result)
            else:
                bad.append(result)
            progress(1)
    finally:
        executor.shutdown(cancel_futures=True)
    findings = layout_findings(problems) + [
        Finding("error", "unreadable", f"cannot be read: {reason}", [path]) for path, reason in bad
    ]
    findings += _copies(seen, dataset)
    findings += class_findings(dataset)
    findings += _small(seen, input_side)
    findings += _collected(seen)
    counts = {part: dataset.counts(part) for part in PARTS if getattr(dataset, part)}
    order = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return Diagnosis(
        str(dataset.root), list(dataset.classes), counts, findings, list(dataset.notes)
    )


def layout_findings(problems: Iterable[Problem]) -> list[Finding]:
    """Return what is wrong with a layout as findings."""
    return [Finding("error", problem.kind, problem.message) for problem in problems]


def class_findings(dataset: Dataset) -> list[Finding]:
    """Say which classes have too few pictures to train on, are very unequal, or may be one class.

    One without any is no dataset to train on, which is said elsewhere.
    """
    counts = dataset.counts("train")
    found = []
    names = dataset.classes
    few = [(name, count) for name, count in zip(names, counts, strict=True) if 0 < count < FEW]
    if few:
        listed = ", ".join(f"{name} ({count})" for name, count in few[:8])
        more = f" and {len(few) - 8} more" if len(few) > 8 else ""
        found.append(
            Finding("warning", "few", f"fewer than {FEW} training pictures: {listed}{more}")
        )
    for own in output_slices(dataset.tasks) or [
        slice(None)
    ]:  # a task is compared with itself alone
        found += _imbalance(names[own], counts[own]) + _alike(names[own])
    return found


def _alike(names: list[str]) -> list[Finding]:
    """Say which classes are the same words but for upper and lower case and what stands between them."""
    by_words: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_words[re.sub(r"(?<=\w)[ _-]+(?=\w)", " ", name.strip().casefold())].append(name)
    return [
        Finding(
            "warning",
            "alike-classes",
            f"{' and '.join(group)} are different classes; if one is meant, give it one name",
        )
        for group in by_words.values()
        if len(group) > 1
    ]


def _imbalance(names: list[str], counts: list[int]) -> list[Finding]:
    there = [(count, name) for count, name in zip(counts, names, strict=True) if count]
    if not there:
        return []
    largest, smallest = (extreme(there, key=lambda pair: pair[0]) for extreme in (max, min))
    times = largest[0] / smallest[0]
    if times < UNEQUAL:
        return []
    return [
        Finding(
            "warning",
            "imbalance",
            f"{largest[1]} has {times:.0f} times as many training pictures as {smallest[1]}; accuracy then "
            f"says little about {smallest[1]}: read the F1 scores",
        )
    ]


def quick_findings(dataset: Dataset) -> list[Finding]:
    """Find what matters most without decoding anything: equal files, few and unequal pictures.

    Only files of equal size are read, so this takes next to no time, and pictures that were saved
    anew are not recognised as copies: for that there is `diagnose`. At most one finding of each kind.
    """
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for group in _equal_files(dataset):
        for finding in _copy_findings(group, dataset, "the same file"):
            by_kind[finding.kind].append(finding)
    return [_merged(findings) for findings in by_kind.values()] + class_findings(dataset)


def _equal_files(dataset: Dataset) -> list[list[tuple[Sample, str]]]:
    """Group pictures whose files are equal to the byte, with the part that each is in."""
    by_size: dict[int, list[tuple[Sample, str]]] = defaultdict(list)
    for sample, part in _tasks(dataset):
        by_size[(dataset.root / sample.path).stat().st_size].append((sample, part))
    groups: dict[bytes, list[tuple[Sample, str]]] = defaultdict(list)
    for size, candidates in by_size.items():
        for sample, part in candidates if len(candidates) > 1 else ():
            with (dataset.root / sample.path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            groups[size.to_bytes(8) + digest].append((sample, part))
    return [group for group in groups.values() if len(group) > 1]


def _merged(findings: list[Finding]) -> Finding:
    """Say findings of one kind in a single sentence."""
    first = findings[0]
    if len(findings) == 1:
        return first
    pictures = [path for finding in findings for path in finding.pictures]
    message = f"{first.message}; and {len(findings) - 1} more such groups"
    return Finding(first.severity, first.kind, message, pictures)


def _tasks(dataset: Dataset) -> list[tuple[Sample, str]]:
    return [(sample, part) for part in PARTS for sample in getattr(dataset, part)]


def _look(root: Path, sample: Sample, part: str) -> "_Seen | tuple[str, str]":
    path = root / sample.path
    try:
        with Image.open(path, formats=FORMATS) as image:
            notes = tuple(_header_notes(image, path.suffix.lower()))
        picture = decode_image(path)
    except ImageError as error:
        return sample.path, error.reason
    except Exception:  # what Image.open raises, decode_image says in words
        try:
            decode_image(path)
        except ImageError as error:
            return sample.path, error.reason
        raise
    pixels = hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16)
    return _Seen(
        sample, part, picture.size, pixels.digest(), _near_hash(picture), _thumbnail(picture), notes
    )


def _header_notes(image: Image.Image, suffix: str) -> Iterable[tuple[str, str]]:
    """Yield (kind, message) for what is unusual about a file and handled."""
    expected = _SUFFIXES.get(image.format or "", {suffix})
    if suffix not in expected:
        yield "suffix", f"{image.format} files with the suffix {suffix or '(none)'}"
    if image.mode in _MODES:
        what = _MODES[image.mode]
        yield what.replace(" ", "-"), f"{what}; used as RGB"
    if image.has_transparency_data:
        yield "alpha-channel", "an alpha channel; shown on white"
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged note does not spoil the picture
        orientation = 1
    if orientation in range(2, 9):
        yield "exif-orientation", "stored sideways or mirrored with an EXIF note; turned upright"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        yield "animated", "animations; only the first picture is used"


def _near_hash(picture: Image.Image) -> int:
    """Return a perceptual hash of 64 bits: alike pictures differ in few of them."""
    import imagehash  # brings SciPy along; only needed here

    bits = imagehash.phash(picture).hash.reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes())


def _thumbnail(picture: Image.Image) -> np.ndarray:
    gray = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(gray, np.float32)


def _copies(seen: list[_Seen], dataset: Dataset) -> list[Finding]:
    """Group equal and nearly equal pictures and say what each group means."""
    equal: dict[bytes, list[_Seen]] = defaultdict(list)
    for one in seen:
        equal[one.pixels].append(one)
    found = [
        finding
        for group in equal.values()
        if len(group) > 1
        for finding in _copy_findings(
            [(one.sample, one.part) for one in group], dataset, "the same picture"
        )
    ]
    firsts = [group[0] for group in equal.values()]
    for group in _near_groups(firsts):
        everyone = [(one.sample, one.part) for first in group for one in equal[first.pixels]]
        found += _copy_findings(everyone, dataset, "nearly the same picture")
    return found


def _copy_findings(
    group: Sequence[tuple[Sample, str]], dataset: Dataset, what: str
) -> list[Finding]:
    """Say what copies in these parts mean, under these labels: a conflict, a leak, both, or neither."""
    # By number first, as classes are ordered; of several tasks each picture has a number of its own.
    in_order = sorted((sample for sample, _ in group), key=lambda sample: sample.label)
    labels = list(dict.fromkeys(dataset.label_of(sample) for sample in in_order))
    parts = sorted({part for _, part in group}, key=PARTS.index)
    paths = [sample.path for sample, _ in group]
    near = "near-" if what.startswith("nearly") else ""
    severity = "warning" if near else "error"
    found = []
    if len(labels) > 1 and _contradict([sample.label for sample in in_order], dataset.targets):
        message = f"{what} is labelled {' and '.join(labels)}"
        found.append(Finding(severity, f"{near}label-conflict", message, paths))
    if len(parts) > 1:
        message = f"{what} is in {' and '.join(parts)}: the judgement would be of learned pictures"
        found.append(Finding(severity, f"{near}leak", message, paths))
    message = f"{what} is there {len(group)} times"
    return found or [Finding("warning", f"{near}duplicate", message, paths)]


def _contradict(numbers: list[int], targets: np.ndarray | None) -> bool:
    """Whether different labels exclude each other: of several tasks, not where one knows less."""
    if targets is None:
        return True
    rows = targets[numbers]
    known = np.where(np.isnan(rows), np.inf, rows), np.where(np.isnan(rows), -np.inf, rows)
    return bool((known[0].min(axis=0) < known[1].max(axis=0)).any())


def _near_groups(seen: list[_Seen]) -> list[list[_Seen]]:
    """Return groups of pictures that are connected by looking alike.

    Two hashes that differ in at most NEAR_BITS bits are equal in at least one of NEAR_BITS + 1 bands of
    them, so only pictures that share a band are compared.
    """
    hashes = np.array([one.near for one in seen], np.uint64)
    parent = list(range(len(seen)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    edges = np.linspace(0, 64, NEAR_BITS + 2).astype(int).tolist()
    for low, high in itertools.pairwise(edges):
        band = hashes >> np.uint64(low) & np.uint64((1 << (high - low)) - 1)
        by_band = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[by_band])) + 1
        for members in np.split(by_band, starts):
            for position, i in enumerate(members[:-1].tolist()):
                rest = members[position + 1 :]
                near = rest[np.bitwise_count(hashes[rest] ^ hashes[i]) <= NEAR_BITS]
                for j in near.tolist():
                    if root(i) != root(j) and _look_alike(seen[i], seen[j]):
                        parent[root(j)] = root(i)
    groups: dict[int, list[_Seen]] = defaultdict(list)
    for i, one in enumerate(seen):
        groups[root(i)].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _look_alike(a: _Seen, b: _Seen) -> bool:
    return float(np.abs(a.thumbnail - b.thumbnail).mean()) <= NEAR_LEVELS


def _small(seen: list[_Seen], input_side: int | None) -> list[Finding]:
    side = input_side or USUAL_SIDE
    small = [one.sample.path for one in seen if min(one.size) < TINY * side]
    if not small:
        return []
    whose = "the network's input" if input_side else "the usual input of a network"
    message = (
        f"{len(small)} pictures are less than half as large as {whose} ({side} px); they are blown up"
        + ("" if input_side else "; --weights says how large yours is")
    )
    return [Finding("warning", "small", message, small)]


def _collected(seen: list[_Seen]) -> list[Finding]:
    by_note: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in seen:
        for note in one.notes:
            by_note[note].append(one.sample.path)
    return [
        Finding("note", kind, f"{len(paths)} pictures: {message}", paths)
        for (kind, message), paths in sorted(by_note.items())
    ]


__all__ = [
    "COLOURS",
    "Diagnosis",
    "Finding",
    "class_findings",
    "diagnose",
    "layout_findings",
    "quick_findings",
]
