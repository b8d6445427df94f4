"""LSTM, GRU and RNN: a hidden unit goes with its row in every gate and its column of the recurrence.

x [time, batch, input], w [dirs, gates·hidden, input], r [dirs, gates·hidden, hidden],
b [dirs, 2·gates·hidden], states [dirs, batch, hidden], peepholes [dirs, 3·hidden],
y [time, dirs, batch, hidden].
"""

from __future__ import annotations

from graphopt.rewrite import RefusedError
from graphopt_passes.axes.edits import Edit, follows
from graphopt_passes.axes.site import Site, rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule(*GATES)
def _recurrent(site: Site) -> None:
    """Cutting unit j is the same as zeros in column j of r, and of all that reads y."""
    if site.attr("layout", 0):
        raise RefusedError("has its batch in front")
    x, w, r = site.input(0), site.input(1), site.input(2)
    hidden = r.ids(2)
    if not len(hidden):
        raise RefusedError("its hidden size is not known")
    site.same(x, 2, w, 2)
    site.consume(1, 2)
    site.consume(2, 2)
    site.produce(1, 1)
    for side in (w, r):
        site.unite(side.ids(1).reshape(GATES[site.node.op_type], -1), hidden)
        site.freeze(side, "has a direction for each", [0])
    _operands(site)
    _results(site)


def _operands(site: Site) -> None:
    hidden = site.input(2).ids(2)
    for index, axis in ((3, 1), (5, 2), (6, 2), (7, 1)):
        if site.has(index):
            side = site.input(index)
            if not len(side.ids(axis)):
                raise RefusedError("its operands' dims are not known")
            site.unite(side.ids(axis).reshape(-1, len(hidden)), hidden)
            site.freeze(side, "has a direction for each", [0])
            if axis == 2:
                site.same(side, 1, site.input(0), 1)
    if site.has(4):
        site.freeze(site.input(4), "has a length for each")


def _results(site: Site) -> None:
    x, r = site.input(0), site.input(2)
    for index, y in enumerate(site.node.outputs):
        if not y.name:
            continue
        side, shift = site.output(index), 1 if index == 0 else 0
        site.same(side, 2 + shift, r, 2)
        site.same(side, 1 + shift, x, 1)
        site.freeze(side, "has a direction for each", [shift])
        if index == 0:
            site.freeze(side, "runs along it", [0])
    site.freeze(x, "runs along it", [0])


@follows(*GATES)
def _state_hidden(edit: Edit) -> None:
    kept = edit.kept(2, 2)
    if kept is not None:
        edit.set("hidden_size", len(kept))
