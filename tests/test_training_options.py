"""Optimizers, rates, schedules and regularisation of `minitl finetune`, each through a small run."""

import csv
import json

import numpy as np
import pytest

from minitl import hdf5, models, nn, ops, optim
from minitl.cli import main
from minitl.data.dataset import Sample
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.device import CPU
from minitl.errors import UserError
from minitl.tensor import Tensor
from minitl.train.averaging import WeightAverage
from minitl.train.batches import Inputs
from minitl.train.config import Config, make_config
from minitl.train.mixing import mix
from minitl.train.optimisation import (
    class_weights,
    depth_of_parameters,
    make_optimizer,
    make_schedule,
    parameter_groups,
    resolved,
)
from minitl.train.options import as_given, option
from minitl.train.step import TrainingStep
from minitl.train.trained_model import prepare_to_train
from minitl.train.unfreezing import unfreeze_for
from tests.test_finetune import expect_error, pictures, run, weights, write_pictures

__all__ = ["pictures", "run", "weights"]  # fixtures


def config(**options):
    return Config(data="pictures", weights=None, arch="cifar_resnet20", **options)


def small():
    return models.create("cifar_resnet20", num_classes=5, seed=1, width=4, shortcut="B")


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def rates(folder):
    return [float(row["lr"]) for row in rows_of(folder)]


# --------------------------------------------------------------------------- groups and rates


def test_norms_and_biases_have_no_weight_decay_unless_asked():
    model = small()
    settings = resolved(config(weight_decay=0.1), model)
    by_decay = {g.get("weight_decay", 0.1): g["params"] for g in parameter_groups(model, settings)}
    assert {p.ndim for p in by_decay[0.1]} == {2, 4}
    assert {p.ndim for p in by_decay[0.0]} == {1}
    all_in_one = parameter_groups(model, resolved(config(decay_norms=True), model))
    assert [len(g["params"]) for g in all_in_one] == [len(model.parameters())]
    assert "weight_decay" not in all_in_one[0]


def test_a_layer_learns_the_slower_the_deeper_it_lies():
    model = models.create("resnet18", num_classes=3)
    depths = depth_of_parameters(model)
    assert depths["conv1.weight"] == depths["bn1.bias"] == 0
    assert depths["layer1.0.conv1.weight"] == depths["layer1.0.bn2.bias"] == 1
    assert depths["layer2.0.downsample.0.weight"] == 3
    assert depths["layer4.1.bn2.bias"] == 8
    assert depths["fc.weight"] == 9
    settings = resolved(config(lr=1.0, layer_decay=0.5, lr_for=("head=3",)), model)
    names = {id(p): name for name, p in model.named_parameters()}
    lr = {names[id(p)]: g["lr"] for g in parameter_groups(model, settings) for p in g["params"]}
    assert len(lr) == len(names)
    assert lr["fc.weight"] == lr["fc.bias"] == 3.0
    assert lr["layer4.1.conv1.weight"] == 0.5
    assert lr["conv1.weight"] == lr["bn1.weight"] == 0.5**9


def test_parts_have_rates_of_their_own_by_name_pattern_and_word():
    model = models.create("resnet18", num_classes=3)
    chosen = ("backbone=0.5", "layer4*=0.25", "layer4.1.bn2=2", "head=4")
    settings = resolved(config(lr=1.0, lr_for=chosen), model)
    names = {id(p): name for name, p in model.named_parameters()}
    lr = {names[id(p)]: g["lr"] for g in parameter_groups(model, settings) for p in g["params"]}
    assert lr.keys() == set(names.values())
    assert lr["conv1.weight"] == lr["layer3.1.bn2.bias"] == 0.5
    assert lr["layer4.0.conv1.weight"] == lr["layer4.1.bn1.bias"] == 0.25
    assert lr["layer4.1.bn2.weight"] == lr["layer4.1.bn2.bias"] == 2
    assert lr["fc.weight"] == lr["fc.bias"] == 4


