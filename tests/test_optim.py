"""The optimizers against PyTorch's: the same parameters, the same gradients, the same steps."""

import math

import numpy as np
import pytest
import torch

from minitl import ops, optim
from minitl.tensor import Tensor

SHAPES = [(3, 5), (7,), (4, 2, 2, 3), (1,)]
CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd weight decay": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "momentum weight decay": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.02, "nesterov": True}),
    "adam": ("Adam", {}),
    "adam weight decay": ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "adamw": ("AdamW", {}),
    "adamw weight decay": ("AdamW", {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.3}),
}


def make_parameters(dtype, seed=0):
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal(shape).astype(dtype) for shape in SHAPES]
    ours = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    return ours, theirs


def give_gradients(ours, theirs, random, missing=()):
    for i, (p, t) in enumerate(zip(ours, theirs, strict=True)):
        if i in missing:
            p.grad, t.grad = None, None
            continue
        gradient = random.standard_normal(p.shape).astype(p.dtype)
        p.grad = None
        p._accumulate(gradient)
        t.grad = torch.tensor(gradient)


def compare(ours, theirs, dtype):
    # float32: a few roundings for each of 20 steps; float64: nothing but those either.
    tolerance = 40 * np.finfo(dtype).eps
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_equal_pytorch(case, dtype):
    name, options = CASES[case]
    ours, theirs = make_parameters(dtype)
    optimizer = getattr(optim, name)(ours, **options)
    reference = getattr(torch.optim, name)(theirs, **options)
    random = np.random.default_rng(1)
    for _ in range(20):
        give_gradients(ours, theirs, random)
        optimizer.step()
        reference.step()
    compare(ours, theirs, dtype)


@pytest.mark.parametrize("case", CASES)
def test_groups_missing_gradients_and_a_changing_rate_equal_pytorch(case):
    name, options = CASES[case]
    ours, theirs = make_parameters(np.float64)

    def make(kind, p):
        groups = [
            {"params": [p[0], p[1]], "lr": 0.01, "weight_decay": 0.2},
            {"params": p[2:]},
        ]
        return kind(groups, **options)

    optimizer, reference = (
        make(getattr(optim, name), ours),
        make(getattr(torch.optim, name), theirs),
    )
    random = np.random.default_rng(1)
    for step in range(20):
        missing = {0: (0,), 3: (1, 2), 7: (0, 1, 2, 3)}.get(step, ())
        give_gradients(ours, theirs, random, missing)
        optimizer.lr_factor = 1 / (step + 1)
        for group, base in zip(reference.param_groups, optimizer.param_groups, strict=True):
            group["lr"] = base["lr"] * optimizer.lr_factor
        optimizer.step()
        reference.step()
    compare(ours, theirs, np.float64)


def test_defaults_are_pytorchs():
    for name in ("SGD", "Adam", "AdamW"):
        ours, theirs = make_parameters(np.float64)
        group = getattr(torch.optim, name)(theirs).param_groups[0]
        for option, value in getattr(optim, name)(ours).defaults.items():
            assert value == group[option], (name, option)


def test_parameters_become_views_of_one_array_and_gradients_too():
    ours, _ = make_parameters(np.float32)
    before = [p.data.copy() for p in ours]
    optim.SGD(ours, lr=0.1)
    assert len({id(_owner(p.data)) for p in ours}) == 1
    for p, values in zip(ours, before, strict=True):
        np.testing.assert_array_equal(p.data, values)
        ops.add(p, p).backward(np.ones(p.shape, np.float32))
        assert p.grad is p.grad_buffer
        np.testing.assert_array_equal(p.grad, 2)
    assert len({id(_owner(p.grad)) for p in ours}) == 1


def _owner(array):
    while array.base is not None:
        array = array.base
    return array


