"""The engine: what is recorded, what is kept and for how long, and that gradients add up."""

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minitl
from minitl import detect_anomaly, nn, no_grad, ops, optim, tensor
from minitl.ops.add import Add
from minitl.tensor import Op, Tensor, record_uses


class Multiply(Op):
    """z = x * y, the smallest operation that saves something."""

    saves = ("x", "y")
    calls = 0

    def forward(self, x, y):
        if self.needs_grad[1]:
            self.x = x
        if self.needs_grad[0]:
            self.y = y
        return x * y

    def backward(self, dz):
        Multiply.calls += 1
        needs_x, needs_y = self.needs_grad
        return self.y * dz if needs_x else None, self.x * dz if needs_y else None


multiply = Multiply.apply


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


def constant(*values):
    return Tensor(np.array(values, np.float64))


# Gradients


def test_product_rule():
    x, y = leaf(2.0, 3.0), leaf(5.0, 7.0)
    multiply(x, y).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [5, 70])
    np.testing.assert_array_equal(y.grad, [2, 30])


def test_one_tensor_used_twice_by_one_operation():
    x = leaf(3.0)
    multiply(x, x).backward()
    np.testing.assert_array_equal(x.grad, [6])


def test_diamond_computes_each_operation_once():
    x = leaf(2.0)
    shared = multiply(x, x)
    left, right = multiply(shared, constant(3.0)), multiply(shared, shared)
    Multiply.calls = 0
    ops.add(left, right).backward()  # 3 x^2 + x^4
    np.testing.assert_array_equal(x.grad, [6 * 2 + 4 * 2**3])
    assert Multiply.calls == 3


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30))
def test_any_graph_of_sums_counts_its_paths(edges):
    leaves = [leaf(1.0), leaf(1.0)]
    nodes, paths = list(leaves), [np.array([1, 0]), np.array([0, 1])]
    for i, j in edges:
        i, j = i % len(nodes), j % len(nodes)
        nodes.append(ops.add(nodes[i], nodes[j]))
        paths.append(paths[i] + paths[j])
    nodes[-1].backward()
    for x, count in zip(leaves, paths[-1], strict=True):
        assert (0 if x.grad is None else x.grad[0]) == count


def test_gradients_of_several_calls_add_up_and_do_not_share_memory():
    x, seed = leaf(2.0), np.ones(1)
    ops.add(x, constant(0.0)).backward(seed)
    first = x.grad
    assert not np.shares_memory(first, seed)
    ops.add(x, constant(0.0)).backward(seed)
    np.testing.assert_array_equal(x.grad, [2])
    np.testing.assert_array_equal(seed, [1])


def test_two_leaves_that_get_the_same_gradient_array_own_their_copies():
    x, y = leaf(1.0), leaf(1.0)
    ops.add(x, y).backward()
    assert not np.shares_memory(x.grad, y.grad)


def test_gradients_are_written_to_the_buffer_that_an_optimizer_gives():
    x = leaf(2.0)
    x.grad_buffer = np.full(1, 99.0)
    multiply(x, constant(4.0)).backward()
    assert x.grad is x.grad_buffer
    multiply(x, constant(4.0)).backward()
    np.testing.assert_array_equal(x.grad_buffer, [8])
    x.grad = None
    multiply(x, constant(4.0)).backward()
    np.testing.assert_array_equal(x.grad_buffer, [4])


def test_backward_of_a_leaf_is_its_seed():
    x = leaf(2.0)
    x.backward()
    np.testing.assert_array_equal(x.grad, [1])


def test_scalars_stay_arrays():
    x = Tensor(np.array(3.0), requires_grad=True)
    y = multiply(x, x)
    assert isinstance(y.data, np.ndarray)
    y.backward()
    assert x.grad == 6


def test_only_leaves_keep_gradients():
    x = leaf(2.0)
    y = multiply(x, x)
    multiply(y, y).backward()
    assert y.grad is None
    assert x.grad is not None


# What is recorded


