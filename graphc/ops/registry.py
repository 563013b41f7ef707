"""The operator registry: ONE place per op.

An `OpDef` says everything about an op: its type rule, its meaning in torch (the reference, used by the interpreter),
how one element of it is computed (the lowering to loop IR), or how it expands into simpler ops, what it costs, and a
docstring. Files of this package hold one family each and register at import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import DType, TensorType


class Kind(str, Enum):
    """What an op does to its elements; fusion and scheduling decide by it."""

    POINTWISE = "pointwise"  # element i of the result needs element i (broadcast) of each operand
    VIEW = "view"  # result elements are operand elements at other indices (reshape, slice, pad, concat, ...)
    REDUCTION = "reduction"  # sums, maxima, ... over dims
    SCAN = "scan"  # running sums along one dim
    INDEXING = "indexing"  # gather: element read at an index that is itself data
    SCATTER = "scatter"  # element written at an index that is itself data
    CREATION = "creation"  # no tensor operand: full, iota
    CONTRACTION = "contraction"  # matmul, convolution, attention: a library or template call
    RANDOM = "random"  # counter-based random numbers
    COMPOSITE = "composite"  # expands into simpler ops
    LOOP = "loop"  # runs a region again and again
    EXTERN = "extern"  # any ATen overload, as it is


LoopValue: TypeAlias = str
"""Id of a scalar value in a kernel under construction (see `graphc.loopir.builder.KernelBuilder`)."""


KeptIndex: TypeAlias = tuple[int, tuple[Dim, ...]]
"""A dim of an operand that is summed over, and an index along its other dims."""


class ElementContext(Protocol):
    """What a lowering may ask for while one element of an op is written into a kernel.

    The lowering of fusion groups (`graphc.passes.kernel_writer`) implements this over a `KernelBuilder`.
    """

    def element(self, operand: Operand, index: tuple[Dim, ...]) -> LoopValue:
        """Element `index` of an operand, in its compute dtype; a literal gives a constant."""

    def masked_element(self, operand: Operand, index: tuple[Dim, ...], mask: LoopValue, other: float) -> LoopValue:
        """As `element` where `mask` holds, else `other`; nothing is read where it does not hold."""

    def compute(self, op: str, *args: LoopValue, dtype: DType) -> LoopValue:
        """A scalar op of loop IR (`graphc.loopir.scalar`)."""

    def constant(self, value: bool | int | float, dtype: DType) -> LoopValue:
        """A constant."""

    def index_value(self, expr: Dim) -> LoopValue:
        """An index expression as an i64 value."""

    def data_index(self, value: LoopValue, extent: Dim) -> Dim:
        """A loaded integer (in `[0, extent)`, already wrapped) as a symbol usable in index expressions."""

    def check(self, failed: LoopValue, value: LoopValue, error: str, message: str) -> None:
        """Have the program raise where the bool `failed` holds for some element that it computes.

        Args:
            value: an i64 to be shown; the largest one is, when several elements fail.
            error: name of a builtin class: what eager raises.
            message: eager's, with `{value}` for the value.
        """

    def reduce(
        self, op: str, operand: Operand, dims: tuple[int, ...], index: tuple[Dim, ...], dtype: DType
    ) -> LoopValue:
        """Reduction of `operand` over `dims`; `index` gives the position along the other dims, in order."""

    def contract(
        self,
        left: Operand,
        left_index: KeptIndex,
        right: Operand,
        right_index: KeptIndex,
        within: tuple[LoopValue, LoopValue] | None = None,
        dtype: DType | None = None,
    ) -> LoopValue:
        """The sum of products of two operands along a dim of each, for kernels on matrix units.

        Args:
            left_index, right_index: the dim summed over, and the position along the others, in order.
            within: i64 values: the first position along that dim which counts, and the first one that no longer does.
            dtype: what elements are multiplied as, by default as they are.
        """

    def scan(self, op: str, operand: Operand, dim: int, index: tuple[Dim, ...], dtype: DType) -> LoopValue:
        """Inclusive running reduction of `operand` along `dim`, at `index` (full rank)."""


TypeRule: TypeAlias = Callable[[Sequence[Operand], Mapping[str, Attr]], Sequence[TensorType]]
LowerRule: TypeAlias = Callable[[ElementContext, Op, tuple[Dim, ...]], LoopValue]
ExpandRule: TypeAlias = Callable[[Builder, Op], Sequence[Value]]
AtenCall: TypeAlias = tuple[str, tuple[Attr, ...], Mapping[str, Attr]]
"""An ATen overload and its args and kwargs, as the attributes of an `extern` op: `Ref(i)` stands for operand i."""
CallRule: TypeAlias = Callable[[Op], AtenCall]
PlaceRule: TypeAlias = Callable[[ElementContext, Op, tuple[Dim, ...]], tuple[Dim, ...]]


@dataclass(frozen=True)
class OpDef:
    """Everything about one op.

    Args:
        name: as printed in the IR.
        kind: see `Kind`.
        doc: one sentence, plus the attributes with their meaning.
        infer: type rule; raises `InvalidGraphError` on operands it does not take.
        reference: the op in torch: takes operands (tensors, Python numbers) and attributes as keywords; returns one
            tensor or a tuple. It is the oracle, so it is written for plainness.
        lower: writes element `index` of result 0 into a kernel; None when the op is a call or expands.
        expand: appends simpler ops to a builder and returns one value per result; None for core ops.
        expand_precisely: as `expand`, with sums in float64: in its place on a CPU, where these cost nothing, unless the
            program is to round where eager rounds.
        call: the ATen call that computes the op and returns its results in order; for contractions other than matmul
            (convolution, attention), and for composites where the library may be called instead of expanding.
        flops: floating-point operations of the op; None = 1 per result element for pointwise ops, else 0.
        commutative: the two operands may be swapped.
        effect: "" pure; "random" draws from torch's generator; "opaque" keeps its place among all effects.
        contract: as `lower`, for contractions where the backend has kernels that hold what comes before and behind.
        place: for scatters, which have their base first and their source last: where in the base element `index` of the
            source goes.
    """

    name: str
    kind: Kind
    doc: str
    infer: TypeRule
    reference: Callable[..., Any]
    lower: LowerRule | None = None
    expand: ExpandRule | None = None
    expand_precisely: ExpandRule | None = None
    call: CallRule | None = None
    flops: Callable[[Op], Dim] | None = None
    commutative: bool = False
    effect: str = ""
    contract: LowerRule | None = None
    place: PlaceRule | None = None


_REGISTRY: dict[str, OpDef] = {}


def register(definition: OpDef) -> OpDef:
    """Add an op.

    Raises:
        ValueError: the name is taken.
    """
    if definition.name in _REGISTRY:
        raise ValueError(f"op {definition.name} is registered twice")
    _REGISTRY[definition.name] = definition
    return definition


def get(name: str) -> OpDef:
    """The definition of an op.

    Raises:
        InvalidGraphError: no such op; the message names the closest one.
    """
    found = _REGISTRY.get(name)
    if found is None:
        import difflib

        close = difflib.get_close_matches(name, _REGISTRY, 1)
        raise InvalidGraphError(f"no op named {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return found


def exists(name: str) -> bool:
    return name in _REGISTRY


def all_ops() -> list[OpDef]:
    """Every registered op, by name."""
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def infer(name: str, operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    """Result types of an op by its type rule; the `infer` of `Builder`."""
    return get(name).infer(operands, attrs)
