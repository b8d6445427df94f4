"""Samples: the user's data checked against the model, and samples drawn from the graph."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.errors import DataError, UsageError, WorkerError
from graphopt.runtime.worker import Worker
from graphopt.samples.sampling import Samples
from graphopt.samples.synthetic import Drawer, parse_shapes
from graphopt.target import REFERENCE

GOOD = np.zeros((2, 3, 4, 4), np.float32)


def _model(nodes, inputs, outputs, initializers=(), ir_version=10):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def _info(name, elem_type, shape):
    return helper.make_tensor_value_info(name, elem_type, shape)


def _tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def _image_model():
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    return _model([node], [_info("x", 1, ["n", 3, "h", "w"])], [_info("y", 1, None)])


def _read(source, proto, **options):
    return list(Samples.from_user(source, ir.from_proto(proto), **options))


@pytest.fixture(scope="module")
def worker():
    with Worker(time_limit=60) as one:
        yield one


def _runner(worker, proto):
    session = worker.open(proto.SerializeToString(), REFERENCE, threads=1)

    def runs(sample):
        try:
            worker.run(session, sample)
        except WorkerError:
            return False
        return True

    return runs


# --- the user's data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "sample_shape", "count"),
    [((5, 3, 4, 4), (1, 3, 4, 4), 5), ((5, 2, 3, 4, 4), (2, 3, 4, 4), 5), ((1, 3, 4, 4), (1, 3, 4, 4), 1)],
)
def test_an_npz_is_cut_along_its_leading_axis(tmp_path, shape, sample_shape, count):
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.savez(tmp_path / "data.npz", x=data)
    samples = _read(tmp_path / "data.npz", _image_model())
    assert [sample["x"].shape for sample in samples] == [sample_shape] * count
    np.testing.assert_array_equal(np.concatenate([s["x"].numpy().ravel() for s in samples]), data.ravel())


def test_a_static_batch_takes_that_many_rows(tmp_path):
    node = helper.make_node("Neg", ["x"], ["y"])
    model = _model([node], [_info("x", 1, [2, 3])], [_info("y", 1, None)])
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((6, 3), np.float32))
    assert [sample["x"].shape for sample in _read(tmp_path / "data.npz", model)] == [(2, 3)] * 3


def test_a_single_value_serves_every_sample(tmp_path):
    node = helper.make_node("Mul", ["x", "s"], ["y"])
    model = _model([node], [_info("x", 1, ["n", 2]), _info("s", 1, [])], [_info("y", 1, None)])
    np.savez(tmp_path / "data.npz", x=np.ones((3, 2), np.float32), s=np.float32(7))
    assert [float(sample["s"].numpy()) for sample in _read(tmp_path / "data.npz", model)] == [7.0] * 3


def test_a_dict_of_arrays_is_cut_as_an_npz_is(tmp_path):
    inputs = [_info("x", 1, ["n", 2]), _info("y", 1, [2, 2]), _info("s", 1, [])]
    model = _model([helper.make_node("Sum", ["x", "y", "s"], ["z"])], inputs, [_info("z", 1, None)])
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(3, 2)).astype(np.float32),
        "y": rng.normal(size=(6, 2)).astype(np.float32),
        "s": np.float32(7),
        "labels": np.arange(3),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    for held, read in zip(_read(arrays, model), _read(tmp_path / "data.npz", model), strict=True):
        assert held.keys() == read.keys() == {"x", "y", "s"}
        for name, value in held.items():
            np.testing.assert_array_equal(value.numpy(), read[name].numpy())
            assert value.shape == read[name].shape
    assert len(_read(arrays, model)) == 3


def test_a_list_of_dicts_holds_samples_of_any_size():
    samples = [{"x": np.full((1, 3, size, size), size, np.float32)} for size in (2, 5)]
    read = Samples.from_user(samples, ir.from_proto(_image_model()))
    for _ in range(2):
        assert [sample["x"].shape for sample in read] == [(1, 3, 2, 2), (1, 3, 5, 5)]
    assert read.describe(2) == "2 samples of data"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros((2, 3, 4, 4))}, "data: sample 0: input 'x' has type float64"),
        ({"q": GOOD}, "data: the model has no input 'q'"),
        ({"x": [[1.0], [1.0, 2.0]]}, "data: input 'x' is no array"),
        ([{"x": GOOD}, {"x": GOOD[0]}], "data: sample 1: input 'x' has shape"),
        ([{}], "data: sample 0: input 'x' is missing"),
    ],
)
def test_arrays_that_do_not_fit_name_input_and_sample(data, message):
    with pytest.raises(DataError) as error:
        _read(data, _image_model())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("data", [GOOD, [GOOD], iter([{"x": GOOD}]), 7])
def test_other_objects_are_a_usage_error(data):
    with pytest.raises(UsageError, match=r"data is .*: give a file, .* a dict of arrays"):
        Samples.of(ir.from_proto(_image_model()), data)


def test_a_folder_of_npz_is_read_in_the_order_of_names(tmp_path):
    for index in (2, 0, 1):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, 3, 2, 2), index, np.float32))
    samples = _read(tmp_path, _image_model(), limit=2)
    assert [sample["x"].numpy()[0, 0, 0, 0] for sample in samples] == [0, 1]


def test_onnx_test_data_sets_are_read(tmp_path):
    for index in range(2):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        array = np.full((1, 3, 2, 2), index, np.float32)
        (folder / "input_0.pb").write_bytes(_tensor("x", array).SerializeToString())
    samples = _read(tmp_path, _image_model())
    assert [sample["x"].numpy().max() for sample in samples] == [0, 1]


def test_a_function_yields_samples(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\ndef samples():\n    for i in range(3):\n"
        "        yield {'x': np.full((1, 3, 2, 2), i, np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert [s["x"].numpy().max() for s in _read("mydata:samples", _image_model())] == [0, 1, 2]
    with pytest.raises(UsageError, match="mydata:nothing"):
        _read("mydata:nothing", _image_model())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": GOOD, "z": GOOD}, "no input 'z'"),
        ({"x": GOOD.astype(np.float64)}, "has type float64, the model takes float32"),
        ({"x": np.zeros((2, 4, 4, 4), np.float32)}, "shape 1x4x4x4, the model takes nx3xhxw"),
        ({"x": np.zeros((4, 4), np.float32)}, "shape 4x4, the model takes nx3xhxw"),
        (
            {"x": np.where(np.arange(96).reshape(GOOD.shape) == 50, np.nan, GOOD)},
            "sample 1: input 'x' holds NaN",
        ),
    ],
)
def test_data_that_does_not_fit_names_input_sample_and_file(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=r"data\.npz") as error:
        _read(tmp_path / "data.npz", _image_model())
    assert message in str(error.value)


def test_named_dims_must_agree_within_a_sample(tmp_path):
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=1)
    model = _model([node], [_info("a", 1, [1, "n"]), _info("b", 1, [1, "n"])], [_info("y", 1, None)])
    np.savez(tmp_path / "data.npz", a=np.zeros((1, 2), np.float32), b=np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match="input 'b' has 3 for 'n', but input 'a' has 2"):
        _read(tmp_path / "data.npz", model)


def test_a_broken_file_and_a_missing_one_are_said(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "data.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="no readable"):
        _read(tmp_path / "data.npz", _image_model())
    with pytest.raises(UsageError, match="no such data"):
        _read(tmp_path / "absent.npz", _image_model())
    with pytest.raises(UsageError, match="neither"):
        _read(empty, _image_model())


def test_large_stacks_are_read_a_sample_at_a_time(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((1000, 3, 8, 8), np.float32))
    with (tmp_path / "data.npz").open("r+b") as file:  # reading on to here would be an error
        file.seek(400_000)
        file.write(b"\xff" * 1000)
    samples = iter(Samples.from_user(tmp_path / "data.npz", ir.from_proto(_image_model())))
    assert len(list(itertools.islice(samples, 100))) == 100


# --- samples from the graph --------------------------------------------------------------------------------


def _draw(proto, runs=None, count=8, **options):
    return list(Samples.synthetic(Drawer(ir.from_proto(proto), runs=runs, **options), count))


def test_the_same_seed_gives_the_same_samples():
    first, again, other = (_draw(_image_model(), seed=seed) for seed in (3, 3, 4))
    assert all((a["x"].raw() == b["x"].raw()).all() for a, b in zip(first, again, strict=True))
    assert any((a["x"].raw() != b["x"].raw()).any() for a, b in zip(first, other, strict=True))


def test_indices_stay_below_every_table_they_reach_through_casts_and_subgraphs():
    branch = helper.make_graph(
        [helper.make_node("Gather", ["small", "ids64"], ["t"])], "b", [], [_info("t", 1, None)]
    )
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids64"], to=7),
        helper.make_node("Gather", ["large", "ids64"], ["l"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
    ]
    tables = [_tensor("large", np.ones((50, 2), np.float32)), _tensor("small", np.ones((5, 2), np.float32))]
    model = _model(nodes, [_info("ids", 6, [64]), _info("flag", 9, [])], [_info("y", 1, None)], tables)
    drawn = np.concatenate([sample["ids"].numpy() for sample in _draw(model)])
    assert drawn.min() == 0
    assert drawn.max() == 4


def test_an_integer_that_is_subtracted_from_one_is_a_mask():
    nodes = [helper.make_node("Cast", ["m"], ["f"], to=1), helper.make_node("Sub", ["one", "f"], ["y"])]
    model = _model(nodes, [_info("m", 7, [4, 9])], [_info("y", 1, None)], [_tensor("one", np.float32(1))])
    masks = [sample["m"].numpy() for sample in _draw(model)]
    assert {int(v) for mask in masks for v in mask.ravel()} == {0, 1}
    assert any((mask == 1).all() for mask in masks)


def test_lengths_are_positive_and_at_most_the_longest():
    weights = [_tensor("w", np.ones((1, 4, 3), np.float32)), _tensor("r", np.ones((1, 4, 1), np.float32))]
    node = helper.make_node("LSTM", ["x", "w", "r", "", "len"], ["y"], hidden_size=1)
    model = _model([node], [_info("x", 1, [6, 5, 3]), _info("len", 6, [5])], [_info("y", 1, None)], weights)
    for sample in _draw(model):
        lengths = sample["len"].numpy()
        assert lengths.min() >= 1
        assert lengths.max() == 6


def test_sizes_that_the_graph_requires_are_found_by_trying(worker):
    """Width must divide by 48 and, unsaid in the graph's types, both batches be equal."""
    nodes = [
        helper.make_node("Reshape", ["x", "goal"], ["r"]),
        helper.make_node("ReduceSum", ["r", "axes"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["square", "s"], ["y"]),
    ]
    constants = [_tensor("goal", np.array([0, -1, 48])), _tensor("axes", np.array([1]))]
    inputs = [_info("x", 1, [None, None]), _info("square", 1, [3, None])]
    model = _model(nodes, inputs, [_info("y", 1, None)], constants)
    samples = _draw(model, _runner(worker, model))
    assert all(sample["x"].shape[1] % 48 == 0 for sample in samples)
    assert all(sample["x"].shape[0] == sample["square"].shape[1] for sample in samples)
    assert len({sample["x"].shape for sample in samples}) > 1


def test_a_compared_scalar_takes_values_on_both_sides(worker):
    branches = {
        name: helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value_float=value)], name, [], [_info("c", 1, None)]
        )
        for name, value in (("then_branch", 1.0), ("else_branch", 2.0))
    }
    nodes = [
        helper.make_node("Equal", ["rate", "k"], ["eq"]),
        helper.make_node("If", ["eq"], ["y"], **branches),
    ]
    model = _model(nodes, [_info("rate", 7, [])], [_info("y", 1, None)], [_tensor("k", np.array(16000))])
    rates = {int(sample["rate"].numpy()) for sample in _draw(model, _runner(worker, model))}
    assert 16000 in rates
    assert len(rates) > 1


