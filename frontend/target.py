"""What is captured: a function and the arguments of one call, with names for them and what they read."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from graphc.errors import CaptureError
from graphc.frontend import tree
from graphc.frontend.captured import flatten_call
from graphc.frontend.inputs import Access, Binding, BindingKind
from graphc.frontend.list_arguments import Lists
from graphc.frontend.loop_bodies import outer_of
from graphc.frontend.modules import all_hooks
from graphc.frontend.reads import Reads
from graphc.frontend.recorder import Recorder
from graphc.frontend.shown import shows
from graphc.frontend.watched import kinds
from graphc.ir.graph import Role


class Target:
    """A function and the arguments of one call.

    Args:
        fn: a function, method, nn.Module, partial, or any callable object.
        args, kwargs: of the call.
        name: of the graph; None = the function's own.
        lists: which lists among the arguments are taken as they are.

    Attributes:
        leaves, node: the arguments, flat, and their structure.
        names: a readable path per leaf.
    """

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None, lists: Lists
    ) -> None:
        self.fn, self.args, self.kwargs, self.lists = fn, args, kwargs, lists
        self.name = name or _function_name(fn)
        self.open()

    def open(self) -> None:
        """Flatten the arguments, opening objects that are now known to hold tensors, and not the closed lists."""
        self.leaves, self.node = flatten_call(self.args, self.kwargs, self.lists)
        self.names = _argument_names(self.fn, self.node)

    def read(self, reads: Reads) -> list[tuple[str, torch.nn.Module]]:
        """What the function reads, and the modules to know before it runs."""
        roots: list[tuple[str, torch.nn.Module]] = []
        fn = self.fn
        reads.outer = outer_of(fn)
        while isinstance(fn, functools.partial):
            reads.arguments_of(self.name, fn)
            fn = fn.func
        if isinstance(fn, torch.nn.Module):
            roots.append(("", fn))
        elif isinstance(fn, types.MethodType):
            if isinstance(fn.__self__, torch.nn.Module):
                roots.append(("", fn.__self__))
            reads.function(fn.__func__, ("", Access(fn, ".__self__")))
        elif isinstance(fn, types.FunctionType):
            reads.function(fn)
        else:
            reads.function(vars(type(fn)).get("__call__"), ("", Access([fn], "[0]")))
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if isinstance(leaf, torch.nn.Module):
                roots.append((name, leaf))
            elif isinstance(leaf, types.FunctionType):
                reads.function(leaf)
            elif _is_object(leaf) and not (isinstance(leaf, (LRScheduler, torch.amp.GradScaler)) or shows(leaf)):
                reads.whole(f"argument {name}", Access(leaf, ""), leaf)
        roots += reads.modules
        for path, root in list(roots):
            for child_path, module in root.named_modules(prefix=path):
                for hook in all_hooks(module):
                    reads.function(hook)
                forward = type(module).forward
                if not type(module).__module__.startswith("torch.nn."):
                    reads.function(forward, (child_path, Access([module], "[0]")))
        return roots + [pair for pair in reads.modules if pair not in roots]

    def objects(self) -> list[tuple[str, Access]]:
        """Argument leaves that are objects and may hold tensors."""
        objects: list[tuple[str, Access]] = []
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if _is_object(leaf):
                objects.append((name, Access(leaf, "")))
        if not isinstance(self.fn, (torch.nn.Module, types.FunctionType, types.MethodType)):
            objects.append(("", Access(self.fn, "")))
        return objects

    def stand_ins(self, recorder: Recorder, dynamic: frozenset[int]) -> list[Any]:
        """The leaves with stand-ins for tensors and dynamic numbers.

        Args:
            dynamic: leaves whose Python numbers are to be inputs.

        Raises:
            CaptureError: an argument is an iterator.
        """
        stand_ins: dict[int, Any] = {}
        watched: dict[int, Any] = {}
        given: list[Any] = []
        for index, (name, leaf) in enumerate(zip(self.names, self.leaves, strict=True)):
            if isinstance(leaf, torch.Tensor):
                if id(leaf) not in stand_ins:
                    binding = Binding(BindingKind.ARG, tensor=leaf, leaf=index)
                    state = recorder.add_input(leaf, Role.ARG, name, binding)
                    stand_ins[id(leaf)] = recorder.arguments.stand_in(leaf, state, name, index)
                given.append(stand_ins[id(leaf)])
            elif index in dynamic and isinstance(leaf, (bool, int, float)):
                given.append(recorder.scalar_input(leaf, name, index))
            elif type(leaf) is list:
                given.append(watched.setdefault(id(leaf), kinds[list](leaf)))
            elif isinstance(leaf, (types.GeneratorType, Iterator)):
                raise CaptureError(f"argument {name} is a {type(leaf).__name__}, which runs out when read; pass a list")
            else:
                given.append(leaf)
        return given


def _is_object(leaf: Any) -> bool:
    """An instance of a class that graphc knows nothing of."""
    return hasattr(leaf, "__dict__") and not isinstance(leaf, (torch.Tensor, torch.nn.Module, type, types.FunctionType))


def _function_name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name: str = getattr(fn, "__name__", None) or type(fn).__name__
    return name if name.isidentifier() else "program"


def _argument_names(fn: Any, node: tree.Node) -> list[str]:
    """A readable path per leaf of (args, kwargs), by the parameter names of the function."""
    target = fn.forward if isinstance(fn, torch.nn.Module) else fn
    positional: list[str] = []
    rest = "args"
    try:
        for parameter in inspect.signature(target).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                rest = parameter.name
                break
            positional.append(parameter.name)
    except (TypeError, ValueError):
        pass
    args, kwargs = node.children
    names: list[str] = []
    for index, child in enumerate(args.children):
        name = positional[index] if index < len(positional) else f"{rest}[{index - len(positional)}]"
        names.extend(tree.paths(child, name))
    for key, child in zip(kwargs.keys, kwargs.children, strict=True):
        names.extend(tree.paths(child, str(key)))
    return names
