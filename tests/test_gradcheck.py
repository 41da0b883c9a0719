"""The gradient checker must reject what is wrong, or its approval means nothing."""

from typing import ClassVar

import numpy as np
import pytest

from minitl.tensor import Op
from tests.gradcheck import check_gradients


class Product(Op):
    """z = x^3 * y, with a fault to plant."""

    saves = ("x", "y")
    fault: ClassVar[str] = ""

    def forward(self, x, y):
        self.x, self.y = x, y
        return x**3 * y

    def backward(self, dz):
        needs_x, needs_y = self.needs_grad
        dx, dy = 3 * self.x**2 * self.y * dz, self.x**3 * dz
        match self.fault:
            case "dx 0.05 % too large":
                dx *= 1.0005
            case "dy 0.05 % too small":
                dy *= 0.9995
            case "one element 0.05 % wrong":
                dx.reshape(-1)[0] *= 1.0005
            case "dx of another sign":
                dx = -dx
            case "dy times a constant term":
                dy = dy + 0.01
            case "two elements swapped":
                dx.reshape(-1)[:2] = dx.reshape(-1)[1::-1].copy()
            case "dx shape":
                dx = dx.reshape(-1)
            case "dx float32":
                dx = dx.astype(np.float32)
            case "dx missing":
                dx = None
            case "dy wrong where it is alone":
                dy = dy if needs_x else dy * 1.0000001
        return dx if needs_x else None, dy if needs_y else None


def check(fault, shape=(2, 3)):
    random = np.random.default_rng(0)
    kind = type("Product", (Product,), {"fault": fault})
    check_gradients(kind.apply, random.standard_normal(shape), random.standard_normal(shape))


def test_accepts_what_is_right():
    check("")
    check("", shape=())
    check("", shape=(50, 40))


@pytest.mark.parametrize(
    "fault",
    [
        "dx 0.05 % too large",
        "dy 0.05 % too small",
        "one element 0.05 % wrong",
        "dx of another sign",
        "dy times a constant term",
        "two elements swapped",
        "dx shape",
        "dx float32",
        "dx missing",
        "dy wrong where it is alone",
    ],
)
def test_rejects_a_planted_fault(fault):
    with pytest.raises(AssertionError):
        check(fault)


def test_finds_a_uniform_error_among_many_elements():
    with pytest.raises(AssertionError, match="input 0"):
        check("dx 0.05 % too large", shape=(50, 40))


def test_refuses_float32():
    with pytest.raises(AssertionError, match="float64"):
        check_gradients(Product.apply, np.ones(2, np.float32), np.ones(2, np.float32))
