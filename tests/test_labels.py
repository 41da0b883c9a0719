"""Labels from tables and from file names."""

import codecs
import csv
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl.cli import main
from minitl.data.dataset import load_split
from minitl.data.folder import scan
from minitl.data.labels import find_dataset, from_labels, labels_from_names, read_labels
from minitl.errors import UserError
from tests.test_data_folder import fill, many
from tests.test_finetune import expect_error, write_pictures, write_weights

NAMES = ["a b.png", "sub/c.png", 'q"uote.png', "comma, two.png", "ü.png"]
LABELS = ["cat", "dog", "cat", "dog; big", "cät"]


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "data", *NAMES)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def table(separator=",", quoting=csv.QUOTE_MINIMAL, newline="\n"):
    def cell(text):
        quoted = '"' + text.replace('"', '""') + '"'
        plain = quoting == csv.QUOTE_MINIMAL and not set(text) & {separator, '"', "\n"}
        return text if plain else quoted

    rows = [("path", "label"), *zip(NAMES, LABELS, strict=True)]
    return newline.join(separator.join(map(cell, row)) for row in rows) + newline


LAYOUTS = {
    "plain": (table(), "utf-8"),
    "quoted, CRLF": (table(quoting=csv.QUOTE_ALL, newline="\r\n"), "utf-8"),
    "semicolons, byte order mark": (table(";"), "utf-8-sig"),
    "tabs, UTF-16": (table("\t", newline="\r\n"), "utf-16"),
    "blank lines, no end of line": (table(newline="\n\n").rstrip("\n"), "utf-8"),
    "a line that says the separator": ("sep=;\r\n" + table(";", newline="\r\n"), "utf-8-sig"),
    "the same for bars, quoted": ('"sep=|"\n' + table("|"), "utf-16"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_as_programs_write_them(folder, tmp_path, layout):
    said, notes = read_labels(write(tmp_path / "l.csv", *LAYOUTS[layout]), folder)
    assert notes == []
    assert {path: label.name for path, label in said.items()} == dict(
        zip(NAMES, LABELS, strict=True)
    )


def test_columns_may_come_in_any_order_with_others_between(folder, tmp_path):
    text = "id,Part,LABEL,note, Path \n1,Valid,cat,x,a b.png\n2,,dog,,sub/c.png\n3,TEST,dog,,.//ü.png\n"
    said, _ = read_labels(write(tmp_path / "l.csv", text), folder)
    assert {path: label[:2] for path, label in said.items()} == {
        "a b.png": ("cat", "val"),
        "sub/c.png": ("dog", ""),
        "ü.png": ("dog", "test"),
    }


def test_names_of_columns_may_hold_separators(folder, tmp_path):
    text = '"path";"label";"of it, in words, as ""said"", so"\na b.png;cat;x\nsub/c.png;dog;y\n'
    said, _ = read_labels(write(tmp_path / "l.csv", text), folder)
    assert [label.name for label in said.values()] == ["cat", "dog"]


def test_windows_and_whole_paths(folder, tmp_path):
    text = f"path,label\nsub\\c.png,dog\n{folder.absolute() / 'ü.png'},cat\n"
    assert set(read_labels(write(tmp_path / "l.csv", text), folder)[0]) == {"sub/c.png", "ü.png"}


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("file,class,x", "path from its column file, label from its column class"),
        ("Filename,label,x", "path from its column Filename"),
        (
            "IMAGE Path,Category,x",
            "path from its column IMAGE Path, label from its column Category",
        ),
        ("path,class_name,class_index", "label from its column class_name"),
        ("image,Label,target", "path from its column image"),  # label goes before target
    ],
)
def test_columns_of_other_usual_names(folder, tmp_path, header, note):
    file = write(tmp_path / "l.csv", f"{header}\na b.png,cat,1\nsub/c.png,dog,2\n")
    said, notes = read_labels(file, folder)
    assert {path: label.name for path, label in said.items()} == {
        "a b.png": "cat",
        "sub/c.png": "dog",
    }
    assert notes == [f"{file}: {note}"]


def test_a_split_column_is_not_overlooked(folder, tmp_path):
    text = "file,class,Split\na b.png,cat,test\nsub/c.png,dog,training\nü.png,dog,\n"
    said, notes = read_labels(write(tmp_path / "l.csv", text), folder)
    assert [label.part for label in said.values()] == ["test", "train", ""]
    assert "part from its column Split" in notes[0]


def test_accents_in_the_form_of_the_disk(tmp_path):
    fill(tmp_path / "data", "cafe\u0301.png", "th\u00e9.png")
    text = "path,label\ncaf\u00e9.png,a\nthe\u0301.png,b\n"
    said, _ = read_labels(write(tmp_path / "l.csv", text), tmp_path / "data")
    assert list(said) == ["cafe\u0301.png", "th\u00e9.png"]