def test_frozen_parameters_are_left_alone():
    ours, _ = make_parameters(np.float32)
    ours[1].requires_grad = False
    data = ours[1].data
    optimizer = optim.SGD(ours, lr=0.1)
    assert ours[1].data is data
    ours[1].grad = np.ones_like(data)
    with pytest.raises(RuntimeError, match="add_param_group"):
        optimizer.step()
    optimizer.zero_grad()
    assert ours[1].grad is None
    ours[1].requires_grad = True
    optimizer.add_param_group({"params": [ours[1]], "lr": 1.0})
    before = ours[1].data.copy()
    ours[1].grad = np.ones_like(data)  # not written by backward, so not in the flat array
    optimizer.step()
    np.testing.assert_array_equal(ours[1].data, before - 1)


def test_a_parameter_frozen_later_and_one_without_gradient_stay_bit_for_bit():
    ours, theirs = make_parameters(np.float32)
    optimizer = optim.AdamW(ours, lr=0.1, weight_decay=0.5)
    random = np.random.default_rng(0)
    give_gradients(ours, theirs, random)
    optimizer.step()
    before = ours[2].data.copy()
    give_gradients(ours, theirs, random, missing=(2,))
    optimizer.step()
    np.testing.assert_array_equal(ours[2].data, before)
    assert optimizer.state_dict()["parameters.2.steps"] == 1
    assert optimizer.state_dict()["parameters.3.steps"] == 2


def test_a_parameter_given_another_array_is_taken_back():
    ours, _ = make_parameters(np.float64)
    optimizer = optim.SGD(ours, lr=1.0)
    ours[0].data = np.full(ours[0].shape, 5.0)
    ours[0].grad = np.ones(ours[0].shape)
    optimizer.step()
    np.testing.assert_array_equal(ours[0].data, 4)
    assert _owner(ours[0].data) is _owner(ours[1].data)


@pytest.mark.parametrize("of", ["data", "grad"])
@pytest.mark.parametrize("act", [lambda o: o.step(), lambda o: o.clip_norm(1.0)])
def test_a_parameter_of_another_kind_is_refused(of, act):
    p = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    p.grad = np.ones((2, 2), np.float32)
    for given in (np.ones((2, 2)), np.ones((1, 2), np.float32)):
        own = getattr(p, of)
        setattr(p, of, given)
        with pytest.raises(ValueError, match=r"Make a new optimizer after astype\(\)"):
            act(optimizer)
        assert getattr(p, of) is given
        setattr(p, of, own)
    optimizer.step()
    np.testing.assert_array_equal(p.data, np.zeros((2, 2)))