def test_nothing_is_computed_for_inputs_that_need_no_gradient():
    seen = []

    class Watch(Op):
        def forward(self, *arrays):
            return arrays[0]

        def backward(self, dy):
            seen.append(self.needs_grad)
            return tuple(dy if needs else None for needs in self.needs_grad)

    x, fixed = leaf(1.0), constant(1.0)
    Watch.apply(fixed, x, None).backward()
    assert seen == [(False, True, False)]
    assert fixed.grad is None


def test_backward_stops_at_the_border_of_a_frozen_part():
    frozen, trained = constant(2.0), leaf(3.0)
    trunk = multiply(multiply(constant(1.0), frozen), frozen)
    assert not trunk.requires_grad
    Multiply.calls = 0
    multiply(trunk, trained).backward()
    assert Multiply.calls == 1
    np.testing.assert_array_equal(trained.grad, [4])


def test_a_frozen_part_keeps_no_activations():
    weight, head = Tensor(np.ones((4, 4))), Tensor(np.ones((2, 4)), requires_grad=True)
    x = Tensor(np.ones((3, 4)))
    alive = []
    for _ in range(5):
        x = ops.relu(ops.linear(x, weight))
        alive.append(weakref.ref(x.data))
    y = ops.linear(x, head)
    features = weakref.ref(x.data)
    del x
    gc.collect()
    assert [r() is None for r in alive] == [True] * 4 + [False]  # the head needs its input
    assert features() is not None
    y.backward(np.ones(y.shape))
    assert features() is None


def test_an_undeclared_value_cannot_be_saved():
    class Careless(Op):
        saves = ("x",)

        def forward(self, x):
            self.x = x
            self.everything = x
            return x

    with pytest.raises(AttributeError, match=r"Careless stores 'everything' .* `saves`"):
        Careless.apply(leaf(1.0))


@pytest.mark.parametrize("way", ["block", "decorator"])
def test_no_grad_records_nothing(way):
    x = leaf(2.0)

    @no_grad()
    def compute():
        return multiply(x, x)

    if way == "block":
        with no_grad():
            y = multiply(x, x)
    else:
        y = compute()
        assert not compute().requires_grad  # the decorator works more than once
    assert not y.requires_grad
    assert multiply(x, x).requires_grad
    with pytest.raises(RuntimeError, match="no_grad"):
        y.backward()


def test_no_grad_ends_with_an_error_and_nests():
    with pytest.raises(KeyError), no_grad(), no_grad():
        raise KeyError
    assert multiply(leaf(1.0), leaf(1.0)).requires_grad


def test_detach_cuts_the_graph_on_the_same_memory():
    x = leaf(2.0)
    y = multiply(x, x)
    assert np.shares_memory(y.detach().data, y.data)
    assert not multiply(y.detach(), constant(1.0)).requires_grad


# How long it is kept


def test_saved_arrays_die_with_backward_though_the_result_lives():
    x, w = Tensor(np.ones((3, 4))), Tensor(np.ones((4, 4)), requires_grad=True)
    hidden = ops.relu(ops.linear(x, w))
    kept = [weakref.ref(hidden.data)]
    hidden = ops.linear(hidden, w)
    kept.append(weakref.ref(hidden.data))
    loss = ops.relu(hidden)
    del hidden
    assert kept[0]() is not None
    loss.backward(np.ones(loss.shape))
    assert [r() for r in kept] == [None, None]
    assert loss._op is not None
    assert loss._op.freed


def test_saved_arrays_die_with_the_result_where_backward_never_runs():
    w = Tensor(np.ones((4, 4)), requires_grad=True)
    hidden = ops.linear(Tensor(np.ones((3, 4))), w)
    kept = weakref.ref(hidden.data)
    y = ops.relu(ops.linear(hidden, w))
    del hidden
    assert kept() is not None
    del y  # no cycles: freed at once, without the collector
    assert kept() is None


def test_saved_arrays_are_freed_while_backward_runs():
    class Probe(Op):
        def forward(self, x):
            return x.copy()

        def backward(self, dy):
            at_probe.append(kept() is None)
            return (dy,)

    at_probe = []
    x = Probe.apply(leaf(2.0))
    y = multiply(x, leaf(3.0))
    z = multiply(y, leaf(3.0))
    kept = weakref.ref(y.data)
    del x, y
    z.backward()
    assert at_probe == [True]


