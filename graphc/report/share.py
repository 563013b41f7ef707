"""How much of a compiled call generated kernels do, and what is left to ATen.

Matrix products, convolutions, attention and recurrent layers are libraries' work by design; other calls into ATen are
ops that graphc has no kernel for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc import driver
from graphc.ops.extern import LIBRARY_CALL
from graphc.path_calls import PathView


@dataclass(frozen=True)
class Share:
    """What generated kernels do of some programs.

    Args:
        ops: share of the graphs' ops that they compute.
        bytes: share of all bytes moved that they and library calls for products, convolutions, attention and
            recurrent layers move: what is left are other ATen calls.
        calls: bytes of those other calls, by name, the most first.
        moved: bytes that the programs move in all.
    """

    ops: float
    bytes: float
    calls: dict[str, int]
    moved: int


def share(stats: Sequence[dict[str, Any]]) -> Share:
    """Of several programs together.

    Args:
        stats: counters of their plans, as `graphc.program.plan.Plan.stats` and `Report.stats` hold them.
    """
    moved = sum(one["bytes_read"] + one["bytes_written"] for one in stats)
    ops = sum(one["graph_ops"] for one in stats)
    calls: Counter[str] = Counter()
    for one in stats:
        reasons = one["extern_reasons"]
        calls.update({name: count for name, count in one["extern_bytes"].items() if reasons.get(name) != LIBRARY_CALL})
    return Share(
        sum(one["fused_ops"] for one in stats) / max(ops, 1),
        1 - calls.total() / max(moved, 1),
        dict(calls.most_common()),
        moved,
    )


def planned(compiled: Any, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """Counters of the plans in C for a call: of each program on its path, and of their backward passes.

    Args:
        compiled: what `graphc.compile` returned, of any backend (`interpret` builds nothing, so it takes least time).
            Its backward pass counts once it has run.
        args, kwargs: of the call.
    """
    function = getattr(compiled, "compiled", compiled)
    found = function._compilation(args, kwargs)
    forward = found.programs if isinstance(found, PathView) else [found]
    backward = [program.backward for program in forward if program.backward is not None]
    return [driver.plan_for(program.graph, program.options, "c").stats for program in (*forward, *backward)]
