"""Splits that are written down and read back."""

import json
import os
from pathlib import Path

import pytest

from minitl.data.dataset import Dataset, load_split
from minitl.data.folder import scan
from minitl.errors import UserError
from tests.test_data_folder import fill, many


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Dataset, Path]:
    data = scan(fill(tmp_path / "data", *many("a", 5), *many("\u00fc b", 5)), seed=7)
    data.save_split(tmp_path / "split.json")
    return data, tmp_path / "split.json"


def test_split_round_trip(saved: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, file = saved
    assert load_split(file, data.root) == data
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["seed"] == 7 and content["val_fraction"] == 0.2
    assert str(tmp_path) not in file.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "split.json"]


def test_split_of_another_place(saved: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, file = saved
    data.root.rename(tmp_path / "moved")
    assert load_split(file, tmp_path / "moved").train == data.train


def test_split_knows_its_files_by_size_and_date(
    saved: tuple[Dataset, Path], tmp_path: Path
) -> None:
    data, file = saved
    assert load_split(file, data.root).changed() == data.changed() == []
    (data.root / "a/1.jpg").write_bytes(b"longer")
    later = (data.root / "a/2.jpg").stat().st_mtime_ns + 1
    os.utime(data.root / "a/2.jpg", ns=(later, later))
    assert sorted(load_split(file, data.root).changed()) == ["a/1.jpg", "a/2.jpg"]
    load_split(file, data.root).save_split(file)
    assert load_split(file, data.root).changed() == []
    data.root.rename(tmp_path / "moved")
    assert load_split(file, tmp_path / "moved").changed() == []
    content = json.loads(file.read_text(encoding="utf-8"))
    assert len(content.pop("files")) == 10  # and an older release wrote none
    file.write_text(json.dumps(content))
    assert load_split(file, tmp_path / "moved").changed() == []


def test_interrupted_save_keeps_the_old_one(saved: tuple[Dataset, Path], monkeypatch) -> None:
    data, file = saved
    before = file.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        data.save_split(file)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 2


def test_split_names_a_picture_that_is_gone(saved: tuple[Dataset, Path]) -> None:
    data, file = saved
    (data.root / "a" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 10 pictures .* a/3\.jpg"):
        load_split(file, data.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "not a split written by minitl"),
        (lambda c: c.update(format_version=3), "version 3"),
        (lambda c: c.pop("classes"), "`classes`"),
        (lambda c: c.update(classes=["a", "a"]), "`classes`"),
        (lambda c: c.update(seed="x"), "`seed`"),
        (lambda c: c.update(notes=[1]), "`notes`"),
        (lambda c: c.update(files=["a/1.jpg"]), "`files`"),
        (lambda c: c["files"].update({"a/1.jpg": "1"}), "`files`"),
        (lambda c: c["files"].update({"a/1.jpg": 1}), "`files`"),
        (lambda c: c.pop("val"), "'val'"),
        (lambda c: c["train"].update(z=[]), "'train'"),
        (lambda c: c["train"].update(a="a/1.jpg"), "not a list of paths"),
        (lambda c: c["train"]["a"].append("../../etc/x.jpg"), "not a path inside"),
        (lambda c: c["train"]["a"].append("/etc/x.jpg"), "not a path inside"),
        (lambda c: c["val"]["a"].append(c["train"]["a"][0]), "more than once"),
    ],
)
def test_damaged_split(saved: tuple[Dataset, Path], change, message: str) -> None:
    data, file = saved
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_split(file, data.root)


def test_split_that_is_no_json(saved: tuple[Dataset, Path]) -> None:
    data, file = saved
    file.write_bytes(b"\xff\x00{")
    with pytest.raises(UserError, match="cannot be read"):
        load_split(file, data.root)
    file.write_text("[1]")
    with pytest.raises(UserError, match="not a split"):
        load_split(file, data.root)
    with pytest.raises(UserError, match="does not exist"):
        load_split(file.with_name("other.json"), data.root)
