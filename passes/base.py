"""What every graph -> graph pass shares: its shape, its context, and the one walk that rewrites ops in linear time."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from graphc.ir.graph import Attr, Builder, Graph, Input, Literal, Op, Operand, Output, Value, Write
from graphc.ir.sizes import SizedFloat, depends_on_sizes
from graphc.ir.types import DType, TensorType
from graphc.ops import registry
from graphc.ops.registry import OpDef
from graphc.settings import Settings, settings

if TYPE_CHECKING:
    from graphc.passes.templates import Templates

ORDERED_ZEROS = frozenset({"maximum", "minimum", "fmax", "fmin"})
"""Commutative ops whose result, for 0.0 and -0.0, depends on their order all the same."""

_MAX_DEPTH = 16
_MAX_UPDATES = 4


@dataclass(frozen=True)
class PassContext:
    """What a pass may depend on besides the graph.

    Args:
        settings: the settings in force.
        numerics: `default`, or `eager` = every op rounds where eager rounds.
        target: kind of device the program is compiled for: `cpu` or `gpu`.
        templates: which contractions are to be kernels with slots; None = none.
        keep: composite ops that stay whole because a later stage has a kernel or a library call for them.
        roll: find loops, and keep them.
        get_def: look-up of operator definitions.
        on_pass: called with pass name and graph after each pass, for dumps.
    """

    settings: Settings = field(default_factory=settings)
    numerics: str = "default"
    target: str = "cpu"
    templates: Templates | None = None
    keep: frozenset[str] = frozenset()
    roll: bool = True
    get_def: Callable[[str], OpDef] = registry.get
    on_pass: Callable[[str, Graph], None] | None = None

    @property
    def tf32(self) -> bool:
        """Products in f32 may round their operands to 10 bits of mantissa."""
        return self.templates is not None and self.templates.tf32

    def infer(self, name: str, operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
        """Result types of an op, as `Builder` asks for them."""
        return self.get_def(name).infer(operands, attrs)


@dataclass(frozen=True)
class PassResult:
    """Whether a pass changed the graph."""

    modified: bool


class Pass(Protocol):
    """A pass: a frozen dataclass whose fields are its options. It changes the graph in place."""

    @property
    def name(self) -> str:
        """Kebab-case name, as in `GRAPHC_PRINT_AFTER`."""

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Rewrite `graph`; new ops get the location of the op they replace."""


Rule: TypeAlias = Callable[["Rewriter", Op], "Value | None"]
"""Rewrites one op with one result: returns the value that stands for it from now on (new or existing), the op's own
result when it changed the op in place, or None when it does not apply."""

Rewrite: TypeAlias = Callable[["Rewriter", Op], "Sequence[Value] | None"]
"""As `Rule`, for ops with any number of results."""


