"""Which statements of a kernel run in which pass over its rows, when a row is too long to be held whole."""

from __future__ import annotations

from graphc.codegen.triton.body import needed
from graphc.codegen.triton.joint import find_joint
from graphc.ir.dims import symbols
from graphc.loopir.kernel import Define, Kernel, Reduce, Store, operands


class Passes:
    """Which pass over the row each statement of a looped kernel belongs to.

    Pass 0 comes first; a reduction over values of pass k is known after pass k. A scan runs inside a pass. Stores of
    elements all stand in the last pass, so that no pass reads what an earlier one overwrote in place. Pairs of
    reductions that one pass computes are known after the same pass, see `graphc.codegen.triton.joint`.
    """

    def __init__(self, kernel: Kernel, in_row: set[str]) -> None:
        self.kernel, self.in_row = kernel, in_row
        self.of: dict[str, int] = {}
        self.joint = find_joint(kernel)
        self.operands = {s.id: operands(s) for s in kernel.defines}
        for s in kernel.defines:
            if isinstance(s, Reduce):
                self.of[s.id] = self.of[self.argument(s)] + 1
            else:
                self.of[s.id] = max((self.of[name] for name in self.operands[s.id]), default=0)
        self.element_stores = [s for s in kernel.stores if self._touches_row(s)]
        self.row_stores = [s for s in kernel.stores if not self._touches_row(s)]
        last = [self.of[self.argument(s)] for s in kernel.defines if isinstance(s, Reduce)]
        last += [self.of[name] for s in self.element_stores for name in operands(s)] or [0]
        self.count = max(last) + 1

    def _touches_row(self, s: Store) -> bool:
        rows = {axis.name for axis in self.kernel.row_axes}
        return bool(symbols(s.index) & rows) or any(name in self.in_row for name in operands(s))

    def argument(self, s: Reduce) -> str:
        """What a reduction takes of each element."""
        return self.joint[s.id].value if s.id in self.joint else s.arg

    def reductions(self, number: int) -> list[Reduce]:
        return [s for s in self.kernel.defines if isinstance(s, Reduce) and self.of[self.argument(s)] == number]

    def row_values(self, number: int) -> list[Define]:
        """Plain statements without a row index that can be computed after exactly `number` passes."""
        return [
            s
            for s in self.kernel.defines
            if s.id not in self.in_row and not isinstance(s, Reduce) and self.of[s.id] == number
        ]

    def elements(self, reductions: list[Reduce], stores: list[Store]) -> list[Define]:
        """Statements with a row index that the loop of a pass needs, in order."""
        wanted = {self.argument(s) for s in reductions} | {name for s in stores for name in operands(s)}
        per_element = [s for s in self.kernel.defines if s.id in self.in_row]
        return needed(per_element, wanted)

    def wanted_rows(self, number: int) -> set[str]:
        """Ids of all values that launch `number` of the split form needs."""
        last = number >= self.count - 1
        roots: set[str] = {self.argument(s) for s in self.reductions(number)} if number < self.count else set()
        stores = [*(self.element_stores if number == self.count - 1 else []), *(self.row_stores if last else [])]
        roots |= {name for s in stores for name in operands(s)}
        return {s.id for s in needed(self.kernel.defines, roots)}