def test_a_part_moves_at_its_own_rate(run, weights, capsys):
    """Plain SGD: what a step changes is the rate times a gradient that is the same."""
    options = (
        "--epochs",
        1,
        "--batch-size",
        50,
        "--momentum",
        0,
        "--weight-decay",
        0,
        "--lr",
        0.01,
    )
    moved = {}
    for own in ((), ("--lr-for", "layer3*=0.04"), ("--lr-for", "head=0.02"), ("--lr-head", 0.02)):
        code, folder = run(*options, *own, out="".join(map(str, own)) or "plain")
        assert code == 0
        before, after = hdf5.read(weights).state, hdf5.read(folder / "last.h5").state
        names = ("conv1.weight", "layer3.0.conv1.weight")
        moved[own] = {n: after[n] - before[n] for n in names} | {"head": after["linear.weight"]}
    plain, part, head, short = moved.values()
    np.testing.assert_array_equal(part["conv1.weight"], plain["conv1.weight"])
    close = {"rtol": 1e-3, "atol": 1e-7}  # of a difference to weights of about 1
    name = "layer3.0.conv1.weight"
    np.testing.assert_allclose(part[name], 4 * plain[name], **close)
    np.testing.assert_array_equal(part["head"], plain["head"])
    assert not np.array_equal(head["head"], plain["head"])
    np.testing.assert_array_equal(head["head"], short["head"])
    assert "learning rates of their own: layer3* 0.04" in capsys.readouterr().out


def test_rates_of_the_head_from_before_other_parts_had_some(tmp_path):
    (tmp_path / "c.toml").write_text('data = "d"\narch = "resnet18"\nlr_head = 0.02\n')
    assert Config.load(tmp_path / "c.toml").lr_for == ("head=0.02",)


def test_what_is_left_open_follows_the_optimizer_and_what_trains():
    model = small()
    sgd, adamw = resolved(config(), model), resolved(config(optimizer="adamw"), model)
    assert (sgd.lr, sgd.weight_decay, sgd.gamma) == (0.001, 1e-4, None)
    assert (adamw.lr, adamw.weight_decay) == (1e-4, 0.01)
    model.freeze("conv1", "bn1", "layer1", "layer2", "layer3")
    assert resolved(config(schedule="step"), model).lr == 0.01
    assert resolved(config(schedule="step"), model).gamma == 0.1


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", optim.SGD), ("adam", optim.Adam), ("adamw", optim.AdamW)]
)
def test_each_optimizer_is_the_one_asked_for(name, kind):
    model = small()
    optimizer = make_optimizer(model, resolved(config(optimizer=name), model))
    assert type(optimizer) is kind


def test_schedules_of_a_run():
    def lrs(steps=4, losses=(), **options):
        settings = resolved(config(epochs=5, **options), small())
        schedule = make_schedule(settings, steps, losses)
        return [schedule(t) for t in range(5 * steps)]

    assert lrs(schedule="step", step_epochs=2)[7:9] == pytest.approx([1, 0.1])
    assert lrs(schedule="exponential")[3:5] == pytest.approx([1, 0.9])
    assert lrs(schedule="constant", warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert lrs(schedule="plateau", plateau_patience=0, losses=[1, 2])[0] == pytest.approx(0.1)
    assert max(lrs(schedule="one-cycle")) == pytest.approx(1)
    assert lrs()[-1] < 0.02


# --------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--optimizer", "adamw", "--lr", 0.003), marks=pytest.mark.slow),
        ("--optimizer", "adam", "--schedule", "one-cycle", "--lr", 0.01),
        ("--layer-decay", 0.7, "--lr-head", 0.01, "--clip-norm", 5),
        ("--dropout", 0.3, "--ema", 0.9, "--epochs", 8),
        pytest.param(("--sampler", "balanced"), marks=pytest.mark.slow),
        pytest.param(("--class-weights", "balanced"), marks=pytest.mark.slow),
    ],
    ids=lambda options: options[0],
)
def test_a_run_with_these_options_learns(run, options):
    code, folder = run("--no-augment", "--epochs", 6, *options)
    assert code == 0
    rows = rows_of(folder)
    assert float(rows[-1]["train_loss"]) < 0.75 * float(rows[0]["train_loss"])


def test_class_weights_do_not_mind_batches_in_parts(run, tmp_path):
    data = write_pictures(tmp_path / "uneven", per_class=8)
    for number in range(1, 6):
        (data / "red" / f"{number}.png").unlink()
    options = ("--freeze", "backbone", "--no-augment", "--class-weights", "balanced")
    heads = []
    for out, parts in (("whole", ()), ("parts", ("--micro-batch", 2)), ("plain", ())):
        given = (*options, *parts) if out != "plain" else options[:-2]
        code, folder = run(*given, data=data, out=out)
        assert code == 0
        heads.append(hdf5.read(folder / "last.h5").state["linear.weight"])
    whole, parts, plain = heads
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
    assert np.abs(plain - whole).max() > 1e-3


