"""In which order groups of threads that have parted go on, so that they meet again where their ways do.

What runs is always the group whose block stands first in an order in which every block comes before those that are
reached from it, loops being whole: nobody passes a place that others may still come to.
"""

from __future__ import annotations

import networkx as nx

from tests.triton.ptx.parse import Function, Name


def leaders_of(function: Function) -> list[int]:
    """The first instruction of each block."""
    found = {0, *function.labels.values()}
    found |= {at + 1 for at, item in enumerate(function.code) if item.opcode in ("bra", "ret", "exit")}
    return sorted(at for at in found if at < len(function.code))


def ranks_of(function: Function) -> list[int]:
    """The place of each instruction in the order."""
    leaders = leaders_of(function)
    ends = dict(zip(leaders, [*leaders[1:], len(function.code)]))
    graph = nx.DiGraph()
    graph.add_nodes_from(leaders)
    for leader, end in ends.items():
        last = function.code[end - 1]
        if last.opcode == "bra" and isinstance(last.operands[0], Name):
            graph.add_edge(leader, function.labels[last.operands[0].text])
        if (last.opcode not in ("bra", "ret", "exit") or last.guard is not None) and end in ends:
            graph.add_edge(leader, end)
    ranks = [0] * len(function.code)
    number = 0
    for leader in _ordered(graph, 0):
        for at in range(leader, ends[leader]):
            ranks[at] = number
            number += 1
    return ranks


def _ordered(graph: nx.DiGraph, entry: int) -> list[int]:
    """Blocks in front of what is reached from them; of a loop from where it is entered on."""
    whole = nx.condensation(graph)
    found: list[int] = []
    for number in nx.topological_sort(whole):
        members = whole.nodes[number]["members"]
        if len(members) == 1:
            found += members
            continue
        entered = [block for block in sorted(members) if set(graph.predecessors(block)) - members or block == entry]
        inner = graph.subgraph(members).copy()
        inner.remove_edges_from(list(inner.in_edges(entered[0])))
        found += _ordered(inner, entered[0])
    return found
