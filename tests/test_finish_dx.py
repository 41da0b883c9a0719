"""Neighbours share work in backward: a convolution adds to its dx what has arrived from elsewhere, and cuts

it off as the ReLU before it would. Whatever the network, the gradients are those without that.
"""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl import Tensor, ops
from minitl.backend import kernels_for
from minitl.kernels import cpu

CHANNELS = 4
SHAPE = (2, 5, 4, CHANNELS)

# Each layer computes from earlier results, counted from the newest back.
back = st.integers(0, 3)
layers = st.one_of(
    st.tuples(st.just("conv2d"), back, st.sampled_from([1, 3])),
    st.tuples(
        st.just("conv2d_batchnorm"),
        back,
        st.sampled_from([1, 3]),
        st.one_of(st.none(), back),  # the residual
        st.booleans(),  # ReLU
        st.sampled_from(["training", "evaluation", "frozen"]),
    ),
    st.tuples(st.just("batchnorm_relu"), back),
    st.tuples(st.just("relu"), back),
    st.tuples(st.just("add"), back, back),
)


def compute(network, frozen_weights, dtype=np.float64):
    """Return the gradients of all leaves of a network, by name."""
    random = np.random.default_rng(1)
    leaves = {"x": Tensor(random.normal(size=SHAPE).astype(dtype), True)}

    def leaf(*shape, name, needs=True):
        leaves[name] = Tensor(random.normal(size=shape).astype(dtype), needs)
        return leaves[name]

    def statistics():
        return random.normal(size=CHANNELS).astype(dtype), random.uniform(1, 2, CHANNELS).astype(
            dtype
        )

    results = [leaves["x"]]
    for i, (kind, *settings) in enumerate(network):
        source = results[max(-1 - settings[0], -len(results))]
        if kind == "relu":
            result = ops.relu(source)
        elif kind == "add":
            result = ops.add(source, results[max(-1 - settings[1], -len(results))])
        elif kind == "batchnorm_relu":
            bn = [leaf(CHANNELS, name=f"{i}.{name}") for name in ("weight", "bias")]
            result = ops.batchnorm_relu(source, *bn, *statistics(), training=True)
        else:
            side, padding = settings[1], settings[1] // 2
            weight = leaf(
                CHANNELS, side, side, CHANNELS, name=f"{i}.filters", needs=i not in frozen_weights
            )
            if kind == "conv2d":
                result = ops.conv2d(source, weight, padding=padding)
            else:
                residual, relu, state = settings[2:]
                if residual is not None:
                    residual = results[max(-1 - residual, -len(results))]
                bn = [
                    leaf(CHANNELS, name=f"{i}.{n}", needs=state != "frozen")
                    for n in ("weight", "bias")
                ]
                result = ops.conv2d_batchnorm(
                    *(source, weight, *bn, *statistics()),
                    residual=residual,
                    relu=relu or residual is not None,
                    training=state == "training",
                    padding=padding,
                )
        results.append(result)
    results[-1].backward(random.normal(size=SHAPE).astype(dtype))
    return {name: tensor.grad for name, tensor in leaves.items()}


def compute_with(fuses, *args):
    with mock.patch.object(cpu, "FUSES_DX", fuses):
        return compute(*args)


@given(st.lists(layers, min_size=1, max_size=7), st.sets(st.integers(0, 6), max_size=2))
def test_gradients_are_those_without_sharing(network, frozen_weights):
    shared, alone = (compute_with(fuses, network, frozen_weights) for fuses in (True, False))
    assert shared.keys() == alone.keys()
    for name, gradient in alone.items():
        if gradient is None:
            assert shared[name] is None, name
        else:
            scale = np.abs(gradient).max() or 1
            np.testing.assert_allclose(shared[name], gradient, 1e-9, 1e-11 * scale, err_msg=name)


def block(state):
    """Two bottleneck-like blocks with shortcuts."""
    layer = lambda source, residual=None: ("conv2d_batchnorm", source, 1, residual, True, state)  # noqa: E731
    return [layer(0), layer(0), layer(0, 1), layer(0), layer(0, 1), layer(0), layer(0, 1)]


@pytest.mark.parametrize("state", ["training", "frozen"])
def test_blocks_with_shortcuts_need_no_pass_of_their_own(state):
    kernels = kernels_for(np.zeros(1))
    calls = []

    def watch(name):
        function = getattr(kernels, name)

        def watched(*args, **options):
            calls.append((name, options))
            return function(*args, **options)

        return mock.patch.object(kernels, name, watched)

    with watch("add_forward"), watch("relu_dx"), watch("batchnorm_dx"), watch("conv2d_dx"):
        compute_with(True, block(state), set())
    from_conv2d = [options for name, options in calls if name == "conv2d_dx"]
    assert [o["positive"] is not None for o in from_conv2d] == 6 * [True] + [
        False
    ]  # x is no ReLU's
    assert [o["rest"] is not None for o in from_conv2d].count(True) == 3
    others = [name for name, _ in calls if name != "conv2d_dx"]
    assert others == (["batchnorm_dx"] * 7 if state == "training" else ["relu_dx"])


def test_a_result_that_is_also_used_outside_the_loss_is_cut_by_its_own_operation():
    def gradients(fuses):
        with mock.patch.object(cpu, "FUSES_DX", fuses):
            random = np.random.default_rng(0)
            x, weight = (
                Tensor(random.normal(size=SHAPE), True),
                Tensor(random.normal(size=(4, 1, 1, 4)), True),
            )
            h = ops.relu(x)
            aside = ops.conv2d(h, weight)  # never part of what goes backward
            ops.conv2d(h, weight).backward(random.normal(size=SHAPE))
            assert aside.requires_grad
            return x.grad

    np.testing.assert_array_equal(gradients(True), gradients(False))
