"""Arithmetic of a kernel, apart by the units that do it: what matrix units multiply, and all else.

    attention, causal, 16 heads of 4,096 tokens, d 128:  2 products of 137 G operations, half of which is left out

What a mask of positions makes zero is not counted, since loops end there. Nor is what changes with every multiplication
of a product, as the search for a row's matrix: it is done once per block. Nor what lies between products, where the
generator writes something else: running maxima and sums, powers of two, a division behind the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.triton.chain_parts import ChainParts
from graphc.codegen.triton.index_bounds import Conditions, share_within
from graphc.codegen.triton.ragged import bounds_of_sum
from graphc.loopir.analysis import KernelFacts, statement_cost
from graphc.loopir.kernel import Contract, Kernel
from graphc.passes.chips import worth_in_bf16


@dataclass(frozen=True)
class Work:
    """Arithmetic of one call.

    Args:
        plain: outside of matrix units, in additions.
        matrix: in matrix units, multiplications and additions, as operations on bf16 that take as long.
    """

    plain: int
    matrix: int = 0


def work_of(kernel: Kernel) -> Work:
    """The least arithmetic of one call of a kernel of known sizes."""
    facts = KernelFacts(kernel)
    if not kernel.contractions:
        return Work(facts.total_cost)
    plain = matrix = 0.0
    domains = {product: facts.domains[product.left] | facts.domains[product.right] for product in kernel.contractions}
    share = _share(kernel)
    for product, domain in domains.items():
        count = 0.0 if _ends_at_data(kernel, product) else share * facts.points(domain)
        worth = worth_in_bf16(facts.dtypes[product.left], product.tf32)
        plain, matrix = (plain, matrix + 2 * worth * count) if worth else (plain + count, matrix)
    if len(domains) == 1:
        (inner,) = domains.values()
        around = [s for s in kernel.body if not isinstance(s, Contract) and not inner <= facts.domain(s)]
        plain += sum(statement_cost(s) * facts.points(facts.domain(s)) for s in around)
    return Work(int(plain), int(matrix))


def _share(kernel: Kernel) -> float:
    """Which part of the scores of a product of products a mask of positions leaves."""
    if len(kernel.contractions) < 2:
        return 1.0
    parts = ChainParts(kernel)
    rows, steps = parts.axes["m"], parts.axes["j"]
    bounds = Conditions(kernel).bounds(parts.chained, rows, steps)
    return share_within(bounds, rows, steps[0]) if bounds else 1.0


def _ends_at_data(kernel: Kernel, product: Contract) -> bool:
    """Whether a sum runs between loaded ends, so that its length is not known."""
    over = set(product.over) or {axis.name for axis in kernel.row_axes}
    outer = [axis.name for axis in kernel.parallel_axes]
    return any(any(bounds_of_sum(kernel, (product.left, product.right), axis, outer)) for axis in over)
