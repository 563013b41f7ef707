"""Where cotangents lie in memory, and where the gradients lie that eager makes of them.

The backward pass is recorded for cotangents that lie as the results do. A loss outside may hand in others: expanded
ones (`y.sum()`), transposed ones, images with their channels side by side. Values do not depend on that, but the
strides of gradients do. So autograd's graph of the capture is kept, whose tensors have no data, and asked once more
when cotangents of other strides come; the backward program is then made again with what it says.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch.autograd.graph import get_gradient_edge

from graphc.frontend.aten import layout
from graphc.frontend.aten.extern import copied
from graphc.frontend.aten.importer import tensor_type
from graphc.frontend.functionalize import root_state
from graphc.frontend.recorder import Recorder, set_versions
from graphc.frontend.traced import TracedTensor, geometry
from graphc.ir.graph import Builder, Graph, Input, Output, Role, StridedView, Value
from graphc.ir.types import UNKNOWN
from graphc.ops import infer
from graphc.ops.registry import Kind, get

Strides: TypeAlias = tuple[int, ...]


def usual(tensor: torch.Tensor) -> Strides:
    """The strides that cotangents of a result mostly have: its own, or those of a fresh tensor like it."""
    return canonical(*geometry(tensor), expands=False)


def canonical(shape: Strides, strides: Strides, expands: bool = True) -> Strides:
    """Strides that stand for these: without gaps between elements, so that few programs serve all cotangents.

    Args:
        expands: dims that repeat one place keep doing so.
    """
    if layout.is_contiguous(shape, strides) and len(shape) not in (4, 5):  # there sizes of 1 tell of memory formats
        return layout.contiguous(shape)
    if not expands or 0 not in strides or 0 in shape:
        return layout.dense_strides(shape, strides)
    kept = [dim for dim, step in enumerate(strides) if step or shape[dim] == 1]
    dense = layout.dense_strides(tuple(shape[dim] for dim in kept), tuple(strides[dim] for dim in kept))
    return tuple(dense[kept.index(dim)] if dim in kept else 0 for dim in range(len(shape)))


def laid_out(tensor: torch.Tensor, strides: Strides) -> torch.Tensor:
    """The same elements with these strides, `canonical` ones."""
    if tensor.stride() == strides:
        return tensor
    shape = tuple(tensor.shape)
    for dim, (size, step) in enumerate(zip(shape, strides, strict=True)):
        if step == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    made = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return made.as_strided(shape, strides)


@contextlib.contextmanager
def without_hooks(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Hooks of the user's tensors stay still: autograd runs them when the compiled backward pass has run."""
    hooks = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    for table, _ in hooks:
        table.clear()
    try:
        yield
    finally:
        for table, entries in hooks:
            table.update(entries)


def _only_autograd_holds(recorder: Recorder) -> bool:
    """Whether Python holds no tensor that was made in the capture."""
    return not any(_is_held(tensor) for ref in recorder.made if (tensor := ref()) is not None)


def _is_held(tensor: torch.Tensor) -> bool:
    """Whether Python holds a tensor elsewhere than where this is called from."""
    owned = tensor._use_count() > 1  # type: ignore[attr-defined]  # by C++ too, which then holds the Python object
    return sys.getrefcount(tensor) > _REFERENCES + owned


_REFERENCES = 3
"""To a tensor that is looked at: the caller's variable, an argument here, and one of `getrefcount`."""


