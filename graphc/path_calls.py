"""The side of a compiled callable that deals with path trees: calls through one, and what users ask about one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from graphc import driver
from graphc.compilation import Compilation, Report
from graphc.errors import AssumptionError, UnsupportedError
from graphc.frontend.draws import Drawn
from graphc.frontend.segments import Oracle, Regrow, Step
from graphc.options import Options, for_part
from graphc.paths import Node, PathTree, RunEager

if TYPE_CHECKING:
    from graphc.families import Families
    from graphc.frontend.captured import Captured
    from graphc.ir.graph import Graph


class Counters(Protocol):
    """What is counted of calls through a tree."""

    compiles: int
    hits: int
    eager_calls: int


class PathCalls:
    """Mixed into the compiled callable, which has these attributes and methods."""

    target: Callable[..., Any]
    options: Options
    families: Families
    _stats: Any
    _lock: threading.RLock
    _assumes: bool
    _drawn: Drawn
    _draws: bool

    def _run_plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call by eager."""
        raise NotImplementedError

    def _run_unassumed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call by eager whose data are not what a program has assumed."""
        raise NotImplementedError

    def _regrow(self, tree: PathTree, args: tuple[Any, ...], kwargs: dict[str, Any], regrow: Regrow) -> None:
        """Put another tree in the place of one whose programs must take some inputs in another way."""
        raise NotImplementedError

    def _withdraw(self, captured: Captured) -> None:
        """The first call of a program has failed: state of optimizers that was made for it goes, and so does it."""
        raise NotImplementedError

    def _compilation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compilation | PathView:
        """What runs a call."""
        raise NotImplementedError

    def _run_tree(
        self, tree: PathTree, inputs: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any], fresh: bool
    ) -> Any:
        """One call; `fresh` when the tree was made for it."""
        counters: Counters = self._stats
        try:
            result, grown = tree.run(args, kwargs, inputs)
        except RunEager as stopped:
            eager = stopped
        except Regrow as regrow:
            self._regrow(tree, args, kwargs, regrow)
            return self(*args, **kwargs)  # type: ignore[operator]  # the class mixed into is callable
        except AssumptionError:
            return self._run_unassumed(args, kwargs)
        except BaseException:
            if fresh and tree.root.captured is not None:
                self._withdraw(tree.root.captured)
            raise
        else:
            counters.hits += not grown and not fresh
            return result
        result = self._run_plain(args, kwargs)
        if eager.raises:
            tree.warn(f"a path could not be captured and runs eager: {eager.reason}, in the capture alone")
        return result

    def _follow(
        self, tree: PathTree, inputs: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Compilation | PathView:
        """The programs on the path of a call.

        Raises:
            UnsupportedError: it runs eager.
        """
        try:
            return PathView(tree, tree.follow(args, kwargs, inputs))
        except RunEager as eager:
            reason = eager.reason
        except Regrow as regrow:
            self._regrow(tree, args, kwargs, regrow)
            return self._compilation(args, kwargs)
        raise UnsupportedError(f"{self.options.name} runs eager for these inputs: {reason}")

    def capture_path(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        steps: Sequence[Step],
        root: Captured,
        places: frozenset[Hashable],
        oracle: Oracle,
    ) -> Captured:
        """As `Owner.capture_path`."""
        merged = root.merged_storages(args, kwargs)
        numbers = root.number_inputs | places
        captured = driver.capture(
            self.target, args, kwargs, self.options, root.dynamic, steps, merged, numbers, self._assumes, oracle,
            self._drawn, root.lists,
        )  # fmt: skip
        self._draws |= captured.draws > 0
        return captured

    def draw_back(self, count: int) -> None:
        """As `Owner.draw_back`."""
        self._drawn.keep(count)

    def path_added(self) -> None:
        """A path through a tree is complete."""
        with self._lock:
            self._stats.paths += 1

    def compile_path(self, graph: Graph, number: int) -> Compilation:
        """Compile one program of a tree."""
        self._stats.compiles += 1
        return driver.compile_graph(graph, for_part(graph, self._numbered(number)), self.families)

    def compile_differentiable(
        self, captured: Captured, number: int
    ) -> tuple[Compilation, Callable[[list[Any]], list[Any]]]:
        """Compile the last program of a path whose results can be differentiated."""
        self._stats.compiles += 1
        assert captured.joint is not None
        return driver.differentiable(captured, for_part(captured.joint.graph, self._numbered(number)), self.families)

    def _numbered(self, number: int) -> Options:
        return replace(self.options, name=f"{self.options.name}_{number}" if number else self.options.name)


class Stages(list[Any]):
    """The graphs or plans of the programs of a path; its text is theirs."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


class PathView:
    """The programs of one path, asked like one compilation."""

    def __init__(self, tree: PathTree, nodes: Sequence[Node]) -> None:
        self._tree, self._nodes = tree, nodes
        self.programs = [node.compilation for node in nodes if node.compilation is not None]

    def stage(self, stage: str) -> Stages:
        """The graph or plan of each program, in order."""
        return Stages(program.stage(stage) for program in self.programs)

    def sources(self) -> dict[str, str]:
        """Generated files, by number of the program on the path and name."""
        return {f"{i}/{name}": text for i, p in enumerate(self.programs) for name, text in p.sources().items()}

    def report(self) -> Report:
        """What became of the ops of the path, and the tree it is in."""
        from graphc.path_report import report_path

        return report_path(self._tree, self._nodes)
