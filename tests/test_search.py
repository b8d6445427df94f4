"""The search for the first failing step."""

import math

import pytest

from graphopt.search import first_failure


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 100])
def test_finds_every_first_failure_in_few_tries(steps):
    for guilty in range(1, steps + 1):
        tried = []

        def fails(count, guilty=guilty, tried=tried):
            tried.append(count)
            return count >= guilty

        assert first_failure(steps, fails) == guilty
        assert len(tried) <= math.ceil(math.log2(steps)) if steps > 1 else not tried


def test_never_tries_the_known_ends():
    tried = set()
    first_failure(16, lambda count: tried.add(count) or True)
    first_failure(16, lambda count: tried.add(count) or False)
    assert tried.isdisjoint({0, 16})
