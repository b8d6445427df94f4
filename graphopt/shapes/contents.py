"""Arithmetic on the symbolic contents of small integer tensors: what shape computations in a graph do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.shapes.symbols import Dim, Symbols

Vector = tuple[Dim, ...]


def elementwise(symbols: Symbols, op_type: str, operands: Sequence[Vector | None]) -> Vector | None:
    """The result of an elementwise operator on vectors of one length or of length 1, or ``None``."""
    size = max((len(v) for v in operands if v is not None), default=0)
    if op_type not in _SCALAR or any(v is None or len(v) not in (1, size) for v in operands):
        return None
    columns = zip(*(v * size if len(v) == 1 else v for v in operands if v is not None), strict=True)
    results = [_fold(_SCALAR[op_type], symbols, column) for column in columns]
    return tuple(r for r in results if r is not None) if None not in results else None


Scalar = Callable[[Symbols, Dim, Dim], Dim | None]


def _fold(function: Scalar, symbols: Symbols, operands: Sequence[Dim]) -> Dim | None:
    total: Dim | None = operands[0]
    for other in operands[1:]:
        total = None if total is None else function(symbols, total, other)
    return total


def _divide(symbols: Symbols, a: Dim, b: Dim) -> Dim | None:
    return None if b == 0 else symbols.divide(a, b)


def _modulo(symbols: Symbols, a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return a % b if a >= 0 and b > 0 else None
    return symbols.function("mod", a, b)


def _largest(symbols: Symbols, a: Dim, b: Dim) -> Dim:
    if symbols.at_least(a, b):
        return a
    if symbols.at_least(b, a):
        return b
    signed = not (symbols.is_dim(a) or symbols.is_dim(b))
    return symbols.function("max", *sorted((a, b), key=str), signed=signed)


def _equal(symbols: Symbols, a: Dim, b: Dim) -> Dim | None:
    if a == b:
        return 1
    return 0 if differ(symbols, a, b) else None


def differ(symbols: Symbols, a: Dim, b: Dim) -> bool:
    """Whether a ≠ b provably: one is at least one more than the other."""
    return symbols.at_least(a, symbols.add(b, 1)) or symbols.at_least(b, symbols.add(a, 1))


def _less(symbols: Symbols, a: Dim, b: Dim) -> Dim | None:
    if symbols.at_least(b, symbols.add(a, 1)):
        return 1
    return 0 if symbols.at_least(a, b) else None


def _and(_: Symbols, a: Dim, b: Dim) -> Dim | None:
    return 0 if 0 in (a, b) else (1 if (a, b) == (1, 1) else None)


def _or(_: Symbols, a: Dim, b: Dim) -> Dim | None:
    return 1 if 1 in (a, b) else (0 if (a, b) == (0, 0) else None)


_SCALAR: dict[str, Scalar] = {
    "Add": Symbols.add,
    "Sub": Symbols.subtract,
    "Mul": Symbols.multiply,
    "Sum": Symbols.add,
    "Div": _divide,
    "Mod": _modulo,
    "Max": _largest,
    "Min": Symbols.minimum,
    "Equal": _equal,
    "Less": _less,
    "Greater": lambda symbols, a, b: _less(symbols, b, a),
    "LessOrEqual": lambda symbols, a, b: _negated(_less(symbols, b, a)),
    "GreaterOrEqual": lambda symbols, a, b: _negated(_less(symbols, a, b)),
    "And": _and,
    "Or": _or,
}


def _negated(a: Dim | None) -> Dim | None:
    return 1 - a if isinstance(a, int) else None


def select(condition: Vector | None, x: Vector | None, y: Vector | None) -> Vector | None:
    """What Where picks from two vectors when every choice is known."""
    if condition is None or x is None or y is None:
        return None
    size = max(len(condition), len(x), len(y))
    if any(len(v) not in (1, size) for v in (condition, x, y)):
        return None
    rows = zip(*(v * size if len(v) == 1 else v for v in (condition, x, y)), strict=True)
    picked = [a if a == b or c == 1 else (b if c == 0 else None) for c, a, b in rows]
    return tuple(p for p in picked if p is not None) if None not in picked else None


def joined(parts: Sequence[Vector | None]) -> Vector | None:
    """The concatenation of vectors that are all known."""
    return tuple(dim for part in parts for dim in part or ()) if None not in parts else None
