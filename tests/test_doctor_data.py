"""The data doctor: each fault planted in a healthy folder is found, and a healthy folder is healthy."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minitl.cli import main
from minitl.data.doctor import Diagnosis, diagnose, quick_findings
from minitl.data.folder import scan


def photograph(seed: int, side: int = 64) -> Image.Image:
    """Something smooth with structure of its own, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        for part, count in (("train", 12), ("val", 3)):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                photograph(1000 * number + 100 * (part == "val") + i).save(place / f"{i:02}.png")
    return tmp_path


def examine(folder: Path, **options: object) -> Diagnosis:
    return diagnose(scan(folder), **({"input_side": 64} | options))


def found(folder: Path, kind: str, **options: object) -> list[list[str]]:
    return [f.pictures for f in examine(folder, **options).findings if f.kind == kind]


def test_a_healthy_folder_is_healthy(folder: Path) -> None:
    seen: list[int] = []
    diagnosis = diagnose(scan(folder), input_side=64, progress=seen.append)
    assert diagnosis.findings == [] and diagnosis.healthy
    assert diagnosis.counts == {"train": [12, 12], "val": [3, 3]}
    assert sum(seen) == 30
    assert json.loads(json.dumps(diagnosis.to_dict()))["healthy"] is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>", "text"), (b"\xff\xd8\xff\xe0 no", "cannot be")],
)
def test_unreadable_files_are_errors(folder: Path, content: bytes, reason: str) -> None:
    (folder / "train/cat/bad.jpg").write_bytes(content)
    diagnosis = examine(folder)
    (finding,) = diagnosis.findings
    assert finding.kind == "unreadable" and finding.pictures == ["train/cat/bad.jpg"]
    assert (
        not diagnosis.healthy and reason in finding.message
    ) or "not a picture" in finding.message


def test_a_truncated_file_is_unreadable(folder: Path) -> None:
    path = folder / "train/cat/00.png"
    path.write_bytes(path.read_bytes()[:-400])
    assert found(folder, "unreadable") == [["train/cat/00.png"]]


def test_the_same_pixels_in_training_and_validation_are_a_leak(folder: Path) -> None:
    # Another file, another format: only the pixels are the same.
    Image.open(folder / "train/cat/03.png").save(folder / "val/cat/copy.bmp")
    assert found(folder, "leak") == [["train/cat/03.png", "val/cat/copy.bmp"]]
    assert not examine(folder).healthy


def test_one_picture_with_two_labels_is_an_error(folder: Path) -> None:
    Image.open(folder / "train/cat/03.png").save(folder / "train/dog/copy.png")
    (finding,) = examine(folder).findings
    assert finding.severity == "error" and finding.kind == "label-conflict"
    assert "cat and dog" in finding.message


