"""A matrix whose blocks are circulant, and how it is multiplied with by a Fourier transform.

Each block of b·b numbers, C[i, j] = c[(i − j) mod b], is a circular convolution with the b numbers of c. In
the frequencies of the real discrete Fourier transform convolutions are products, so that y = C·x is

    X = E·x,   Yₖ = Wₖ·Xₖ for each of 2b − 2 components k,   y = G·Y

with constant E and G: one component for each of the two real frequencies, and four for each complex one (the
real and imaginary parts of a product of complex numbers). That takes (2b − 2)/b² of the products: 3/8 with
b = 4, 7/32 with b = 8 (Cheng et al. 2015, Ding et al. 2017).

The numbers c closest to a weight W for inputs with moments H = Σ x·xᵀ solve the normal equations
(Σᵢ PᵢHPᵢᵀ)·c = Σᵢ PᵢH·wᵢ, where Pᵢ turns the columns of each block so that row i reads c; with H = I they
are the means along the diagonals that wrap around.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.accumulators import Array, Doubles

_RIDGE = 1e-6  # of the mean of the diagonal


@dataclass(frozen=True)
class Transform:
    """The constants of one size of blocks.

    Attributes:
        size: b, even.
        forward: E, float64 [b, components]: x of a block, as a row, to its components.
        weights: float64 [components, b]: c to what multiplies each component.
        backward: G, float64 [components, b].
    """

    size: int
    forward: Doubles
    weights: Doubles
    backward: Doubles

    @classmethod
    def of(cls, size: int) -> Transform:
        """For blocks of ``size`` numbers."""
        parts = [_component(size, frequency, *kind) for frequency, kind in _components(size)]
        forward, weights, backward = (np.stack(column) for column in zip(*parts, strict=True))
        return cls(size, forward.T, weights, backward)


def _components(size: int) -> list[tuple[int, tuple[str, str, float]]]:
    """Frequencies, which part of x and of c are multiplied, and the sign with which they count."""
    found = [(0, ("real", "real", 1.0)), (size // 2, ("real", "real", 1.0))]
    for frequency in range(1, size // 2):
        kinds = [("real", "real", 1.0), ("imag", "imag", -1.0), ("real", "imag", 1.0), ("imag", "real", 1.0)]
        found += [(frequency, kind) for kind in kinds]
    return found


def _component(
    size: int, frequency: int, of_x: str, of_c: str, sign: float
) -> tuple[Doubles, Doubles, Doubles]:
    """What makes a component of x, what makes its factor of c, and what it gives to y: each float64 [b]."""
    waves = np.exp(-2j * np.pi * frequency * np.arange(size) / size)
    real = of_x == of_c
    back = (waves.conj() if real else 1j * waves.conj()).real / size
    double = 1.0 if frequency in (0, size // 2) else 2.0
    return getattr(waves, of_x), sign * getattr(waves, of_c), double * back


def expand(numbers: Array, size: int) -> Array:
    """The matrix of blocks.

    Args:
        numbers: c, [rows / b, columns / b, b].
        size: b.

    Returns:
        [rows, columns], of the same dtype.
    """
    place = (np.arange(size)[:, None] - np.arange(size)[None, :]) % size
    blocks = numbers[:, :, place]  # [rows / b, columns / b, b, b]
    matrix: Array = blocks.transpose(0, 2, 1, 3).reshape(numbers.shape[0] * size, -1)
    return matrix


def project(weight: Array, size: int, moments: Doubles | None) -> Doubles:
    """The numbers c whose matrix is closest to a weight.

    Args:
        weight: [rows, columns], both multiples of ``size``.
        size: b.
        moments: H, float64 [columns, columns]; None for the identity.

    Returns:
        float64 [rows / b, columns / b, b].
    """
    rows, columns = weight.shape
    by_row = weight.reshape(rows // size, size, columns).astype(np.float64)
    turns = [_turned(columns, size, row) for row in range(size)]
    if moments is None:
        found = sum(by_row[:, row, turns[row]] for row in range(size)) / size
    else:
        left = sum(moments[np.ix_(turn, turn)] for turn in turns)
        right = sum(moments[turns[row]] @ by_row[:, row].T for row in range(size))
        damping = _RIDGE * np.trace(left) / columns or 1.0
        found = np.linalg.solve(left + damping * np.eye(columns), right).T
    return np.asarray(found).reshape(rows // size, columns // size, size)


def _turned(columns: int, size: int, row: int) -> NDArray[np.int64]:
    """Column of W that number t of c stands in, in row ``row`` of each block: (row − t) mod b."""
    block, place = np.divmod(np.arange(columns), size)
    return np.asarray(block * size + (row - place) % size, np.int64)
