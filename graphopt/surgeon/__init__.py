"""Bridge for passes written over ``onnx_graphsurgeon.Graph``, whose losses are merged away."""

from graphopt.surgeon.bridge import SurgeonPass, surgeon_pass

__all__ = ["SurgeonPass", "surgeon_pass"]
