"""What breaks the numerics contract first: the capture of a call, a pass, a kernel or a library call, and its op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphc import driver
from graphc.compilation import Compilation
from graphc.frontend.locations import Locator
from graphc.ir.graph import Graph, Input, Op, Output, Role, Value
from graphc.ir.interpreter import Datum
from graphc.ir.interpreter import run as interpret
from graphc.ir.types import UNKNOWN, Location
from graphc.options import Options, templates_for
from graphc.passes.base import PassContext
from graphc.passes.group import Group
from graphc.passes.nodes import Node
from graphc.passes.pipeline import optimize
from graphc.passes.plan import Planner
from graphc.report.numerics import Fault
from graphc.report.repro import write_script
from graphc.report.rounding import RandomRuns
from graphc.report.widen import copied, widen, widen_data
from graphc.settings import override


def exposed(graph: Graph, values: Sequence[Value]) -> Graph:
    """The graph with these values as its outputs, and no writes; it shares its ops with the original."""
    return Graph(graph.name, graph.inputs, graph.ops, [], [Output(value) for value in values])


def find_fault(compilation: Compilation, inputs: list[Any], runs: RandomRuns, folder: Path) -> Fault:
    """Find what makes a compiled graph miss the contract, when the graph as captured keeps it.

    Args:
        compilation: of the captured graph.
        inputs: its inputs; they are not changed.
        runs: of the graph as captured, for its outputs and the inputs it writes.
        folder: where a program that shows the fault is written.
    """
    of_pass = _find_pass(compilation.graph, inputs, runs, compilation.options, compilation.backend)
    if of_pass is not None:
        return of_pass
    return _Kernels(compilation, inputs, folder).find()


def _find_pass(graph: Graph, inputs: list[Any], runs: RandomRuns, options: Options, backend: str) -> Fault | None:
    """The first pass after which the graph, run op by op, misses the contract."""
    found: list[Fault] = []
    top = graph.copy()
    expected = outcome(graph, by_op(graph), inputs)

    def examine(name: str, after: Graph) -> None:
        if found or after is not top:
            return
        for number, measured in enumerate(runs.errors(outcome(after, by_op(after), inputs), expected)):
            if measured.miss:
                op = after.outputs[number].value.op if number < len(after.outputs) else None
                found.append(Fault(f"pass {name}", _text(op), _place(op), measured.miss))
                return

    context = PassContext(numerics=options.numerics, target="gpu" if backend == "triton" else "cpu", on_pass=examine)
    optimize(top, context)
    return found[0] if found else None


def outcome(graph: Graph, execute: Callable[[list[Any]], Sequence[Any]], inputs: Sequence[Any]) -> list[Any]:
    """Outputs of a run on copies of the inputs, and the inputs that it writes."""
    data = _fresh(inputs)
    with torch.no_grad():
        outputs = execute(data)
    positions = {value: number for number, value in enumerate(graph.inputs)}
    return [*outputs, *(data[positions[write.target]] for write in graph.writes)]


def by_op(graph: Graph) -> Callable[[list[Any]], Sequence[Any]]:
    """Runs a graph op by op."""
    return lambda data: interpret(graph, data)


def _fresh(data: Sequence[Any]) -> list[Any]:
    return [copied(item) if isinstance(item, torch.Tensor) else item for item in data]


class _Kernels:
    """Searches the plan of a graph for the kernel or library call that gives wrong results for right operands."""

    def __init__(self, compilation: Compilation, inputs: list[Any], folder: Path) -> None:
        self.options = replace(compilation.options, backend=compilation.backend)
        self.graph: Graph = compilation.stage("optimized")
        self.inputs, self.folder = inputs, folder
        self.planner = Planner(
            self.graph, self.options.numerics, compilation.backend, templates_for(compilation.backend)
        )
        self.planner.run(None)

    def find(self) -> Fault:
        """The fault, as small as it can be made."""
        known = {result for op in self.graph.ops for result in op.results}  # the planner adds copies of what is written
        stored = [(v, node) for node in self.planner.order for v in self._stored(node) if v in known]
        misses = self._misses(self.graph, [value for value, _ in stored], self.inputs)
        for value, node in stored:
            if value in misses:
                return self._in_node(node, value, misses[value])
        return Fault("the program as a whole", _text(None), "", "no kernel misses the contract by itself")

    def _stored(self, node: Node) -> list[Value]:
        if isinstance(node, Group):
            return [value for value in node.roots if not value.type.is_host]
        return [value for value in node.results if not value.type.is_host]

    def _misses(self, graph: Graph, values: Sequence[Value], inputs: list[Any]) -> dict[Value, str]:
        """Which of these values of a graph a compiled program gets wrong, and how."""
        shown = exposed(graph, values)
        with override(cache=False):
            compiled = driver.compile_graph(shown, self.options).execute(_fresh(inputs))
        eager = interpret(shown, _fresh(inputs))
        exact = interpret(widen(shown), widen_data(inputs))
        runs = RandomRuns(lambda: interpret(shown, _fresh(inputs)), exact)
        measured = zip(values, runs.errors(compiled, eager), strict=True)
        return {value: found.miss for value, found in measured if found.miss}

    def _in_node(self, node: Node, value: Value, miss: str) -> Fault:
        """The op of a kernel, or of a library call, that is wrong on operands that are right."""
        if isinstance(node, Group):
            stage = f"kernel {self.planner.lowered[node].kernel.name}"
            ops = [op for op in self.graph.ops if any(result in node.visits for result in op.results)]
            ends = self._needed(ops, value, set(node.visits) - set(self.planner.fusion.stored) | set(node.roots))
        else:
            # a product may be stored as what is made of it
            stage, ends = f"library call {node.op.name}", [op for op in self.graph.ops if op in (node.op, value.op)]
        for op in ends:
            found = self._alone([op], op.results)
            if found is not None:
                return self._fault(stage, op, *found)
        found = self._alone(ends, [value])
        if found is not None:
            return self._fault(stage, value.op, *found)
        return Fault(stage, _text(value.op), _place(value.op), f"{miss}; in the whole program alone")

    def _needed(self, ops: list[Op], value: Value, inside: set[Value]) -> list[Op]:
        """The ops that compute a value from what the kernel reads, in order."""
        wanted, kept = {value}, []
        for op in reversed(ops):
            if any(result in wanted and result in inside for result in op.results):
                wanted.update(op.inputs)
                kept.append(op)
        return kept[::-1]

    def _alone(self, ops: list[Op], results: Sequence[Value]) -> tuple[str, Graph, list[Any]] | None:
        """(how, graph, inputs) when some ops, compiled alone on right operands, miss the contract."""
        graph, operands = _cut_out(self.graph.name, ops, results)
        data = interpret(exposed(self.graph, operands), _fresh(self.inputs))
        misses = self._misses(graph, [output.value for output in graph.outputs], list(data))
        return (next(iter(misses.values())), graph, list(data)) if misses else None

    def _fault(self, stage: str, op: Op | None, miss: str, graph: Graph, data: list[Any]) -> Fault:
        script = write_script(self.folder, graph, data, self.options, f"{stage}: {_text(op)}: {miss}")
        return Fault(stage, _text(op), _place(op), miss, script)


def _cut_out(name: str, ops: Sequence[Op], results: Sequence[Value]) -> tuple[Graph, list[Value]]:
    """A graph of its own that computes some values, and which values it takes as inputs."""
    made = {result for op in ops for result in op.results}
    operands = list(dict.fromkeys(value for op in ops for value in op.inputs if value not in made))
    graph = Graph(name)
    new: dict[Value, Value] = {}
    for value in operands:
        new[value] = Input(value.name, value.type, Role.ARG, value.name, value.strides)
        graph.inputs.append(new[value])  # type: ignore[arg-type]  # made the line above
    for op in ops:
        given = [new[item] if isinstance(item, Value) else item for item in op.operands]
        types, names = [result.type for result in op.results], [result.name for result in op.results]
        twin = Op(op.name, given, op.attrs, types, op.location, names)
        for old, copy in zip(op.results, twin.results, strict=True):
            copy.strides = old.strides
            new[old] = copy
        graph.ops.append(twin)
    graph.outputs = [Output(new[value]) for value in results]
    return graph, operands


def foreign_call(again: Callable[[], Any], known: list[Datum], miss: str) -> Fault:
    """The first ATen call of an eager run that gives what no value of the captured graph holds.

    Args:
        again: makes the run.
        known: all values of the graph.
        miss: how the graph differs in the end.
    """
    watch = _Watch([item for item in known if isinstance(item, torch.Tensor)])
    with watch, torch.no_grad():
        again()
    if watch.call is None:
        return Fault("capture", "an op between values that all agree", "", miss)
    location = watch.location
    return Fault("capture", watch.call, f"{location.file}:{location.line}" if location else "", miss)


class _Watch(TorchDispatchMode):
    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = known
        self.call: str | None = None
        self.location: Location = UNKNOWN
        self.locator = Locator(lambda: "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, (tuple, list)) else (result,)
        if self.call is None and not all(self._is_known(part) for part in parts if isinstance(part, torch.Tensor)):
            self.call, self.location = str(func), self.locator.here()
        return result

    def _is_known(self, tensor: torch.Tensor) -> bool:
        """Whether the graph has a value with these elements, in whatever shape."""
        flat = tensor.detach().flatten()
        if flat.dtype.is_floating_point:
            flat = flat.double()
        for item in self.known:
            if item.numel() == flat.numel():
                other = item.detach().flatten().to(flat.dtype)
                if torch.allclose(other, flat, rtol=1e-3, atol=1e-5, equal_nan=True):
                    return True
        return False


def _text(op: Op | None) -> str:
    if op is None:
        return "the graph"
    name = op.attrs.get("op", op.name)
    operands = ", ".join(f"{item.dtype}{list(item.shape)}" if isinstance(item, Value) else repr(item)
                         for item in op.operands)  # fmt: skip
    return f"{name}({operands})"


def _place(op: Op | None) -> str:
    return f"{op.location.file}:{op.location.line}" if op is not None and op.location else ""
