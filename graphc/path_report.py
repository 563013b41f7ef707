"""What users see of a function that branches on data: the tree of its paths, and the programs of one of them."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.compilation import Report
from graphc.frontend.segments import TensorSpec
from graphc.paths import Node, PathTree

_SHOWN = 60
_FEW = 3
"""Turns of a loop up to which each is shown."""
_NAMED = 8
"""Numbers of turns that are listed."""


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
    if node.turn is not None:
        lines.append(f"{lead}program {node.number} ({_size(node)}), then again {what}, where program "
                     f"{node.turn.node.number} ends: a loop")  # fmt: skip
        return
    lines.append(f"{lead}program {node.number} ({_size(node)}), then {what}")
    if question is not None:
        code = linecache.getline(question.location.file, question.location.line).strip()
        if code:
            lines.append(f"{indent}  {code}")
    turns = _turns(node)
    if len(turns) > _FEW:
        lines.append(f"{indent}  the same program for {len(turns)} turns of a loop; behind them:")
    for (text, _), (child, after) in _exits(turns).items():
        numbers = ", ".join(map(str, after[:_NAMED])) + (", ..." if len(after) > _NAMED else "")
        _describe(child, indent + "  ", f"{text} after {numbers} turns" if len(turns) > _FEW else text, lines)


def _turns(node: Node) -> list[Node]:
    """A node and those that follow it with the same program and question: turns of a loop."""
    found = [node]
    while True:
        last = found[-1]
        children = [child for several in last.children.values() for child in several]
        same = [child for child in children if child.number == last.number >= 0 and _where(child) == _where(last)]
        if not same or any(child.turn is not None for child in same):
            return found if len(found) > _FEW else [node]
        found.append(same[0])


def _exits(turns: Sequence[Node]) -> dict[tuple[str, int], tuple[Node, list[int]]]:
    """By answer and program: the first node behind the turns, and after which turns it comes."""
    found: dict[tuple[str, int], tuple[Node, list[int]]] = {}
    inner = {id(turn) for turn in turns[1:]}
    for number, turn in enumerate(turns, 1):
        for children in turn.children.values():
            for place, child in enumerate(children):
                if id(child) not in inner:
                    key = _answer(child.answer), child.number if len(turns) > 1 else place
                    found.setdefault(key, (child, []))[1].append(number)
    return found


def _where(node: Node) -> object:
    return node.question and node.question.location


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
