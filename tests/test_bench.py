"""The benchmark's judgement: node counts, the contract, errors, and the limits of a run."""

import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from tools.bench import __main__ as command
from tools.bench import judge, tables
from tools.bench.peers import Entry
from tools.bench.process import measure

MODEL = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
main (float[n] x, bool c) => (float[n] y)
{
    one = Constant <value: tensor = float {1.0}> ()
    a = local.twice (x)
    y = If (c) <
        then_branch = yes () => (float[n] p) { p = Add (a, one) },
        else_branch = no () => (float[n] q) { q = Relu (a) }
    >
}
<domain: "local", opset_import: ["" : 17]>
twice (v) => (w) { t = Neg (v)  w = Neg (t) }
"""


def _model(text=MODEL):
    return onnx.parser.parse_model(text)


def test_functions_and_subgraphs_are_counted_and_constants_are_not():
    assert judge.operators(_model()) == {"Neg": 2, "If": 1, "Add": 1, "Relu": 1}


def test_same_interface_has_no_differences():
    assert judge.differences(_model(), _model()) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("(float[n] x, bool c)", "(float[m] x, bool c)", "inputs"),
        ("=> (float[n] y)", "=> (float[4] y)", "outputs"),
        ("(float[n] x, bool c)", "(bool c, float[n] x)", "inputs"),
    ],
)
def test_changed_interface_is_named(old, new, what):
    (difference,) = judge.differences(_model(), _model(MODEL.replace(old, new)))
    assert difference.startswith(what)


def test_lost_metadata_is_a_difference_and_added_metadata_is_not():
    original, result = _model(), _model()
    onnx.helper.set_model_props(original, {"charset": "abc"})
    assert judge.differences(original, result) == ["metadata lost: charset"]
    assert judge.differences(result, original) == []


@pytest.mark.parametrize(("ir_version", "count"), [(3, 1), (8, 2)])
def test_listed_initializers_are_constants_in_old_models_only(ir_version, count):
    model = _model("<ir_version: 8, opset_import: ['' : 17]> g (float[2] x, float[2] w = {1, 2}) "
                   "=> (float[2] y) { y = Add (x, w) }".replace("'", '"'))  # fmt: skip
    model.ir_version = ir_version
    assert len(judge.inputs(model)) == count


@pytest.mark.parametrize(
    ("found", "expected_error"),
    [
        ([1.0, np.nan, np.inf, -4.0], 0),
        ([1.0, np.nan, np.inf, -3.0], 0.25),
        ([1.0, 0.0, np.inf, -4.0], np.inf),
        ([1.0, np.nan, -np.inf, -4.0], np.inf),
        ([np.nan, np.nan, np.inf, -4.0], np.inf),
    ],
)
def test_error_is_relative_and_special_values_must_agree(found, expected_error):
    reference = np.array([1.0, np.nan, np.inf, -4.0], np.float32)
    assert judge.error_of(reference, np.array(found, np.float32)) == expected_error


def test_measured_process_reports_its_end_and_memory():
    usage = measure(
        [sys.executable, "-c", "x = bytearray(200_000_000); print('done'); raise SystemExit(3)"], 60
    )
    assert usage.exit_code == 3
    assert usage.message == "done"
    assert usage.peak_bytes > 200_000_000


def test_process_beyond_its_limit_is_killed():
    usage = measure([sys.executable, "-c", "import time; time.sleep(600)"], limit_s=0.5)
    assert usage.exit_code < 0


def test_best_peer_is_the_valid_one_with_fewest_nodes():
    entries = {
        "graphopt": Entry(1.0, 0, valid=True, nodes=1),
        "onnxsim": Entry(1.0, 0, valid=False, nodes=2),
        "onnxslim": Entry(2.0, 0, valid=True, nodes=5),
        "onnxscript": Entry(1.0, 0, valid=True, nodes=5),
    }
    assert tables.best(entries) == "onnxscript"


@pytest.mark.parametrize(
    "name",
    [
        *("peers", "quantization", "calibration", "half", "storage", "weights", "pruning"),
        "pruning-memory",
    ],
)
def test_every_benchmark_explains_itself(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
