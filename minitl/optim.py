"""Optimizers with PyTorch's arguments, defaults and arithmetic, and schedules of the learning rate.

    optimizer = SGD([{"params": trunk, "lr": 1e-3}, {"params": head}], lr=1e-2, momentum=0.9)
    loss.backward(); optimizer.step(); optimizer.zero_grad()

An optimizer moves the parameters of a group into one flat array, of which each parameter's `data` is a
view from then on; gradients are written to views of a second one. So a step is one pass over memory.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from minitl.backend import Array, array_module, assign, is_on_gpu, kernels_for, like, to_host
from minitl.changing_numbers import in_memory
from minitl.tensor import Tensor

Group = dict[str, Any]
Parameters = Iterable[Tensor] | Iterable[Group]


class _Flat:
    """The trainable parameters of one group, as views of flat arrays, and what is remembered of each."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        ends = np.cumsum([0] + [p.data.size for p in parameters]).tolist()
        self.parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        first = parameters[0].data
        device = array_module(first)
        self.data: Array = device.empty(ends[-1], first.dtype)
        self.grad: Array = device.empty(ends[-1], first.dtype)
        self.steps = [0] * len(parameters)
        self.state: dict[str, Array] = {}
        self.views = [
            (self.data[part].reshape(p.shape), self.grad[part].reshape(p.shape))
            for p, part in zip(parameters, self.parts, strict=True)
        ]
        for p, (data, grad) in zip(parameters, self.views, strict=True):
            assign(data, p.data)
            p.data, p.grad_buffer, p.grad = data, grad, None

    def remembered(self, name: str) -> Array:
        """Return the flat state array `name`, zeros at first."""
        if name not in self.state:
            self.state[name] = array_module(self.data).zeros(self.data.shape, self.data.dtype)
        return self.state[name]

    def runs(self, *, of_equal_steps: bool = True) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of neighbouring parameters that have a gradient and took equally many steps.

        Usually that is the whole group. Their gradients then lie in `grad`.
        """
        for p, (data, grad) in zip(self.parameters, self.views, strict=True):
            _refuse_another_kind("parameter", p.data, data)
            if p.grad is not None:
                _refuse_another_kind("gradient", p.grad, grad)
        first: int | None = None
        for i, p in enumerate(self.parameters):
            data, grad = self.views[i]
            if p.data is not data:  # somebody gave the parameter another array; its values count
                assign(data, p.data)
                p.data = data
            if p.grad is not None and p.grad is not grad:
                assign(grad, p.grad)
                p.grad = grad
            apart = of_equal_steps and first is not None and self.steps[i] != self.steps[first]
            if first is not None and (p.grad is None or apart):
                yield first, i
                first = None
            if p.grad is not None and first is None:
                first = i
        if first is not None:
            yield first, len(self.parameters)

    def part(self, first: int, end: int) -> slice:
        """Return where these parameters lie in the flat arrays."""
        return slice(self.parts[first].start, self.parts[end - 1].stop)

    def count(self, first: int, end: int) -> int:
        """Count a step of these parameters; return which one it is, from 1."""
        for i in range(first, end):
            self.steps[i] += 1
        return self.steps[first]


def _refuse_another_kind(what: str, given: Array, own: Array) -> None:
    """Raise ValueError unless an array that somebody set is like the optimizer's own in its place."""
    if given is own:
        return
    kinds = [
        f"{array.dtype} {tuple(array.shape)} on the {'GPU' if is_on_gpu(array) else 'CPU'}"
        for array in (given, own)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"a {what} is {kinds[0]} now; when the optimizer was made the parameter was {kinds[1]}. Make "
            "a new optimizer after astype(), to() or a change of shape"
        )


