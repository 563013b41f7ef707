"""What users see of a function that branches on data: the tree of its paths, and the programs of one of them."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.driver import Report
from graphc.frontend.segments import TensorSpec
from graphc.paths import Node, PathTree

_SHOWN = 60


@dataclass(frozen=True)
class PathReport(Report):
    """The report of one path. `stats` and `seconds` are sums over its programs; `graph` is their graphs in order.

    Attributes:
        programs: the report of each program on the path.
        tree: all decisions met so far with the user's lines, their answers, and what follows each.
    """

    programs: tuple[Report, ...] = ()
    tree: str = ""

    def __str__(self) -> str:
        return "\n".join([self.tree, "the path of these inputs:", *(str(program) for program in self.programs)])


def report_path(tree: PathTree, nodes: Sequence[Node]) -> PathReport:
    """The report of the path that runs these programs."""
    programs = tuple(node.compilation.report() for node in nodes if node.compilation is not None)
    backend = programs[-1].backend if programs else ""
    seconds: dict[str, float] = {}
    stats: dict[str, Any] = {}
    for program in programs:
        _add(seconds, program.seconds)
        _add(stats, program.stats)
    graphs = "\n".join(program.graph for program in programs)
    cached = all(program.cached for program in programs)
    backward = programs[-1].backward if programs else None
    return PathReport(tree.name, backend, cached, seconds, stats, graphs, backward, programs, describe(tree))


def _add(total: dict[str, Any], part: dict[str, Any]) -> None:
    """Numbers are added up, in tables too; of the rest the last is kept."""
    for key, value in part.items():
        known = total.get(key)
        if isinstance(value, dict):
            total[key] = dict(known) if isinstance(known, dict) else {}
            _add(total[key], value)
        elif isinstance(value, (int, float)) and isinstance(known, (int, float)):
            total[key] = known + value
        else:
            total[key] = value


def describe(tree: PathTree) -> str:
    """The tree as text: one line per program or place where calls run eager, indented under its decision's answer."""
    lines = [f"{tree.name}: {tree.programs} programs on {tree.paths} paths"]
    if tree.closed:
        lines.append(f"all calls run eager: {tree.closed}")
    _describe(tree.root, "", "", lines)
    return "\n".join(lines)


def _describe(node: Node, indent: str, answer: str, lines: list[str]) -> None:
    lead = f"{indent}{answer} -> " if answer else indent
    if node.captured is None:
        lines.append(f"{lead}eager: {node.reason}")
        return
    question = node.question
    what = "end" if question is None else f"{question.what}, at {question.location.file}:{question.location.line}"
    lines.append(f"{lead}program {node.number} ({_size(node)}), then {what}")
    if question is not None:
        code = linecache.getline(question.location.file, question.location.line).strip()
        if code:
            lines.append(f"{indent}  {code}")
    for children in node.children.values():
        for child in children:
            _describe(child, indent + "  ", _answer(child.answer), lines)


def _size(node: Node) -> str:
    if node.compilation is None:
        return "nothing to compute"
    stats = node.compilation.program.stats if node.compilation.program is not None else {}
    kernels = f", {stats['kernels']} kernels" if "kernels" in stats else ""
    return f"{len(node.compilation.graph.ops)} ops{kernels}"


def _answer(answer: Any) -> str:
    text = repr(_shapes(answer))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _shapes(answer: Any) -> Any:
    if isinstance(answer, TensorSpec):
        return answer.shape
    return type(answer)(_shapes(part) for part in answer) if isinstance(answer, (list, tuple)) else answer