def test_steps_and_plateaus_show_in_the_metrics(run):
    code, folder = run(*("--schedule", "step", "--step-epochs", 1, "--gamma", 0.5), out="steps")
    assert code == 0
    assert rates(folder) == pytest.approx([0.02, 0.01, 0.005])
    plateau = ("--schedule", "plateau", "--plateau-patience", 0, "--lr", 1e-9, "--gamma", 0.5)
    code, folder = run(*plateau, "--no-augment", "--freeze", "backbone", out="plateau")
    assert code == 0
    assert rates(folder)[2] == pytest.approx(0.5e-9)  # nothing learned in epoch 2


def test_patience_ends_a_run(run, capsys):
    options = ("--epochs", 9, "--patience", 2, "--lr", 1e-30, "--freeze", "backbone")
    code, folder = run(*options, "--no-augment", "--schedule", "constant")
    assert code == 0
    assert "stopped early" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == summary["best_epoch"] + 2 < 9
    assert main(["finetune", "--resume", str(folder)]) == 0  # it stays finished
    assert json.loads((folder / "summary.json").read_text())["epochs"] == summary["epochs"]


def test_the_average_is_judged_and_kept(run):
    code, folder = run("--no-augment", "--ema", 0.9)
    assert code == 0
    last = hdf5.read(folder / "last.h5")
    average = last.progress["average"]
    assert average["steps"] == 9
    rows = rows_of(folder)
    final = json.loads((folder / "summary.json").read_text())
    best = hdf5.read(folder / "best.h5").state
    assert not np.array_equal(best["linear.weight"], last.state["linear.weight"])
    if final["best_epoch"] == 3:
        assert np.array_equal(best["linear.weight"], average["averages"]["linear.weight"])
    assert float(rows[final["best_epoch"] - 1]["val_loss"]) == pytest.approx(
        final["val"]["loss"], rel=1e-4
    )


def test_gradual_unfreezing_moves_each_part_in_its_time(run, weights):
    schedule = ("--unfreeze-schedule", "head:0,layer3:2", "--optimizer", "adamw")
    states = []
    for epochs in (2, 3):
        options = ("--epochs", epochs, "--schedule", "constant")
        if epochs == 2:  # the end of epoch 2 of the longer run, told apart by its own schedule
            code, folder = run(*options, "--unfreeze-schedule", "head:0", "--optimizer", "adamw")
        else:
            code, folder = run(*options, *schedule, out="longer")
        assert code == 0
        states.append(hdf5.read(folder / "last.h5").state)
    before = hdf5.read(weights).state
    early, late = states
    for name, array in before.items():
        if name.startswith("linear."):
            assert not np.array_equal(early[name], late[name])
        else:
            assert early[name].tobytes() == array.tobytes(), name
            moved = late[name].tobytes() != array.tobytes()
            assert moved == name.startswith("layer3."), name


def test_mixing_and_unfreezing_can_be_repeated(run):
    options = ("--mixup", 0.4, "--cutmix", 1, "--unfreeze-schedule", "linear:0,layer3:1")
    digests = []
    for out, more in (("a", ()), ("b", ("--workers", 3))):
        code, folder = run(*options, *more, out=out)
        assert code == 0
        digests.append(hdf5.read(folder / "last.h5").state)
    assert all(np.array_equal(digests[0][name], digests[1][name]) for name in digests[0])


# --------------------------------------------------------------------------- parts of them


def step_with(model, **options):
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return TrainingStep(model, model, optimizer, CPU, **options)


def batch(n=6, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, n)
    return Inputs(random.normal(size=(n, 8, 8, 3)).astype(np.float32), labels, labels)


def test_a_mixed_batch_is_a_blend_with_its_reverse():
    inputs = batch()
    mixed = mix(inputs, 0.5, 0.0, seed=3, epoch=2, batch=1)
    share = mixed.mixed.share
    expected = share * inputs.x.astype(float) + (1 - share) * inputs.x[::-1]
    np.testing.assert_allclose(mixed.x, expected, atol=1e-6)
    assert np.array_equal(mixed.mixed.labels, inputs.labels[::-1])
    again = mix(inputs, 0.5, 0.0, seed=3, epoch=2, batch=1)
    assert np.array_equal(again.x, mixed.x)
    assert mix(inputs, 0.5, 0.0, seed=3, epoch=2, batch=2).mixed.share != share


