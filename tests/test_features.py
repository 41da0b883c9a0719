"""`minitl features` and what trains on its files."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

import minitl
from minitl import hdf5, models
from minitl.cli import main
from minitl.data.decode import decode_image
from minitl.data.folder import scan
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.feature_file import FeatureFile
from minitl.train.feature_runs import changed_pictures
from tests.test_finetune import expect_error, interrupt_in_epoch, write_pictures, write_weights


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "colours", per_class=13)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.h5")


@pytest.fixture
def features(tmp_path, pictures, weights):
    """Run `minitl features`; return (exit code, file)."""

    def make(*more, out="f.h5", data=pictures):
        command = ["features", data, "--weights", weights, "--out", tmp_path / out, *more]
        return main([str(part) for part in command]), tmp_path / out

    return make


def finetune(folder, *more, report=False):
    """Run `minitl finetune`; a report takes longer than these trainings."""
    command = ["finetune", *more, "--out", folder, "--epochs", 3, "--batch-size", 7, "--lr", 0.05]
    command += [] if report else ["--no-report"]
    return main([str(part) for part in command])


def test_the_file_says_what_each_row_is_of(features, pictures, weights, capsys):
    code, path = features("--seed", 2)
    assert code == 0
    assert "39 pictures" in capsys.readouterr().out
    dataset = scan(pictures, seed=2)
    with h5py.File(path) as file:
        rows, labels = file["features"][()], file["labels"][()]
        paths = [text.decode() for text in file["paths"][()]]
        parts = [text.decode() for text in file["parts"][()]]
        assert [text.decode() for text in file["class_names"][()]] == dataset.classes
        about = json.loads(bytes(file.attrs["about"]))
    assert rows.shape == (39, 16)
    assert rows.dtype == np.float32
    assert about["cut"] == "pool"
    found = set(zip(paths, labels.tolist(), parts, strict=True))
    assert found == {(*s, p) for p in ("train", "val") for s in getattr(dataset, p)}
    model = minitl.load_model(weights).eval()
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    for row in (0, 20, 38):
        picture = preprocessing.evaluation(decode_image(pictures / paths[row]))
        expected = model.features(minitl.tensor(picture[None])).numpy()[0]
        assert np.allclose(rows[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cut", "freeze"),
    [
        pytest.param(None, "backbone", marks=pytest.mark.slow),
        ("layer2", "conv1,bn1,layer1,layer2"),
    ],
)
def test_training_on_features_is_training_with_frozen_layers(
    features, pictures, weights, tmp_path, cut, freeze
):
    _, file = features(*(["--cut", cut] if cut else []))
    assert finetune(tmp_path / "a", "--features", file, report=True) == 0
    assert (tmp_path / "a" / "report.html").exists()
    options = (pictures, "--weights", weights, "--freeze", freeze, "--no-augment")
    assert finetune(tmp_path / "b", *options) == 0
    a, b = (hdf5.read(tmp_path / run / "best.h5") for run in "ab")
    assert all(np.array_equal(a.state[name], b.state[name]) for name in a.state)
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in "ab"]
    assert summaries[0]["val"] == summaries[1]["val"]
    picture = next(pictures.rglob("*.png"))
    assert main(["predict", str(tmp_path / "a"), str(picture)]) == 0


def test_the_pictures_need_not_be_there(features, pictures, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    _, file = features(data=data)
    shutil.rmtree(data)
    assert finetune(tmp_path / "whole", "--features", file, report=True) == 0
    interrupt_in_epoch(monkeypatch, 2)
    assert finetune(tmp_path / "part", "--features", file) != 0
    monkeypatch.undo()
    assert main(["finetune", "--resume", str(tmp_path / "part")]) == 0
    a, b = (hdf5.read(tmp_path / run / "last.h5").state for run in ("whole", "part"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_features_of_other_pictures_are_refused(features, pictures, tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    _, file = features(data=data)
    (data / "blue" / "1.png").unlink()
    os.utime(data / "red" / "0.png", ns=(0, 0))  # copied, not changed
    capsys.readouterr()
    assert finetune(tmp_path / "good", "--features", file) == 0
    assert "1 of 39 pictures have another size or date" in capsys.readouterr().out
    interrupt_in_epoch(monkeypatch, 2)
    before = (tmp_path / "good" / "best.h5").read_bytes()
    replaced = data / "red" / "3.png"
    content = replaced.read_bytes()
    replaced.write_bytes((data / "red" / "4.png").read_bytes())
    capsys.readouterr()
    code = finetune(tmp_path / "good", "--features", file, "--overwrite")
    expect_error(capsys, code, file, "red/3.png", "minitl features")
    assert (tmp_path / "good" / "best.h5").read_bytes() == before
    replaced.write_bytes(content)
    assert finetune(tmp_path / "part", "--features", file, "--save-every", 2) == 130
    replaced.write_bytes((data / "red" / "4.png").read_bytes())
    monkeypatch.undo()
    resumed = ["finetune", "--resume", str(tmp_path / "part")]
    capsys.readouterr()
    expect_error(capsys, main(resumed), "red/3.png", "--accept-changed")
    assert main([*resumed, "--accept-changed"]) == 0


def test_a_run_is_not_resumed_on_another_split(features, tmp_path, capsys, monkeypatch):
    _, file = features("--seed", 0)
    content = file.read_bytes()
    interrupt_in_epoch(monkeypatch, 2)
    assert finetune(tmp_path / "run", "--features", file) == 130
    monkeypatch.undo()
    assert features("--seed", 1, "--overwrite")[0] == 0
    capsys.readouterr()
    resumed = ["finetune", "--resume", str(tmp_path / "run"), "--accept-changed"]
    expect_error(capsys, main(resumed), file, "other parts", "--seed")
    file.write_bytes(content)
    assert main(resumed) == 0


def test_a_run_is_judged_by_the_labels_its_features_came_with(features, pictures, tmp_path, capsys):
    """They stand in no class folders, or in others of the same names."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    turned = {"red": "green", "green": "blue", "blue": "red"}
    paths = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
    table = tmp_path / "l.csv"
    lines = [f"{path},{turned[path.split('/')[0]]}" for path in paths]
    table.write_text("\n".join(["path,label", *lines]))
    _, file = features("--labels", table, data=data)
    assert finetune(tmp_path / "run", "--features", file) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), str(data), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    expected = json.loads((tmp_path / "run" / "summary.json").read_text())["val"]
    assert figures["own_split"] and figures["part"] == "val"
    assert figures["confusion"] == expected["confusion"]
    assert figures["accuracy"] == expected["accuracy"]