@pytest.mark.parametrize("case", CASES)
def test_resuming_is_exact(case):
    name, options = CASES[case]

    def run(steps, optimizer, ours, seed):
        random = np.random.default_rng(seed)
        for _ in range(steps):
            give_gradients(ours, ignored, random, missing=(1,))
            optimizer.step()

    ours, ignored = make_parameters(np.float32)
    straight = getattr(optim, name)(ours, **options)
    run(3, straight, ours, 1)
    straight.lr_factor = 0.5
    saved, values = straight.state_dict(), [p.data.copy() for p in ours]
    assert all(isinstance(v, bool | int | float | np.ndarray) for v in saved.values())
    run(3, straight, ours, 2)

    again = [Tensor(v, requires_grad=True) for v in values]
    resumed = getattr(optim, name)(again, **(options | {"lr": 77.0}))
    # As numbers come from a file.
    resumed.load_state_dict({k: np.asarray(v) for k, v in saved.items()})
    run(3, resumed, again, 2)
    for a, b in zip(ours, again, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    assert [type(v) for v in resumed.state_dict().values()] == [type(v) for v in saved.values()]


def test_loading_is_strict_and_changes_nothing_on_failure():
    ours, theirs = make_parameters(np.float32)
    optimizer = optim.SGD(ours, lr=0.1, momentum=0.9)
    give_gradients(ours, theirs, np.random.default_rng(0))
    optimizer.step()
    good = optimizer.state_dict()
    bad = {k: v for k, v in good.items() if k != "parameters.0.velocity"}
    bad["parameters.9.velocity"] = np.zeros(3)
    bad["parameters.1.velocity"] = np.zeros(8)
    bad["groups.0.lr"] = 3.0
    with pytest.raises(ValueError, match="state does not fit") as error:
        optimizer.load_state_dict(bad)
    for part in (
        "missing: parameters.0.velocity",
        "unexpected: parameters.9.velocity",
        "(8,) instead of (7,)",
    ):
        assert part in str(error.value)
    after = optimizer.state_dict()
    assert all(np.array_equal(good[k], after[k]) for k in good)
    with pytest.raises(ValueError, match="does not fit this Adam"):
        optim.Adam(ours).load_state_dict(good)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: optim.SGD([]), ValueError, "nothing to train"),
        (lambda p: optim.SGD([Tensor(np.ones(1))]), ValueError, "none of the 1 parameters"),
        (lambda p: optim.SGD([p], lr=-1), ValueError, "lr must be .* got -1"),
        (lambda p: optim.SGD([p], lr=math.nan), ValueError, "lr must be .* got nan"),
        (lambda p: optim.SGD([p], lr=math.inf), ValueError, "lr must be .* got inf"),
        (lambda p: optim.SGD([p], weight_decay=-1), ValueError, "weight_decay must be"),
        (lambda p: optim.SGD([p], momentum=-0.1), ValueError, "momentum must be"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "needs a momentum"),
        (lambda p: optim.SGD([p, p]), ValueError, "twice"),
        (lambda p: optim.SGD([{"params": p}, {"params": [p]}]), ValueError, "twice"),
        (lambda p: optim.SGD([{"params": p, "rate": 1}]), ValueError, "no option rate"),
        (lambda p: optim.SGD([{"parameters": p}]), TypeError, '"params"'),
        (lambda p: optim.SGD([p, {"params": []}]), TypeError, '"params"'),
        (lambda p: optim.SGD(["w"]), TypeError, "not str 'w'"),
        (lambda p: optim.SGD([np.ones(3)]), TypeError, "not ndarray"),
        (lambda p: optim.SGD([ops.add(p, p)]), ValueError, "result of an operation"),
        (
            lambda p: optim.SGD([p, Tensor(np.ones(1, np.float32), True)]),
            ValueError,
            "float32 and float64",
        ),
        (lambda p: optim.Adam([p], eps=-1), ValueError, "eps must be"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, r"betas .* got \(0.9, 1.0\)"),
    ],
)
def test_errors_say_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make(Tensor(np.ones(2), requires_grad=True))


def test_a_rate_that_becomes_nan_is_refused_before_it_does_harm():
    p = Tensor(np.ones(2), requires_grad=True)
    optimizer = optim.SGD(p, lr=0.1)
    p.grad = np.ones(2)
    optimizer.lr_factor = math.nan
    with pytest.raises(ValueError, match=r"lr must be .* got nan"):
        optimizer.step()
    np.testing.assert_array_equal(p.data, 1)


def test_schedules_equal_pytorchs():
    def rates(scheduler, **options):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = scheduler(optimizer, **options)
        for _ in range(30):
            yield scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()

    kinds = torch.optim.lr_scheduler
    for ours, theirs in (
        (optim.constant(), rates(kinds.ConstantLR, factor=1.0)),
        (optim.step_decay(7, 0.3), rates(kinds.StepLR, step_size=7, gamma=0.3)),
        (optim.exponential(0.9), rates(kinds.ExponentialLR, gamma=0.9)),
        (optim.cosine(30, final=0.1), rates(kinds.CosineAnnealingLR, T_max=30, eta_min=0.1)),
        (
            optim.one_cycle(31),
            rates(kinds.OneCycleLR, max_lr=1.0, total_steps=31, cycle_momentum=False),
        ),
    ):
        assert [ours(step) for step in range(30)] == pytest.approx(list(theirs))


