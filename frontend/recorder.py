"""The state of one capture: the graph under construction, the tensors seen so far, and how ATen calls enter it."""

from __future__ import annotations

import contextlib
import functools
import re
import weakref
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

import torch

from graphc.errors import CaptureError, EagerCallError, EagerOnlyError, UnsupportedError
from graphc.frontend import functionalize, host
from graphc.frontend.argument_tensors import ArgumentTensors
from graphc.frontend.assumptions import Assumptions
from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer, tensor_type
from graphc.frontend.draws import Draws
from graphc.frontend.encoder import Encoders
from graphc.frontend.forks import Forks
from graphc.frontend.functionalize import Storage, Strided, TensorState, root_state
from graphc.frontend.gradients import Gradients
from graphc.frontend.inputs import Access, Binding, BindingKind, SourceMap
from graphc.frontend.known import Known
from graphc.frontend.locations import Locator
from graphc.frontend.messages import Messages
from graphc.frontend.moves import Moves
from graphc.frontend.optimizers import OptimizerNumber, Optimizers
from graphc.frontend.paths import Decider
from graphc.frontend.prints import Prints
from graphc.frontend.scalers import Scalers
from graphc.frontend.schedulers import Schedules
from graphc.frontend.selected import Escaped, Selected, Selections
from graphc.frontend.sized import SizedInputs
from graphc.frontend.traced import TracedTensor
from graphc.ir import types
from graphc.ir.graph import Builder, Graph, Input, Op, Role, Value
from graphc.ir.types import HOST, Location, TensorType
from graphc.ops import infer


class RestartCapture(BaseException):
    """Capture again with this storage taken as one 1-D input, since tensors on it overlap and one is written.

    Not an Exception, so that the user's own handlers let it pass.
    """

    def __init__(self, storage: int) -> None:
        self.storage = storage


class Specialize(BaseException):
    """Capture again with these scalar arguments as constants, since Python looked at their values."""

    def __init__(self, leaves: frozenset[Hashable]) -> None:
        self.leaves = leaves


class Uninitialized(BaseException):
    """A lazy module runs for the first time, which gives it its parameters: that is for eager to do.

    Not an Exception, so that the user's own handlers let it pass.
    """


