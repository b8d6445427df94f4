"""A layer as the product of two thinner ones, so that its outputs lose the least.

For y = W·x over the inputs of the calibration, the best W' of rank r in Σ‖W'x − Wx‖² is Uᵣ·Uᵣᵀ·W, with the
eigenvectors U of Σ y·yᵀ = W·(Σ x·xᵀ)·Wᵀ that have the largest eigenvalues; what is lost is the sum of the
others. It is the product that SVD-LLM (Wang et al. 2024) finds from a Cholesky factor of Σ x·xᵀ, but needs
no more than second moments of the output. Where there is a bias, moments are taken about the mean, and the
bias takes back the mean of what is lost (Zhang et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.runtime.accumulators import Array, Doubles


@dataclass(frozen=True)
class Factors:
    """What stands for a weight: y = second·(first·x) + shift + b.

    Attributes:
        first: float32 [rank, columns].
        second: float32 [channels, rank].
        shift: what the bias must add: the mean of what is lost, float64 [channels]; None for nothing.
    """

    first: Array
    second: Array
    shift: Doubles | None


@dataclass(frozen=True)
class Spectrum:
    """The principal directions of a layer's outputs.

    Attributes:
        directions: float64 [channels, channels], orthonormal columns, the strongest first.
        energies: of the outputs along them: float64 [channels], descending.
        mean: of the outputs without the bias, float64 [channels]; None if it is not taken out.
        energy: E‖y‖² of the outputs without the bias, the mean included.
    """

    directions: Doubles
    energies: Doubles
    mean: Doubles | None
    energy: float

    @classmethod
    def of(cls, moments: Doubles, mean: Doubles | None) -> Spectrum:
        """The spectrum of outputs y.

        Args:
            moments: E(y·yᵀ), float64 [channels, channels].
            mean: E(y), float64 [channels], if a bias can take it back; else None.
        """
        centred = moments if mean is None else moments - np.outer(mean, mean)
        energies, directions = np.linalg.eigh(centred)
        return cls(
            directions[:, ::-1], np.maximum(energies[::-1], 0.0), mean, float(max(np.trace(moments), 0.0))
        )

    def error(self, rank: int) -> float:
        """E‖y' − y‖² / E‖y‖² with so many directions; 0 if there is no output but 0."""
        return float(self.energies[rank:].sum()) / self.energy if self.energy else 0.0

    def factors(self, weight: Array, rank: int) -> Factors:
        """The factors of a weight, float32 [channels, columns].

        Both get the square root of what the layer's outputs weigh in each direction, so that neither holds
        numbers much larger than the other.
        """
        kept = self.directions[:, :rank].astype(np.float32)
        first = kept.T @ weight
        sizes = np.sqrt(np.linalg.norm(first, axis=1))
        sizes[sizes == 0] = 1.0
        return Factors(first / sizes[:, None], kept * sizes, self._shift(rank))

    def _shift(self, rank: int) -> Doubles | None:
        if self.mean is None:
            return None
        kept = self.directions[:, :rank]
        shift: Doubles = self.mean - kept @ (kept.T @ self.mean)
        return shift
