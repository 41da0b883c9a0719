"""Features of frozen layers on disk: the same bits as without, and never those of something else."""

import functools
import importlib.util
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.features
import pytest

import minitl
from minitl import feature_file, hdf5, models
from minitl.backend import kernel_sources
from minitl.cli import main
from minitl.data.augment import Augmentation
from minitl.data.folder import scan
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.device import CPU
from minitl.errors import UserError
from minitl.train import feature_cache
from minitl.train.config import Config
from minitl.train.feature_cache import FeatureCache, clear, describe, kept, open_cache
from minitl.train.features import FEATURE_BATCH, Features, frozen_stages
from tests.test_finetune import expect_error, write_pictures, write_weights


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "colours", per_class=15)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.h5")


@pytest.fixture
def run(tmp_path, pictures, weights):
    """Run `minitl finetune` with a cache of its own; return (exit code, run folder)."""

    def start(*more, out="run", data=pictures, cache="cache", weights=weights):
        folder = tmp_path / out
        command = ["finetune", data, "--weights", weights, "--out", folder, "--epochs", 3]
        command += ["--batch-size", 7, "--lr", 0.05, "--no-report"]
        command += ["--feature-cache", tmp_path / cache] if cache else ["--no-feature-cache"]
        return main([str(part) for part in (*command, *more)]), folder

    return start


def same_state(first, second):
    a, b = (hdf5.read(folder / "last.h5").state for folder in (first, second))
    return all(np.array_equal(a[name], b[name]) for name in a)


FROZEN = {
    "all but the head": ("--freeze", "backbone"),
    "all but a head of two layers": ("--freeze", "backbone", "--head", "mlp:8", "--dropout", 0.5),
    "to the middle of a stage": ("--freeze", "conv1,bn1,layer1,layer2.0"),
    "less in the second epoch": ("--unfreeze-schedule", "head:0,layer3:1", "--ema", 0.9),
}


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_a_run_with_the_cache_is_the_same_to_the_bit(run, frozen, capsys):
    options = (*frozen, "--no-augment")
    code, first = run(*options, out="first")
    assert code == 0
    assert "36 to compute, 0 there already" in (said := capsys.readouterr().out)
    assert "MB more in" in said
    _, second = run(*options, out="second")
    said = capsys.readouterr().out
    assert "to compute" not in said
    assert "train: all kept already" in said
    _, without = run(*options, out="without", cache=None)
    assert same_state(first, second)
    assert same_state(first, without)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (first, second, without)]
    assert summaries[0]["val"] == summaries[1]["val"] == summaries[2]["val"]


def test_validation_is_kept_where_training_varies_its_pictures(run, capsys):
    run("--freeze", "backbone")
    said = capsys.readouterr().out
    assert "validation: 9 to compute" in said
    assert "train:" not in said


def test_views_are_kept_and_repeat(run, capsys):
    options = ("--freeze", "backbone", "--cached-views", 2)
    code, first = run(*options, out="first")
    assert code == 0
    assert "train: 72 to compute" in capsys.readouterr().out
    _, second = run(*options, "--lr", 0.02, out="second")
    assert "to compute" not in capsys.readouterr().out
    assert not same_state(first, second)
    run(*options, "--no-flip", out="third")
    assert "train: 72 to compute" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--no-augment", "--freeze", "backbone"], ["--no-augment"]),
        (["--freeze", "backbone", "--no-feature-cache"], ["--no-feature-cache"]),
        (["--mixup", 0.2, "--freeze", "backbone"], ["--mixup"]),
        ([], ["frozen", "--freeze backbone"]),
    ],
)
def test_views_that_cannot_be_kept_are_refused(run, capsys, options, words):
    cache = None if "--no-feature-cache" in options else "cache"
    code, folder = run("--cached-views", 2, *options, cache=cache)
    expect_error(capsys, code, "--cached-views", *words)
    assert not folder.exists()


# ------------------------------------------------------------------------- the parts by themselves


def features_of(model, folder, cache=None, **more):
    dataset = scan(folder)
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    loader = Loader(
        dataset.train, dataset.root, preprocessing, 5, shuffle=True, workers=0, seed=3, **more
    )
    model.freeze(*model.backbone_parameters())
    cut = frozen_stages(model)
    if cache is not None:
        cache = FeatureCache(cache, describe(model, cut, preprocessing, {}))
    return Features(model, cut, loader, "train", CPU, np.dtype(np.float32), cache)