def test_overridable_initializers_keep_their_default_in_some_samples_and_not_in_others():
    node = helper.make_node("Add", ["x", "w"], ["y"])
    inputs = [_info("x", 1, [2]), _info("w", 1, [2])]
    default = _tensor("w", np.array([1, -2], np.float32))
    model = _model([node], inputs, [_info("y", 1, None)], [default])
    fed = [sample["w"].numpy() for sample in _draw(model) if "w" in sample]
    assert 0 < len(fed) < 8
    assert all((np.sign(value) == [1, -1]).all() for value in fed)
    assert not any("w" in sample for sample in _draw(model, override=False))
    model.ir_version = 3
    assert not any("w" in sample for sample in _draw(model))


def test_strings_sequences_and_optionals_are_drawn():
    sequence = helper.make_tensor_sequence_value_info("s", 1, [None, 2])
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2]))
    inputs = [_info("t", 8, [3]), sequence, helper.make_value_info("o", optional)]
    sample, other = _draw(_model([], inputs, [_info("t", 8, [3])]), count=2)
    assert sample["t"].numpy().shape == (3,)
    assert all(item.shape[1] == 2 for item in sample["s"])
    assert (sample["o"] is None) != (other["o"] is None)


def test_shapes_of_the_user_fix_named_dims_everywhere():
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=1)
    model = _model([node], [_info("a", 1, [1, "n"]), _info("b", 1, ["n"])], [_info("y", 1, None)])
    samples = _draw(model, shapes=parse_shapes(["a=1x7", "a=1x9"]), count=2)
    assert [(s["a"].shape, s["b"].shape) for s in samples] == [((1, 7), (7,)), ((1, 9), (9,))]


