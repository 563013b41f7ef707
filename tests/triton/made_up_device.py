"""A device that is made up: its memory is the CPU's, its kernels are interpreted, and what it is asked is noted.

While it records, nothing is carried out: results are filled with rubbish, writes are left out, and looking at data is
an error, as on a real device. A replay does what was recorded, on the very memory it was recorded with.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphc.codegen.triton.program import generate
from graphc.driver import capture, plan_for
from graphc.frontend.captured import Captured
from graphc.frontend.reclaim import Reclaimer
from graphc.ir.graph import Graph, Op, Ref, Value, Write, regions
from graphc.options import Options
from graphc.program.record import Program
from graphc.report.placed import place
from graphc.runtime.device import register
from graphc.runtime.triton_program import TritonProgram

NAME, OTHER = "madeup:0", "madeup:1"
_FRESH = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided")


class MadeUpDevice:
    """See `graphc.runtime.device.Device`.

    Attributes:
        log: what has been asked, in order: `record`, `replay`, `wait`, `mark`, `used`.
        current_stream: the handle of the stream that a test is on.
        recorded_elsewhere: somebody else is recording.
        broken: an error that recording ends with.
        refused: names of torch's calls that cannot be recorded.
    """

    kind = "madeup"
    interpreted = True

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current_stream = 7
        self.recorded_elsewhere = False
        self.broken: Exception | None = None
        self.refused: set[str] = {"aten::_local_scalar_dense"}
        self.free = self.total = 1 << 40
        self._work: list[Callable[[], object]] | None = None
        register(self)

    def current(self) -> int:
        return 0

    def guard(self, index: int) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def place(self, index: int) -> torch.device:
        return torch.device("cpu")

    def target(self, index: int) -> str:
        return "cuda:90"

    def attention_libraries(self) -> tuple[str, ...]:
        return ()

    def runs_attention(self, *facts: Any) -> bool:
        raise AssertionError("there are no libraries to ask about")

    def refusal(self, index: int) -> str:
        return ""

    def memory(self, index: int) -> tuple[int, int]:
        return self.free, self.total

    def give_back(self, index: int) -> None:
        assert self._work is None, "waiting is an error while something is recorded"
        self.log.append("give back")
        self.free = self.total

    def stream(self, index: int) -> int:
        return self.current_stream

    def launch_function(self) -> int:
        return 0

    def attach(self, index: int) -> None:
        raise AssertionError("no driver, no errors of one")

    def describe(self, code: int) -> str:
        return f"error {code}"

    def cannot_record(self) -> str:
        return ""

    def is_recording(self, index: int) -> bool:
        return self.recorded_elsewhere or self._work is not None

    def pool(self) -> Any:
        return object()

    def record(self, index: int, pool: Any, run: Callable[[], None]) -> MadeUpRecording:
        self.log.append("record")
        self._work = work = []
        try:
            with _Recorder(work, self.refused):
                run()
        finally:
            self._work = None
        if self.broken is not None:
            raise self.broken
        gc.collect(1)
        return MadeUpRecording(work, self.log)

    def perform(self, work: Callable[[], None]) -> None:
        """Run an interpreted kernel, or keep it for the replays."""
        if self._work is None:
            work()
        else:
            self._work.append(work)

    def note_used(self, index: int, tensor: torch.Tensor) -> None:
        self.log.append("used")

    def mark(self, index: int, old: Any = None) -> Any:
        self.log.append("mark")
        return object()

    def wait(self, index: int, mark: Any) -> None:
        self.log.append("wait")

    def model(self, index: int) -> str:
        return "made up"

    def seconds(self, index: int, run: Callable[[], object], repeats: int) -> float:
        self.log.append("seconds")
        for _ in range(repeats):
            run()
        return 1.0


class MadeUpRecording:
    """What was recorded."""

    def __init__(self, work: list[Callable[[], object]], log: list[str]) -> None:
        self.work, self.log = work, log

    def replay(self) -> None:
        self.log.append("replay")
        for item in self.work:
            item()
        gc.collect(1)  # the interpreter leaves tensors behind in cycles


class _Recorder(TorchDispatchMode):
    """Keeps torch's calls instead of making them."""

    def __init__(self, work: list[Callable[[], object]], refused: set[str]) -> None:
        super().__init__()
        self.work, self.refused = work, refused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        if schema.name in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        is_view = any(item.alias_info is not None and not item.alias_info.is_write for item in schema.returns)
        if is_view or schema.name in _FRESH or schema.name == "aten::set_":
            return func(*args, **kwargs)
        if any(item.alias_info is not None and item.alias_info.is_write for item in schema.arguments):
            self.work.append(lambda: func(*args, **kwargs))
            written = [
                kwargs[item.name] if item.name in kwargs else args[at]
                for at, item in enumerate(schema.arguments)
                if item.alias_info is not None and item.alias_info.is_write
            ]
            return written[0] if len(written) == 1 else tuple(written)
        random = torch.get_rng_state()
        results = func(*args, **kwargs)
        torch.set_rng_state(random)
        flat = [item for item in (results if isinstance(results, (tuple, list)) else [results]) if item is not None]

        def again() -> None:
            found = func(*args, **kwargs)
            new = [item for item in (found if isinstance(found, (tuple, list)) else [found]) if item is not None]
            for old, item in zip(flat, new, strict=True):
                old.copy_(item)

        self.work.append(again)
        for item in flat:
            item.fill_(True if item.dtype is torch.bool else -77)
        return results


