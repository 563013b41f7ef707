"""What fusion gives: which values are stored, what is computed in one kernel, and what a library does."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphc.ir.graph import Graph, Input, Op, Value
from graphc.passes.group import Group
from graphc.passes.layout import Layouts, Place

PRODUCTS = ("matmul", "gemm")


@dataclass(eq=False)
class Library:
    """An op done by a library call or by the runtime. Compared by identity.

    Attributes:
        op: the op.
        position: in program order.
        operands: per operand the strided view it is passed as; None for literals. A product may have one more.
        results: the values it stores, those of the op; for a product perhaps one with its batch dims split.
        overwrites: for a result that takes over the memory of an operand, that operand.
        joins: nothing runs: the result is complete when its parts, the operands, are stored.
    """

    op: Op
    position: float
    operands: list[Place | None]
    results: list[Value]
    overwrites: dict[Value, Value] = field(default_factory=dict)
    joins: bool = False

    @property
    def is_matmul(self) -> bool:
        return self.op.name in PRODUCTS

    @property
    def added(self) -> Place | None:
        """What the call adds to a product before it is rounded."""
        return self.operands[2] if self.op.name == "matmul" and len(self.operands) > 2 else None

    @property
    def is_foreach(self) -> bool:
        """Kernels over a table of rows: no call, it takes and gives memory as kernels do."""
        return self.op.name == "foreach"

    @property
    def fills(self) -> bool:
        """Its results lie where the plan wants them, and are not tensors that a library made."""
        return self.op.name in (*PRODUCTS, "scan", "foreach")


@dataclass
class Fusion:
    """The outcome of fusion.

    Attributes:
        groups: kernels to be.
        libraries: everything else that runs.
        stored: values that have memory of their own, or share that of a value they overwrite.
        layouts: strides of all of them.
        homes: values that are stored into an input at the end, with that input.
        in_inputs: values that are stored into an input by updating what it holds.
        output_places: per graph output the place of its value, for those that are not a buffer of their own.
        parts: memory that is stored part by part, in any order.
        early: values stored so that what they are computed from need not be kept for their readers.
    """

    graph: Graph
    backend: str
    groups: list[Group]
    libraries: list[Library]
    stored: set[Value]
    layouts: Layouts
    homes: dict[Value, Input]
    in_inputs: set[Value]
    output_places: dict[int, Place]
    parts: set[Value]
    early: set[Value]