def rows(features, epoch=0, start=0):
    return np.concatenate([part for part, _ in features.batches(epoch, start)])


def count(capsys):
    """Return how many features were said to be computed since the last call."""
    said = capsys.readouterr().out
    return int(said.split(": ")[1].split(" to compute")[0]) if "to compute" in said else 0


@pytest.fixture
def model():
    return models.cifar_resnet20(num_classes=3, width=4, seed=1)


def test_kept_and_computed_features_are_the_same_bits_in_any_batches(model, pictures, tmp_path):
    kept = features_of(model, pictures, tmp_path)
    computed = features_of(model, pictures)
    for epoch in (0, 1):
        assert np.array_equal(rows(kept, epoch), rows(computed, epoch))
    assert np.array_equal(rows(kept, 1, 3), rows(kept, 1)[15:])
    assert np.array_equal(rows(computed, 1, 3), rows(kept, 1)[15:])
    assert model.training
    loader = kept._loader
    crops = np.concatenate([batch.images for batch in loader.epoch(1)])
    expected = model.eval().features(minitl.tensor(crops)).numpy()
    assert np.allclose(rows(kept, 1), expected, rtol=1e-4, atol=1e-5)


def test_a_changed_file_is_computed_anew_and_no_other(model, pictures, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    before = rows(features_of(model, data, tmp_path / "c"))
    total = count(capsys)
    assert total == len(before)
    dataset = scan(data)
    changed = data / dataset.train[4].path
    stat = changed.stat()
    shutil.copy(data / dataset.train[-1].path, changed)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a date says nothing
    kept = rows(features_of(model, data, tmp_path / "c"))
    assert count(capsys) == 0  # its new content was there: of another picture
    changed.write_bytes((data / dataset.val[0].path).read_bytes())
    kept = rows(features_of(model, data, tmp_path / "c"))
    assert count(capsys) == 1
    assert np.array_equal(kept, rows(features_of(model, data)))
    assert (kept != before).any(axis=1).sum() == 1


def test_a_picture_replaced_meanwhile_is_not_kept(model, pictures, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    replaced, other = (data / scan(data).train[number].path for number in (0, -1))
    content, original = replaced.read_bytes(), FeatureCache.keys_of

    def keys_of(*arguments):
        keys = original(*arguments)
        replaced.write_bytes(other.read_bytes())
        return keys

    monkeypatch.setattr(FeatureCache, "keys_of", keys_of)
    with pytest.raises(UserError, match=f"{replaced.name} was replaced"):
        rows(features_of(model, data, tmp_path / "c"))
    monkeypatch.undo()
    assert not list((tmp_path / "c").rglob("*.*"))
    replaced.write_bytes(content)
    assert np.array_equal(
        rows(features_of(model, data, tmp_path / "c")), rows(features_of(model, data))
    )


def test_other_weights_cut_preprocessing_and_numbers_share_nothing(
    model, pictures, tmp_path, capsys
):
    rows(features_of(model, pictures, tmp_path))
    total = count(capsys)
    assert total
    rows(features_of(model, pictures, tmp_path))
    assert count(capsys) == 0
    model.replace_head(7)  # behind the cut
    rows(features_of(model, pictures, tmp_path))
    assert count(capsys) == 0
    model.preprocessing = model.preprocessing | {"mean": [0.4, 0.4, 0.4]}
    rows(features_of(model, pictures, tmp_path))
    assert count(capsys) == total
    model.state_dict()["layer2.0.bn1.running_mean"][0] += 1e-3
    rows(features_of(model, pictures, tmp_path))
    assert count(capsys) == total
    cut = frozen_stages(model)
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    one, other = (describe(model, cut, preprocessing, {"conv": c}) for c in ("auto", "exact"))
    assert FeatureCache(tmp_path, one).folder != FeatureCache(tmp_path, other).folder
    shorter = describe(model, cut - 1, preprocessing, {"conv": "auto"})
    assert FeatureCache(tmp_path, one).folder != FeatureCache(tmp_path, shorter).folder


def test_other_kernels_have_other_features(model, tmp_path, monkeypatch):
    config = Config("data", "w.h5", feature_cache=str(tmp_path))
    before = open_cache(config, model, 2).folder
    assert open_cache(config, model, 2).folder == before
    changed = tmp_path / "kernels"
    shutil.copytree(Path(importlib.util.find_spec("minitl.kernels.cpu").origin).parent, changed)
    digest = kernel_sources.__wrapped__("cpu")
    (changed / "linear.py").write_text((changed / "linear.py").read_text() + "\n")
    spec = importlib.util.spec_from_file_location("kernels", changed / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert kernel_sources.__wrapped__("cpu") != digest
    monkeypatch.setattr(feature_cache, "kernel_sources", kernel_sources.__wrapped__)
    assert open_cache(config, model, 2).folder != before


def test_another_decoder_has_other_features(model, tmp_path, monkeypatch):
    def folder():
        about = describe(model, 1, Preprocessing.from_dict(model.preprocessing), {})
        return FeatureCache(tmp_path, about).folder

    before = folder()
    assert folder() == before
    for module, name, other in (
        (PIL, "__version__", "99.0"),
        (PIL.features, "version", lambda feature: "99.0"),
    ):
        monkeypatch.setattr(module, name, other)
        assert folder() != before
        monkeypatch.undo()


def test_views_are_those_of_the_loader(model, pictures, tmp_path):
    features = features_of(model, pictures, tmp_path, augment=Augmentation())
    features._views = 2
    shown = rows(features, 3)
    computed = features_of(model, pictures, augment=Augmentation())
    order, earlier = (features._loader.order(epoch) for epoch in (3, 1))
    found = np.empty_like(shown)
    found[order] = shown
    wanted = np.empty_like(shown)
    wanted[earlier] = rows(computed, 1)
    assert np.array_equal(found, wanted)


def test_memory_holds_a_batch_and_files_stay_small(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "FILE_BYTES", 4 * 16 * 10)
    features = features_of(model, pictures, tmp_path)
    first = rows(features)
    assert len(list(features._cache.folder.glob("*.h5"))) == 4  # of 36 rows, 10 in a file
    assert np.array_equal(first, rows(features_of(model, pictures, tmp_path)))
    assert len(first) > FEATURE_BATCH


def test_a_damaged_file_is_noticed(model, pictures, tmp_path, capsys):
    features = features_of(model, pictures, tmp_path)
    first = rows(features)
    (file,) = features._cache.folder.glob("*.h5")
    content = bytearray(file.read_bytes())
    order = features._loader.order(0)
    place = content.find(first[np.argmin(order)].tobytes())
    assert place > 0
    content[place + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        rows(features_of(model, pictures, tmp_path))
    file.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert np.array_equal(rows(features_of(model, pictures, tmp_path)), first)
    assert "not used" in capsys.readouterr().out


def test_a_file_of_other_weights_is_not_used(model, pictures, tmp_path, capsys):
    others = features_of(model, pictures, tmp_path)
    rows(others)
    (file,) = others._cache.folder.glob("*.h5")
    model.state_dict()["layer1.0.bn1.running_mean"][0] += 1
    features = features_of(model, pictures, tmp_path)
    features._cache.folder.mkdir()
    shutil.copy(file, features._cache.folder)
    capsys.readouterr()
    found = rows(features_of(model, pictures, tmp_path))
    assert (
        "not what its folder's name says" in (said := capsys.readouterr().out) and "0 there" in said
    )
    assert np.array_equal(found, rows(features_of(model, pictures)))


def test_without_room_on_disk_features_are_computed_each_time(
    model, pictures, tmp_path, monkeypatch, capsys
):
    class Full:
        free = 1000

    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: Full)
    found = rows(features_of(model, pictures, tmp_path))
    assert "are free" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert np.array_equal(found, rows(features_of(model, pictures)))
    varied = features_of(model, pictures, tmp_path, augment=Augmentation())
    with pytest.raises(UserError, match="--cached-views"):
        rows(varied)


def add_rows(folder, value):
    cache = FeatureCache(folder, {"cut": "x"})
    keys = np.arange(50, dtype=np.uint8).repeat(32).reshape(50, 32)
    batches = (np.full((10, 3), value, np.float32) for _ in range(5))
    cache.add(keys, (3,), batches)


def test_two_processes_may_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_rows, args=(tmp_path, 1.0)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    cache = FeatureCache(tmp_path, {"cut": "x"})
    keys = np.arange(50, dtype=np.uint8).repeat(32).reshape(50, 32)
    assert not len(cache.missing(keys))
    assert np.array_equal(cache.rows(keys), np.ones((50, 3), np.float32))
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".h5"]


def test_clearing_does_not_end_the_run_of_another_process(tmp_path):
    keys = np.arange(4, dtype=np.uint8).repeat(32).reshape(4, 32)
    said = []

    def cleared_meanwhile():
        yield np.ones((2, 3), np.float32)
        clear(tmp_path, said.append)
        yield np.ones((2, 3), np.float32)

    cache = FeatureCache(tmp_path, {"cut": "x"})
    cache.add(keys, (3,), cleared_meanwhile())
    assert "stay" in said[0]
    assert np.array_equal(cache.rows(keys), np.ones((4, 3), np.float32))
    leftover = cache.folder / ".a.h5.00.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    assert clear(tmp_path, said.append) > 4
    assert not cache.folder.exists()


def test_files_that_are_deleted_meanwhile_are_not_counted_and_said(tmp_path, monkeypatch):
    keys = np.arange(4, dtype=np.uint8).repeat(32).reshape(4, 32)
    cache = FeatureCache(tmp_path, {"cut": "x"})
    write = feature_file.write

    def written_and_cleared(*arguments):
        write(*arguments)
        clear(tmp_path, str)

    monkeypatch.setattr("minitl.train.feature_cache.write", written_and_cleared)
    with pytest.raises(UserError, match="gone; is the cache being cleared"):
        cache.add(keys, (3,), iter([np.ones((4, 3), np.float32)]))
    monkeypatch.undo()
    cache.add(keys, (3,), iter([np.ones((4, 3), np.float32)]))
    is_file = Path.is_file

    def gone_after_a_look(path):
        found = is_file(path)
        if path.parent == cache.folder:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", gone_after_a_look)
    assert [one.bytes for one in kept(tmp_path)] == [0]


def test_an_interruption_leaves_no_half_file(tmp_path):
    def interrupted():
        yield np.ones((2, 3), np.float32)
        raise KeyboardInterrupt

    keys = np.arange(4, dtype=np.uint8).repeat(32).reshape(4, 32)
    cache = FeatureCache(tmp_path, {"cut": "x"})
    with pytest.raises(KeyboardInterrupt):
        cache.add(keys, (3,), interrupted())
    assert not list(cache.folder.iterdir())
    with pytest.raises(ValueError, match="2 rows"):
        feature_file.write(tmp_path / "f.h5", {}, keys, (3,), [np.ones((2, 3), np.float32)])
    assert not (tmp_path / "f.h5").exists()


def test_the_longest_frozen_front(model):
    names = [stage.name for stage in model.stages()]
    cuts = {
        (): 0,
        ("conv1",): 0,
        ("conv1", "bn1"): 1,
        ("layer1",): 0,
        ("conv1", "bn1", "layer1"): 1 + names.index("layer1.2"),
        tuple(model.backbone_parameters()): len(names),
    }
    for patterns, cut in cuts.items():
        model.unfreeze()
        if patterns:
            model.freeze(*patterns)
        assert frozen_stages(model) == cut


def test_dropout_is_never_before_the_cut():
    vgg = models.create("vgg11", num_classes=3, hidden=8, seed=None)
    vgg.freeze(*vgg.backbone_parameters())
    names = [stage.name for stage in vgg.stages()]
    assert names[frozen_stages(vgg)] == "classifier.2"
    still = models.create("vgg11", num_classes=3, hidden=8, dropout=0.0, seed=None)
    still.freeze(*still.backbone_parameters())
    assert frozen_stages(still) == len(names)


def test_a_second_head_looks_at_the_middle():
    model = models.create("inception_v3", num_classes=3, auxiliary=True, seed=None)
    model.freeze("Conv2d_1a_3x3")
    assert frozen_stages(model) == 0


def test_the_cache_is_listed_and_cleared(run, tmp_path, capsys):
    options = ["--feature-cache", str(tmp_path / "cache")]
    run("--freeze", "backbone", "--no-augment")
    run("--freeze", "conv1,bn1", "--no-augment", out="second")
    (tmp_path / "cache" / "mine").mkdir()
    capsys.readouterr()
    assert main(["cache", "--list", *options]) == 0
    listed = capsys.readouterr().out
    assert "cifar_resnet20" in listed
    assert "pool" in listed
    assert "bn1" in listed
    assert main(["cache", "--clear", *options]) == 0
    assert "freed" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mine"]
    assert main(["cache", *options]) == 0
    assert "empty" in capsys.readouterr().out
    use = functools.partial(run, "--freeze", "backbone", "--no-augment", out="third")
    assert use()[0] == 0
