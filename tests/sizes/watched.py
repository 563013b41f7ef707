"""What Python itself does with sizes unseen: `2.0 * size` asks the float first, which takes any int for its value.

    python -m tests.sizes.watched [PROGRAM...]

compiles programs for several sizes, on both backends, with every operation and comparison in graphc's own modules
watched, and fails where a float stands left of a size.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import operator
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

_OPERATIONS: dict[type[ast.AST], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
}  # fmt: skip
_NAME = "watched_operation__"


class LeakError(AssertionError):
    """The value of a size has been taken unseen."""


def _watched(name: str, left: Any, right: Any) -> Any:
    if isinstance(left, float) and type(right).__name__ == "Size":
        raise LeakError(f"{left!r} {name} {right}")
    return getattr(operator, name)(left, right)


class _Watch(ast.NodeTransformer):
    """Puts a call in the place of each operation."""

    def _call(self, node: ast.expr, operation: ast.AST, left: ast.expr, right: ast.expr, prefix: str = "") -> ast.expr:
        name = _OPERATIONS.get(type(operation))
        if name is None:
            return node
        call = ast.Call(ast.Name(_NAME, ast.Load()), [ast.Constant(prefix + name), left, right], [])
        return ast.copy_location(call, node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return self._call(node, node.op, node.left, node.right)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) > 1:  # what is between is looked at twice, by name or as a number
            pairs = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
            parts = [self._call(ast.Compare(a, [op], [b]), op, a, b) for a, op, b in pairs]
            return ast.copy_location(ast.BoolOp(ast.And(), parts), node)
        return self._call(node, node.ops[0], node.left, node.comparators[0])

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            return node
        value = self._call(node.value, node.op, ast.Name(node.target.id, ast.Load()), node.value, "i")
        return node if value is node.value else ast.copy_location(ast.Assign([node.target], value), node)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        source = self.get_source(fullname)
        tree = _Watch().visit(ast.parse(source or "", self.path))
        code: CodeType = compile(ast.fix_missing_locations(tree), self.path, "exec")
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("graphc.") or name == "graphc.ir.sizes":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def main() -> None:
    assert not any(name.startswith("graphc.") for name in sys.modules), "graphc has been imported already"
    setattr(builtins, _NAME, _watched)
    sys.meta_path.insert(0, _Finder())
    import graphc
    from graphc.driver import build_for_sizes
    from graphc.options import Options
    from graphc.settings import override
    from tests.sizes.leaks import no_leaks
    from tests.sizes.programs import PROGRAMS
    from tests.sizes.random_shapes import PROGRAMS as RANDOM

    programs, built = {**PROGRAMS, **RANDOM}, 0
    with override(cache=False, max_recompiles=1000):
        for name in sys.argv[1:] or programs:
            make, inputs = programs[name]
            fn = graphc.compile(make())
            for n in (17, 21, 26, 33):
                given = inputs(n)
                with no_leaks():
                    fn(*given)
            reasons = [*fn.stats().alone, *fn.stats().one_size]
            assert not any("LeakError" in reason for reason in reasons), (name, reasons)
            for family in fn.families:
                for backend in ("c", "triton") if family.general is not None else ():
                    graph, _ = family.general.graph(family.general.sizes_of(family.samples[-1]) or {})
                    build_for_sizes(Options(name, backend), backend, graph)
                    built += 1
    print(f"{built} builds, no size seen by a float")


if __name__ == "__main__":
    main()
