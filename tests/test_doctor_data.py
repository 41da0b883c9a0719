"""The data doctor: each fault planted in a healthy folder is found, and a healthy folder is healthy."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minitl
from minitl import models
from minitl.cli import main
from minitl.data.doctor import Diagnosis, diagnose, quick_findings
from minitl.data.folder import scan
from minitl.errors import UserError
from tests.test_text import Terminal


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


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run `minitl doctor-data`; return exit code, standard output and standard error."""
    code = main([str(word) for word in ("doctor-data", *words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def kinds(content: dict) -> list[tuple[str, str]]:
    return [(finding["severity"], finding["kind"]) for finding in content["findings"]]


def test_a_leak_under_another_label_is_a_leak_as_well(folder: Path) -> None:
    picture = (folder / "train/cat/03.png").read_bytes()
    for name in ("val/cat/copy.png", "train/dog/copy.png"):
        (folder / name).write_bytes(picture)
    pictures = ["train/cat/03.png", "train/dog/copy.png", "val/cat/copy.png"]
    for findings in (examine(folder).findings, quick_findings(scan(folder))):
        found = {finding.kind: sorted(finding.pictures) for finding in findings}
        assert found == {"label-conflict": pictures, "leak": pictures}
        assert all(finding.severity == "error" for finding in findings)


def test_an_empty_class_is_found_and_the_rest_is_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        (folder / part / "zebra").mkdir()
    shutil.copy(folder / "train/cat/03.png", folder / "val/cat/copy.png")
    (folder / "train/cat/readme.txt").touch()
    code, out, err = command(capsys, folder, "--size", 64)
    assert code == 1 and "3 error(s)" in err
    assert "zebra       0       0" in out and "class 'zebra' has no pictures" in out
    assert "the same picture is in train and val" in out
    code, out, _ = command(capsys, folder, "--size", 64, "--json")
    content = json.loads(out)
    assert code == 1 and content["counts"] == {"train": [12, 12, 0], "val": [4, 3, 0]}
    assert kinds(content) == [("error", "empty-class")] * 2 + [("error", "leak")]
    assert content["notes"] == ["left out 1 files that are not pictures (.txt)"]


def test_classes_that_are_all_empty_are_the_only_findings(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()
    problems: list = []
    dataset = scan(folder / "train", problems=problems)
    findings = diagnose(dataset, problems=problems, input_side=64).findings
    assert [finding.kind for finding in findings] == ["empty-class"] * 2


def test_one_class_is_a_finding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "train/dog")
    shutil.rmtree(folder / "val/dog")
    (folder / "train/cat/bad.png").write_bytes(b"")
    code, out, _ = command(capsys, folder, "--size", 64, "--json")
    content = json.loads(out)
    assert code == 1 and kinds(content) == [("error", "one-class"), ("error", "unreadable")]
    assert content["counts"] == {"train": [13], "val": [3]}


def flatten(root: Path) -> None:
    """Leave the pictures of a class loose in val/."""
    shutil.rmtree(root / "val")
    (root / "x").rename(root / "val")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda root: (root / "val/dog").rename(root / "val/dogs"), "classes-differ"),
        (lambda root: (root / "train").rename(root / "test"), "no-train"),
        (lambda root: shutil.copytree(root / "val", root / "dev"), "same-part"),
        (lambda root: shutil.copytree(root / "val", root / "more"), "beside-parts"),
        (lambda root: (root / "val").rename(root / "more"), "parts-as-classes"),
        (lambda root: shutil.rmtree(root / "val/dog"), "classes-differ"),
        (lambda root: (root / "val/cat").rename(root / "x") and flatten(root), "unsorted"),
    ],
)
def test_a_layout_that_cannot_be_trained_on_is_a_finding(folder: Path, change, kind: str) -> None:
    change(folder)
    problems: list = []
    dataset = scan(folder, problems=problems)
    diagnosis = diagnose(dataset, problems=problems, input_side=64)
    assert (kind, "error") in [(f.kind, f.severity) for f in diagnosis.findings]
    assert diagnosis.classes and not diagnosis.healthy
    with pytest.raises(UserError) as error:
        scan(folder)
    assert str(error.value) in [finding.message for finding in diagnosis.findings]