def test_backward_twice_says_what_to_do():
    x = leaf(2.0)
    y = multiply(x, x)
    y.backward()
    with pytest.raises(RuntimeError, match=r"second time through Multiply.*forward pass again"):
        y.backward()
    with pytest.raises(RuntimeError, match="second time through Multiply"):
        multiply(y, leaf(1.0)).backward()
    np.testing.assert_array_equal(x.grad, [4])


@pytest.mark.parametrize("finish", ["backward", "drop"])
def test_a_chain_of_5000_operations_needs_no_recursion(finish):
    x = leaf(1.0)
    y = x
    for _ in range(5000):
        y = ops.add(y, constant(0.0))
    if finish == "backward":
        y.backward()
        np.testing.assert_array_equal(x.grad, [1])
    else:
        del y


def test_dropping_a_very_long_chain_does_not_overflow_the_stack():
    code = (
        "import numpy as np; from minitl import ops, tensor\n"
        "x = tensor(np.ones(1), requires_grad=True); zero = tensor(np.zeros(1))\n"
        "for _ in range(100_000): x = ops.add(x, zero)\n"
        "del x; print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "alive", done.stderr


# Errors


def test_seeds_are_checked():
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match=r"shape \(2,\) needs a seed"):
        multiply(x, x).backward()
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        multiply(x, x).backward(np.ones(3))
    with pytest.raises(ValueError, match="float32"):
        multiply(x, x).backward(np.ones(2, np.float32))
    with pytest.raises(RuntimeError, match="needs no gradient"):
        constant(1.0).backward()
    for seed in (1.0, [1.0, 1.0]):
        with pytest.raises(
            TypeError, match=f"is a {type(seed).__name__}; give a Tensor or an array"
        ):
            multiply(x, x).backward(seed)
    assert x.grad is None


def test_a_seed_may_be_a_tensor():
    x = leaf(1.0, 2.0)
    multiply(x, x).backward(constant(1.0, 10.0))
    np.testing.assert_array_equal(x.grad, [2, 40])


@pytest.mark.parametrize(
    "compute",
    [
        np.argmax,
        np.sum,
        np.asarray,
        lambda x: np.mean([x, x]),
        lambda x: x.numpy() == x,
        lambda x: x == x.numpy(),
        lambda x: x.numpy() * x,
        lambda x: np.float32(2) * x,
    ],
)
def test_numpy_never_takes_a_tensor_for_one_object(compute):
    with pytest.raises(TypeError, match=r"x\.numpy\(\)|has no operators"):
        compute(constant(1.0, 3.0))
    assert constant(1.0) != constant(1.0)  # as objects are


@pytest.mark.parametrize("change", ["step", "load_state_dict"])
def test_a_weight_changed_between_forward_and_backward_is_noticed(change):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.ReLU(), nn.Linear(4, 2, rng=rng))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x, labels = minitl.tensor(rng.standard_normal((5, 3), dtype=np.float32)), np.arange(5) % 2
    a, b = (ops.softmax_cross_entropy(model(x), labels) for _ in range(2))
    if change == "step":
        a.backward()
        optimizer.step()
    else:
        model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    with pytest.raises(
        RuntimeError, match=r"shape \(2, 4\) was changed.*run the forward pass again"
    ):
        b.backward()
    optimizer.zero_grad()
    ops.softmax_cross_entropy(model(x), labels).backward()
    optimizer.step()


def test_a_change_of_what_backward_does_not_need_is_none():
    rng = np.random.default_rng(0)
    head = nn.Linear(3, 2, rng=rng)
    optimizer = optim.SGD(head.parameters(), lr=0.1)
    x, labels = minitl.tensor(rng.standard_normal((5, 3), dtype=np.float32)), np.arange(5) % 2
    a, b = (ops.softmax_cross_entropy(head(x), labels) for _ in range(2))
    a.backward()
    optimizer.step()
    b.backward()  # of a weight whose input needs no gradient only the input is kept