def test_duplicates_in_one_class_are_a_warning(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.open(folder / "train/cat/03.png").save(folder / "train/cat" / name)
    (finding,) = examine(folder).findings
    assert (finding.severity, finding.kind) == ("warning", "duplicate")
    assert len(finding.pictures) == 3 and "3 times" in finding.message


@pytest.mark.parametrize("quality", [95, 60])
@pytest.mark.parametrize("side", [128, 40])
def test_pictures_saved_again_are_near_duplicates(folder: Path, quality: int, side: int) -> None:
    again = Image.open(folder / "train/cat/03.png").resize((side, side), Image.Resampling.BICUBIC)
    again.save(folder / "val/cat/again.jpg", quality=quality)
    diagnosis = examine(folder)
    assert [f.kind for f in diagnosis.findings] == ["near-leak"]
    assert diagnosis.findings[0].pictures == ["train/cat/03.png", "val/cat/again.jpg"]
    assert diagnosis.healthy  # likely, not certain


def test_equal_and_near_copies_are_told_together(folder: Path) -> None:
    picture = Image.open(folder / "train/cat/03.png")
    picture.save(folder / "train/cat/equal.png")
    picture.save(folder / "train/cat/near.jpg")
    assert [len(group) for group in found(folder, "near-duplicate")] == [3]


def test_flat_pictures_of_different_colours_are_not_alike(folder: Path) -> None:
    for value in (20, 120, 220):
        Image.new("RGB", (64, 64), (value,) * 3).save(folder / f"train/cat/flat{value}.png")
    assert examine(folder).findings == []


def test_few_and_unequal_classes(folder: Path) -> None:
    for i in range(4, 12):
        (folder / f"train/dog/{i:02}.png").unlink()
    for i in range(20, 40):
        photograph(5000 + i).save(folder / f"train/cat/{i}.png")
    findings = {f.kind: f.message for f in examine(folder).findings}
    assert findings.keys() == {"few", "imbalance"}
    assert "dog (4)" in findings["few"] and "8 times" in findings["imbalance"]


def test_pictures_far_below_the_input_size(folder: Path) -> None:
    assert len(found(folder, "small", input_side=129)[0]) == 30
    assert found(folder, "small", input_side=128) == []


def save_16_bit(path: Path) -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(ramp).save(path)


def save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(9).save(path, exif=exif)


def save_animation(path: Path) -> None:
    photograph(7).save(path, save_all=True, append_images=[photograph(8)])


@pytest.mark.parametrize(
    ("name", "save", "kind"),
    [
        ("gray.png", lambda path: photograph(9).convert("L").save(path), "grayscale"),
        ("cmyk.jpg", lambda path: photograph(9).convert("CMYK").save(path), "CMYK-colours"),
        ("deep.png", save_16_bit, "16-bit-grayscale"),
        ("alpha.png", lambda path: photograph(9).convert("RGBA").save(path), "alpha-channel"),
        ("turned.jpg", save_rotated, "exif-orientation"),
        ("moving.gif", save_animation, "animated"),
        ("really_png.jpg", lambda path: photograph(9).save(path, format="PNG"), "suffix"),
    ],
)
def test_what_is_handled_is_noted(folder: Path, name: str, save: object, kind: str) -> None:
    save(folder / "train/cat" / name)  # type: ignore[operator]
    diagnosis = examine(folder)
    assert diagnosis.healthy
    assert kind in [f.kind for f in diagnosis.findings if f.severity == "note"]
    assert f"train/cat/{name}" in [p for f in diagnosis.findings for p in f.pictures]


def test_a_jpeg_with_another_usual_suffix_is_no_news(folder: Path) -> None:
    buffer = io.BytesIO()
    photograph(777).save(buffer, format="JPEG")
    (folder / "train/cat/x.jpeg").write_bytes(buffer.getvalue())
    assert examine(folder).findings == []


def test_the_command_prints_a_table_and_fails_on_errors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor-data", str(folder), "--size", "64"]) == 0
    out = capsys.readouterr().out
    assert "cat        12       3" in out and "30 pictures, nothing found" in out
    (folder / "train/cat/bad.jpg").write_bytes(b"")
    assert main(["doctor-data", str(folder), "--size", "64"]) == 1
    captured = capsys.readouterr()
    assert "error    cannot be read: the file is empty" in captured.out
    assert "train/cat/bad.jpg" in captured.out and "1 error(s)" in captured.err
    assert main(["doctor-data", str(folder), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["healthy"] is False and content["counts"]["train"] == [13, 12]


def test_the_quick_look_finds_equal_files_without_decoding(folder: Path) -> None:
    assert quick_findings(scan(folder)) == []
    for number in range(2):
        copied = (folder / f"train/cat/{number:02}.png").read_bytes()
        (folder / f"val/cat/copy{number}.png").write_bytes(copied)
    (folder / "train/dog/cat.png").write_bytes((folder / "train/cat/02.png").read_bytes())
    same_size = bytearray((folder / "train/cat/03.png").read_bytes())
    same_size[-1] ^= 1
    (folder / "train/cat/other.png").write_bytes(same_size)
    leak, conflict = quick_findings(scan(folder))
    assert (leak.kind, leak.severity) == ("leak", "error")
    assert "train and val" in leak.message and "1 more" in leak.message
    assert sorted(leak.pictures) == [
        "train/cat/00.png", "train/cat/01.png", "val/cat/copy0.png", "val/cat/copy1.png",
    ]  # fmt: skip
    assert conflict.kind == "label-conflict" and "cat and dog" in conflict.message
    assert sorted(conflict.pictures) == ["train/cat/02.png", "train/dog/cat.png"]


def test_the_quick_look_counts_classes(folder: Path) -> None:
    for path in sorted((folder / "train/dog").iterdir())[2:]:
        path.unlink()
    assert [finding.kind for finding in quick_findings(scan(folder))] == ["few", "imbalance"]
