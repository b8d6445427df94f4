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
    """Makes atoms and computes with dims; strings of two different instances must not be mixed.

    Args:
        nonzero: atoms that are known not to be 0.
    """

    def __init__(self, nonzero: frozenset[str] = frozenset()) -> None:
        self._count = 0
        self._nonzero = nonzero
        self._sums: dict[str, Polynomial] = {}
        self._minima: dict[str, tuple[Dim, Dim]] = {}
        self._broadcasts: dict[str, frozenset[str]] = {}

    def fresh(self, *, signed: bool = False) -> str:
        """A new atom; ``signed`` when it may be negative."""
        self._count += 1
        return f"{'~' if signed else '?'}{self._count}"

    @staticmethod
    def declared(name: str | None, place: str) -> str:
        """The atom of a dim of an input; placeholders such as ``?`` promise nothing and get one of their own.

        Args:
            name: what the file calls the dim.
            place: input and axis, such as ``x.0``.
        """
        if not name or name[0] in "?~" or not any(c.isalnum() for c in name):
            return f"?{place}"
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

    def minimum(self, a: Dim, b: Dim) -> Dim:
        """The smaller of two."""
        if self.at_least(a, b):
            return b
        if self.at_least(b, a):
            return a
        name = self.function("min", *sorted((a, b), key=str))
        self._minima[name] = (a, b)
        return name

    def broadcast(self, a: Dim, b: Dim) -> Dim:
        """The dim of two that are equal or of which one is 1: a number other than 1 decides, 1 gives way.

        min(c, b) beside b is b when c ≥ 2, since c < b would neither equal b nor be 1.
        """
        if b in (a, 1):
            return a
        if a == 1 or isinstance(b, int):
            return b
        if isinstance(a, int):
            return a
        parts = self._broadcasts.get(a, frozenset((a,))) | self._broadcasts.get(b, frozenset((b,)))
        parts = frozenset(part for part in parts if not self._gives_way(part, parts))
        name = self.function("broadcast", *sorted(parts)) if len(parts) > 1 else min(parts)
        self._broadcasts[name] = parts
        return name

    def _gives_way(self, part: str, beside: frozenset[str]) -> bool:
        a, b = self._minima.get(part, (0, 0))
        return (b in beside and self.at_least(a, 2)) or (a in beside and self.at_least(b, 2))

    def is_dim(self, a: Dim) -> bool:
        """Whether a is provably not negative."""
        if isinstance(a, int):
            return a >= 0
        terms = self._polynomial(a).items()
        return all(factor >= 0 and not any(atom[0] == "~" for atom in atoms) for atoms, factor in terms)

    def is_nonzero(self, a: Dim) -> bool:
        """Whether a is provably not 0: a product of nonzero factors, or at least 1."""
        terms = self._polynomial(a)
        if len(terms) == 1:
            return all(atom in self._nonzero for atoms in terms for atom in atoms)
        return self.at_least(a, 1)

    def factors(self, a: Dim) -> frozenset[str]:
        """The atoms that are not 0 when a is not 0."""
        terms = self._polynomial(a)
        return frozenset(atom for atoms in terms for atom in atoms) if len(terms) == 1 else frozenset()

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