class Rules:
    """Rewrite rules by the name of the op they apply to, tried in order of registration."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[Rule]] = {}

    def add(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorator: the rule applies to ops with these names."""

        def register(rule: Rule) -> Rule:
            for name in names:
                self.by_name.setdefault(name, []).append(rule)
            return rule

        return register

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Apply the rules all over a graph, in one walk."""
        return Rewriter(graph, ctx).run(self.rewrite, self.by_name)

    def rewrite(self, rewriter: Rewriter, op: Op) -> Sequence[Value] | None:
        """Apply the first rule that fits."""
        for rule in self.by_name.get(op.name, ()):
            value = rule(rewriter, op)
            if value is not None:
                return (value,)
        return None


class Rewriter:
    """One forward walk over a graph that replaces ops as it goes; linear in the number of ops.

    Operands are brought up to date before an op is shown to the rewrite, so a chain of rewrites needs one walk. Ops
    that a rewrite builds are shown to it again. A replacement is refused, and the op stays, when it would change what
    the user sees: an output's value must not become an input (it would be handed out itself, not a copy) nor the value
    of another output (the two would share memory), and the types must be equal. Nor may what a call of ATen reads come
    to lie otherwise in memory: random numbers are filled in in that order.

    Args:
        graph: changed in place.
        ctx: the context of the pass.
    """

    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.builder = Builder(graph, ctx.infer)
        self.replaced: dict[Value, Value] = {}
        self.escaping = {output.value for output in graph.outputs}
        self.laid_out = {value for op in graph.ops if op.name == "extern" for value in op.inputs}
        self.modified = False
        self._names: Container[str] | None = None

    def run(self, rewrite: Rewrite, names: Container[str] | None = None) -> PassResult:
        """Walk the graph once.

        Args:
            rewrite: shown every op.
            names: of the ops that it may do something with, when it knows; the others are then passed by.
        """
        ops, self.graph.ops = self.graph.ops, []
        self._names = names
        for op in ops:
            self._visit(op, rewrite, 0)
        redirect_ends(self.graph, self.replaced)
        return PassResult(self.modified)

    def _update_operands(self, op: Op) -> None:
        replaced = self.replaced
        op.operands = [replaced.get(item, item) if isinstance(item, Value) else item for item in op.operands]

    def op(self, name: str, *operands: Operand, **attrs: Attr) -> Value:
        """Build an op with one result at the place, and with the location, of the one being rewritten."""
        return self.builder.op(name, *operands, **attrs)

    def full(self, type: TensorType, value: Literal) -> Value:
        """A constant tensor of the given type."""
        return self.op(
            "full", shape=type.shape, dtype=type.dtype, value=literal_as(value, type.dtype), device=type.device
        )

    def _visit(self, op: Op, rewrite: Rewrite, depth: int) -> None:
        if self.replaced and not self.replaced.keys().isdisjoint(op.operands):
            self._update_operands(op)
        built = self.graph.ops
        if (self._names is not None and op.name not in self._names) or depth > _MAX_DEPTH:
            built.append(op)
            return
        mark = len(built)
        self.builder.location, self.builder.origin = op.location, op.origin
        for _ in range(_MAX_UPDATES):
            values = rewrite(self, op)
            if values is None:
                built.append(op)
                return
            if list(values) != op.results:
                break
            self.modified = True
        else:
            built.append(op)
            return
        fresh = built[mark:]
        del built[mark:]
        self._hand_over(op, values, fresh)
        for new in fresh:
            self._visit(new, rewrite, depth + 1)
        if not self._replace(op, values):
            built.append(op)
        else:
            self.modified = True

    def _hand_over(self, op: Op, values: Sequence[Value], fresh: list[Op]) -> None:
        """Let new values take over layout and escape of the old ones, before they are rewritten themselves."""
        new = {result for item in fresh for result in item.results}
        for old, value in zip(op.results, values, strict=True):
            if value not in new or value in self.escaping or value.type != old.type:
                continue
            if value.strides is None:
                value.strides = old.strides
            if old in self.escaping:
                self.escaping.discard(old)
                self.escaping.add(value)
            if old in self.laid_out:
                self.laid_out.add(value)

    def _replace(self, op: Op, values: Sequence[Value]) -> bool:
        pairs = [(old, self.replaced.get(value, value)) for old, value in zip(op.results, values, strict=True)]
        if not all(self.may_replace(old, value) for old, value in pairs):
            return False
        for old, value in pairs:
            if old in self.escaping:
                value.strides = old.strides
                self.escaping.add(value)
            if old in self.laid_out:
                self.laid_out.add(value)
            self.replaced[old] = value
        return True

    def may_replace(self, old: Value, new: Value) -> bool:
        """Whether `new` can stand for `old` without a change that the user sees."""
        if old.type != new.type:
            return False
        moves = old in self.laid_out or (old in self.escaping and new in self.laid_out)
        if moves and old.strides != new.strides:
            return False
        return old not in self.escaping or not (isinstance(new, Input) or new in self.escaping)


def redirect_ends(graph: Graph, replaced: Mapping[Value, Value]) -> None:
    """Point the outputs and writes of a graph to the values that replace theirs."""
    if not replaced:
        return
    graph.outputs = [Output(replaced.get(item.value, item.value), item.view) for item in graph.outputs]
    graph.writes = [Write(item.target, replaced.get(item.value, item.value)) for item in graph.writes]


def literal_as(value: Literal, dtype: DType) -> Literal:
    """A number as a value of `dtype`: integers wrap, anything but zero is True."""
    if dtype.kind == "bool":
        return bool(value)
    if depends_on_sizes(value) and _holds(dtype, value):
        return value
    if dtype.is_float:
        assert not isinstance(value, complex)
        return float(value)
    if dtype.kind == "complex":
        return complex(value)
    assert not isinstance(value, complex)
    bits = 8 * dtype.itemsize
    wrapped = int(value) & ((1 << bits) - 1)
    return wrapped - (1 << bits) if dtype.kind == "int" and wrapped >> (bits - 1) else wrapped


def _holds(dtype: DType, value: Any) -> bool:
    """Whether a number that depends on sizes is one of a dtype."""
    if isinstance(value, SizedFloat) or dtype.is_float:
        return dtype.is_float
    half = 1 << 8 * dtype.itemsize - 1
    return -half <= value < half if dtype.kind == "int" else dtype.kind == "uint" and 0 <= value < 2 * half


def constant_of(operand: Operand) -> Literal | None:
    """The number that an operand is everywhere: a literal, or what fills a `full`; else None (a symbolic size, too)."""
    if not isinstance(operand, Value):
        return operand
    if operand.op is not None and operand.op.name == "full":
        number = operand.op.attrs["value"]
        return number if isinstance(number, (bool, int, float)) else None
    return None


def defined_by(operand: Operand, name: str) -> Op | None:
    """The op that defines an operand, when it is called `name`; else None."""
    if isinstance(operand, Value) and operand.op is not None and operand.op.name == name:
        return operand.op
    return None
