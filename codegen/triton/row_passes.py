"""Which statements of a kernel run in which pass over its rows, when a row is too long to be held whole."""

from __future__ import annotations

from collections.abc import Set

from graphc.codegen.triton.body import needed
from graphc.codegen.triton.joint import find_joint
from graphc.ir.dims import symbols
from graphc.loopir.kernel import Const, Define, Kernel, Reduce, Store, operands


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

    def wanted(self, number: int) -> set[str]:
        """Ids of what pass `number` reduces, or stores per element."""
        found = {self.argument(s) for s in self.reductions(number)}
        if number == self.count - 1:
            found |= {name for s in self.element_stores for name in operands(s)}
        return found

    def results(self) -> set[str]:
        """Ids of what is stored per row."""
        return {name for s in self.row_stores for name in operands(s)}

    def made_of(self, roots: Set[str], known: Set[str]) -> set[str]:
        """Ids of all that values come from where programs share rows; not of what `known` ones come from."""
        found = set(roots)
        for s in reversed(self.operands):
            if s in found and s not in known:
                found.update(self.operands[s])
                if s in self.joint:
                    found.add(self.joint[s].first.id)
        return found

    def handed_on(self, number: int) -> list[Define]:
        """Values per row that are known after exactly `number` passes, and that later passes, or values per row known
        after these, are made of; and results, which are stored at the end.
        """
        fresh = {s.id: s for s in (*self.reductions(number - 1), *self.row_values(number)) if not isinstance(s, Const)}
        roots = set[str]().union(*(self.wanted(later) for later in range(number, self.count)), self.results())
        readers = needed(self.kernel.defines, roots)
        late = [s for s in readers if s.id in self.in_row or self.of[s.id] > number]
        used = {name for s in late for name in self.inputs_of(s)}
        used |= {name for s in self.element_stores for name in operands(s)}
        if number < self.count - 1 or self.reductions(number):
            used |= self.results()
        return [s for name, s in fresh.items() if name in used]

    def inputs_of(self, s: Define) -> tuple[str, ...]:
        return (self.argument(s),) if isinstance(s, Reduce) else self.operands[s.id]
