"""Keys of random draws: what a program asks torch's generator for, once, and what each of its draws is made from.

    %keys: i64[3] = extern() {op="aten.randint.default", args=[2305843009213693952, [3]], ...}
    %key: i64[1] = slice(%keys) {dim=0, start=1, stop=2, step=1}        the second draw of the program

The call has a number per draw of its program: it grows while the function runs. It is an ATen call, so that the state
of the generator is saved, set back and forked as in eager; it does not advance as far as in eager.
"""

from __future__ import annotations

from graphc.frontend.random_tape import RandomTape
from graphc.ir.graph import Builder, Named, Op, Value
from graphc.ir.types import TensorType, i64
from graphc.ops.random import KEY_BITS


class Keys:
    """The keys of the draws of one capture.

    Args:
        builder: of the graph.
        tape: where draws are noted, for code that sets the generator back.
        enabled: False leaves every draw to ATen, as `numerics="eager"` asks.
    """

    def __init__(self, builder: Builder, tape: RandomTape, enabled: bool) -> None:
        self.enabled = enabled
        self._calls: list[tuple[int, Op]] = []  # all of them, with their places in the graph
        self._builder, self._tape = builder, tape
        self._open: dict[str, tuple[int, Op]] = {}  # by device: the call that grows, and its place in the graph

    def restart(self) -> None:
        """A program ends here: the next one has calls of its own."""
        self._open.clear()

    def live(self) -> list[Value]:
        """What later programs on a path may draw from, when the generator is set back."""
        return [op.result for at, op in self._calls if self._stands(at, op)]

    def _stands(self, at: int, op: Op) -> bool:
        """The call is in the graph still, and has not been taken back with a rule that failed."""
        ops = self._builder.graph.ops
        return at < len(ops) and ops[at] is op

    def key(self, device: str) -> Value:
        """The key of the next draw on a device, i64[1]."""
        found = self._tape.key_again()
        if found is None:
            keys, number = self._grow(device)
            found = self._builder.op("slice", keys, dim=0, start=number, stop=number + 1, step=1)
            self._tape.record(found)
        return found

    def _grow(self, device: str) -> tuple[Value, int]:
        at, op = self._open.get(device, (-1, None))
        if op is None or not self._stands(at, op):
            at = len(self._builder.graph.ops)
            attrs = {"op": "aten.randint.default", "effect": "random"}
            op = self._builder.multi("extern", [], attrs, [TensorType(i64, (0,), device)])
            self._open[device] = at, op
            self._calls.append((at, op))
        keys = op.result
        (number,) = keys.shape
        assert isinstance(number, int)
        keys.type = TensorType(i64, (number + 1,), device)
        op.attrs["args"] = (1 << KEY_BITS, (number + 1,))
        op.attrs["kwargs"] = {"dtype": i64, "device": Named("device", device)}
        return keys, number