def test_class_names_in_either_unicode_form(tmp_path):
    fill(tmp_path / "data", "1.png", "2.png")
    file = write(tmp_path / "l.csv", "path,label\n1.png,cafe\u0301\n2.png,th\u00e9\n")
    dataset = find_dataset(tmp_path / "data", labels=file, classes=["the\u0301", "caf\u00e9"])
    assert [tuple(sample) for sample in dataset.test] == [("2.png", 0), ("1.png", 1)]
    with pytest.raises(UserError, match="the model knows no class"):
        find_dataset(tmp_path / "data", labels=file, classes=["the", "caf\u00e9"])


FAULTS = {
    "": ["line 1", "path and label"],
    "path,kind\na b.png,cat\n": ["line 1", "label", "path, kind"],
    "file,class_index,wnid,name\n": ["line 1", "no column label", "file, class_index, wnid, name"],
    "path,class,category\n": ["line 1", "class and category", "label"],
    "sep=;\nfile;image;label\n": ["line 2", "file and image", "path"],
    "sep=;\npath;label\na b.png;cat\nnone.png;dog\n": ["line 4", "none.png"],
    "path,label\na b.png,red, big\n": ["line 2", "3 cells", "has 2", "comma", "quotes"],
    "path;label\na b.png;red; big\n": ["line 2", "3 cells", "semicolon"],
    "path,label,label\n": ["line 1", "twice"],
    "path,label\n": ["no picture"],
    "path,label\na b.png,cat\nsub/c.png\n": ["line 3", "1 cells"],
    "path,label\na b.png,cat\nsub/c.png,\n": ["line 3", "no label"],
    "path,label\n,cat\n": ["line 2", "no path"],
    "path,label\na b.png,cat\n\nnone.png,dog\n": ["line 4", "none.png"],
    "path,label\n../data/ü.png,dog\n": ["line 2", "../data/ü.png"],
    "path,label\n/etc/passwd,dog\n": ["line 2", "/etc/passwd"],
    "path,label\na b.png,cat\n./a b.png,dog\n": ["line 3", "line 2", "already"],
    "path,label,part\na b.png,cat,trian\n": ["line 2", "trian"],
    'path,label\n"a b.png"x,cat\n': ["line 2", "quotes"],
    'path,label\n"a b.png,cat\n': ["line 2", "quotes"],
    f"path,label\na b.png,cat\n{'long ' * 1000},dog\n": ["line 3", "no picture 'long long", "..."],
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_named_with_file_and_line(folder, tmp_path, text):
    file = write(tmp_path / "labels.csv", text)
    with pytest.raises(UserError) as error:
        read_labels(file, folder)
    for word in [str(file), *FAULTS[text]]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_other_encodings_are_refused_with_the_line(folder, tmp_path):
    file = tmp_path / "l.csv"
    file.write_bytes("path,label\na b.png,cat\nü.png,dog\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"l\.csv, line 3: not UTF-8"):
        read_labels(file, folder)
    file.write_bytes(codecs.BOM_UTF16_LE + b"a")
    with pytest.raises(UserError, match=r"l\.csv, line 1"):
        read_labels(file, folder)
    with pytest.raises(UserError, match=r"none\.csv"):
        read_labels(tmp_path / "none.csv", folder)


@given(st.binary(max_size=60), st.sampled_from([b"", b"path,label\n", codecs.BOM_UTF16_LE]))
def test_no_table_does_worse_than_an_explained_error(tmp_path_factory, content, start):
    root = tmp_path_factory.getbasetemp()
    file = root / "fuzz.csv"
    file.write_bytes(start + content)
    with pytest.raises(UserError):
        read_labels(file, root)


# ------------------------------------------------------------------------------- names and parts


def test_labels_from_names(tmp_path):
    fill(tmp_path, "train/cat_1.jpg", "train/dog_1.jpg", "val/cat_2.jpg", "odd.jpg")
    said, notes = labels_from_names(tmp_path, r"(?P<part>train|val)/(?P<label>[a-z]+)_")
    assert {path: label[:2] for path, label in said.items()} == {
        "train/cat_1.jpg": ("cat", "train"),
        "train/dog_1.jpg": ("dog", "train"),
        "val/cat_2.jpg": ("cat", "val"),
    }
    assert "left out 1 " in notes[0]
    assert "odd.jpg" in notes[0]


def test_links_are_taken_along_where_that_is_wanted(tmp_path):
    fill(tmp_path / "pool", "cat_1.jpg", "dog_1.jpg")
    fill(tmp_path / "data", "cat_2.jpg", "dog_2.jpg")
    for name in ("cat_1.jpg", "dog_1.jpg"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "pool" / name)
    pattern = "(?P<label>[a-z]+)_"
    said, notes = labels_from_names(tmp_path / "data", pattern)
    assert list(said) == ["cat_2.jpg", "dog_2.jpg"]
    assert "2 links" in notes[0] and "--follow-links" in notes[0]
    said, notes = labels_from_names(tmp_path / "data", pattern, follow_links=True)
    assert len(said) == 4 and not notes


@pytest.mark.parametrize(
    ("pattern", "word"),
    [("(", "no pattern"), ("cat", "(?P<label>...)"), ("(?P<label>bird)", "fits none")],
)
def test_patterns_that_cannot_be_meant(tmp_path, pattern, word):
    fill(tmp_path, "cat.jpg")
    with pytest.raises(UserError) as error:
        labels_from_names(tmp_path, pattern)
    assert word in str(error.value)


def test_cells_that_say_nothing_may_be_too_many(folder, tmp_path):
    said, _ = read_labels(write(tmp_path / "l.csv", "path,label\na b.png,cat,, \n"), folder)
    assert said["a b.png"].name == "cat"


def counted(dataset):
    return {part: dataset.counts(part) for part in ("train", "val", "test")}


def test_parts_that_are_not_said_are_drawn(tmp_path):
    files = [f"{name}_{n}.jpg" for name in ("cat", "dog") for n in range(20)]
    fill(tmp_path / "data", *files)

    def split(rows, **options):
        text = "path,label,part\n" + "".join(f"{f},{f[:3]},{part}\n" for f, part in rows)
        return find_dataset(tmp_path / "data", labels=write(tmp_path / "l.csv", text), **options)

    drawn = split((f, "") for f in files)
    assert counted(drawn) == {"train": [16, 16], "val": [4, 4], "test": [0, 0]}
    both = split(((f, "") for f in files), test_fraction=0.25, val_fraction=0.25)
    assert counted(both) == {"train": [10, 10], "val": [5, 5], "test": [5, 5]}
    assert both.val_fraction == 0.25
    again = split(((f, "") for f in reversed(files)), test_fraction=0.25, val_fraction=0.25)
    assert (again.train, again.val, again.test) == (both.train, both.val, both.test)
    other = split(((f, "") for f in files), test_fraction=0.25, val_fraction=0.25, seed=1)
    assert other.test != both.test
    given_test = split((f, "test" if f.endswith("_3.jpg") else "") for f in files)
    assert counted(given_test) == {"train": [15, 15], "val": [4, 4], "test": [1, 1]}
    assert drawn.notes == both.notes == given_test.notes == []
    train = split((f, "train") for f in files)
    assert counted(train) == counted(drawn)
    assert train.notes == ["no picture is said to be val: drawn out of those of train (seed 0)"]
    train = split(((f, "train") for f in files), test_fraction=0.25, seed=3)
    assert train.notes == [
        "no picture is said to be val or test: drawn out of those of train (seed 3)"
    ]
    said = split(((f, "val" if "_1" in f else "train") for f in files), test_fraction=0)
    assert said.notes == []
    assert counted(said) == {"train": [9, 9], "val": [11, 11], "test": [0, 0]}
    assert said.val_fraction is None
    with pytest.raises(UserError, match="no training picture for cat"):
        split((f, "val" if f.startswith("cat") else "train") for f in files)


def test_class_folders_can_have_a_drawn_test_part(tmp_path):
    fill(tmp_path, *(f"{name}/{n}.jpg" for name in ("a", "b") for n in range(20)))
    dataset = scan(tmp_path, test_fraction=0.25, val_fraction=0.25)
    assert counted(dataset) == {"train": [10, 10], "val": [5, 5], "test": [5, 5]}
    assert set(scan(tmp_path).train) & set(dataset.test)
    with pytest.raises(UserError, match="test fraction"):
        scan(tmp_path, test_fraction=0.9)


# --------------------------------------------------------------------------------- whole commands


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures in one folder, named <colour>_<number>.png."""
    root = tmp_path_factory.mktemp("flat")
    for path in sorted(write_pictures(root / "all", per_class=10).rglob("*.png")):
        path.rename(root / f"{path.parent.name}_{path.name}")
    for name in ("blue", "green", "red"):
        (root / "all" / name).rmdir()
    (root / "all").rmdir()
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.h5", shortcut="B")


def command(*parts):
    return main([str(part) for part in parts])


def test_finetune_and_evaluate_take_both(pictures, weights, tmp_path, capsys):
    pattern = "^(?P<label>[a-z]+)_"
    rows = "".join(f"{p.name},{p.name.split('_')[0]}\n" for p in sorted(pictures.iterdir()))
    file = write(tmp_path / "labels.csv", "path,label\n" + rows)
    short = ("--epochs", 2, "--batch-size", 6, "--test-fraction", 0.2, "--no-report")
    for out, labels in (("a", ("--labels", file)), ("b", ("--label-from-name", pattern))):
        options = (pictures, "--weights", weights, "--out", tmp_path / out, *labels, *short)
        assert command("finetune", *options) == 0
    split = load_split(tmp_path / "a" / "split.json", pictures)
    assert counted(split) == {"train": [6] * 3, "val": [2] * 3, "test": [2] * 3}
    first, second = (json.loads((tmp_path / out / "summary.json").read_text()) for out in "ab")
    assert first["classes"] == ["blue", "green", "red"]
    assert first["test"] == second["test"]
    capsys.readouterr()
    for labels in (("--labels", file), ("--label-from-name", pattern)):
        assert command("evaluate", tmp_path / "a", pictures, *labels, "--json") == 0
        figures = json.loads(capsys.readouterr().out)
        assert (figures["part"], figures["images"], figures["own_split"]) == ("test", 6, True)
    assert command("doctor-data", pictures, "--label-from-name", pattern, "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["blue", "green", "red"]
    usual = write(tmp_path / "usual.csv", "file,class\n" + rows)
    assert command("doctor-data", pictures, "--labels", usual) == 0
    assert "path from its column file, label from its column class" in capsys.readouterr().out
    strange = write(tmp_path / "s.csv", "path,label\nred_0.png,pink\n")
    code = command("evaluate", tmp_path / "a", pictures, "--labels", strange)
    expect_error(capsys, code, "s.csv, line 2", "pink", "blue")


def test_every_command_takes_links_along_where_that_is_wanted(pictures, weights, tmp_path, capsys):
    data = tmp_path / "data"
    for path in pictures.iterdir():
        (data / path.name.split("_")[0]).mkdir(parents=True, exist_ok=True)
        (data / path.name.split("_")[0] / path.name).symlink_to(path)
    again = shutil.copytree(data, tmp_path / "again", symlinks=True)
    next(again.rglob("*_0.png")).unlink()  # a whole copy would be known as the run's own pictures
    with_weights = (data, "--weights", weights)
    run = ("--epochs", 1, "--batch-size", 6, "--no-report", "--out", tmp_path / "run")
    commands = {
        "finetune": (*with_weights, *run),
        "evaluate": (tmp_path / "run", again),
        "predict": (tmp_path / "run", data),
        "features": (*with_weights, "--out", tmp_path / "f.h5"),
        "preview": (*with_weights, "--out", tmp_path / "p.png"),
        "doctor-data": (data,),
    }
    for name, words in commands.items():
        assert command(name, *words) == 1
        captured = capsys.readouterr()  # the data doctor has it among its findings
        assert "--follow-links" in (captured.out if name == "doctor-data" else captured.err)
        assert command(name, *words, "--follow-links") == 0, capsys.readouterr().err
        capsys.readouterr()
    assert command("evaluate", tmp_path / "run", data) == 0  # its own pictures: as it was trained
    capsys.readouterr()
    transfer = ("transfer-report", *with_weights, "--out", tmp_path / "t", "--epochs", 1)
    expect_error(capsys, command(*transfer, "--seeds", 1), "--follow-links")


def test_contradictions(pictures, weights, tmp_path, capsys):
    options = ("finetune", pictures, "--weights", weights, "--out", tmp_path / "run")
    both = ("--labels", "l.csv", "--label-from-name", "(?P<label>x)")
    expect_error(capsys, command(*options, *both), "--labels", "--label-from-name")
    expect_error(capsys, command(*options, "--labels", "no.csv"), "no.csv")
    expect_error(capsys, command(*options, "--test-fraction", 0.9), "--test-fraction")
    assert not (tmp_path / "run").exists()


def test_labels_from_elsewhere(tmp_path):
    fill(tmp_path, *many("all", 10))
    labels = {f"all/{i}.jpg": "even" if i % 2 == 0 else "odd" for i in range(10)}
    data = from_labels(tmp_path, labels)
    assert data.classes == ["even", "odd"]
    assert data.counts("train") == [4, 4] and data.counts("val") == [1, 1]
    with pytest.raises(UserError, match=r"'all/99\.jpg'"):
        from_labels(tmp_path, labels | {"all/99.jpg": "odd"})
    with pytest.raises(UserError, match="at least two"):
        from_labels(tmp_path, {"all/1.jpg": "odd"})
    with pytest.raises(UserError, match="not a path inside"):
        from_labels(tmp_path, labels | {"../x.jpg": "odd"})
