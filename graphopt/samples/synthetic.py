"""Samples drawn from what the graph says about its inputs, for a user who gives none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.errors import DataError, UsageError
from graphopt.runtime.values import BOOL, FLOATING, STRING, Tensor, Value, dtype_of
from graphopt.samples.hints import Hint, hints_of, mentioned_sizes
from graphopt.samples.inputs import InputSpec, inputs_of, quoted, spell
from graphopt.samples.sizes import Choice, Variable, dim_name, enlarged, search, variables_of

Array = NDArray[Any]
Shapes = dict[str, tuple[int, ...]]
_WORDS = ("", "a", "graph", "the quick brown fox", "0", "3.5", "été", "日本語")
_SEQUENCE_LENGTH = 3
_OVERRIDE_EVERY = 4
# Of a sample that is only tried: sizes are mixed at random, and a model may run with none of them.
_MOST_ELEMENTS = 1 << 25
_SMALL_INTEGERS = frozenset({2, 3, 4, 5, 21, 22, 25, 26})


def parse_shapes(texts: Sequence[str]) -> list[Shapes]:
    """Read shapes like ``input=1x3x224x224``; an input that is given again starts another workload.

    Raises:
        UsageError: the text is not of this form.
    """
    given: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, separator, dims = text.rpartition("=")
        if not separator or not all(dim.isdecimal() for dim in dims.split("x")):
            raise UsageError(f"shape {text!r} is not of the form input=1x3x224x224")
        given.setdefault(name, []).append(tuple(int(dim) for dim in dims.split("x")))
    count = max(map(len, given.values()), default=0)
    return [{name: dims[i % len(dims)] for name, dims in given.items()} for i in range(count)]


@dataclass
class Drawer:
    """Draws sample ``i`` of a model: sizes that run, and values of several distributions.

    Args:
        model: the model; only its inputs, structure and small constants are looked at.
        shapes: workloads that the user asked for, see :func:`parse_shapes`.
        seed: the same seed gives the same samples.
        override: also perturb overridable initializers in some samples.
        runs: whether the original runs on a sample; without it sizes are guessed and not tried.
    """

    model: ir.Model
    shapes: Sequence[Shapes] = ()
    seed: int = 0
    override: bool = True
    runs: Callable[[dict[str, Value]], bool] | None = None

    def __post_init__(self) -> None:
        specs = list(inputs_of(self.model))
        self._hints = hints_of(self.model)
        self._mentioned = mentioned_sizes(self.model)
        self._workloads = [_with_shapes(specs, shapes) for shapes in self.shapes] or [specs]

    @cached_property
    def choices(self) -> list[tuple[list[InputSpec], Choice]]:
        """The inputs and sizes that samples take turns with; found at the first use."""
        return [(specs, choice) for specs in self._workloads for choice in self._choices(specs)]

    def draw(self, index: int) -> dict[str, Value]:
        """Sample ``index``."""
        specs, choice = self.choices[index % len(self.choices)]
        return self._draw(specs, choice, index)

    def workload(self) -> dict[str, Value]:
        """One sample to measure latency with: the user's first shape, or sizes that people run."""
        specs = self._workloads[0]
        return self._draw(specs, self._choices(specs, workload=True)[0], 0)

    def _choices(self, specs: list[InputSpec], workload: bool = False) -> list[Choice]:
        required = [spec for spec in specs if spec.default is None]
        variables = variables_of(required, self._mentioned, workload) + list(self._value_variables(required))
        plain = {variable.name: variable.candidates[0] for variable in variables}
        runs = self.runs
        if runs is None or not variables:
            return [plain]

        most = max(_MOST_ELEMENTS, _elements(specs, plain))

        def fits(choice: Choice) -> bool:
            return _elements(specs, choice) <= most and runs(self._draw(specs, choice, 0))

        found = search(variables, fits, self.seed, one=workload)
        return [enlarged(variables, choice, fits) if workload else choice for choice in found] or [plain]

    def _value_variables(self, specs: Sequence[InputSpec]) -> Iterator[Variable]:
        """Integers whose range the graph does not tell."""
        for spec in specs:
            hint = self._hints[spec.name]
            if spec.elem_type in FLOATING | {BOOL, STRING} | _SMALL_INTEGERS or hint.mask or hint.below:
                continue
            if hint.constants and spec.shape in {(), (1,)}:
                yield Variable(f"{spec.name}=", tuple(_around(hint.constants)))
            elif not hint.length:
                yield Variable(f"{spec.name}<", (4, 2, 1) if hint.size else (100, 10, 2, 1), small=True)

    def _draw(self, specs: Sequence[InputSpec], choice: Choice, index: int) -> dict[str, Value]:
        rng = np.random.default_rng([self.seed, index])
        longest = _longest(specs, choice)
        override = self.override and index % _OVERRIDE_EVERY == _OVERRIDE_EVERY - 1
        sample: dict[str, Value] = {}
        for spec in specs:
            if spec.default is None:
                one = _One(spec, self._hints[spec.name], choice, index, longest, rng)
                sample[spec.name] = one.value()
            elif override and spec.elem_type in FLOATING:
                sample[spec.name] = _perturbed(spec.default, rng)
        return sample


def _elements(specs: Sequence[InputSpec], choice: Choice) -> int:
    """Elements of all inputs of these sizes."""
    return sum(math.prod(_sizes(spec, choice)) for spec in specs)


