"""Samples of one become a batch where the model takes any number of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.runtime.values import Tensor
from graphopt.samples.batches import stacked
from tests.support import parse

TWO = "agraph (float[N,4] x, int64[N] i) => (float[N,4] y) { y = Identity(x) }"


def model(text: str) -> ir.Model:
    return ir.serde.deserialize_model(parse(text))


def samples(count: int, shape: tuple[int, ...] = (1, 4)) -> list[dict[str, Tensor]]:
    return [
        {"x": Tensor.of(np.full(shape, k, np.float32)), "i": Tensor.of(np.array([k]))} for k in range(count)
    ]


def test_samples_are_joined_in_order() -> None:
    found = stacked(model(TWO), iter(samples(9)), 3)
    assert found is not None
    assert list(found) == ["x", "i"]
    np.testing.assert_array_equal(found["x"].numpy(), np.float32([[0] * 4, [1] * 4, [2] * 4]))
    np.testing.assert_array_equal(found["i"].numpy(), [0, 1, 2])
    assert found["x"].numpy().dtype == np.float32


def test_few_samples_are_repeated() -> None:
    found = stacked(model(TWO), samples(2), 5)
    assert found is not None
    np.testing.assert_array_equal(found["i"].numpy(), [0, 1, 0, 1, 0])


def test_no_more_samples_are_read_than_needed() -> None:
    left = iter(samples(9))
    assert stacked(model(TWO), left, 3) is not None
    assert next(left)["i"].numpy() == [3]


REFUSED = {
    "a batch of fixed size": "agraph (float[1,4] x, int64[N] i) => (float[1,4] y) { y = Identity(x) }",
    "a scalar": "agraph (float x, int64[N] i) => (float y) { y = Identity(x) }",
    "a sequence": "agraph (seq(float[N,4]) x) => (seq(float[N,4]) y) { y = Identity(x) }",
    "an input without a sample": "agraph (float[N,4] z) => (float[N,4] y) { y = Identity(z) }",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_inputs_that_have_no_batch(text: str) -> None:
    assert stacked(model(text), samples(3), 2) is None


def test_samples_that_do_not_match() -> None:
    assert stacked(model(TWO), samples(3, (2, 4)), 2) is None
    assert stacked(model(TWO), [*samples(1), *samples(1, (1, 5))], 2) is None
    assert stacked(model(TWO), [], 2) is None


def test_a_model_without_inputs() -> None:
    proto = parse("agraph () => (float[1] y) { y = Constant<value = float[1] {1.0}>() }")
    assert isinstance(proto, onnx.ModelProto)
    assert stacked(ir.serde.deserialize_model(proto), samples(3), 2) is None
