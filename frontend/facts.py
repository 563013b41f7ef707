"""The facts of one capture as guards: arguments, modules, closures and globals, torch's global state, aliasing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import count
from typing import Any

import torch

from graphc.frontend import ambient, draws, tree
from graphc.frontend.aten import layout
from graphc.frontend.guards import Describe, GuardBuilder, GuardSet, TensorFacts, holds, is_plain
from graphc.frontend.inputs import Access, Binding, BindingKind
from graphc.frontend.modules import Masked, ModuleFacts
from graphc.frontend.reads import Reads
from graphc.ir.graph import Graph
from graphc.program.facts import TensorFact, stride_facts

_GRADIENTS = "gradients"
"""The local of a guard function that holds the gradients it has looked up."""
_INSTALLED: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)


class StateGuard:
    """torch's global state: grad, autocast, default dtype, determinism, threads, precision flags."""

    def __init__(self) -> None:
        self._own = _INSTALLED.GlobalStateGuard() if hasattr(_INSTALLED, "GlobalStateGuard") else None
        self._then = global_state()
        self.check = self._own.check if self._own is not None else lambda: global_state() == self._then

    @property
    def grad_mode(self) -> bool:
        """Was grad mode on?"""
        return bool(self._then["grad mode"])

    def describe(self, scope: dict[str, Any]) -> str:
        """Names the setting that changed."""
        now = global_state()
        for name, value in self._then.items():
            if now[name] != value:
                return f"{name}: {now[name]}, compiled for {value}"
        return f"torch's global state ({self._own.reason() if self._own is not None else 'unknown'})"


