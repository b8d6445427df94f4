"""Symbolic dims: integers, names, and the sums of products that operators make of them.

A dim is an ``int`` or a string. Equal strings are provably the same number at run time. An atom is a name
that the model declares for an input's dim, or a fresh one; fresh atoms start with ``?`` (a dim, never
negative) or ``~`` (any integer), which no declared name that counts does. Everything else is a polynomial
over atoms with integer coefficients, printed in a normal form: ``b*s + s*b`` is always ``2*b*s``.
"""

from __future__ import annotations

from collections import Counter

Dim = int | str
Monomial = tuple[str, ...]
Polynomial = dict[Monomial, int]


class Symbols:
    """Makes atoms and computes with dims; strings of two different instances must not be mixed."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[str, Polynomial] = {}

    def fresh(self, *, signed: bool = False) -> str:
        """A new atom; ``signed`` when it may be negative."""
        self._count += 1
        return f"{'~' if signed else '?'}{self._count}"

    def declared(self, name: str | None) -> str:
        """The atom of a name in the file; placeholders such as ``?`` and empty names promise nothing."""
        if not name or name[0] in "?~" or not any(c.isalnum() for c in name):
            return self.fresh()
        return name

    def function(self, name: str, *arguments: Dim, signed: bool | None = None) -> str:
        """The atom of a deterministic function of dims: equal arguments make equal atoms."""
        if signed is None:
            signed = not all(map(self.is_dim, arguments))
        return f"{'~' if signed else '?'}{name}({','.join(map(str, arguments))})"

    def add(self, a: Dim, b: Dim) -> Dim:
        """a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        total = Counter(self._polynomial(a))
        for monomial, factor in self._polynomial(b).items():
            total[monomial] += factor
        return self._dim(total)

    def multiply(self, a: Dim, b: Dim) -> Dim:
        """a · b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        total: Counter[Monomial] = Counter()
        for left, m in self._polynomial(a).items():
            for right, n in self._polynomial(b).items():
                total[tuple(sorted(left + right))] += m * n
        return self._dim(total)

    def subtract(self, a: Dim, b: Dim) -> Dim:
        """a - b."""
        return self.add(a, self.multiply(-1, b))

    def product(self, dims: tuple[Dim, ...]) -> Dim:
        """The product of all dims; 1 for none."""
        total: Dim = 1
        for dim in dims:
            total = self.multiply(total, dim)
        return total

    def divide(self, a: Dim, b: Dim) -> Dim:
        """a / b rounded towards zero, as ONNX divides integers; b is taken to be nonzero."""
        if isinstance(a, int) and isinstance(b, int) and b != 0:
            return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        exact = self.quotient(a, b)
        return self.function("div", a, b) if exact is None else exact

    def quotient(self, a: Dim, b: Dim) -> Dim | None:
        """a / b when b is one product that divides every term of a, else ``None``; b must not be 0."""
        divisor = self._polynomial(b)
        if len(divisor) != 1:
            return None
        ((atoms, factor),) = divisor.items()
        result: Counter[Monomial] = Counter()
        for monomial, coefficient in self._polynomial(a).items():
            rest = Counter(monomial)
            rest.subtract(atoms)
            if coefficient % factor or min(rest.values(), default=0) < 0:
                return None
            result[tuple(sorted(rest.elements()))] = coefficient // factor
        return self._dim(result)

    def is_dim(self, a: Dim) -> bool:
        """Whether a is provably not negative."""
        if isinstance(a, int):
            return a >= 0
        terms = self._polynomial(a).items()
        return all(factor >= 0 and not any(atom[0] == "~" for atom in atoms) for atoms, factor in terms)

    def at_least(self, a: Dim, b: Dim) -> bool:
        """Whether a ≥ b provably."""
        return self.is_dim(self.subtract(a, b))

    def vanishes_with(self, a: Dim, b: Dim) -> bool:
        """Whether a = 0 provably follows from b = 0, since every factor of b divides a."""
        divisor = self._polynomial(b)
        if len(divisor) != 1:
            return a == b
        (atoms,) = divisor
        return all(set(atoms) <= set(monomial) for monomial in self._polynomial(a))

    def _polynomial(self, a: Dim) -> Polynomial:
        if isinstance(a, int):
            return {(): a} if a else {}
        return self._sums.get(a) or {(a,): 1}

    def _dim(self, terms: Counter[Monomial]) -> Dim:
        kept = {monomial: factor for monomial, factor in sorted(terms.items()) if factor}
        if not kept:
            return 0
        if len(kept) == 1:
            ((atoms, factor),) = kept.items()
            if not atoms:
                return factor
            if len(atoms) == 1 and factor == 1:
                return atoms[0]
        name = "?(" + "+".join("*".join((str(n), *atoms)) for atoms, n in kept.items()) + ")"
        self._sums[name] = kept
        return name