@pytest.mark.parametrize("text", ["x", "x=", "x=3xa", "=3"])
def test_a_shape_that_cannot_be_read_is_a_usage_error(text):
    with pytest.raises(UsageError):
        _draw(_image_model(), shapes=parse_shapes([text]))


def test_a_shape_that_does_not_fit_is_a_usage_error():
    for text in ("x=1x4x8x8", "x=1x3x8", "z=1"):
        with pytest.raises(UsageError):
            _draw(_image_model(), shapes=parse_shapes([text]))


def test_samples_say_what_they_are(tmp_path):
    model = ir.from_proto(_image_model())
    assert Samples.synthetic(Drawer(model)).describe(8) == "8 synthetic samples (seed 0, 1 shape)"
    np.savez(tmp_path / "data.npz", x=GOOD)
    assert (
        Samples.from_user(tmp_path / "data.npz", model).describe(1) == f"1 sample of {tmp_path / 'data.npz'}"
    )


def test_the_workload_is_larger_than_the_samples(worker):
    model = _image_model()
    samples = Samples.synthetic(Drawer(ir.from_proto(model), runs=_runner(worker, model)))
    assert samples.workload()["x"].shape == (1, 3, 224, 224)
    assert next(iter(samples))["x"].shape == (1, 3, 32, 32)