def test_cosine_warms_up_and_ends():
    schedule = optim.cosine(20, warmup_steps=4, final=0.05)
    assert [schedule(t) for t in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert schedule(12) == pytest.approx((1 + 0.05) / 2)
    assert schedule(20) == schedule(1000) == pytest.approx(0.05)
    for make in (
        lambda: optim.cosine(3, warmup_steps=3),
        lambda: optim.step_decay(0),
        lambda: optim.step_decay(3, 0.0),
        lambda: optim.step_decay(3, 1.5),
        lambda: optim.warmed_up(optim.constant(), -1),
        lambda: optim.exponential(0.0),
    ):
        with pytest.raises(ValueError, match="got"):
            make()


def test_a_warm_up_goes_before_any_schedule():
    schedule = optim.warmed_up(optim.step_decay(4, 0.5), 3)
    assert [schedule(t) for t in range(6)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5, 0.5])
    within = optim.warmed_up(optim.cosine(20), 4)  # begins within the cosine, not before it
    assert within(4) == optim.cosine(20)(4) < 1 == optim.cosine(20, warmup_steps=4)(4)
    assert 0 < optim.one_cycle(1)(0) <= 1  # too few steps to rise


def test_plateau_equals_pytorchs():
    losses = [1, 0.9, 0.9, 0.89999, 0.95, 0.9, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2)
    for epoch, loss in enumerate(losses):
        assert optim.plateau(losses[:epoch], gamma=0.3, patience=2) == pytest.approx(
            theirs.get_last_lr()[0]
        )
        theirs.step(loss)
    assert optim.plateau(losses, gamma=0.3, patience=2) < 0.1
    for wrong in ({"gamma": 0}, {"gamma": 1.5}, {"gamma": math.nan}, {"patience": -1}):
        with pytest.raises(ValueError, match=r"plateau needs .* got"):
            optim.plateau(losses, **wrong)


@pytest.mark.parametrize("most", [0.5, 1000.0])
def test_clipping_equals_pytorchs(most):
    random = np.random.default_rng(0)
    grads = [random.normal(size=shape).astype(np.float32) for shape in ((7, 3), (5,), (2, 3, 3, 4))]
    ours = [Tensor(np.zeros_like(g), requires_grad=True) for g in grads]
    theirs = [torch.zeros(g.shape, requires_grad=True) for g in grads]
    for grad, q in zip(grads, theirs, strict=True):
        q.grad = torch.tensor(grad)
    unused = Tensor(np.zeros(3, np.float32), requires_grad=True)
    groups = [{"params": [ours[0], unused, ours[1]]}, {"params": [ours[2]]}]
    optimizer = optim.SGD(groups)
    for grad, p in zip(grads, ours, strict=True):
        p.grad = grad.copy()
    optimizer.clip_norm(most)
    torch.nn.utils.clip_grad_norm_(theirs, most)
    for grad, p, q in zip(grads, ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-5)
        assert np.array_equal(p.grad, grad) == (most > 100)
    assert unused.grad is None


def test_clipping_shows_what_is_not_finite():
    p = Tensor(np.zeros(2, np.float32), requires_grad=True)
    optimizer = optim.SGD([p])
    for bad in (np.inf, np.nan):
        p.grad = np.array([bad, 1], np.float32)
        optimizer.clip_norm(1.0)
        assert np.isnan(p.grad).any()


def test_clipping_without_gradients_does_nothing():
    p = Tensor(np.zeros(2, np.float32), requires_grad=True)
    optim.SGD([p]).clip_norm(1.0)
    assert p.grad is None


@pytest.mark.parametrize("most", [-1.0, 0, math.nan, math.inf])
def test_clipping_needs_a_norm(most):
    p = Tensor(np.zeros(2, np.float32), requires_grad=True)
    with pytest.raises(ValueError, match=f"finite number above 0; got {most}"):
        optim.SGD([p]).clip_norm(most)


def test_what_is_clipped_is_what_the_step_takes():
    """A gradient that somebody put there himself, and a second step of only some parameters."""
    p, q = (Tensor(np.zeros(2, np.float32), requires_grad=True) for _ in range(2))
    optimizer = optim.SGD([p, q], lr=1.0)
    p.grad = np.array([3, 4], np.float32)
    optimizer.clip_norm(0.5)
    optimizer.step()
    np.testing.assert_allclose(p.data, [-0.3, -0.4], rtol=1e-5)
    assert not q.data.any()