def _sizes(spec: InputSpec, choice: Choice) -> Iterator[int]:
    for axis, dim in enumerate(spec.shape or ()):
        yield dim if isinstance(dim, int) else choice.get(dim_name(spec, axis), 1)


@dataclass
class _One:
    """The draw of one input in one sample."""

    spec: InputSpec
    hint: Hint
    choice: Choice
    index: int
    longest: int
    rng: np.random.Generator

    def value(self) -> Value:
        if self.spec.kind == "other":
            raise DataError(
                f"input {self.spec.name!r} has a type that is not drawn: give samples with --data"
            )
        if self.spec.kind == "sequence":
            return [self._tensor() for _ in range(_SEQUENCE_LENGTH)]
        if self.spec.kind == "optional" and (self.index % 2 or not self.spec.elem_type):
            return None
        return self._tensor()

    def _tensor(self) -> Tensor:
        shape = _shape(self.spec, self.choice)
        elem_type = self.spec.elem_type
        if elem_type == STRING:
            return Tensor.of(self.rng.choice(np.array(_WORDS, dtype=object), shape))
        if self.hint.mask or elem_type == BOOL:
            return Tensor.of(self._mask(shape).astype(dtype_of(elem_type)))
        draw = self._floats if elem_type in FLOATING else self._integers
        return Tensor.of(np.asarray(draw(shape)).astype(dtype_of(elem_type)))

    def _mask(self, shape: tuple[int, ...]) -> Array:
        """Zeros and ones: all ones, ones up to a random length along the last axis, or mixed."""
        if self.hint.mask and self.index % 3 == 0:
            return np.ones(shape)
        if self.hint.mask and self.index % 3 == 1 and shape:
            lengths = self.rng.integers(1, shape[-1] + 1, (*shape[:-1], 1))
            return np.arange(shape[-1]) < lengths
        return self.rng.random(shape) < 0.5

    def _floats(self, shape: tuple[int, ...]) -> Array:
        if self.hint.size:
            return self.rng.integers(1, 3, shape)
        normal = self.rng.standard_normal(shape)
        uniform = self.rng.random(shape)
        styles = (uniform, normal, normal * (uniform < 0.1), normal * 10, uniform * 255, normal * 0.01)
        return styles[self.index % len(styles)]

    def _integers(self, shape: tuple[int, ...]) -> Array:
        name, hint = self.spec.name, self.hint
        if f"{name}=" in self.choice:
            return np.full(shape, self.choice[f"{name}="])
        if hint.length:
            lengths = self.rng.integers(1, self.longest + 1, shape)
            lengths.reshape(-1)[:1] = self.longest
            return lengths
        if hint.below:
            return self.rng.integers(0, hint.below, shape)
        if self.spec.elem_type in _SMALL_INTEGERS:
            bits = 16 if self.spec.elem_type in {4, 5} else 8
            return self.rng.integers(0, 2**bits, shape).astype(np.uint16)
        return self.rng.integers(1 if hint.size else 0, self.choice[f"{name}<"] + int(hint.size), shape)


def _shape(spec: InputSpec, choice: Choice) -> tuple[int, ...]:
    if spec.shape is None:
        return (choice.get(f"{spec.name}:0", 2),)
    dims = enumerate(spec.shape)
    return tuple(
        dim if isinstance(dim, int) else choice.get(dim_name(spec, axis), _SEQUENCE_LENGTH)
        for axis, dim in dims
    )


def _longest(specs: Sequence[InputSpec], choice: Choice) -> int:
    """The longest sequence that lengths may name: the first axis of the recurrent input, which has rank 3."""
    shapes = [_shape(spec, choice) for spec in specs if spec.elem_type in FLOATING]
    return min((shape[0] for shape in shapes if len(shape) == 3), default=1)


def _around(constants: set[int]) -> Iterator[int]:
    """Values on both sides of each comparison, the compared ones first."""
    ordered = sorted(constants, reverse=True)
    yield from dict.fromkeys(
        itertools.chain(ordered, (c // 2 for c in ordered), (c + 1 for c in ordered), (0,))
    )


def _perturbed(default: ir.TensorProtocol, rng: np.random.Generator) -> Tensor:
    """Another value of an overridable initializer; signs are kept, since variances must stay positive."""
    array = default.numpy()
    factors = rng.uniform(0.9, 1.1, array.shape)
    return Tensor.of((array.astype(np.float64) * factors).astype(array.dtype))


def _with_shapes(specs: Sequence[InputSpec], shapes: Shapes) -> list[InputSpec]:
    """The inputs with the user's shapes; a dim that they fix is fixed in every input that names it."""
    by_name = {spec.name: spec for spec in specs}
    fixed: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise UsageError(f"no input {name!r} to shape; the model has {quoted(by_name)}")
        spec = by_name[name]
        known = spec.shape if spec.shape is not None else (None,) * len(shape)
        fits = len(known) == len(shape)
        if not fits or any(isinstance(a, int) and a != b for a, b in zip(known, shape, strict=True)):
            raise UsageError(f"shape {spell(shape)} does not fit input {name!r}, which is {spell(known)}")
        fixed |= {dim: size for dim, size in zip(known, shape, strict=True) if isinstance(dim, str)}
    return [replace(spec, shape=shapes.get(spec.name) or _fixed(spec, fixed)) for spec in specs]


def _fixed(spec: InputSpec, fixed: dict[str, int]) -> tuple[Any, ...] | None:
    if spec.shape is None:
        return None
    return tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
