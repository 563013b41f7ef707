"""`graphc.verify`: eager, compiled and float64 side by side, and what breaks the numerics contract first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from graphc import driver
from graphc.api import CompiledFunction, CompiledModule
from graphc.errors import UnsupportedError
from graphc.frontend import tree
from graphc.frontend.captured import Captured
from graphc.frontend.cotangents import laid_out, layout_of
from graphc.ir.graph import Input
from graphc.ir.interpreter import Datum
from graphc.ir.interpreter import run as interpret
from graphc.options import Options, make_options
from graphc.path_whole import capture_whole
from graphc.report.bisect import by_op, exposed, find_fault, foreign_call, outcome
from graphc.report.numerics import Errors, NumericsReport, OutputErrors, errors, errors_of
from graphc.report.rounding import RandomRuns
from graphc.report.widen import copied, widen, widen_data

FOLDER = Path("out/verify")
CAPTURE_FACTOR = 16
"""Eager's error in multiples of that of the captured graph, run op by op, from which on it is another computation."""


def verify(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> NumericsReport:
    """Hold a function to the numerics contract on these arguments.

    Where the function branches on data, the path that these arguments take is verified, as one graph.

    Each result, each tensor that is written and each gradient (by random cotangents) may have an error against float64
    of at most twice eager's own, plus four units in the last place; what is no float must be exact. When one has more,
    the stages are gone through for what breaks it first: the capture, a pass, a kernel or a library call, and in it
    the op. A program that shows that op alone is written to `out/verify`.

    Args:
        fn: a function or module, compiled or not. It is called once in eager, on copies of the arguments; a module is
            copied too, other things that a function changes stay changed as by one call.
        args, kwargs: its arguments.

    Returns:
        Errors per output, and the fault if there is one; `.right` is True when there is none.

    Raises:
        CaptureError, UnsupportedError: as when it is compiled.
    """
    compiled = fn.compiled if isinstance(fn, CompiledModule) else fn
    target = compiled.target if isinstance(compiled, CompiledFunction) else fn
    options = compiled.options if isinstance(compiled, CompiledFunction) else make_options(target)
    draws = _Draws()
    theirs = copy.deepcopy((args, kwargs))
    module = copy.deepcopy(target) if isinstance(target, torch.nn.Module) else target
    captured = capture_whole(target, args, kwargs, options)
    try:
        if captured.needs_grad:
            raise UnsupportedError(f"{options.name} cannot be verified: {captured.needs_grad}")
        found = captured.match(args, kwargs)
        if found is None:
            raise UnsupportedError(f"{options.name} changes, while it runs, what its own compilation depends on")
        inputs = [copied(item) if isinstance(item, torch.Tensor) else item for item in found]
        with draws:
            expected = tree.flatten(module(*theirs[0], **theirs[1]))[0]
        return _Comparison(captured, inputs, expected, options, draws).report(lambda: module(*theirs[0], **theirs[1]))
    finally:
        captured.withdraw()


class _Draws:
    """Runs that draw the same random numbers."""

    def __init__(self) -> None:
        self.state = torch.get_rng_state()
        self.used = False

    def __enter__(self) -> None:
        torch.set_rng_state(self.state)

    def __exit__(self, *_: object) -> None:
        self.used = self.used or not torch.equal(torch.get_rng_state(), self.state)
        torch.set_rng_state(self.state)


class _Comparison:
    """One capture, run in three ways.

    Args:
        inputs: of the captured graph.
        expected: leaves of eager's result.
    """

    def __init__(
        self, captured: Captured, inputs: list[Any], expected: list[Any], options: Options, draws: _Draws
    ) -> None:
        self.captured, self.options, self.draws, self.expected = captured, options, draws, expected
        self.graph = captured.graph if captured.joint is None else captured.joint.graph
        self.inputs = inputs + [_cotangent(item) for item in self.graph.inputs[len(inputs) :]]

    def report(self, again: Callable[[], Any]) -> NumericsReport:
        """Errors per output, and the first fault.

        Args:
            again: calls the function in eager.
        """
        graph, name = self.graph, self.options.name
        compilation = driver.compile_graph(graph, self.options)
        with self.draws:
            ours = outcome(graph, compilation.execute, self.inputs)
        with self.draws:
            captured = outcome(graph, by_op(graph), self.inputs)
        with self.draws:
            exact = outcome(graph, by_op(widen(graph)), widen_data(self.inputs))
        theirs = list(captured)
        for number, leaf in self._leaves():
            theirs[number] = leaf
        runs = RandomRuns(self._drawn, exact)
        found = tuple(
            OutputErrors(label, _described(eager), measured)
            for label, eager, measured in zip(self._labels(), theirs, runs.errors(ours, theirs), strict=True)
        )
        by_chance = runs.errors(theirs, captured) if self._differs(theirs, captured, exact) else []
        for number, leaf in self._leaves():
            miss = _other_computation(leaf, captured[number], exact[number])
            miss = miss if not miss or by_chance[number].miss else ""
            if miss and not self._draws_in_kernels():
                fault = foreign_call(again, self._every_value(), miss)
                broken = OutputErrors(found[number].name, found[number].type, Errors(0.0, 0.0, miss))
                outputs = (*found[:number], broken, *found[number + 1 :])
                return NumericsReport(name, compilation.backend, outputs, fault)
        if not any(output.errors.miss for output in found):
            return NumericsReport(name, compilation.backend, found)
        with self.draws:
            fault = find_fault(compilation, self.inputs, runs, FOLDER)
        return NumericsReport(name, compilation.backend, found, fault)

    def _drawn(self) -> list[Any]:
        """The captured graph op by op once more, which random rounding may be around."""
        with self.draws:
            return outcome(self.graph, by_op(self.graph), self.inputs)

    def _differs(self, theirs: list[Any], captured: list[Any], exact: list[Any]) -> bool:
        return any(_other_computation(leaf, captured[number], exact[number]) for number, leaf in self._leaves())

    def _leaves(self) -> Iterator[tuple[int, Any]]:
        """(number of the output, what eager gave) of each leaf that is an output; none where eager draws otherwise."""
        for leaf, expected in zip(self.captured.out_leaves, self.expected, strict=True):
            if leaf.number >= 0 and not self._draws_in_kernels():
                yield leaf.number, expected.detach() if isinstance(expected, torch.Tensor) else expected

    def _draws_in_kernels(self) -> bool:
        return self.draws.used and self.options.numerics == "default"

    def _labels(self) -> list[str]:
        labels = [f"output {number}" for number in range(len(self.graph.outputs))]
        for path, leaf in zip(tree.paths(self.captured.out_node, "result"), self.captured.out_leaves, strict=True):
            if leaf.number >= 0:
                labels[leaf.number] = path
        joint = self.captured.joint
        if joint is not None:
            for place, number in enumerate(joint.wanted, len(labels) - len(joint.wanted)):
                labels[place] = f"gradient of {self.graph.inputs[number].path}"
        return labels + [f"{write.target.path}, written" for write in self.graph.writes]

    def _every_value(self) -> list[Datum]:
        values = [result for op in self.graph.ops for result in op.results]
        data = [copied(item) if isinstance(item, torch.Tensor) else item for item in self.inputs]
        with self.draws:
            return [*self.inputs, *interpret(exposed(self.graph, values), data)]


def _cotangent(item: Input) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, item.dtype.torch_name)
    shape: tuple[int, ...] = item.shape  # type: ignore[assignment]  # static by construction
    made = torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(item.type.device)
    return laid_out(made, layout_of(item))


def _other_computation(eager: Any, captured: Any, exact: Any) -> str:
    """Whether eager computes something else than the captured graph; how, or an empty string."""
    if not isinstance(eager, torch.Tensor) or not isinstance(captured, torch.Tensor):
        return errors_of(captured, eager).miss
    if not eager.dtype.is_floating_point:
        return errors(captured, eager).miss
    graph_error = errors(captured, captured, exact).ours
    found = errors(eager, captured, exact)
    size = exact[exact.isfinite()].abs().max() if bool(exact.isfinite().any()) else torch.zeros(())
    allowed = CAPTURE_FACTOR * (graph_error + 4 * torch.finfo(eager.dtype).eps * float(size))
    if found.miss and (found.ours > allowed or "error" not in found.miss):
        return f"eager is {found.ours:.3e} off the captured graph in float64: {found.miss}"
    return ""


def _described(item: Any) -> str:
    if not isinstance(item, torch.Tensor):
        return type(item).__name__
    return f"{str(item.dtype).removeprefix('torch.')}{list(item.shape)}"