def test_a_cut_batch_holds_a_rectangle_of_its_reverse():
    inputs = batch()
    areas = []
    for number in range(40):
        cut = mix(inputs, 0.0, 1.0, seed=0, epoch=0, batch=number)
        own = (cut.x == inputs.x).all(axis=(0, 3))
        other = (cut.x == inputs.x[::-1]).all(axis=(0, 3))
        assert (own | other).all()
        areas.append(own.mean())
        assert cut.mixed.share == pytest.approx(own.mean())
        rows, columns = np.nonzero(~own)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert min(areas) < 0.5 < max(areas)


def test_the_loss_of_a_mixed_batch_and_its_step():
    inputs, model = mix(batch(), 0.5, 0.0, seed=1, epoch=0, batch=0), small()
    for _, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.frozen = True
    logits = model(Tensor(inputs.x))
    share, labels, other = inputs.mixed.share, inputs.labels, inputs.mixed.labels
    losses = [ops.softmax_cross_entropy(logits, which).item() for which in (labels, other)]
    whole = step_with(model)
    before = {n: a.copy() for n, a in model.state_dict().items()}
    whole(inputs)
    expected = share * losses[0] + (1 - share) * losses[1]
    assert whole.results()[0].loss == pytest.approx(expected, rel=1e-5)
    after = {n: a.copy() for n, a in model.state_dict().items()}
    model.load_state_dict(before)
    step_with(model, micro_batch=2)(inputs)
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(array, after[name], rtol=1e-4, atol=2e-6, err_msg=name)


def test_class_weights_balance_the_classes():
    class Counted:
        def counts(self, part):
            return [6, 2, 1]

    chosen = class_weights(config(class_weights="balanced"), Counted())
    np.testing.assert_allclose(chosen, [0.5, 1.5, 3.0])
    assert class_weights(config(), Counted()) is None
    model, inputs = small(), batch()
    chosen = np.array([1, 2, 3, 4, 5], np.float32)
    step = step_with(model, class_weights=chosen)
    expected = ops.softmax_cross_entropy(
        small()(Tensor(inputs.x)), inputs.labels, class_weights=chosen
    )
    step(inputs)
    assert step.results()[0].loss == pytest.approx(expected.item())


def test_clipping_bounds_a_step():
    model, inputs = small(), batch()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    step_with(model, clip_norm=0.01)(inputs)
    moved = sum(((p.data - before[n]) ** 2).sum() for n, p in model.named_parameters())
    assert np.sqrt(moved) == pytest.approx(0.1 * 0.01, rel=1e-2)


def test_the_average_follows_what_trains_and_leaves_the_rest():
    model = small()
    model.freeze("conv1", "bn1", "layer1")
    frozen = {n: a.copy() for n, a in model.state_dict().items() if n.startswith(("conv1", "bn1"))}
    average = WeightAverage(model, 0.9)
    seen = [model.linear.weight.data.copy()]
    expected = seen[0].astype(float)
    for number in range(5):
        model.linear.weight.data += 1
        next(iter(model.layer3)).bn1.running_mean += 1
        average.update()
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.linear.weight.data
    own = model.linear.weight.data.copy()
    with average.in_use():
        np.testing.assert_allclose(model.linear.weight.data, expected, rtol=1e-5)
        assert 0 < next(iter(model.layer3)).bn1.running_mean[0] < 5
        for name, array in frozen.items():
            assert model.state_dict()[name].tobytes() == array.tobytes()
    assert np.array_equal(model.linear.weight.data, own)
    again = WeightAverage(small(), 0.9)
    with pytest.raises(ValueError, match="other parameters"):
        again.load_state_dict(average.state_dict())


def test_a_balanced_sampler_shows_each_class_equally_often(tmp_path):
    samples = [Sample(f"{n}.png", 0) for n in range(9)] + [Sample("a.png", 1), Sample("b.png", 1)]
    loader = Loader(samples, tmp_path, Preprocessing(), 4, shuffle=True, balanced=True, seed=3)
    counts = np.zeros(11, int)
    for epoch in range(20):
        order = loader.order(epoch)
        assert len(order) == 11
        labels = (order >= 9).sum()
        assert labels in (5, 6)
        assert len(np.unique(order[order < 9])) == 11 - labels  # none twice while others wait
        counts += np.bincount(order, minlength=11)
        assert np.array_equal(order, loader.order(epoch))
    assert counts[:9].min() > 0
    assert abs(counts[9] - counts[10]) <= 20
    assert not np.array_equal(loader.order(0), loader.order(1))