def test_the_workload_enlarges_each_dim_on_its_own(worker):
    """The height is 48 and nothing says so; the width is free."""
    node = helper.make_node("Reshape", ["x", "goal"], ["y"])
    goal = _tensor("goal", np.array([0, 3, 48, -1]))
    tall = helper.make_node("Add", ["y", "column"], ["z"])
    column = _tensor("column", np.ones((48, 1), np.float32))
    check = helper.make_node("Concat", ["x", "z"], ["w"], axis=3)
    model = _model(
        [node, tall, check], [_info("x", 1, ["n", 3, "?", "w"])], [_info("w", 1, None)], [goal, column]
    )
    samples = Samples.synthetic(Drawer(ir.from_proto(model), runs=_runner(worker, model)))
    assert samples.workload()["x"].shape == (1, 3, 48, 224)


def test_scales_and_pads_stay_small():
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"]),
        helper.make_node("Pad", ["r", "pads"], ["y"]),
    ]
    inputs = [_info("x", 1, [1, 1, 4, 4]), _info("scales", 1, [4]), _info("pads", 7, [8])]
    for sample in _draw(_model(nodes, inputs, [_info("y", 1, None)])):
        assert set(sample["scales"].numpy()) <= {1.0, 2.0}
        assert set(sample["pads"].numpy()) <= {1, 2, 3, 4}


def test_sizes_that_are_tried_stay_within_memory():
    """A model that runs with none of them is no reason to draw samples of gigabytes."""
    ports = [helper.make_tensor_value_info(name, 1, ["n", "c", "h", "w"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    drawer = Drawer(ir.from_proto(helper.make_model(graph)), override=False)
    drawn = []
    drawer.runs = lambda sample: bool(drawn.append(sample["x"].size))
    assert drawer.choices
    assert len(drawn) > 10
    assert max(drawn) <= 1 << 25