def test_dtypes_are_never_mixed_silently():
    with pytest.raises(TypeError, match="Multiply got float64 and float32"):
        multiply(leaf(1.0), Tensor(np.ones(1, np.float32)))
    with pytest.raises(TypeError, match=r"not int64; .*\.astype"):
        tensor(np.arange(3))
    with pytest.raises(
        TypeError, match=r"got a list of int64; write floats, such as \[1\.0, 2\.0\]"
    ):
        tensor([1, 2])
    with pytest.raises(TypeError, match=r"ops\.add\(a, b\)"):
        leaf(1.0) + leaf(1.0)
    with pytest.raises(TypeError, match=r"ops\.add\(a, b\)"):
        sum([leaf(1.0), leaf(1.0)])
    with pytest.raises(TypeError, match=r"ops\.scale\(x, factor\)"):
        2 * leaf(1.0)
    with pytest.raises(TypeError, match="not list"):
        Tensor([1.0])
    with pytest.raises(TypeError, match="not float;"):
        Tensor(1.0)
    with pytest.raises(TypeError, match="not ndarray; wrap it"):
        multiply(leaf(1.0), np.ones(1))
    with pytest.raises(TypeError, match="detach"):
        tensor(leaf(1.0))


def test_tensor_makes_float32_of_python_numbers_and_keeps_arrays():
    assert tensor([[1.0, 2.0]]).dtype == np.float32
    assert tensor(1.5).item() == 1.5
    array = np.ones(3)
    assert tensor(array).data is array
    with pytest.raises(ValueError, match=r"one element; .* \(3,\)"):
        tensor(array).item()


def test_an_array_of_an_unknown_device_is_refused():
    class Elsewhere:
        dtype, shape = np.dtype(np.float32), (1,)

    with pytest.raises(TypeError, match=r"no kernels for .*Elsewhere"):
        ops.relu(Tensor(Elsewhere()))


def test_repr_tells_shape_type_and_origin():
    x = leaf(1.0, 2.0)
    assert repr(x) == "Tensor(shape=(2,), dtype=float64, requires_grad=True)"
    assert repr(multiply(x, x)).endswith("op=Multiply)")


# Anomalies


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_detect_anomaly_names_the_operation_in_forward(bad, word):
    with detect_anomaly():
        y = ops.relu(leaf(1.0))
        with pytest.raises(FloatingPointError, match=f"{word} in the result of Multiply"):
            multiply(y, constant(bad))
    multiply(y, constant(bad))  # outside nothing is checked


def test_detect_anomaly_names_the_operation_in_backward():
    class Broken(Op):
        def forward(self, x):
            return x.copy()

        def backward(self, dy):
            return (dy * np.nan,)

    with detect_anomaly():
        y = multiply(Broken.apply(leaf(1.0)), constant(1.0))
        with pytest.raises(FloatingPointError, match="NaN in a gradient computed by Broken"):
            y.backward()


# Uses


def test_uses_are_listed_with_or_without_gradients():
    x, y = leaf(2.0), constant(3.0)
    with record_uses() as uses:
        with no_grad():
            z = multiply(x, y)
        ops.add(z, x)
    multiply(x, x)  # after the block
    assert [use.op for use in uses] == [Multiply, Add]
    first, second = uses
    assert first.inputs[0] is x and first.inputs[1] is y and first.result is z
    assert second.inputs[0] is z and second.result.requires_grad
    assert (first.options, second.options) == ({}, {})


# Threads


def test_modes_belong_to_their_thread():
    seen = {}

    def other():
        seen["grad"] = multiply(leaf(1.0), leaf(1.0)).requires_grad
        seen["checked"] = minitl.tensor([np.nan])  # not under this thread's detect_anomaly
        multiply(constant(np.nan), constant(1.0))

    with no_grad(), detect_anomaly():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen["grad"]
    assert "checked" in seen


def test_threads_run_their_own_graphs_at_once():
    results = [None] * 4

    def work(k):
        x = leaf(float(k + 1))
        for _ in range(50):
            x.grad = None
            y = x
            for _ in range(20):
                y = ops.add(y, x)
            multiply(y, y).backward()  # (21 x)^2
        results[k] = float(x.grad[0])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2 * 441 * (k + 1) for k in range(4)]