def test_dropout_before_the_head_keeps_the_names():
    model = small()
    names = list(model.state_dict())
    model.drop_before_head(0.5, seed=2)
    assert list(model.state_dict()) == names
    assert model.num_classes == 5
    x = Tensor(np.ones((64, 16), np.float32))
    model.train()
    assert not np.array_equal(model.head(x).data[0], model.head(x).data[1])
    model.eval()
    np.testing.assert_array_equal(model.head(x).data[0], model.head(x).data[1])


def test_dropout_follows_the_seed_and_no_layer_shares_its_places():
    """Also that of the network itself; a resumed run draws the same, as test_resume.py shows."""
    layers = [{"type": "global_avgpool"}, *[{"type": "dropout"}] * 2, {"type": "dense", "units": 4}]
    seeds = []
    for seed in (0, 1, 1):
        model = models.create("sequential", layers=layers)
        prepare_to_train(model, config(seed=seed, dropout=0.3))
        seeds.append([m.seed for _, m in model.named_modules() if isinstance(m, nn.Dropout)])
    assert seeds[1] == seeds[2]
    assert len({*seeds[0], *seeds[1]}) == 6


# --------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "lion"], ["--optimizer", "lion", "adamw"]),
        (["--optimizer", "adam", "--momentum", "0.8"], ["--momentum", "--optimizer sgd"]),
        (["--gamma", "0.5"], ["--gamma", "--schedule"]),
        (["--step-epochs", "3", "--schedule", "plateau"], ["--step-epochs", "--schedule step"]),
        (["--schedule", "one-cycle", "--warmup-steps", "2"], ["--warmup-steps", "one-cycle"]),
        (["--layer-decay", "1.5"], ["--layer-decay", "1.5"]),
        (["--lr-head", "-1"], ["--lr-head", "-1"]),
        (["--lr-for", "layer3"], ["--lr-for", "layer3", "part"]),
        (["--lr-for", "layer3=fast"], ["--lr-for", "layer3=fast", "positive"]),
        (["--lr-for", "layer9=0.1"], ["--lr-for", "layer9", "layer3", "head, backbone"]),
        (["--lr-for", "layer1=0.1", "--freeze", "layer1"], ["--lr-for", "layer1", "never trains"]),
        (["--layer-decay", "0.5", "--freeze", "backbone"], ["--layer-decay", "head"]),
        (["--no-feature-cache"], ["--no-feature-cache", "--freeze"]),
        (["--feature-cache", "kept"], ["--feature-cache", "--freeze"]),
        (["--cached-views", "2"], ["--cached-views", "--freeze"]),
        (["--patience", "3"], ["--patience", "--epochs"]),
        (["--from-scratch", "--freeze", "backbone"], ["--freeze", "--from-scratch", "random"]),
        (["--from-scratch", "--freeze-until", "layer3"], ["--freeze-until", "--from-scratch"]),
        (["--from-scratch", "--recipe", "frozen-mlp"], ["--freeze", "--from-scratch"]),
        (["--freeze", "linear"], ["linear", "never trains", "random"]),
        (["--freeze", "head"], ["--freeze head", "--freeze backbone"]),
        (["--unfreeze-schedule", "layer3:0"], ["linear", "never trains", "head:0"]),
        (["--test-fraction", "0.9"], ["--test-fraction"]),
        (["--clip-norm", "0"], ["--clip-norm"]),
        (["--ema", "1"], ["--ema"]),
        (["--patience", "0"], ["--patience"]),
        (["--dropout", "1"], ["--dropout"]),
        (["--mixup", "-1"], ["--mixup"]),
        (["--class-weights", "rare"], ["--class-weights", "balanced"]),
        (["--sampler", "even"], ["--sampler", "balanced"]),
        (
            ["--class-weights", "balanced", "--sampler", "balanced"],
            ["--class-weights", "--sampler", "twice"],
        ),
        (["--no-augment", "--no-flip"], ["--no-flip", "--no-augment"]),
        (["--unfreeze-schedule", "linear"], ["--unfreeze-schedule", "linear", "PART:EPOCH"]),
        (["--unfreeze-schedule", "linear:1"], ["epoch 0"]),
        (["--unfreeze-schedule", "linear:0,layer9:1"], ["layer9", "layer3"]),
        (["--unfreeze-schedule", "linear:0,layer3:3"], ["layer3:3", "3 epochs"]),
        (["--unfreeze-schedule", "linear:0", "--freeze", "layer1"], ["--freeze"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_options(run, capsys, arguments, words):
    code, folder = run(*arguments)
    expect_error(capsys, code, *words)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"rotation": 10.0, "augment": False},
            "--rotation 10 has no effect with --no-augment, which leaves pictures as they are; leave one of "
            "them out",
        ),
        (
            {"crop_scale": (0.5, 1.0), "augment": False},
            "--crop-scale 0.5,1 has no effect with --no-augment, which leaves pictures as they are; leave "
            "one of them out",
        ),
        (
            {"patience": 20},
            "--patience 20 never ends a run of 10 epochs; give more --epochs or a smaller --patience",
        ),
        (
            {"nesterov": True, "optimizer": "adam"},
            "--nesterov has no effect with --optimizer adam, only with --optimizer sgd; leave one of "
            "them out",
        ),
        (
            {"freeze": ("conv1", "layer1"), "unfreeze_schedule": ("head:0",)},
            "--freeze conv1,layer1 has no effect with --unfreeze-schedule, which freezes the rest; leave one "
            "of them out",
        ),
        (
            {"follow_links": True, "labels": "labels.csv"},
            "--follow-links has no effect with --labels, whose pictures are taken wherever links lead; leave "
            "it out",
        ),
        (
            {"from_scratch": True, "weights": None, "arch": "resnet18"},
            "--from-scratch takes the network of --weights; give these as well",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_an_option_without_effect_is_refused_in_a_sentence(given, words):
    with pytest.raises(UserError) as error:
        make_config(None, {"data": "d", "weights": "w.h5", **given})
    assert str(error.value) == words


def test_links_are_followed_beside_a_table_where_nobody_asked_for_it(tmp_path):
    """Settings may hold that an option is off."""
    given = {"data": "d", "arch": "resnet18", "labels": "labels.csv", "follow_links": False}
    assert not make_config(None, given).follow_links


def test_momentum_that_is_off_names_who_may_bring_nesterovs(tmp_path, capsys):
    arguments = ("finetune", "--demo", "--momentum", 0, "--out", tmp_path / "demo")
    code = main([str(word) for word in arguments])
    expect_error(capsys, code, "--demo brings", "--momentum above 0")


def test_options_are_named_as_they_were_given():
    assert option("data") == "DATA" and option("batch_size") == "--batch-size"
    assert option("feature_cache", "off") == "--no-feature-cache"
    assert as_given("flip", False) == "--no-flip" and as_given("nesterov", True) == "--nesterov"
    assert as_given("lr_for", ("head=1", "layer1=2")) == "--lr-for head=1 --lr-for layer1=2"
    assert as_given("policy", (2, 9)) == "--policy 2,9" and as_given("zoom", 0.2) == "--zoom 0.2"


def test_settings_from_before_norms_were_spared_keep_their_meaning(tmp_path):
    file = tmp_path / "config.toml"
    text = 'data = "d"\narch = "resnet18"\n'
    file.write_text(f"{text}weight_decay = 0.1\n")
    assert Config.load(file).decay_norms
    file.write_text(f"{text}weight_decay = 0.1\ndecay_norms = false\n")
    assert not Config.load(file).decay_norms
    file.write_text(text)
    assert not Config.load(file).decay_norms


def test_an_unfreezing_schedule_knows_words():
    model = small()
    unfreeze_for(model, ("head:0", "backbone:1"), 0)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "linear.weight",
        "linear.bias",
    ]
    assert model.bn1.frozen
    unfreeze_for(model, ("head:0", "backbone:1"), 1)
    assert all(p.requires_grad for p in model.parameters())
    assert not model.bn1.frozen
    with pytest.raises(UserError, match="epoch 0"):
        unfreeze_for(model, ("head:1",), 0)


def test_an_uneven_folder_with_a_balanced_sampler_and_kept_features(run, tmp_path):
    data = write_pictures(tmp_path / "uneven", per_class=8)
    for number in range(1, 6):
        (data / "red" / f"{number}.png").unlink()
    options = ("--sampler", "balanced", "--freeze", "backbone", "--no-augment", "--lr", 0.003)
    code, folder = run(*options, "--epochs", 8, data=data)
    assert code == 0
    rows = rows_of(folder)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