def spread(graph: Graph, chance: random.Random) -> None:
    """Have the ops of a graph on the device change at random to a second one and back, with copies in between."""
    elsewhere: dict[tuple[Value, str], Value] = {}
    ops: list[Op] = []

    def brought(value: Value, home: str) -> Value:
        if value.device not in (NAME, OTHER) or value.device == home:
            return value
        if (value, home) not in elsewhere:
            kind = replace(value.type, device=home)
            attrs = {"op": "aten.clone.default", "args": (Ref(0),), "kwargs": {}}
            ops.append(Op("extern", [value], attrs, [kind], result_names=[f"copy{len(elsewhere)}"]))
            elsewhere[value, home] = ops[-1].result
        return elsewhere[value, home]

    home = NAME
    for op in list(graph.ops):
        if chance.random() < 0.4:
            home = OTHER if home == NAME else NAME
        at = NAME if regions(op) else home
        op.operands = [brought(item, at) if isinstance(item, Value) else item for item in op.operands]
        if op.attrs.get("device") == NAME:
            op.attrs["device"] = at
        for result in op.results:
            if result.device == NAME:
                result.type = replace(result.type, device=at)
        ops.append(op)
    graph.writes = [Write(item.target, brought(item.value, item.target.device)) for item in graph.writes]
    graph.ops = ops


class Placed:
    """A function compiled for the device that is made up; calls like the function.

    Args:
        fn: the function.
        args: example arguments.
        chance: with it the program is spread over two devices.
    """

    def __init__(self, fn: Callable[..., Any], *args: Any, chance: random.Random | None = None) -> None:
        options = Options(getattr(fn, "__name__", "fn").strip("<>"), backend="triton")
        self.captured: Captured = capture(fn, args, {}, options, frozenset({0, 1, 2, 3}))
        place(self.captured.graph, NAME)
        if chance is not None:
            spread(self.captured.graph, chance)
        record = generate(plan_for(self.captured.graph, options, "triton"))
        self.program = TritonProgram(Program.from_json(record.to_json()))
        self.reclaimer = Reclaimer(self.captured.effects, self.captured.effect_leaves, lent=True)
        self.program.lend(self.reclaimer.numbers())

    def __call__(self, *args: Any) -> Any:
        inputs = self.captured.match(args, {})
        assert inputs is not None, self.captured.explain_miss(args, {})
        self.reclaimer.take({})
        return self.captured.rebuild(self.program(inputs), inputs, (args, {}))

    @property
    def replay(self) -> str:
        return self.program.report()["replay"]


@contextlib.contextmanager
def rubbish_in_fresh_memory() -> Iterator[None]:
    """Torch fills memory that it gives out, so that nothing right is found there by chance."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