class Question:
    """Asks autograd of a finished capture for the strides of its gradients.

    Args:
        recorder: the capture.
        results: what cotangents are given for.
        wanted: what gradients are taken of; those for which there are some.
    """

    def __init__(self, recorder: Recorder, results: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
        self._of, self._by = (list(map(get_gradient_edge, tensors)) for tensors in (results, wanted))
        self._types = [tensor_type(result) for result in results]
        self._hooked = [tensor for tensor in wanted if type(tensor) is not TracedTensor]
        self._versions = recorder.versions()
        self.recorder = recorder

    def settle(self) -> bool:
        """The capture is over: hold on to what autograd needs, and to nothing else of it.

        Returns:
            Whether it can be asked; not when Python holds tensors of the capture, as functions of autograd's may.
        """
        capture = self.recorder
        if not _only_autograd_holds(capture):
            gc.collect()
            if not _only_autograd_holds(capture):
                return False
        self.recorder = capture.successor()
        for ref in capture.made:
            if (tensor := ref()) is not None:
                tensor.recorder = self.recorder
        return True

    def ask(self, strides: Sequence[Strides | None]) -> list[Strides | None]:
        """Strides of the gradients, None for those that no given cotangent leads to.

        Args:
            strides: of one cotangent per result; None where it is not given.
        """
        recorder = self.recorder
        recorder.function_modes = torch._C._len_torch_function_stack() + 1
        given = [
            (edge, recorder.make(root_state(recorder.builder.input("cotangent", type_, Role.ARG, "cotangent"), steps)))
            for edge, type_, steps in zip(self._of, self._types, strides, strict=True)
            if steps is not None
        ]
        of, by = zip(*given, strict=True)
        now = [(tensor, tensor._version) for tensor, _ in self._versions]
        set_versions(self._versions)  # what has been written since is none of this backward pass's business
        try:
            with without_hooks(self._hooked):
                found = torch.autograd.grad(of, self._by, by, retain_graph=True, allow_unused=True)
        finally:
            set_versions(now)
        return [None if gradient is None else tuple(gradient.stride()) for gradient in found]


def relaid(graph: Graph, cotangents: Sequence[Strides], gradients: Sequence[Strides]) -> Graph:
    """A backward graph for cotangents that lie otherwise, whose gradients lie as `Question.ask` says.

    Args:
        graph: its last inputs are the cotangents, its outputs the gradients.
    """
    made = graph.copy()
    builder, before = Builder(made, infer), len(made.ops)
    builder.location = made.ops[0].location if made.ops else UNKNOWN
    copies: dict[Value, Value] = {}
    for given, strides in zip(made.inputs[len(made.inputs) - len(cotangents) :], cotangents, strict=True):
        old = layout_of(given)
        if old != strides:  # kernels read the cotangent itself, library calls a copy that lies as they know it
            copies[given] = copied(builder, given, old)
            copies[given].strides, given.strides = given.strides, _hint(given, strides)
    new, made.ops[before:] = made.ops[before:], []
    for op in made.ops:
        op.operands = [copies.get(item, item) if isinstance(item, Value) else item for item in op.operands]
    made.ops[:0] = new
    taken: set[Value] = set()
    for number, (output, strides) in enumerate(zip(made.outputs, gradients, strict=True)):
        value = copies.get(output.value, output.value)
        builder.location = value.op.location if value.op is not None else builder.location
        if output.view is not None:  # one place that stands for all along a dim
            value = builder.op("expand", value, shape=output.view.shape)
        made.outputs[number] = own_gradient(builder, value, strides, taken)
    return made


def layout_of(value: Value) -> Strides:
    """The strides of a value that is an input."""
    return value.strides or layout.contiguous(value.shape)  # type: ignore[return-value, arg-type]  # static by construction


def own_gradient(builder: Builder, value: Value, strides: Strides, taken: set[Value]) -> Output:
    """A gradient in memory of its own, laid out as eager does: autograd may keep it and add to it in place.

    Args:
        strides: eager's. Where elements lie apart, as parts of something larger, the gradient is contiguous.
        taken: values that are outputs already; this one joins them.
    """
    shape: Strides = value.shape  # type: ignore[assignment]  # static by construction
    view = None
    repeated = [dim for dim, step in enumerate(strides) if step == 0 and shape[dim] > 1]
    if value.dtype.kind == "complex":  # kernels do not read them at other places
        repeated = []
    smaller = tuple(1 if dim in repeated else size for dim, size in enumerate(shape))
    if repeated and layout.is_dense(smaller, strides):
        for dim in repeated:  # all elements along it are one
            value = builder.op("slice", value, dim=dim, start=0, stop=1, step=1)
        view, strides = StridedView(shape, strides, 0), tuple(max(step, 1) for step in strides)
    wanted = _hint(value, strides) if layout.is_dense(smaller, strides) else None
    if isinstance(value, Input) or value in taken or not _can_lie(value, wanted):
        value = _copy(builder, value, wanted)
    value.strides = wanted
    taken.add(value)
    return Output(value, view)


def _copy(builder: Builder, value: Value, strides: Strides | None) -> Value:
    if value.dtype.kind != "complex":
        return builder.op("cast", value, dtype=value.dtype)
    return copied(builder, value, strides or layout.contiguous(value.shape))  # type: ignore[arg-type]  # static


def _hint(value: Value, strides: Strides) -> Strides | None:
    return None if strides == layout.contiguous(value.shape) else strides  # type: ignore[arg-type]  # static by construction


def _can_lie(value: Value, strides: Strides | None) -> bool:
    """Whether what computes a value may store it with these strides; library calls decide that themselves."""
    if value.strides == strides:
        return True
    return value.strides is None and value.op is not None and get(value.op.name).kind in (Kind.POINTWISE, Kind.VIEW)
