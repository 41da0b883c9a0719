"""Folders of pictures: layouts, the draw of parts, and what people get wrong."""

import os
from pathlib import Path

import pytest

from minitl.data.dataset import Sample
from minitl.data.folder import scan
from minitl.data.scanner import list_pictures
from minitl.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


def fill(root: Path, *names: str) -> Path:
    """Make files (empty: scanning never opens them); a name with a slash at the end makes a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def many(prefix: str, count: int) -> list[str]:
    return [f"{prefix}/{number}.jpg" for number in range(count)]


def paths(samples: list[Sample]) -> list[str]:
    return [sample.path for sample in samples]


# What is found


def test_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, *many("dog", 10), *many("cat", 5))
    data = scan(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert data.counts("train") == [4, 8]
    assert data.counts("val") == [1, 2]
    assert data.test == []
    assert (data.seed, data.val_fraction, data.notes) == (0, 0.2, [])
    for sample in data.train + data.val:
        assert sample.path.startswith(data.classes[sample.label] + "/")
        assert (tmp_path / sample.path).is_file()


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "Dev", "eval", "valid_set"])
def test_parts(tmp_path: Path, val: str) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/2.png", f"{val}/a/3.png", f"{val}/b/4.png")
    fill(tmp_path, "test/a/5.png", "test/b/6.png")
    data = scan(tmp_path)
    assert data.train == [Sample("train/a/1.png", 0), Sample("train/b/2.png", 1)]
    assert data.val == [Sample(f"{val}/a/3.png", 0), Sample(f"{val}/b/4.png", 1)]
    assert data.test == [Sample("test/a/5.png", 0), Sample("test/b/6.png", 1)]
    assert data.seed is None and data.val_fraction is None


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Test"),
        ("TRAIN", "Testing"),
        ("train_set", "test set"),
        ("train-images", "test"),
    ],
)
def test_other_names_of_parts(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, *many(f"{train}/a", 5), *many(f"{train}/b", 5), *many(f"{test}/a", 1))
    fill(tmp_path, *many(f"{test}/b", 2))
    data = scan(tmp_path)
    assert data.classes == ["a", "b"]
    counts = [data.counts(part) for part in ("train", "val", "test")]
    assert counts == [[4, 4], [1, 1], [1, 2]]


def test_train_and_test_without_val(tmp_path: Path) -> None:
    fill(tmp_path, *many("train/a", 10), *many("train/b", 10), "test/a/x.png", "test/b/y.png")
    data = scan(tmp_path, val_fraction=0.3)
    assert data.counts("train") == [7, 7] and data.counts("val") == [3, 3]
    assert len(data.test) == 2
    assert all(path.startswith("train/") for path in paths(data.train + data.val))


def test_every_suffix_and_case_and_nesting(tmp_path: Path) -> None:
    suffixes = "jpg jpeg JPG JPEG png PNG bmp gif webp tif tiff TIF ppm pgm pbm pnm jfif avif"
    names = [f"a/{i}.{suffix}" for i, suffix in enumerate(suffixes.split())]
    fill(tmp_path, *names, "a/deep/er/1.png", "b/1.png", "b/2.png")
    data = scan(tmp_path)
    found = paths(data.train + data.val)
    assert sorted(found) == sorted([*names, "a/deep/er/1.png", "b/1.png", "b/2.png"])


def test_hidden_and_other_files(tmp_path: Path) -> None:
    fill(tmp_path, *many("a", 3), *many("b", 3), ".git/x.jpg", "a/.thumbs/x.jpg", "a/.x.jpg")
    fill(tmp_path, "a/readme.txt", "b/photo.heic", "notes.csv", "stray.jpg", "Thumbs.db")
    fill(tmp_path, "__MACOSX/a/x.jpg", "a/@eaDir/x.jpg", ".DS_Store")
    data = scan(tmp_path)
    assert data.counts("train") == [2, 2] and data.counts("val") == [1, 1]
    assert len(data.notes) == 1
    assert "5 files" in data.notes[0] and ".heic" in data.notes[0] and ".txt" in data.notes[0]


def test_links(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *many("a", 3), *many("b", 3), "pool/")
    outside = fill(tmp_path / "outside", "secret.jpg", "folder/secret.jpg")
    fill(tmp_path, "data/a/more/inside.jpg")
    (root / "pool").rmdir()
    (root / "b" / "link.jpg").symlink_to(root / "a" / "0.jpg")  # inside: followed
    (root / "b" / "linked").symlink_to(root / "a" / "more")  # inside: followed
    (root / "b" / "again").symlink_to(root / "a" / "more")  # the same folder twice: once
    (root / "a" / "up").symlink_to(root)  # a loop
    (root / "a" / "self").symlink_to(root / "a")  # a loop
    (root / "a" / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "a" / "out").symlink_to(outside / "folder")
    (root / "a" / "broken.jpg").symlink_to(root / "nowhere.jpg")
    (root / "c").symlink_to(outside)  # a class folder outside
    data = scan(root)
    assert data.classes == ["a", "b"]
    found = sorted(paths(data.train + data.val))
    assert found[:4] == ["a/0.jpg", "a/1.jpg", "a/2.jpg", "a/more/inside.jpg"]
    assert found[4:7] == ["b/0.jpg", "b/1.jpg", "b/2.jpg"]
    assert found[8:] == ["b/link.jpg"] and found[7] in ("b/again/inside.jpg", "b/linked/inside.jpg")
    outward, useless = data.notes
    assert "3 links that lead out of" in outward and "--follow-links" in outward
    assert "3 links that are broken or lead back" in useless

    data = scan(root, follow_links=True)
    assert data.classes == ["a", "b", "c"]
    more = {"a/out.jpg", "a/out/secret.jpg", "c/secret.jpg", "c/folder/secret.jpg"}
    assert set(paths(data.train + data.val)) - set(found) == more
    (useless,) = data.notes
    assert "3 links that are broken or lead back" in useless


def test_class_folders_and_files_that_are_links(tmp_path: Path) -> None:
    """A split made of links: the pool holds the pictures, the folders only say which part they are in."""
    pool = fill(tmp_path / "pool", *many("a", 4), *many("b", 4))
    for part, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        for name in "ab":
            folder = fill(tmp_path, f"data/{part}/{name}/") / "data" / part / name
            for number in numbers:
                (folder / f"{number}.jpg").symlink_to(pool / name / f"{number}.jpg")
    root = tmp_path / "data"
    message = error(root)
    assert "'a' has no pictures" in message and "3 links" in message and "--follow-links" in message
    data = scan(root, follow_links=True)
    assert (data.counts("train"), data.counts("val")) == ([3, 3], [1, 1])
    folders = fill(tmp_path / "folders", "x/")
    (folders / "x").rmdir()
    for name in "ab":
        (folders / name).symlink_to(pool / name)
    assert "2 links" in error(folders) and "--follow-links" in error(folders)
    assert scan(folders, follow_links=True).classes == ["a", "b"]


def test_a_link_that_comes_back_from_outside_is_not_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *many("a", 2), *many("b", 2))
    outside = fill(tmp_path / "outside", "1.jpg")
    (root / "a" / "out").symlink_to(outside)
    (outside / "back").symlink_to(root)
    data = scan(root, follow_links=True)
    assert len(data.train + data.val) == 5


def test_two_links_that_point_at_each_others_folder_end(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/x/1.jpg", "a/y/2.jpg", "b/1.jpg")
    (root / "a/x/to_y").symlink_to(root / "a/y")
    (root / "a/y/to_x").symlink_to(root / "a/x")
    data = scan(root)
    assert len(data.train) + len(data.val) == 3


def test_classes_named_like_parts(tmp_path: Path) -> None:
    """Vehicles: a class "train" beside "bus"."""
    fill(tmp_path, *many("train", 3), *many("bus", 3))
    assert scan(tmp_path).classes == ["bus", "train"]
    fill(tmp_path / "nested", *many("train/steam", 3), *many("bus", 3))
    assert scan(tmp_path / "nested").classes == ["bus", "train"]


def test_unlabelled_test_folder_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, *many("train/a", 3), *many("train/b", 3), *many("test", 4))
    data = scan(tmp_path)
    assert data.classes == ["a", "b"] and data.test == []
    assert "test: its pictures are not in class folders" in data.notes[0]


def test_accents_in_either_unicode_form(tmp_path: Path) -> None:
    fill(tmp_path, "cafe\u0301/1.jpg", "cafe\u0301/2.jpg", "th\u00e9/1.jpg")
    assert scan(tmp_path).classes == ["caf\u00e9", "th\u00e9"]
    assert len(scan(tmp_path, classes=["the\u0301", "caf\u00e9"]).test) == 3


# The draw


def test_split_is_stratified_and_keeps_one_of_each(tmp_path: Path) -> None:
    fill(tmp_path, *many("one", 1), *many("two", 2), *many("three", 3), *many("hundred", 100))
    data = scan(tmp_path, val_fraction=0.2)
    assert dict(zip(data.classes, data.counts("train"), strict=True)) == {
        "hundred": 80, "one": 1, "three": 2, "two": 1,
    }  # fmt: skip
    assert dict(zip(data.classes, data.counts("val"), strict=True)) == {
        "hundred": 20, "one": 0, "three": 1, "two": 1,
    }  # fmt: skip
    high = scan(tmp_path, val_fraction=0.99)
    assert min(high.counts("train")) == 1
    assert scan(tmp_path, val_fraction=0).val == []


def test_split_depends_on_seed_and_names_alone(tmp_path: Path, monkeypatch) -> None:
    fill(tmp_path, *many("a", 50), *many("b", 50))
    data = scan(tmp_path, seed=1)
    assert data.val != scan(tmp_path, seed=2).val

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda p: sorted(scandir(p), key=lambda e: e.name)[::-1])
    assert scan(tmp_path, seed=1) == data
    monkeypatch.undo()

    fill(tmp_path, *many("c", 5))
    assert [s for s in scan(tmp_path, seed=1).val if s.label < 2] == data.val
    # One more picture moves at most one other: the draw is by name, not by turn.
    fill(tmp_path, "a/another.jpg")
    assert len(set(data.val) - set(scan(tmp_path, seed=1).val)) <= 1


def test_split_stays_the_same_across_releases(tmp_path: Path) -> None:
    fill(tmp_path, *many("a", 10), *many("b", 4))
    val = paths(scan(tmp_path, seed=3, val_fraction=0.3).val)
    assert val == ["a/4.jpg", "a/5.jpg", "a/8.jpg", "b/1.jpg"]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_bad_fraction(tmp_path: Path, fraction: float) -> None:
    fill(tmp_path, *many("a", 3), *many("b", 3))
    with pytest.raises(UserError, match="validation fraction"):
        scan(tmp_path, val_fraction=fraction)


# What people get wrong


def error(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        scan(path, **options)
    return str(caught.value)


def test_not_a_folder(tmp_path: Path) -> None:
    assert "nowhere does not exist" in error(tmp_path / "nowhere")
    fill(tmp_path, "archive.zip")
    assert "archive.zip is a file" in error(tmp_path / "archive.zip")


def test_empty_or_without_class_folders(tmp_path: Path) -> None:
    assert "is empty" in error(fill(tmp_path, "empty/") / "empty")
    flat = error(fill(tmp_path / "flat", "1.jpg", "2.jpg"))
    assert "no class folders" in flat and "--label-from-name" in flat
    assert "left out 1 files that are not pictures (.zip)" in error(fill(tmp_path / "zip", "a.zip"))


def test_one_class(tmp_path: Path) -> None:
    assert "only one class, 'cat'" in error(fill(tmp_path / "one", *many("cat", 3)))
    unpacked = fill(tmp_path / "download", *many("flowers/rose", 3), *many("flowers/tulip", 3))
    message = error(unpacked)
    assert "If its 2 folders are the classes" in message and str(unpacked / "flowers") in message


def test_class_without_pictures(tmp_path: Path) -> None:
    fill(tmp_path, *many("a", 3), *many("b", 3), "c/photo.heic")
    message = error(tmp_path)
    assert "class 'c' has no pictures" in message and ".heic" in message


def test_parts_with_different_classes(tmp_path: Path) -> None:
    fill(tmp_path, *many("train/a", 2), *many("train/b", 2), *many("val/a", 2), *many("val/B", 2))
    message = error(tmp_path)
    assert "lacks the class folders" in message
    assert ("train" in message and " B," in message) or ("val" in message and " b," in message)


def test_confusing_parts(tmp_path: Path) -> None:
    two = fill(tmp_path / "two", "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/a/1.jpg")
    assert "mean the same part" in error(two)
    no_train = fill(tmp_path / "no_train", "val/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg")
    assert "no train/" in error(no_train)
    flat = fill(tmp_path / "flat", "train/a/1.jpg", "train/b/1.jpg", "val/1.jpg")
    assert "val holds pictures but train/ holds class folders" in error(flat)
    beside = fill(tmp_path / "beside", "train/a/1.jpg", "val/a/1.jpg", "extra/x/1.jpg")
    assert "beside them pictures in extra/" in error(beside)


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    fill(tmp_path, *many("a", 3), *many("b", 3))
    (tmp_path / "a").chmod(0)
    try:
        assert "no permission" in error(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_parts_of_unknown_name_are_not_taken_for_classes(tmp_path: Path) -> None:
    a, b = many("train/cat", 2), many("train/dog", 2)
    fill(tmp_path / "one", *a, *b, "holdout/cat/1.jpg", "holdout/dog/1.jpg")
    message = error(tmp_path / "one")
    assert (
        "holdout/, train/" in message and "cat, dog" in message and "train, val and test" in message
    )
    # One of them has the name of a part: then the other may lack a class.
    fill(tmp_path / "less", *a, *b, "train/cow/1.jpg", *many("unseen/cat", 1), "unseen/dog/1.jpg")
    assert "unseen/" in error(tmp_path / "less")
    fill(tmp_path / "two", "A/cat/1.jpg", "A/dog/1.jpg", "B/cat/1.jpg", "B/dog/1.jpg")
    assert "(?P<label>" in error(tmp_path / "two")
    inside = [f"{name}/{part}/1.jpg" for name in ("cat", "dog") for part in ("train", "test")]
    assert "(?P<part>" in error(fill(tmp_path / "inside", *inside))


@pytest.mark.parametrize(
    "names",
    [
        ["cat/images/1.jpg", "cat/images/2.jpg", "dog/images/1.jpg", "dog/images/2.jpg"],
        ["cat/day/1.jpg", "cat/night/1.jpg", "dog/day/1.jpg", "dog/dusk/1.jpg"],
        ["cat/day/1.jpg", "cat/night/1.jpg", "dog/day/1.jpg", "dog/night/1.jpg", "dog/2.jpg"],
        ["cat/day/1.jpg", "cat/night/1.jpg", "dog/1.jpg", "dog/2.jpg"],
    ],
)
def test_folders_inside_classes_are_no_parts(tmp_path: Path, names: list[str]) -> None:
    assert scan(fill(tmp_path, *names)).classes == ["cat", "dog"]


def test_two_names_for_one_part_say_which_part(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "dev/a/1.jpg", "eval/a/1.jpg")
    assert "the same part, val" in error(tmp_path)


def test_nothing_left_to_judge_by(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    assert "no picture for validation" in error(tmp_path)
    assert scan(tmp_path, val_fraction=0).val == []
    fill(tmp_path, "c/2.jpg")
    assert paths(scan(tmp_path).val) in (["c/1.jpg"], ["c/2.jpg"])


# Evaluation and prediction


def test_given_classes(tmp_path: Path) -> None:
    fill(tmp_path, *many("a", 2), *many("b", 1), "c/")
    data = scan(tmp_path, classes=["c", "b", "a"])
    assert data.classes == ["c", "b", "a"]
    assert data.train == [] and data.val == [] and data.seed is None
    assert data.test == [Sample("b/0.jpg", 1), Sample("a/0.jpg", 2), Sample("a/1.jpg", 2)]


def test_given_classes_keep_parts(tmp_path: Path) -> None:
    fill(tmp_path, "val/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    data = scan(tmp_path, classes=["b", "a"])
    assert data.train == [] and len(data.val) == len(data.test) == 2


def test_given_classes_must_match(tmp_path: Path) -> None:
    fill(tmp_path, *many("cat", 2), *many("dgo", 1))
    message = error(tmp_path, classes=["cat", "dog"])
    assert "lacks the class folders dog" in message
    assert "has the folders dgo, which are none of cat, dog" in message
    empty = fill(tmp_path / "empty", "cat/", "dog/")
    assert "holds no pictures" in error(empty, classes=["cat", "dog"])


def test_list_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a/2.png", "a/1.png", "a/x/3.png", "a/note.txt", "strange.xyz", "none/")
    assert list_pictures(tmp_path / "b.jpg") == [tmp_path / "b.jpg"]
    assert list_pictures([tmp_path / "strange.xyz", str(tmp_path / "a")]) == [
        tmp_path / name for name in ("strange.xyz", "a/1.png", "a/2.png", "a/x/3.png")
    ]
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "b.jpg")
    assert len(list_pictures(tmp_path / "a")) == 3
    assert list_pictures(tmp_path / "a", follow_links=True)[-2] == tmp_path / "a" / "link.png"
    with pytest.raises(UserError, match=r"gone\.jpg does not exist"):
        list_pictures([tmp_path / "gone.jpg"])
    with pytest.raises(UserError, match="none holds no pictures"):
        list_pictures(tmp_path / "none")


@pytest.mark.real_data
def test_real_folders() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    cells = scan(DATA / "bccd_wbc")
    assert cells.classes == ["Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"]
    assert (len(cells.train), len(cells.val), len(cells.test)) == (209, 139, 0)
    cifar = scan(DATA / "cifar10")
    assert (len(cifar.train) + len(cifar.val), len(cifar.test)) == (1000, 500)
    assert len(list_pictures(DATA / "imagenet_samples")) == 100
