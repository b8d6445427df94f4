"""Which channels of a model can be removed, and how: elements of axes that go together, through operators.

An axis has elements. Elements that can only be removed together are a unit, and units that lie in the same
axes are a :class:`~graphopt_passes.axes.groups.Group`. :func:`groups` finds them, :func:`shrink` removes some
units, and :func:`masked` is what it must equal: the same model with zeros where it reads removed channels.
"""

from graphopt_passes.axes.analysis import groups
from graphopt_passes.axes.groups import Analysis, Frozen, Group, Member
from graphopt_passes.axes.shrink import masked, shrink

__all__ = ["Analysis", "Frozen", "Group", "Member", "groups", "masked", "shrink"]