def global_state() -> dict[str, Any]:
    """The settings of torch that change what a program computes."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast on cpu": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        "autocast on cuda": torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "number of threads": torch.get_num_threads(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch function modes": torch._C._len_torch_function_stack(),
    }


class Facts:
    """What was true when the capture began; turned into guards when it has ended.

    Args:
        node: structure of (args, kwargs).
        leaves: their leaves.
        names: a readable path per leaf.
        reads: what the function reads beside its arguments.
        modules: snapshots of the modules.
        dynamic: leaves that are scalar inputs.
    """

    def __init__(
        self, node: tree.Node, leaves: list[Any], names: list[str], reads: Reads, modules: ModuleFacts,
        dynamic: frozenset[int],
    ) -> None:  # fmt: skip
        self._node, self._leaves, self._names, self._reads, self._modules = node, leaves, names, reads, modules
        self._dynamic = dynamic
        self._state = StateGuard()
        self._inference = torch.is_inference_mode_enabled()
        self._function_modes = torch._C._len_torch_function_stack()
        self._locals: list[str] = []
        self._objects: list[str] = []  # locals that hold objects among the arguments, in order
        self._found: dict[int, str] = {}  # by binding: the local that holds what was looked up
        self._sized: frozenset[int] = frozenset()
        self._gradients: dict[int, int] = {}  # by binding: the place in the list of gradients, which one line looks up

    def guards(
        self,
        graph: Graph,
        bindings: Sequence[Binding],
        trained: Sequence[Callable[[GuardBuilder], None]] = (),
        numbers: Collection[Hashable] = (),
        masked: Masked = lambda access, value: value,
        contents: Iterable[tuple[str, Access, Any]] = (),
        replaced: Collection[Hashable] = (),
        drawn: Callable[[GuardBuilder], None] = lambda g: None,
        sized: Collection[int] = (),
    ) -> GuardSet:
        """The guard function for a captured graph.

        Args:
            numbers: keys of accesses to numbers that are inputs.
            masked: the value to guard at a place, see `Attributes.masked`.
            contents: (path, access, items) of containers, see `Attributes.contents`.
            replaced: keys of accesses to what may be another object in every call.
            trained: add the facts about gradients and optimizers.
            drawn: adds the draws of the call, which come last.
            sized: ids of tensors whose shapes and strides are for others to check.
        """
        self._sized = frozenset(sized)
        g = GuardBuilder()
        self._arguments(g)
        self._global_state(g)
        ambient.guards(g)
        for facts in trained:
            facts(g)
        self._look_up(g, graph, bindings)
        self._storages(g, bindings)
        for value, binding in zip(graph.inputs, bindings, strict=True):
            for access in binding.accesses if binding.kind is not BindingKind.FOUND else ():
                g.is_object(access, binding.tensor, f"tensor {value.path}")
        self._modules.guards(g, numbers, masked)
        for path, access, value in self._reads.values:
            if not numbers or access.key() not in numbers:
                g.equals(access, masked(access, value), path)
        for path, access, items in contents:
            g.check(
                f"{g.hold(holds(items, tensors=False))}({g.hold(access.root)}{access.suffix})", f"what is in {path}"
            )
        for path, access, item in self._reads.identities:
            if not replaced or access.key() not in replaced:
                g.is_object(access, item, path)
        for path, access, name in self._reads.absent:
            g.check(
                f"{name!r} not in {g.hold(access.root)}{access.suffix}.__dict__", f"{path}: found on the object now"
            )
        self._tensors(g, graph, bindings)
        self._apart(g, graph, bindings)
        drawn(g)
        return g.build(self._inputs(g, bindings))

    def local(self, number: int) -> str:
        """The name that holds an argument leaf in the guards."""
        return self._locals[number]

    # arguments

    def _arguments(self, g: GuardBuilder) -> None:
        args, kwargs = self._node.children
        g.check(f"len(args) == {len(args.children)}", _argument_count(len(args.children)))
        keys = tuple(kwargs.keys)
        g.check(f"tuple(kwargs) == {keys!r}" if keys else "not kwargs", _keywords(keys))
        names = iter(self._names)
        counter = count()
        self._parts(g, args, "args", names, counter)
        self._parts(g, kwargs, "kwargs", names, counter)

    def _parts(self, g: GuardBuilder, node: tree.Node, expression: str, names: Any, counter: Any) -> None:
        for index, child in enumerate(node.children):
            local = f"v{next(counter)}"
            g.let(f"{local} = {_part(g, node, expression, index)}")
            self._value(g, child, local, names, counter)

    def _value(self, g: GuardBuilder, node: tree.Node, local: str, names: Any, counter: Any) -> None:
        if node.kind == "leaf":
            self._leaf(g, local, next(names))
            return
        what = f"structure of argument ({node.cls.__name__} expected)"
        if node.kind == "again":
            g.check(f"{local} is {self._objects[node.keys[0]]}", what)
            return
        g.check(f"type({local}) is {g.hold(node.cls)}", what)
        inner = local
        if node.kind == "object":
            self._objects.append(local)
            inner = f"{local}_attributes"
            g.let(f"{inner} = {local}.__dict__")
            g.check(
                f"tuple({inner}) == {g.hold(node.keys)}",
                f"attributes of an object, compiled for {', '.join(node.keys)}",
            )
        if node.kind == "registered":
            inner = f"{local}_parts"
            context = f"{local}_context"
            g.let(f"{inner}, {context} = {g.hold(_flatten_function(node.cls))}({local})")
            g.check(f"{context} == {g.hold(node.keys[0])}", what)
            g.check(f"len({inner}) == {len(node.children)}", what)
        elif node.kind in ("list", "tuple"):
            g.check(
                f"len({local}) == {len(node.children)}", f"length of a {node.kind}, compiled for {len(node.children)}"
            )
        elif node.kind in ("dict", "userdict"):
            inner = local if node.kind == "dict" else f"{local}.data"
            g.check(
                f"tuple({inner}) == {g.hold(node.keys)}",
                f"keys of a dict, compiled for {', '.join(map(str, node.keys))}",
            )
        self._parts(g, node, inner, names, counter)

    def _leaf(self, g: GuardBuilder, local: str, name: str) -> None:
        index = len(self._locals)
        self._locals.append(local)
        leaf = self._leaves[index]
        if isinstance(leaf, torch.Tensor):
            for other in range(index):
                if self._leaves[other] is leaf:
                    g.check(f"{local} is {self._locals[other]}", f"argument {name} is no longer {self._names[other]}")
                    break
            return
        if type(leaf) is list:  # taken as it is
            g.check(f"type({local}) is {g.hold(list)}", f"type of argument {name}, compiled for a list")
            for other in range(index):
                if type(self._leaves[other]) is list:
                    same = "is" if self._leaves[other] is leaf else "is not"
                    g.check(f"{local} {same} {self._locals[other]}", f"which lists are {name} and {self._names[other]}")
        elif index in self._dynamic:
            g.check(
                f"type({local}) is {g.hold(type(leaf))}", f"type of argument {name}, compiled for {type(leaf).__name__}"
            )
        elif is_plain(leaf):
            g.equals(local, leaf, f"argument {name}")
        else:
            g.is_object(local, leaf, f"argument {name}")

    def _look_up(self, g: GuardBuilder, graph: Graph, bindings: Sequence[Binding]) -> None:
        owners = [
            (binding, binding.accesses[0].root)
            for binding in bindings
            if binding.kind is BindingKind.FOUND and binding.number is None and binding.accesses[0].suffix == ".grad"
        ]
        if len(owners) > 1:
            self._gradients = {id(binding): place for place, (binding, _) in enumerate(owners)}
            g.let(f"{_GRADIENTS} = [t.grad for t in {g.hold([owner for _, owner in owners])}]", "a gradient is gone")
        for value, binding in zip(graph.inputs, bindings, strict=True):
            if binding.kind is BindingKind.FOUND and id(binding) not in self._gradients:
                local = self._found[id(binding)] = f"w{len(self._found)}"
                found = f"{g.hold(binding.accesses[0].root)}{binding.accesses[0].suffix}"
                g.let(f"{local} = {found}", f"tensor {value.path} is gone")
                if binding.number is not None:
                    name = binding.number.__name__
                    g.check(f"type({local}) is {name}", f"type of a number, compiled for {name}")
            elif binding.kind is BindingKind.ARG_GRAD:
                local = self._found[id(binding)] = f"w{len(self._found)}"
                g.let(f"{local} = {self._locals[binding.leaf]}.grad", f"tensor {value.path} is gone")

    # torch's state

    def _global_state(self, g: GuardBuilder) -> None:
        g.check(f"{g.hold(self._state.check)}()", self._state.describe)
        inference = g.hold(torch.is_inference_mode_enabled)
        g.check(f"{inference}() is {self._inference}", self._state.describe)
        stack = g.hold(torch._C._len_torch_function_stack)
        g.check(f"{stack}() == {self._function_modes}", self._state.describe)
        if self._function_modes:
            device = torch.get_default_device()
            g.check(
                f"{g.hold(torch.get_default_device)}() == {g.hold(device)}", f"default device, compiled for {device}"
            )

    # tensors

    def _tensors(self, g: GuardBuilder, graph: Graph, bindings: Sequence[Binding]) -> None:
        """Metadata of every tensor, in one call."""
        names: list[str] = []
        tensors: list[torch.Tensor] = []
        expressions: list[str] = []
        for index, leaf in enumerate(self._leaves):
            if isinstance(leaf, torch.Tensor) and not any(leaf is t for t in tensors):
                names.append(f"argument {self._names[index]}")
                tensors.append(leaf)
                expressions.append(self._locals[index])
        gradients: list[tuple[str, torch.Tensor]] = []
        for value, binding in zip(graph.inputs, bindings, strict=True):
            if binding.kind in (BindingKind.FOUND, BindingKind.ARG_GRAD) and binding.tensor is not None:
                if id(binding) in self._gradients:
                    gradients.append((f"tensor {value.path}", binding.tensor))
                    continue
                names.append(f"tensor {value.path}")
                tensors.append(binding.tensor)
                expressions.append(self._found[id(binding)])
        if gradients:
            names += [name for name, _ in gradients]
            tensors += [tensor for _, tensor in gradients]
            expressions.append(f"*{_GRADIENTS}")
        given = len(tensors)
        fixed = [
            (v.path, b.tensor)
            for v, b in zip(graph.inputs, bindings, strict=True)
            if b.tensor is not None and (b.accesses or b.kind is BindingKind.FIXED) and b.kind is not BindingKind.FOUND
        ]
        names += [f"tensor {path}" for path, _ in fixed]
        tensors += [tensor for _, tensor in fixed]
        if not tensors:
            return
        listed = list(expressions)
        if fixed:
            listed.append(f"*{g.hold(tuple(tensor for _, tensor in fixed))}")
        check = _metadata_check(tensors, self._sized)
        g.check(
            f"{g.hold(check)}({', '.join(listed)})",
            _describe_metadata(names, tensors, expressions, given, self._sized),
            self._native_facts(g, tensors, expressions, given),
        )

    def _native_facts(
        self, g: GuardBuilder, tensors: list[torch.Tensor], expressions: list[str], given: int
    ) -> TensorFacts:
        """The same for native code.

        That does not see how this thread adds to and takes from the dispatch keys of all tensors, which depends on
        their own keys alone; torch is still asked about it, for one tensor of each set of keys.
        """
        alone = [expression for expression in expressions if not expression.startswith("*")]
        facts: list[TensorFact] = []
        samples: dict[int, tuple[torch.Tensor, str]] = {}
        for index, tensor in enumerate(tensors):
            keys = torch._C._dispatch_keys(tensor).raw_repr()
            if keys not in samples:
                place = f"{_GRADIENTS}[{index - len(alone)}]" if index < given else g.hold(tensor)
                samples[keys] = tensor, alone[index] if index < len(alone) else place
            is_sized = id(tensor) in self._sized
            facts.append(
                TensorFact(
                    tensor=None if index < given else tensor,
                    cls=type(tensor),
                    keys=keys,
                    dtype=tensor.dtype,
                    device=tensor.device,
                    shape=(-1,) * tensor.dim() if is_sized else tuple(tensor.shape),
                    strides=(-1,) * tensor.dim() if is_sized else stride_facts(tensor.shape, tensor.stride()),
                    requires_grad=tensor.requires_grad if self._state.grad_mode else None,
                )
            )
        check = g.hold(_metadata_check([tensor for tensor, _ in samples.values()], self._sized))
        rest = f"{check}({', '.join(where for _, where in samples.values())})"
        return TensorFacts(tuple(facts), tuple(expressions), rest)

    def _storages(self, g: GuardBuilder, bindings: Sequence[Binding]) -> None:
        """Tensors that share a storage which is one input: still the same storage, at the same offsets."""
        for binding in bindings:
            if binding.kind is not BindingKind.STORAGE:
                continue
            assert binding.tensor is not None
            storage = binding.tensor.untyped_storage()
            home = self._locals[binding.leaf] if binding.leaf >= 0 else g.hold(binding.tensor)
            g.check(f"{home}.untyped_storage().nbytes() == {storage.nbytes()}", "size of a storage")
            for index, leaf in enumerate(self._leaves):
                if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata == storage._cdata:
                    local = self._locals[index]
                    same = f"{local}.untyped_storage()._cdata == {home}.untyped_storage()._cdata"
                    place = f"{local}.storage_offset() == {leaf.storage_offset()}"
                    g.check(f"{same} and {place}", f"argument {self._names[index]} shares its memory in another way")

    def _apart(self, g: GuardBuilder, graph: Graph, bindings: Sequence[Binding]) -> None:
        """Written tensors overlap no other one, unless they did when compiled."""
        written = {id(write.target) for write in graph.writes}
        pairs = list(zip(graph.inputs, bindings, strict=True))
        written_leaves = {binding.leaf for value, binding in pairs if id(value) in written}
        merged = {b.leaf for b in bindings if b.kind is BindingKind.STORAGE}
        keys = {self._leaves[leaf].untyped_storage()._cdata for leaf in merged if leaf >= 0}
        expressions, spans, flags = [], [], []
        for index, leaf in enumerate(self._leaves):
            first = isinstance(leaf, torch.Tensor) and not any(leaf is self._leaves[i] for i in range(index))
            if first and leaf.untyped_storage()._cdata not in keys:
                expressions.append(self._locals[index])
                spans.append(None if id(leaf) in self._sized else _span_bytes(leaf))
                flags.append(any(self._leaves[other] is leaf for other in written_leaves if other >= 0))
        if not written or not expressions:
            return
        for value, binding in pairs:
            if binding.kind is BindingKind.FIXED and binding.tensor is not None and id(value) in written:
                expressions.append(g.hold(binding.tensor))
                spans.append(_span_bytes(binding.tensor))
                flags.append(True)
        if len(expressions) > 1:
            test = f"{g.hold(Apart(spans, flags))}(({', '.join(expressions)}))"
            g.check(test, "arguments overlap in memory, compiled for arguments that do not")

    def _inputs(self, g: GuardBuilder, bindings: Sequence[Binding]) -> str:
        """The expression for the program's inputs."""
        parts: list[str] = []
        run: list[Any] = []
        places: list[int] = []  # of gradients that follow each other
        for binding in [*bindings, None]:
            place = self._gradients.get(id(binding), -1)
            if places and place != places[-1] + 1:
                parts.append(f"*{_GRADIENTS}[{places[0]}:{places[-1] + 1}]")
                places = []
            if binding is not None and binding.kind is BindingKind.FIXED:
                run.append(binding.tensor)
                continue
            if run:
                parts.append(f"*{g.hold(tuple(run))}")
                run = []
            if place >= 0:
                places.append(place)
                continue
            if binding is None:
                break
            if binding.kind is BindingKind.STORAGE:
                home = self._locals[binding.leaf] if binding.leaf >= 0 else g.hold(binding.tensor)
                parts.append(f"{g.hold(whole_storage)}({home}, {binding.count})")
            elif binding.kind in (BindingKind.FOUND, BindingKind.ARG_GRAD):
                parts.append(self._found[id(binding)])
            elif binding.kind is BindingKind.DRAWN:
                parts.append(draws.local(binding.leaf))
            else:
                parts.append(self._locals[binding.leaf])
        return f"[{', '.join(parts)}]"