class Recorder:
    """One capture in progress.

    Args:
        name: of the graph.
        sources: where real tensors come from, for roles and paths.
        merged: storages (by address of the storage object) to take as one 1-D input each.
        constants: numbers of optimizers that are to be constants.
        numerics: `default`, or `eager`.
        assumes: branches that only guard against errors are checked by the program, and no decisions.
    """

    def __init__(
        self,
        name: str,
        sources: SourceMap,
        merged: frozenset[int] = frozenset(),
        constants: frozenset[Hashable] = frozenset(),
        numerics: str = "default",
        assumes: bool = False,
    ) -> None:
        self.graph = Graph(name)
        self.builder = Builder(self.graph, infer)
        self.imp = Importer(self.builder, numerics)
        self.sources = sources
        self.locator = Locator(sources.current_path)
        self.bindings: list[Binding] = []
        self.warnings: list[str] = []
        self.gradients = Gradients(sources)
        self.arguments = ArgumentTensors(self)
        self.moves = Moves(self)
        self.optimizers = Optimizers(self, constants)
        self.schedules = Schedules(self)
        self.scalers = Scalers(self)
        self.prints = Prints(self)
        self.selections = Selections(self)
        self.dynamic_numbers: Collection[Hashable] = ()  # keys of numbers of optimizers that are to be inputs
        self._merged = merged
        self.sized: SizedInputs | None = None  # inputs that are taken to have any sizes
        self.sized_inputs: dict[int, int] = {}  # by tensor: which inputs these are
        self._sizes: weakref.WeakSet[host.SizeNode] = weakref.WeakSet()
        self._states: dict[int, TensorState] = {}
        self._kept: list[torch.Tensor] = []  # keeps ids in _states valid
        self._versions: list[tuple[torch.Tensor, int]] = []  # autograd counts writes that have not been carried out
        self._extents: dict[int, list[tuple[int, int, TensorState]]] = {}
        self._covered: dict[int, list[tuple[int, int, int]]] = {}  # by storage in the graph: (key, start, stop)
        self._roots: dict[int, TensorState] = {}
        self.storages: list[Storage] = []
        self.very_tensors: dict[int, Input] = {}  # by state: inputs that are that tensor itself
        self.made: list[weakref.ref[TracedTensor]] = []
        self.numbers: list[weakref.ref[host.HostNode]] = []
        self.assumptions = Assumptions(self, assumes)
        self.messages = Messages(False)
        self.decider: Decider | None = None  # None: decisions on data are refused
        self.draws: Draws | None = None  # what it draws from generators of Python and numpy
        self.windows: set[tuple[Value, Value, int]] = set()  # start, stop, size: of slices that are known to be inside
        self.forks: Forks | None = None  # which answers decisions, while one parameter stands for many
        self.imp.known = self.known = Known(self._constant_tensor)
        self._written: list[Storage] | None = None  # where writes are noted, while somebody asks
        self.encoders = Encoders()
        self.function_modes = torch._C._len_torch_function_stack() + 1  # the user's and the capture's own

    # inputs

    def add_input(self, tensor: torch.Tensor, role: Role, path: str, binding: Binding) -> TensorState:
        """Make a real tensor an input of the graph; the same tensor or merged storage is one input."""
        known = self._states.get(id(tensor))
        if known is not None:
            return known
        check_supported(tensor, path, self.locator, binding.leaf >= 0)
        key = 0 if role is Role.CONST else tensor.untyped_storage()._cdata
        if key in self._merged and key:
            state = self._merged_state(tensor, key, role, path, binding)
        else:
            type_, strides = tensor_type(tensor), tuple(tensor.stride())
            found = None if self.sized is None else self.sized.of(path, tensor)
            if found is not None:
                self.sized_inputs[id(tensor)] = len(self.bindings)
                strides, type_ = found[1], TensorType(type_.dtype, found[0], type_.device)
            value = self._new_input(type_, role, path, binding, strides)
            constant = role is Role.CONST
            state = root_state(value, strides, int(tensor.storage_offset()), value, constant)
            self.storages.append(state.storage)
            if not constant:
                self.very_tensors[id(state)] = value
            if key:
                self._note_extent(key, tensor, state)
        self._states[id(tensor)] = state
        self._kept.append(tensor)
        if not tensor.is_inference():
            self._versions.append((tensor, tensor._version))
        return state

    def _new_input(self, type_: TensorType, role: Role, path: str, binding: Binding, strides: tuple[int, ...]) -> Input:
        shape: tuple[int, ...] = type_.shape  # type: ignore[assignment]  # static by construction
        plain = layout.is_contiguous(shape, strides)
        if len(shape) in (4, 5) and 0 not in shape:  # torch reads the memory format off strides of dims of size 1 too
            plain = strides == layout.contiguous(shape)
        value = self.builder.input(_identifier(path), type_, role, path, None if plain else strides)
        self.bindings.append(binding)
        return value

    def _merged_state(self, tensor: torch.Tensor, key: int, role: Role, path: str, binding: Binding) -> TensorState:
        root = self._roots.get(key)
        plain = tensor_type(tensor)
        if root is None:
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            whole = Binding(BindingKind.STORAGE, tensor=binding.tensor, leaf=binding.leaf, count=count)
            value = self._new_input(
                TensorType(plain.dtype, (count,), plain.device), role, f"{path}.storage", whole, (1,)
            )
            root = self._roots[key] = root_state(value, (1,), 0, value)
            self.storages.append(root.storage)
        if root.dtype != plain.dtype:
            raise UnsupportedError(f"{path} shares memory with a tensor of another dtype that is written in place")
        value = self._new_input(plain, role, path, binding, tuple(tensor.stride()))  # for handing it back unchanged
        shape, strides, offset = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        state = root.view(Strided(shape, strides, offset if 0 not in shape else 0), shape, strides, offset)
        self.very_tensors[id(state)] = value
        return state

    def _note_extent(self, key: int, tensor: torch.Tensor, state: TensorState) -> None:
        """Remember which memory an input covers; overlapping ones may not be written."""
        start = int(tensor.storage_offset()) * tensor.element_size()
        stop = start + layout.span(tuple(tensor.shape), tuple(tensor.stride())) * tensor.element_size()
        others = self._extents.setdefault(key, [])
        for low, high, other in others:
            if start < high and low < stop and (other.storage.version or state.storage.version):
                raise RestartCapture(key)
        others.append((start, stop, state))
        self._covered.setdefault(id(state.storage), []).append((key, start, stop))

    def scalar_input(self, number: bool | int | float, path: str, leaf: int) -> Any:
        """A Python number that is an input of the program."""
        kind = next(
            kind for kind in (bool, int, float) if isinstance(number, kind)
        )  # numpy has floats of its own class
        value = self._number(kind, path)
        self.bindings.append(Binding(BindingKind.SCALAR, leaf=leaf))
        return host.wrap(host.HostNode(self, value, kind, number, frozenset((leaf,))))

    def number_input(self, number: int | float, path: str, access: Access, key: Hashable) -> Any:
        """A Python number found in some object in every call, as an input of the program.

        Args:
            key: what `Specialize` says when Python looks at it.
        """
        kind = type(number)
        value = self._number(kind, path)
        self.bindings.append(Binding(BindingKind.FOUND, accesses=(access,), number=kind))
        return host.wrap(host.HostNode(self, value, kind, number, frozenset((key,))))

    def _number(self, kind: type, path: str) -> Input:
        dtype = {bool: types.bool_, int: types.i64, float: types.f64}[kind]
        return self.builder.input(_identifier(path), TensorType(dtype, (), HOST), Role.SCALAR, path)

    def drawn_input(self, number: int | float, path: str, place: int, key: Hashable) -> Any:
        """A number that each call draws, as an input of the program.

        Args:
            place: among the draws.
            key: what `Specialize` says when Python looks at it.
        """
        kind = type(number)
        value = self._number(kind, path)
        self.bindings.append(Binding(BindingKind.DRAWN, leaf=place))
        return host.wrap(host.HostNode(self, value, kind, number, frozenset((key,))))

    def make(self, state: TensorState, requires_grad: bool = False) -> TracedTensor:
        """A traced tensor for a state."""
        tensor = TracedTensor.make(state, self, requires_grad)
        self.made.append(weakref.ref(tensor))
        return tensor

    def state_of(self, tensor: torch.Tensor) -> TensorState:
        """The state of any tensor met in a call; a real one becomes an input at first sight.

        Raises:
            CaptureError: a tensor of an earlier capture, or of a subclass that graphc does not know.
        """
        if type(tensor) is TracedTensor:
            if tensor.recorder is not self:
                raise CaptureError("a tensor left over from an earlier capture is used", self.locator.here())
            return tensor.state
        known = self._states.get(id(tensor))
        if known is not None:
            return known
        if type(tensor) is Selected:
            raise Escaped
        role, path, binding = self.sources.find(tensor)
        if binding.warning:
            where = self.locator.here()
            self.warnings.append(f"{where.file}:{where.line}: {binding.warning}")
        self.gradients.see(tensor, path)
        return self.add_input(tensor, role, path, binding)

    def replace_state(self, tensor: torch.Tensor, state: TensorState) -> None:
        """A real tensor that is an input is another view of memory from now on."""
        self._states[id(tensor)] = state

    def is_part(self, storage: Storage) -> bool:
        """Whether a storage stands for what one input covers of its memory, and not for all of that."""
        return id(storage) in self._covered

    def constant(self, tensor: torch.Tensor) -> TensorState:
        """A tensor made from Python data."""
        if tensor.numel() == 1 and not tensor.is_complex() and "float8" not in str(tensor.dtype):
            t = tensor_type(tensor)
            value = self.imp.full(t.shape, tensor.item(), t.dtype, t.device)  # type: ignore[arg-type]
            return root_state(value, tuple(tensor.stride()))
        name = f"const{len(self.bindings)}"
        return self.add_input(tensor, Role.CONST, name, Binding(BindingKind.FIXED, tensor=tensor))

    def _constant_tensor(self, value: Input) -> torch.Tensor | None:
        """The tensor behind an input that was made from Python data."""
        pairs = zip(self.graph.inputs, self.bindings, strict=False)  # cotangents have no binding
        return next((binding.tensor for known, binding in pairs if known is value), None)

    # values

    def known_tensor(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The data of a tensor that no input decides, or None."""
        found = self.known.of(self.value_of(tensor))
        return found if isinstance(found, torch.Tensor) else None

    def value_of(self, tensor: torch.Tensor) -> Value:
        """The present value of any tensor."""
        return functionalize.read(self.builder, self.state_of(tensor))

    def write(self, tensor: torch.Tensor, new: Value) -> None:
        """Give a tensor new contents.

        Raises:
            RestartCapture: another input overlaps it, or elements of the input itself do.
        """
        state = self.state_of(tensor)
        if state.storage.source is not None and functionalize.repeats(state.storage.root):
            self.need_storage(state)
        functionalize.write(self.builder, state, new)
        if self._written is not None:
            self._written.append(state.storage)
        source = state.storage.source
        if source is None or state.storage.version > 1:
            return
        for key, low, high in self._covered.get(id(state.storage), ()):
            others = self._extents[key]
            if any(o.storage is not state.storage and low < h and start < high for start, h, o in others):
                raise RestartCapture(key)

    @contextlib.contextmanager
    def watching_writes(self) -> Iterator[list[Storage]]:
        """For the block: the storages that are written, in order, with repeats."""
        outer, self._written = self._written, []
        try:
            yield self._written
        finally:
            if outer is not None:
                outer += self._written
            self._written = outer

    def need_storage(self, state: TensorState) -> None:
        """Restart with the storage of an input as 1-D, since a view reaches outside the input."""
        for key, _, _ in self._covered.get(id(state.storage), ()):
            raise RestartCapture(key)
        raise RuntimeError("as_strided: out of bounds for the storage of the tensor")

    def wrap(self, value: Value, strides: Sequence[int]) -> TracedTensor:
        """A fresh tensor that holds `value`; eager gives it these strides."""
        given = tuple(strides)
        if value.op is not None and value.strides is None and not layout.is_contiguous(value.shape, given):  # type: ignore[arg-type]
            value.strides = given
        return self.make(root_state(value, given))

    # the end of a run

    def gradient_facts(self) -> list[tuple[str, torch.Tensor, bool]]:
        """As `Gradients.facts`, for the inputs the program has."""
        return self.gradients.facts({id(binding.tensor) for binding in self.bindings})

    def settle(self) -> None:
        """After a good run: gradients, state of optimizers and schedules, and version counters as before."""
        self.schedules.restore()
        self.scalers.settle()
        self.optimizers.settle()
        self.gradients.restore()
        set_versions(self._versions)

    def undo(self) -> None:
        """After a failed run: as `settle`, and state made by the way is gone."""
        for node in list(self._sizes):
            node.leave()
        self.schedules.restore()
        self.scalers.undo()
        self.optimizers.undo()
        self.gradients.restore()
        set_versions(self._versions)

    def forget(self, ops: list[Op]) -> None:
        """Ops that have been taken out of the graph: no tensor remembers their results as its value."""
        gone = set(ops)
        alive = [tensor.state for ref in self.made if (tensor := ref()) is not None]
        for found in (*alive, *self._states.values()):
            state: TensorState | None = found
            while state is not None:
                if state.cached is not None and state.cached.op in gone:
                    state.cached, state.version = None, -1
                state = state.parent

    def forget_dead(self) -> None:
        """Drop what is noted of tensors and numbers that are gone."""
        self.made = [ref for ref in self.made if ref() is not None]
        self.numbers = [ref for ref in self.numbers if ref() is not None]

    def versions(self) -> list[tuple[torch.Tensor, int]]:
        """Version counters as they are now of tensors that will still be there when the capture is over."""
        given = self._given()
        return [(tensor, tensor._version) for tensor, _ in self._versions if id(tensor) not in given]

    def _given(self) -> set[int]:
        """Ids of tensors that came as arguments."""
        return {id(binding.tensor) for binding in self.bindings if binding.leaf >= 0}

    def successor(self) -> Recorder:
        """For what is asked when the capture is over: it knows its tensors, but none of the arguments."""
        twin, given = Recorder(self.graph.name, SourceMap([], [])), self._given()
        twin._kept = [tensor for tensor in self._kept if id(tensor) not in given]
        twin._states = {id(tensor): self._states[id(tensor)] for tensor in twin._kept}
        pairs = zip(self.graph.inputs, self.bindings, strict=False)
        twin.imp.known = twin.known = Known({v: b.tensor for v, b in pairs if v.role is Role.CONST}.get)
        return twin

    # HostScope

    def host_op(self, name: str, *operands: Value | bool | int | float) -> Value:
        self.builder.location = self.locator.here()
        if name.startswith("cast:"):
            return self.builder.op("cast", *operands, dtype=types.DTYPES[name[5:]])
        return self.builder.op(name, *operands)

    def specialize(self, node: host.HostNode) -> bool | int | float:
        decider = self.decider
        if self.forks is not None and not self.forks.closed and node.hint is None and node.kind is bool:
            return self.forks.answer(node)
        if node.hint is not None and self.optimizers.assume(node):
            return node.hint
        if self.draws is not None and not (node.kind is bool and decider is not None):
            self.draws.check_look(node)
        if node.hint is not None and (decider is None or not (decider.taken or _is_branch(node))):
            raise Specialize(node.leaves)
        if decider is None:
            raise host.refuse("a Python value or branch", self.locator.here())
        if node.kind is bool and (assumed := self.assumptions.answer(node)) is not None:
            return assumed
        return decider.number(node)

    def text_of(self, node: host.HostNode, spec: str = "") -> str:
        """Text of a number. Names are made of integers, so these are looked at, unless they are only shown."""
        mark = functools.partial(self.prints.number, node, spec)
        text = mark() if node.kind is float and self.messages.allowed else self.messages.text(mark)
        return format(self.specialize(node), spec) if text is None else text

    def expect(self, node: host.HostNode) -> bool:
        expected = self.assumptions.truth(node) if self.decider is not None and node.hint is None else None
        return bool(self.specialize(node)) if expected is None else expected

    def assume(self, node: host.HostNode) -> bool:
        return self.decider is not None and self.assumptions.truth(node) is True

    def note_number(self, node: host.HostNode) -> None:
        if self.decider is not None:
            self.numbers.append(weakref.ref(node))

    def note_size(self, node: host.SizeNode) -> None:
        self._sizes.add(node)

    def keeps_sizes(self) -> bool:
        """Whether somebody holds a size when the capture is over."""
        return bool(self._sizes)

    def user_location(self) -> Location:
        return self.locator.here()


def check_supported(tensor: torch.Tensor, path: str, locator: Locator, is_argument: bool = False) -> None:
    """Refuse tensors that graphs cannot hold, at the user's line.

    Raises:
        CaptureError: a tensor subclass.
        EagerOnlyError: sparse, quantized and nested tensors.
        EagerCallError: these where they are arguments; tensors on the meta device.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise CaptureError(
            f"{path} is a {type(tensor).__module__}.{type(tensor).__qualname__}, a tensor subclass, which graphc does "
            "not compile; pass a plain tensor (for example its `.as_subclass(torch.Tensor)`), or run this with "
            "graphc.eager()",
            locator.here(),
        )
    if tensor.layout != torch.strided and path.endswith(".grad"):
        raise EagerOnlyError(f"{path} is of layout {tensor.layout}; use dense gradients", locator.here())
    bad = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else ""
    bad = bad or (f"of layout {tensor.layout}" if tensor.layout != torch.strided else "")
    if tensor.device.type == "meta":
        raise EagerCallError(f"{path} is on the meta device, which graphc does not compile", locator.here())
    if bad:
        refusal = EagerCallError if is_argument else EagerOnlyError
        raise refusal(f"{path} is {bad}, which graphc does not compile; use a dense tensor", locator.here())


def set_versions(versions: Sequence[tuple[torch.Tensor, int]]) -> None:
    """Set version counters that are not as given."""
    changed = [(tensor, version) for tensor, version in versions if tensor._version != version]
    if changed:
        tensors, wanted = zip(*changed, strict=True)
        torch._C._autograd._unsafe_set_version_counter(tensors, wanted)


def _is_branch(node: host.HostNode) -> bool:
    """A comparison of numbers of the user's: a decision with two answers, where the numbers would be constants of one
    program each."""
    return node.kind is bool and not any(isinstance(leaf, OptimizerNumber) and leaf.is_rate for leaf in node.leaves)


_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_.]")


def _identifier(path: str) -> str:
    name = _NOT_IN_NAMES.sub("_", path).strip("_.") or "input"
    return f"_{name}" if name.isdigit() else name
