"""What a kernel with several products is made of: inner products, outer products, and the axes of either.

v9 = contract q k over r1              inner: a sum that is held whole, for a block of scores
v19 = exp(...)                         chained: the operand of an outer product that is made of inner products
v21 = contract v19 v over r0           outer: summed over by the loop; `v` is its other operand
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from graphc.codegen.triton.joined_axes import int_extent
from graphc.errors import CodegenError
from graphc.loopir.kernel import Axis, Contract, Define, Kernel, operands

LONG = 256
"""Positions along an axis from which on blocks need none of another axis."""


class ChainParts:
    """The parts of a kernel that holds several `contract`s.

    Attributes:
        by_id: statements by name.
        inner, outers: its products; those that end the chain have one loop, so they sum over the same axes.
        rows: names of these axes.

    Raises:
        CodegenError: another form.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.by_id = {s.id: s for s in kernel.defines}
        self.domains = kernel.domains
        factors = [name for contract in kernel.contractions for name in operands(contract)]
        used = {s.id for s in self.closure(factors, through=True)}
        self.inner = [contract for contract in kernel.contractions if contract.id in used]
        self.outers = [contract for contract in kernel.contractions if contract.id not in used]
        sums = {contract.over for contract in self.outers}
        if len(sums) != 1:
            raise CodegenError(f"kernel {kernel.name}: products over different sums")
        self.rows = frozenset(sums.pop())

    def closure(self, wanted: Iterable[str], through: bool = False, stop: frozenset[str] = frozenset()) -> list[Define]:
        """Statements that values come from, in order; inner products are not looked into unless `through`."""
        names, kept = set(wanted), list[Define]()
        for s in reversed(list(self.kernel.defines)):
            if s.id not in names or s.id in stop:
                continue
            kept.append(s)
            if through or not isinstance(s, Contract):
                names.update(operands(s))
        return kept[::-1]

    def made_of(self, names: Iterable[str]) -> list[Define]:
        """The statements that give these values, and all that is computed from them, short of products."""
        found = set(names)
        for s in self.kernel.defines:
            if not isinstance(s, Contract) and not found.isdisjoint(operands(s)):
                found.add(s.id)
        return [s for s in self.kernel.defines if s.id in found]

    def changes(self, s: Define) -> bool:
        """It changes from step to step of the loop."""
        return bool(self.domains[s.id] & self.rows)

    @cached_property
    def sides(self) -> dict[str, tuple[str, str]]:
        """Per outer product the operand that is computed from products, and the other one."""
        found: dict[str, tuple[str, str]] = {}
        for outer in self.outers:
            pair = outer.left, outer.right
            chained = [name for name in pair if any(isinstance(s, Contract) for s in self.closure((name,), True))]
            if len(chained) != 1:
                raise CodegenError(f"kernel {self.kernel.name}: both operands of a product are products themselves")
            found[outer.id] = chained[0], pair[1 - pair.index(chained[0])]
        return found

    @cached_property
    def chained(self) -> list[str]:
        """Operands of outer products that are computed in the loop."""
        return [chained for chained, _ in self.sides.values()]

    @cached_property
    def axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes by kind.

        `b` of the batch, `m` of the program's rows, `n` of columns, `j` of the loop's positions, and `g` of groups of
        positions that the loop goes through one by one.

        Where several queries share a key, as heads of a group do, their axis comes before that of positions. Blocks
        go across both only when there are few positions: else masks of positions could not end loops.
        """
        within, without = (
            frozenset[str]().union(*(self.domains[pair[side]] for pair in self.sides.values())) for side in (0, 1)
        )
        found: dict[str, list[Axis]] = {kind: [] for kind in "bmnjg"}
        for axis in (*self.kernel.parallel_axes, *(axis for axis in self.kernel.row_axes if axis.name in self.rows)):
            kind = "j" if axis.name in self.rows else "b"
            if kind == "b" and (axis.name in within) != (axis.name in without):
                kind = "m" if axis.name in within else "n"
            found[kind].append(axis)
        for kind, apart in (("m", "b"), ("j", "g")):
            if len(found[kind]) > 1 and int_extent(found[kind][-1]) >= LONG:
                found[apart] += found[kind][:-1]
                del found[kind][:-1]
        return {kind: tuple(axes) for kind, axes in found.items()}

    def sum_axes(self, contract: Contract) -> tuple[Axis, ...]:
        """The axes that an inner product sums over."""
        return tuple(axis for axis in self.kernel.row_axes if axis.name in contract.over)

    def factors(self, contract: Contract) -> tuple[str, str]:
        """Of an inner product the operand of the program's rows, and that of the loop's positions."""
        m, sides = {axis.name for axis in self.axes["m"]}, (contract.left, contract.right)
        for row, step in (sides, sides[::-1]):
            if not self.domains[row] & self.rows and not self.domains[step] & m:
                return row, step
        raise CodegenError(f"kernel {self.kernel.name}: an operand varies with rows and columns of the scores")
