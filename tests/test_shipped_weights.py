"""The weights that come with minitl: whole, small, and worth having."""

import numpy as np

from minitl import hdf5, models
from minitl.convert.golden import self_test
from minitl.weights import STROKES, pretrain, transfer


def test_the_file_is_whole_and_says_where_it_comes_from():
    contents = hdf5.read(STROKES)
    assert STROKES.stat().st_size < 8 * 2**20
    assert contents.arch == "cifar_resnet20"
    assert contents.license == "MIT"
    assert "minitl.weights.pretrain" in contents.source
    assert contents.preprocessing == pretrain.PREPROCESSING
    assert all(np.isfinite(array).all() for array in contents.state.values())


def test_they_compute_what_they_did_when_they_were_made():
    assert self_test(hdf5.read(STROKES), str(STROKES)).passed


def test_pretraining_helps_on_real_digits():
    """Three labels per class and 20 steps: a small part of the table in weights/README.md."""
    x, y = transfer.digits()
    chosen, others = transfer.split(y, 3, seed=200)
    judged = others[:400]
    accuracy = {}
    for name, lr in (("fine-tuned", 0.05), ("from scratch", 0.05)):
        model = transfer.start(name == "fine-tuned", seed=0)
        transfer.train(model, x[chosen], y[chosen], steps=20, lr=lr, seed=0)
        accuracy[name] = (transfer.in_parts(model, x[judged]).argmax(1) == y[judged]).mean()
    assert accuracy["fine-tuned"] > 0.75
    assert accuracy["fine-tuned"] > accuracy["from scratch"] + 0.15


def test_the_recipe_learns_and_writes_a_weights_file(tmp_path):
    path = tmp_path / "w.h5"
    pretrain.pretrain(path, letters=5, steps=120, batch=16, lr=0.05, width=4, seed=0)
    assert self_test(hdf5.read(path), str(path)).passed
    model = models.load_model(path)
    assert model.arch_options == {"shortcut": "B", "width": 4}
    assert model.num_classes == 5
    pictures, labels = next(pretrain.batches(5, 1, 200, seed=0))
    assert (transfer.in_parts(model, pictures).argmax(1) == labels).mean() > 0.4  # chance is 0.2