class Optimizer:
    """What the optimizers share: groups of parameters, flat memory, saving and loading.

    params: parameters, or a list of groups, dicts of "params" and of options that differ from the
        defaults (and "name", for people). Parameters that require no gradient are left out; to train
        them later, give them to `add_param_group` after unfreezing.

    param_groups: the options in use; changing group["lr"] acts on the next step.
    lr_factor: multiplies the learning rate of every group; for schedules.

    Raises ValueError where nothing is trainable, a parameter is given twice, or an option is unknown
    or out of range; TypeError for what is not a tensor.
    """

    def __init__(self, params: Parameters, defaults: Group) -> None:
        self.defaults = defaults
        self.lr_factor = 1.0
        self.param_groups: list[Group] = []
        self._flats: list[_Flat | None] = []
        self._frozen: list[Tensor] = []
        given: list[Any] = [params] if isinstance(params, Tensor | Mapping) else list(params)
        if not any(isinstance(entry, Mapping) for entry in given):
            given = [{"params": given}]
        for group in given:
            self.add_param_group(group)
        if not any(self._flats):
            raise ValueError(
                f"nothing to train: none of the {len(self._frozen)} parameters given requires a "
                "gradient; unfreeze some first"
            )

    def add_param_group(self, group: Group) -> None:
        """Add a group: a dict of "params" and of options that differ from the defaults."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'a parameter group is a dict with "params"; got {_kind(group)}')
        unknown = sorted(set(group) - {"params", "name"} - set(self.defaults))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; it has "
                f"{', '.join(self.defaults)}"
            )
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"an optimizer takes parameters (tensors), not {_kind(p)}")
            if p._op is not None:
                raise ValueError(f"cannot train {p!r}: it is the result of an operation")
        known = {id(p) for other in self.param_groups for p in other["params"]}
        if len({id(p) for p in params}) < len(params) or any(id(p) in known for p in params):
            raise ValueError("a parameter was given to the optimizer twice")
        trainable = [p for p in params if p.requires_grad]
        if len({p.dtype for p in trainable}) > 1:
            raise ValueError("a group holds both float32 and float64 parameters; make two groups")

        options = self.defaults | dict(group) | {"params": trainable}
        self._check(options)
        ids = {id(p) for p in trainable}
        self._frozen = [p for p in self._frozen if id(p) not in ids]
        self._frozen += [p for p in params if not p.requires_grad]
        self.param_groups.append(options)
        self._flats.append(_Flat(trainable) if trainable else None)

    def _check(self, options: Group) -> None:
        for name in ("lr", "weight_decay"):
            if not 0 <= options[name] < math.inf:  # NaN fails too
                raise ValueError(
                    f"{name} must be a finite number of at least 0; got {options[name]}"
                )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self._frozen:
            p.grad = None
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def clip_norm(self, most: float) -> None:
        """Scale all gradients by one factor so that their norm together is at most `most`.

        As PyTorch's clip_grad_norm_. Squares are summed in float64 and always in the same order. Nothing
        waits for a GPU. A gradient that is not finite leaves NaNs, so that the next loss tells.

        Raises ValueError unless `most` is finite and above 0, and as `step`.
        """
        if not 0 < most < math.inf:  # NaN fails too
            raise ValueError(f"clip_norm needs a finite number above 0; got {most}")
        flats = [flat for flat in self._flats if flat is not None]
        gradients = [
            flat.grad[flat.part(first, end)]
            for flat in flats
            for first, end in flat.runs(of_equal_steps=False)
        ]
        if gradients:
            kernels_for(gradients[0]).clip_norm(gradients, most)

    def step(self) -> None:
        """Update each parameter that has a gradient; the others, and their state, stay as they are.

        Raises RuntimeError for a gradient of a parameter that was frozen when it was given; ValueError
        for a parameter or gradient that was given another shape, dtype or device since.
        """
        if any(p.grad is not None for p in self._frozen):
            raise RuntimeError(
                "a parameter that was frozen when the optimizer was made has a gradient now; give it "
                "to add_param_group() or make a new optimizer after unfreezing"
            )
        for group, flat in zip(self.param_groups, self._flats, strict=True):
            self._check(group | {"lr": group["lr"] * self.lr_factor})
            if flat is not None:
                lr = in_memory(partial(self._lr, group), np.float32)
                for first, end in list(flat.runs()):
                    self._update(kernels_for(flat.data), flat, first, end, group | {"lr": lr})
                    for p in flat.parameters[first:end]:
                        p._version += 1

    def _lr(self, group: Group) -> float:
        return float(group["lr"] * self.lr_factor)

    def allocate(self) -> None:
        """Make the arrays of what is remembered now, rather than in the first step."""
        for group, flat in zip(self.param_groups, self._flats, strict=True):
            if flat is not None:
                for name in self._state_names(group):
                    flat.remembered(name)

    @contextlib.contextmanager
    def counts_undone_on_failure(self) -> Iterator[None]:
        """Put the counts of steps back if the block fails: for steps that are only recorded in it."""
        counts = [(flat.steps, list(flat.steps)) for flat in self._flats if flat is not None]
        try:
            yield
        except BaseException:
            for steps, before in counts:
                steps[:] = before
            raise

    def _update(
        self, kernels: ModuleType, flat: _Flat, first: int, end: int, options: Group
    ) -> None:
        """Take a step with the parameters first..end, which have taken equally many so far."""
        raise NotImplementedError

    def _state_names(self, options: Group) -> Sequence[str]:
        raise NotImplementedError

    def _saved(self) -> Iterator[tuple[str, Any, Any, Any]]:
        """Yield (name, container, key, value) of all that must be kept to continue exactly."""
        yield "lr_factor", vars(self), "lr_factor", self.lr_factor
        position = 0
        for i, (group, flat) in enumerate(zip(self.param_groups, self._flats, strict=True)):
            for key in self.defaults:
                value = group[key]
                value = np.array(value) if isinstance(value, tuple) else value
                yield f"groups.{i}.{key}", group, key, value
            if flat is None:
                continue
            for j, (p, part) in enumerate(zip(flat.parameters, flat.parts, strict=True)):
                yield f"parameters.{position}.steps", flat.steps, j, flat.steps[j]
                for key in self._state_names(group):
                    array = flat.remembered(key)[part].reshape(p.shape)
                    yield f"parameters.{position}.{key}", None, "", array
                position += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the options and what is remembered of each parameter, as plain numbers and arrays.

        Names are by position: "groups.0.lr", "parameters.3.velocity" (trainable parameters, in order).
        The arrays are NumPy's, copies, shaped like the parameters.
        """
        return {
            name: value if np.isscalar(value) else np.array(to_host(value))
            for name, _, _, value in self._saved()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same kind of optimizer on the same parameters.

        Raises ValueError, changing nothing, that lists every missing, unexpected or misshapen name.
        """
        own = list(self._saved())
        names = [name for name, *_ in own]
        problems = [f"missing: {name}" for name in names if name not in state]
        problems += [f"unexpected: {name}" for name in state if name not in names]
        problems += [
            f"{name}: shape {np.shape(state[name])} instead of {_shape(value)}"
            for name, _, _, value in own
            if name in state and np.shape(state[name]) != _shape(value)
        ]
        if problems:
            raise ValueError(
                f"the state does not fit this {type(self).__name__}: " + "; ".join(problems)
            )
        for name, container, key, value in own:
            loaded = state[name]
            if container is None:
                assign(value, like(value, np.asarray(loaded, value.dtype)))
            elif isinstance(value, np.ndarray):
                container[key] = tuple(np.asarray(loaded).tolist())
            else:  # from a file numbers may come as NumPy's
                container[key] = np.asarray(loaded).item()


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0).

        g = grad + weight_decay * p;   v = momentum * v + g  (v = g at first)
        p = p - lr * v                 or, with nesterov,  p - lr * (g + momentum * v)

    Raises ValueError as `Optimizer`, and for nesterov without momentum.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _check(self, options: Group) -> None:
        super()._check(options)
        if not 0 <= options["momentum"] < math.inf:
            raise ValueError(f"momentum must be at least 0; got {options['momentum']}")
        if options["nesterov"] and options["momentum"] == 0:
            raise ValueError("nesterov=True needs a momentum above 0")

    def _state_names(self, options: Group) -> Sequence[str]:
        return ("velocity",) if options["momentum"] else ()

    def _update(
        self, kernels: ModuleType, flat: _Flat, first: int, end: int, options: Group
    ) -> None:
        part, begins = flat.part(first, end), flat.steps[first] == 0
        in_memory(partial(flat.count, first, end), np.int64)
        velocity = flat.remembered("velocity")[part] if options["momentum"] else None
        kernels.sgd_step(
            flat.data[part],
            flat.grad[part],
            velocity,
            lr=options["lr"],
            momentum=options["momentum"],
            weight_decay=options["weight_decay"],
            nesterov=options["nesterov"],
            first=begins,
        )


class Adam(Optimizer):
    """Adam (Kingma, Ba: "Adam: a method for stochastic optimization", 2014), as torch.optim.Adam.

    weight_decay is added to the gradient here; see AdamW.
    """

    decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _check(self, options: Group) -> None:
        super()._check(options)
        if not 0 <= options["eps"] < math.inf:
            raise ValueError(f"eps must be at least 0; got {options['eps']}")
        if len(options["betas"]) != 2 or not all(0 <= beta < 1 for beta in options["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1); got {options['betas']}")

    def _state_names(self, options: Group) -> Sequence[str]:
        return "m", "v"

    def _update(
        self, kernels: ModuleType, flat: _Flat, first: int, end: int, options: Group
    ) -> None:
        part = flat.part(first, end)
        step = in_memory(partial(flat.count, first, end), np.int64)
        beta1, beta2 = options["betas"]
        kernels.adam_step(
            flat.data[part],
            flat.grad[part],
            flat.remembered("m")[part],
            flat.remembered("v")[part],
            step=step,
            lr=options["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            decoupled=self.decoupled,
        )


class AdamW(Adam):
    """Adam whose weight decay acts on the parameter itself, p = p * (1 - lr * weight_decay).

    As torch.optim.AdamW; Loshchilov, Hutter: "Decoupled weight decay regularization", 2017.
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


# A schedule is a pure function from the number of steps taken so far to a factor on the learning rate:
#     optimizer.lr_factor = schedule(step); optimizer.step()
# It has no state, so continuing a run needs nothing but the step. A "step" may as well be an epoch.
Schedule = Callable[[int], float]


def constant() -> Schedule:
    """Return the schedule that changes nothing."""
    return lambda step: 1.0


def cosine(total_steps: int, *, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Return a linear warm-up, then half a cosine from 1 down to `final`.

    Step t of the warm-up has the factor (t + 1) / warmup_steps. The whole cosine follows in the steps that
    are left, while `warmed_up(cosine(total_steps), steps)` leaves its first steps out. After total_steps it
    stays at `final`. Raises ValueError for a warm-up that is not shorter than that, or negative.
    (Loshchilov, Hutter: "SGDR", 2016; Goyal et al.: "Accurate, large minibatch SGD", 2017.)
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"a cosine schedule needs 0 <= warmup_steps < total_steps; got {warmup_steps}, {total_steps}"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return factor


def step_decay(every: int, gamma: float = 0.1) -> Schedule:
    """Return the schedule that multiplies by `gamma` each `every` steps.

    Raises ValueError for a distance below 1 step, and for a gamma that is not above 0 and at most 1.
    """
    if every < 1 or not 0 < gamma <= 1:
        raise ValueError(
            f"step_decay needs a distance of at least 1 step and 0 < gamma <= 1; got {every}, {gamma}"
        )
    return lambda step: float(gamma ** (step // every))


def exponential(gamma: float) -> Schedule:
    """Return the schedule that multiplies by `gamma` each step.

    Raises ValueError for a gamma that is not above 0 and at most 1.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"an exponential schedule needs 0 < gamma <= 1; got {gamma}")
    return lambda step: float(gamma**step)


def one_cycle(
    total_steps: int, *, rise: float = 0.3, start: float = 1 / 25, final: float = 1 / 250_000
) -> Schedule:
    """Return half a cosine up from `start` to 1, for the share `rise` of the steps, and one down to `final`.

    PyTorch's OneCycleLR with its defaults and a constant momentum, but for fewer than four steps: there
    PyTorch's is past its peak with the first, so that a single one would move nothing, and this one begins at
    it. Raises ValueError for no steps, and for a share that is not between 0 and 1.
    (Smith, Topin: "Super-convergence: very fast training of neural networks using large learning rates",
    2017.)
    """
    if total_steps < 1 or not 0 < rise < 1:
        raise ValueError(
            f"one_cycle needs at least 1 step and 0 < rise < 1; got {total_steps}, {rise}"
        )
    peak, last = max(0.0, rise * total_steps - 1), total_steps - 1

    def factor(step: int) -> float:
        if step < peak:
            return _half_cosine(start, 1.0, step / peak)
        return _half_cosine(1.0, final, min(1.0, (step - peak) / max(last - peak, 1e-9)))

    return factor


def _half_cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def warmed_up(schedule: Schedule, steps: int) -> Schedule:
    """Return the schedule with a linear warm-up in place of its first steps: (t + 1) / steps.

    The schedule goes on as if it had been followed from the start, and may go on below 1:
    `cosine(total_steps, warmup_steps=steps)` begins its cosine behind the warm-up instead.

    Raises ValueError for a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"a warm-up needs at least 0 steps; got {steps}")
    return lambda step: (step + 1) / steps if step < steps else schedule(step)


def plateau(
    losses: Sequence[float], *, gamma: float = 0.1, patience: int = 10, threshold: float = 1e-4
) -> float:
    """Return the factor on the learning rate after epochs with these validation losses.

    It is multiplied by `gamma` whenever more than `patience` epochs in a row were not better than the
    best by the share `threshold`; as PyTorch's ReduceLROnPlateau with its defaults, but without its least
    step (eps). Raises ValueError for a gamma that is not above 0 and at most 1, and a negative patience.
    """
    if not 0 < gamma <= 1 or patience < 0:
        raise ValueError(f"plateau needs 0 < gamma <= 1 and patience >= 0; got {gamma}, {patience}")
    best, waited, factor = math.inf, 0, 1.0
    for loss in losses:
        if loss < best * (1 - threshold):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            factor, waited = factor * gamma, 0
    return factor


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}" if isinstance(value, str) else type(value).__name__


__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "one_cycle",
    "plateau",
    "step_decay",
    "warmed_up",
]