def whole_storage(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """All of a tensor's storage as one 1-D tensor."""
    return tensor.detach().as_strided((count,), (1,), 0)


class Apart:
    """Whether no tensor that is written overlaps another one in memory.

    Calls have their tensors where earlier ones had them more often than not, so answers are kept by addresses.

    Args:
        spans: extents of the tensors in bytes; None where they differ from call to call.
        written: which of them are written.
    """

    def __init__(self, spans: Sequence[int | None], written: Sequence[bool]) -> None:
        self._rows = [(span, flag) for span, flag in zip(spans, written, strict=True)]
        self._sized = None in spans
        self._known: dict[tuple[int, ...], bool] = {}

    def __call__(self, tensors: Sequence[torch.Tensor]) -> bool:
        if self._sized:
            return self._are_apart(tensors)
        addresses = tuple([tensor.data_ptr() for tensor in tensors])
        found = self._known.get(addresses)
        if found is None:
            if len(self._known) >= _MOST_PLACES:
                self._known.clear()
            found = self._known[addresses] = self._are_apart(tensors)
        return found

    def _are_apart(self, tensors: Sequence[torch.Tensor]) -> bool:
        rows = [
            (tensor.data_ptr(), _span_bytes(tensor) if span is None else span, flag)
            for tensor, (span, flag) in zip(tensors, self._rows, strict=True)
        ]
        ranges = sorted(row for row in rows if row[1])
        last = last_written = 0
        for start, span, is_written in ranges:
            if start < (last if is_written else last_written):
                return False
            last = max(last, start + span)
            if is_written:
                last_written = last
        return True


_MOST_PLACES = 64


def _span_bytes(tensor: torch.Tensor) -> int:
    return layout.span(tuple(tensor.shape), tuple(tensor.stride())) * tensor.element_size()


def _part(g: GuardBuilder, node: tree.Node, expression: str, index: int) -> str:
    if node.kind == "dataclass":
        return f"{expression}.{node.keys[index]}"
    if node.kind in ("dict", "userdict", "object"):
        key = node.keys[index]
        return f"{expression}[{repr(key) if isinstance(key, (str, int)) else g.hold(key)}]"
    return f"{expression}[{index}]"


def _flatten_function(cls: type) -> Any:
    from torch.utils import _pytree

    flatten = _pytree.SUPPORTED_NODES[cls].flatten_fn
    return lambda value: (lambda parts: (list(parts[0]), parts[1]))(flatten(value))


def _keywords(then: tuple[str, ...]) -> Describe:
    def describe(scope: dict[str, Any]) -> str:
        return f"keyword arguments: {', '.join(scope['kwargs']) or 'none'}, compiled for {', '.join(then) or 'none'}"

    return describe


def _argument_count(count: int) -> Describe:
    return lambda scope: f"{len(scope['args'])} positional arguments, compiled for {count}"


def _metadata_check(tensors: list[Any], sized: frozenset[int] = frozenset()) -> Any:
    """A test of the metadata of tensors; of those of these ids, of all but their shapes and strides."""
    if hasattr(_INSTALLED, "TensorGuards"):
        sizes = [[None] * t.dim() if id(t) in sized else list(t.shape) for t in tensors]
        facts = [(-1,) * t.dim() if id(t) in sized else stride_facts(t.shape, t.stride()) for t in tensors]
        strides = [[None if stride < 0 else stride for stride in known] for known in facts]
        try:
            return _INSTALLED.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
        except (TypeError, RuntimeError, SystemError):  # another torch, with another signature
            pass
    expected = [_facts_of(metadata(tensor), id(tensor) in sized) for tensor in tensors]
    return lambda *now: all(
        isinstance(t, torch.Tensor) and {key: metadata(t)[key] for key in then} == then
        for t, then in zip(now, expected, strict=True)
    )


def _facts_of(found: dict[str, Any], is_sized: bool) -> dict[str, Any]:
    return {key: value for key, value in found.items() if not (is_sized and key in ("shape", "strides"))}


def metadata(tensor: torch.Tensor) -> dict[str, Any]:
    """What guards compare of a tensor."""
    grad = torch.is_grad_enabled() and tensor.requires_grad
    strides = tuple("any" if stride < 0 else stride for stride in stride_facts(tensor.shape, tensor.stride()))
    return {
        "type": type(tensor).__name__, "dtype": tensor.dtype, "device": tensor.device, "shape": tuple(tensor.shape),
        "strides": strides, "requires_grad": grad, "dispatch keys": torch._C._dispatch_keys(tensor),
    }  # fmt: skip


def _describe_metadata(
    names: list[str], tensors: list[Any], expressions: list[str], given: int, sized: frozenset[int]
) -> Describe:
    expected = [_facts_of(metadata(tensor), id(tensor) in sized) for tensor in tensors]
    held = tensors[given:]

    def describe(scope: dict[str, Any]) -> str:
        now = [
            item
            for expression in expressions
            for item in (scope[_GRADIENTS] if expression.startswith("*") else [scope.get(expression)])
        ]
        now += held
        for number, (name, item, then) in enumerate(zip(names, now, expected, strict=True)):
            if not isinstance(item, torch.Tensor):
                return f"{name}: a {type(item).__name__}, compiled for a tensor"
            now_is = metadata(item)
            for key, value in then.items():
                if now_is[key] != value:
                    return f"{name}: {key} {now_is[key]}, compiled for {value}"
            if any(item is now[i] for i in range(number)):
                return f"{name} is one tensor with another argument, compiled for two"
        return "metadata of a tensor"

    return describe