def test_files_without_dates_are_compared_by_content(features, pictures, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    _, path = features(data=data)
    with h5py.File(path, "r+") as file:
        del file["sizes"], file["times"]
    assert changed_pictures(FeatureFile(path)) == []
    (data / "red" / "3.png").write_bytes(b"other")
    assert changed_pictures(FeatureFile(path)) == ["red/3.png"]


def test_what_cannot_be(features, pictures, weights, tmp_path, capsys):
    _, file = features()
    expect_error(capsys, features()[0], file, "--overwrite")
    expect_error(capsys, features("--cut", "layer9", out="g.h5")[0], "layer9", "layer2.0")
    run = tmp_path / "run"
    for option in (
        *([pictures], ["--freeze", "layer1"], ["--freeze-until", "layer2"], ["--cached-views", 2]),
        *(["--labels", "l.csv"], ["--val-fraction", 0.2], ["--rotation", 5], ["--no-flip"]),
        *(["--no-feature-cache"], ["--skip-bad"], ["--mixup", 0.2], ["--augment"]),
    ):
        code = finetune(run, "--features", file, *option)
        named = option[0] if isinstance(option[0], str) else "DATA"
        expect_error(capsys, code, "--features", f"leave {named} out")
    code = finetune(run, "--features", file, "--recipe", "all-layers")
    expect_error(capsys, code, "--recipe all-layers", "all layers", "frozen-mlp")
    assert finetune(run, "--features", file, "--recipe", "frozen-mlp", "--no-augment") == 0
    capsys.readouterr()  # the first to compile says so there
    shutil.rmtree(run)
    other = tmp_path / "other.h5"
    minitl.save_model(models.cifar_resnet20(num_classes=5, width=4, seed=2), other)
    expect_error(
        capsys, finetune(run, "--features", file, "--weights", other), file, other, "other"
    )
    expect_error(capsys, finetune(run, "--features", weights), weights, "no file of features")
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    expect_error(capsys, finetune(run, "--features", text), text, "damaged")
    expect_error(capsys, finetune(run, "--features", tmp_path / "none.h5"), "does not exist")
    assert not run.exists()


def test_the_settings_of_a_run_on_features_refuse_the_same(features, pictures, tmp_path, capsys):
    _, file = features()
    assert finetune(tmp_path / "a", "--features", file) == 0
    settings = ("--config", tmp_path / "a" / "config.toml")
    for option in (
        *([pictures], ["--freeze", "none"], ["--val-fraction", 0.5], ["--follow-links"]),
        *(["--rotation", 5], ["--no-flip"], ["--no-feature-cache"], ["--augment"]),
    ):
        capsys.readouterr()
        code = finetune(tmp_path / "b", *option, *settings)
        named = option[0] if isinstance(option[0], str) else "DATA"
        expect_error(capsys, code, "--config", "a/config.toml", f"leave {named} out")
    assert not (tmp_path / "b").exists()
    assert finetune(tmp_path / "b", *settings, "--no-augment") == 0
    assert finetune(tmp_path / "c", *settings, "--features", file) == 0  # the same, given again
    best = [hdf5.read(tmp_path / run / "best.h5").state for run in "abc"]
    assert all(np.array_equal(best[0][n], other[n]) for other in best[1:] for n in best[0])


def _rewritten(path, name, **made):
    with h5py.File(path, "r+") as file:
        del file[name]
        if made:
            file.create_dataset(name, **made)
        else:
            file.create_group(name)


@pytest.mark.parametrize("name", ["keys", "checksums", "features", "paths", "labels"])
@pytest.mark.parametrize("made", [{}, {"dtype": "f4"}], ids=["group", "scalar"])
def test_what_is_no_array_is_damage(features, tmp_path, capsys, name, made):
    _, path = features()
    _rewritten(path, name, **made and {**made, "shape": ()})
    code = finetune(tmp_path / "run", "--features", path)
    expect_error(capsys, code, f"f.h5 is damaged ({name}")


@pytest.mark.parametrize("name", ["format_version", "about"])
def test_numbers_in_place_of_words_are_damage(features, name):
    _, path = features()
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.int64(1 << 40)
    with pytest.raises(UserError, match=f"damaged .{name} is no text"):
        FeatureFile(path)


@pytest.mark.parametrize("name", ["data", "weights_file", "preprocessing"])
def test_a_file_that_does_not_say_what_it_is_of_is_damaged(features, tmp_path, capsys, name):
    _, path = features()
    with h5py.File(path, "r+") as file:
        about = json.loads(file.attrs["about"])
        del about[name]
        file.attrs["about"] = np.bytes_(json.dumps(about))
    code = finetune(tmp_path / "run", "--features", path)
    expect_error(capsys, code, "f.h5 is damaged", f"does not say its {name}", "make it again")


@pytest.mark.parametrize(
    ("name", "made", "words"),
    [
        ("labels", {"shape": (1 << 28,), "dtype": "<i8", "chunks": (1 << 20,)}, "claims more"),
        ("class_names", {"shape": (1 << 28,), "dtype": "S8", "chunks": (1 << 20,)}, "claims more"),
        ("keys", {"shape": (1 << 59, 32), "dtype": "u1", "chunks": (1, 32)}, "claims more"),
        ("labels", {"data": np.zeros(38, "<i8")}, "38 entries for 39 rows"),
        ("labels", {"data": np.full(39, np.nan)}, "float64"),
        ("labels", {"data": np.zeros((39, 1), "<i8")}, "shape"),
        ("paths", {"data": ["a"] * 39}, "paths has shape"),  # of variable length
        ("paths", {"data": np.zeros(39, "<i8")}, "paths has shape"),
        ("parts", {"data": np.array([b"train"] * 40)}, "40 entries for 39 rows"),
    ],
)
def test_columns_of_another_kind_or_size_are_damage(features, name, made, words):
    _, path = features()
    _rewritten(path, name, **made)
    with pytest.raises(UserError, match=rf"f\.h5 is damaged \(.*{words}.*; make it again"):
        FeatureFile(path).column(name)


def test_a_seed_below_0_is_refused(features, capsys):
    with pytest.raises(SystemExit):
        features("--seed", -1)
    assert "'-1' is not 0 or a positive number" in capsys.readouterr().err


def test_damaged_files_are_refused(features, tmp_path):
    _, path = features()
    content = path.read_bytes()
    whole = FeatureFile(path)
    for length in (0, 100, len(content) // 2, len(content) - 1):
        part = tmp_path / "part.h5"
        part.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"part\.h5"):
            FeatureFile(part)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60):
        altered = bytearray(content)
        altered[place] ^= 1 << int(rng.integers(8))
        part.write_bytes(altered)
        try:
            file = FeatureFile(part)
            rows = file.rows(np.arange(len(file)))
        except UserError:
            continue
        assert np.array_equal(rows, whole.rows(np.arange(len(whole))))
