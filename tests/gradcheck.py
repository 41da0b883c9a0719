"""The gradient checker: backward against central differences in float64, along random directions.

For y = f(x) take random w and v of the shapes of y and x, and L(x) = <w, f(x)>. Then

    (L(x + h v) - L(x - h v)) / 2h  =  <dL/dx, v>  + O(h^2),     dL/dx from y.backward(w)

One direction is one number for the whole gradient, however many elements it has: a wrong element shows
as soon as v is not zero there. <dL/dx, v> is of the size of |dL/dx|, to which differences are compared.
"""

from collections.abc import Callable

import numpy as np

from minitl.tensor import Tensor

STEP = 1e-5  # error of the difference: about h^2 = 1e-10, and eps / h = 1e-11 from rounding
TOLERANCE = 1e-6


def check_gradients(
    function: Callable[..., Tensor], *arrays: np.ndarray, directions: int = 3, seed: int = 0
) -> None:
    """Fail, naming the input, unless `function`'s gradients with respect to all arrays are right.

    function: of one tensor for each array, must return one tensor and be the same function each time.
    arrays: float64, further from kinks (ReLU at 0, equal values in a maximum) than the steps taken.

    Each gradient is also computed with no other input asking for one, and must not change by a bit.
    """
    random = np.random.default_rng(seed)
    assert all(a.dtype == np.float64 for a in arrays), "the checker works in float64"

    def value(*inputs: np.ndarray) -> np.ndarray:
        return function(*(Tensor(a) for a in inputs)).data

    y = value(*arrays)
    assert y.dtype == np.float64, f"the result is {y.dtype}"
    weights = random.standard_normal(y.shape)
    rounding = 1e-10 * float(np.abs(weights * y).sum())

    def gradients(needed: list[bool]) -> list[np.ndarray | None]:
        tensors = [Tensor(a, requires_grad=n) for a, n in zip(arrays, needed, strict=True)]
        function(*tensors).backward(weights)
        return [t.grad for t in tensors]

    every = gradients([True] * len(arrays))
    for i, (x, gradient) in enumerate(zip(arrays, every, strict=True)):
        assert gradient is not None, f"input {i} got no gradient"
        assert gradient.shape == x.shape, f"input {i}: {gradient.shape} is not {x.shape}"
        assert gradient.dtype == np.float64, f"input {i}: the gradient is {gradient.dtype}"
        alone = gradients([j == i for j in range(len(arrays))])
        for j, other in enumerate(alone):
            if j == i:
                np.testing.assert_array_equal(other, gradient, f"input {i} asking alone")
            else:
                assert other is None, f"input {j} got a gradient that it did not ask for"
        for _ in range(directions):
            v = random.standard_normal(x.shape)
            above, below = (
                float((weights * value(*arrays[:i], x + h * v, *arrays[i + 1 :])).sum())
                for h in (STEP, -STEP)
            )
            numeric, analytic = (above - below) / (2 * STEP), float((gradient * v).sum())
            allowed = TOLERANCE * float(np.linalg.norm(gradient)) + rounding
            assert abs(numeric - analytic) <= allowed, (
                f"input {i}: backward says {analytic:.9g} along a direction, differences say "
                f"{numeric:.9g}; allowed is a difference of {allowed:.2g}"
            )
