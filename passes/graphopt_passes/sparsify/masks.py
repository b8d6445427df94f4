"""Which weights of a layer go: those without which the others can still give nearly the same outputs.

The error of zeros in W is tr(ΔW·H·ΔWᵀ) with the moments H of the layer's inputs. Two ways to choose them look
at all of H; what is left is then fitted exactly (:mod:`graphopt_passes.refit.solve`), so only masks count:

- :func:`one_by_one` goes through the columns, removes those with the least w²/(H⁻¹)ⱼⱼ and lets later columns
  make up for them: SparseGPT (Frantar and Alistarh 2023), in blocks of 128 columns.
- :func:`alternating` lets the least squares solution and its nearest sparse weight take turns, ever sparser:
  ADMM on H scaled to a unit diagonal (Boža 2024, "Fast and effective weight update for pruned LLMs").

Weights are [groups, channels/groups, columns], moments [groups, columns, columns], damped; masks are like the
weights. A pattern sees the rows of all groups together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from graphopt.runtime.accumulators import Doubles
from graphopt_passes.sparsify.patterns import Mask, Pattern

_BLOCK = 128
_STEPS = 20
_TIGHTENING = 15  # steps after which the pattern is what it is to be
_PENALTY = 1.0  # ρ of ADMM, beside a diagonal of 1


def magnitude(w: Doubles, pattern: Pattern) -> Mask:
    """The largest |w|."""
    return _over_all(pattern, np.abs(w))


def energy(w: Doubles, h: Doubles, pattern: Pattern) -> Mask:
    """The largest |w|·‖x‖ in each row (Wanda, Sun et al. 2024)."""
    return _over_all(pattern, np.abs(w) * _scale(h)[:, None])


def one_by_one(w: Doubles, h: Doubles, pattern: Pattern) -> Mask:
    """See above: removed column by column, made up for by those that follow."""
    w, mask = w.copy(), np.ones(w.shape, bool)
    upper = np.linalg.cholesky(_inverse(h)).swapaxes(1, 2)
    diagonal = np.einsum("gkk->gk", upper)
    columns = w.shape[2]
    alone = _over_all(pattern, np.square(w / diagonal[:, None]))  # how full each block is to be
    for start in range(0, columns, _BLOCK):
        block = slice(start, min(start + _BLOCK, columns))
        within = pattern.like(alone[:, :, block])
        mask[:, :, block] = _over_all(within, np.square(w[:, :, block] / diagonal[:, None, block]))
        wrong = np.zeros(w[:, :, block].shape)
        for k in range(block.start, block.stop):
            error = np.where(mask[:, :, k], 0.0, w[:, :, k]) / diagonal[:, k, None]
            w[:, :, k : block.stop] -= error[:, :, None] * upper[:, None, k, k : block.stop]
            wrong[:, :, k - start] = error
        w[:, :, block.stop :] -= wrong @ upper[:, block, block.stop :]
    return mask


def alternating(w: Doubles, h: Doubles, patterns: Iterable[Pattern]) -> Iterator[Mask]:
    """See above: least squares and sparse weights in turns. A mask for each pattern."""
    scale = _scale(h)
    h = h / (scale[:, :, None] * scale[:, None, :])
    w = w * scale[:, None]
    target, inverse = w @ h, _inverse(h + _PENALTY * np.eye(h.shape[1]))
    for pattern in patterns:
        yield _alternated(w, target, inverse, pattern)


def _alternated(w: Doubles, target: Doubles, inverse: Doubles, pattern: Pattern) -> Mask:
    sparse, excess = w, np.zeros(w.shape)
    for step in range(1, _STEPS + 1):
        tight = pattern.relaxed(max(0.0, 1 - step / _TIGHTENING) ** 3)
        full = (target + _PENALTY * (sparse - excess)) @ inverse
        sparse = np.where(_over_all(tight, np.abs(full + excess)), full + excess, 0.0)
        excess = excess + full - sparse
    return _over_all(pattern, np.abs(sparse))


def _scale(h: Doubles) -> Doubles:
    """The size of each column, 1 where it is always 0."""
    diagonal = np.einsum("gkk->gk", h)
    found: Doubles = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    return found


def _inverse(h: Doubles) -> Doubles:
    return np.asarray(np.linalg.inv(h), np.float64)


def _over_all(pattern: Pattern, scores: Doubles) -> Mask:
    """The mask of all groups together."""
    return pattern.mask(scores.reshape(-1, scores.shape[2])).reshape(scores.shape)