def test_labels_without_classes_are_findings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{path.relative_to(folder)},cat,train\n" for path in folder.glob("train/cat/*"))
    (folder / "l.csv").write_text(f"path,label,part\n{rows}val/dog/00.png,dog,val\n")
    labels = ("--labels", folder / "l.csv")
    code, out, _ = command(capsys, folder, *labels, "--size", 64, "--json")
    content = json.loads(out)
    assert code == 1 and kinds(content) == [("error", "empty-class")]
    assert content["counts"] == {"train": [12, 0], "val": [0, 1]}


def test_what_cannot_be_looked_at_is_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.png").touch()
    code, out, err = command(capsys, tmp_path, "--json")
    content = json.loads(out)
    assert code == 1 and not content["healthy"] and kinds(content) == [("error", "no-classes")]
    _, out, _ = command(capsys, tmp_path)
    assert out.startswith("error    ") and "no class folders" in out
    code, out, err = command(capsys, tmp_path / "none", "--json")
    assert kinds(json.loads(out)) == [("error", "layout")]
    assert "does not exist" in err and "does not exist" in out
    code, out, err = command(capsys, tmp_path / "none")
    assert code == 1 and out == "" and "does not exist" in err


def test_the_network_says_how_large_pictures_should_be(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, folder)
    assert code == 0 and "30 pictures are less than half" in out and "--weights" in out
    weights = tmp_path / "w.h5"
    minitl.save_model(models.cifar_resnet20(num_classes=5, width=4), weights)
    code, out, _ = command(capsys, folder, "--weights", weights)
    assert code == 0 and "nothing found" in out
    with pytest.raises(SystemExit):
        command(capsys, folder, "--weights", weights, "--size", 32)
    assert "not allowed with" in capsys.readouterr().err


def test_the_split_that_is_looked_at_is_the_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy within a class is a leak or a harmless duplicate, depending on the draw."""
    data = folder / "train"
    shutil.copy(data / "cat/03.png", data / "cat/copy.png")
    seen = set()
    for seed in range(8):
        split = scan(data, seed=seed, val_fraction=0.4, test_fraction=0.1)
        options = ("--seed", seed, "--val-fraction", 0.4, "--test-fraction", 0.1, "--size", 64)
        content = json.loads(command(capsys, data, *options, "--json")[1])
        assert content["counts"] == {part: split.counts(part) for part in ("train", "val", "test")}
        parts = {
            part
            for part in ("train", "val", "test")
            for sample in getattr(split, part)
            if sample.path in ("cat/03.png", "cat/copy.png")
        }
        kind = "leak" if len(parts) == 2 else "duplicate"
        assert kind in [finding["kind"] for finding in content["findings"]]
        seen.add(kind)
    assert seen == {"leak", "duplicate"}


def test_one_class_in_two_spellings(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "cat").rename(folder / part / "traffic light")
        (folder / part / "dog").rename(folder / part / "Traffic_Light")
    for findings in (examine(folder).findings, quick_findings(scan(folder))):
        (finding,) = findings
        assert (finding.severity, finding.kind) == ("warning", "alike-classes")
        assert "Traffic_Light and traffic light" in finding.message
    for part in ("train", "val"):
        (folder / part / "traffic light").rename(folder / part / "-1")
        (folder / part / "Traffic_Light").rename(folder / part / "1")
    assert examine(folder).findings == []


def test_findings_have_colours_on_terminals_that_want_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train/cat/bad.jpg").write_bytes(b"")
    shutil.copy(folder / "train/dog/00.png", folder / "train/dog/copy.png")
    photograph(9).convert("L").save(folder / "train/dog/gray.png")
    (folder / "train/cat/readme.txt").touch()
    monkeypatch.setenv("TERM", "xterm")
    for no_color, marks in (("", ["\x1b[31merror", "\x1b[33mwarning", "\x1b[32mnote"]), ("1", [])):
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        assert main(["doctor-data", str(folder), "--size", "64"]) == 1
        monkeypatch.undo()
        monkeypatch.setenv("TERM", "xterm")
        text = terminal.getvalue()
        assert all(mark in text for mark in marks) and ("\x1b" in text) == bool(marks)


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX systems alone")
def test_a_name_that_is_no_text_spoils_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"b\xe9d \xc3\xa9.png")
    (folder / "train/cat" / name).write_bytes(b"")
    (folder / "train/cat/it's.png").write_bytes(b"")
    _, out, _ = command(capsys, folder, "--size", 64)
    assert "train/cat/b\\udce9d é.png" in out and "train/cat/it's.png" in out
    _, out, _ = command(capsys, folder, "--size", 64, "--json")
    pictures = [finding["pictures"] for finding in json.loads(out)["findings"]]
    assert [f"train/cat/{name}"] in pictures
