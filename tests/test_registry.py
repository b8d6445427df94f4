"""Passes by name: how pipelines are spelled, and plug-ins of other packages."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import onnx
import pytest

from graphopt import registry
from graphopt.errors import UsageError
from graphopt.model import Model
from graphopt.pipeline import Pass, Run
from graphopt.target import CPU

PLUGIN = '''
from dataclasses import dataclass

from graphopt import Pass


@dataclass(frozen=True)
class Stamp(Pass):
    """Write a line into the model's documentation."""

    name = "stamp"
    text: str = "seen"
    times: int = 1
    loud: bool = False

    def apply(self, model, run):
        text = (self.text.upper() if self.loud else self.text) * self.times
        if model.ir.doc_string == text or not run.journal.admit(self.name, "doc_string"):
            return False
        model.ir.doc_string = text
        return True


no_pass = 3
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package, stamps 1.0, that offers passes through the entry-point group."""
    (tmp_path / "stamps.py").write_text(PLUGIN)
    info = tmp_path / "stamps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stamps\nVersion: 1.0\n")
    entries = ["stamp = stamps:Stamp", "broken = stamps:missing", "number = stamps:no_pass"]
    entries += ["absent = no_such_module:Stamp", "fold-constants = stamps:Stamp"]
    (info / "entry_points.txt").write_text("\n".join(["[graphopt.passes]", *entries]))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("stamps", None)


def test_every_built_in_pass_loads_under_its_name():
    for name, entry in registry.builtin().items():
        cls = entry.load()
        assert cls.name == name
        assert entry.summary
        assert str(registry.make(name)) == name


def test_the_default_plan_parses_to_what_it_spells():
    plan = registry.plan()
    assert str(registry.parse(str(plan))) == str(plan)
    assert len(plan.passes) > 3


def test_options_are_parsed_by_type_and_spelled_back(plugin):
    spelling = "stamp{text=hello,times=3,loud=true},eliminate-dead-code"
    pipeline = registry.parse(spelling)
    stamp = pipeline.passes[0]
    assert (stamp.text, stamp.times, stamp.loud) == ("hello", 3, True)
    assert str(pipeline) == spelling
    assert str(registry.parse(" stamp {times=1} , stamp{ loud = 0 }")) == "stamp,stamp"


@pytest.mark.parametrize("spelling", ["stamp{", "stamp}", "a b", ",", "stamp{a{b}}", "stamp;stamp"])
def test_a_misspelled_pipeline_is_refused(plugin, spelling):
    with pytest.raises(UsageError, match="cannot read passes"):
        registry.parse(spelling)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("fold-constant", "did you mean fold-constants"),
        ("stampp", "did you mean stamp"),
        ("stamp{size=1}", r"no option 'size' \(it has: text, times, loud\)"),
        ("eliminate-dead-code{x=1}", "it has: none"),
        ("stamp{times=many}", "'times' of pass 'stamp' must be int, not 'many'"),
        ("stamp{loud=maybe}", "must be bool"),
        ("broken", "pass 'broken' of stamps cannot be imported"),
        ("absent", "pass 'absent' of stamps cannot be imported"),
        ("number", "'stamps:no_pass' of stamps is no graphopt Pass"),
    ],
)
def test_mistakes_are_named_in_one_line(plugin, spelling, message):
    with pytest.raises(UsageError, match=message) as caught:
        registry.parse(spelling)
    assert "\n" not in str(caught.value)


def test_a_plugin_runs_like_any_pass(plugin):
    entry = registry.plugins()["stamp"]
    assert entry.source == "stamps"
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "g", [value], [value])
    model = Model.of(onnx.helper.make_model(graph))
    run = Run(CPU, None)
    assert registry.parse("stamp{text=ab,times=2}")(model, run)
    assert model.ir.doc_string == "abab"
    assert run.journal.counts() == {"stamp": 1}


def test_a_plugin_cannot_replace_a_built_in_pass(plugin):
    assert registry.find("fold-constants").__module__.startswith("graphopt_passes.")


def test_a_pass_without_options_needs_no_decorator():
    class Plain(Pass):
        name = "plain"

        def apply(self, model, run):
            return False

    @dataclass(frozen=True)
    class WithOption(Plain):
        limit: int = 3

    assert str(Plain()) == "plain"
    assert not registry.options_of(Plain)
    assert str(WithOption(limit=4)) == "plain{limit=4}"
