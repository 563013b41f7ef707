"""What the user asks of `compile`, and what that comes to on this machine: the backend, and what passes go by."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphc.errors import BackendUnavailableError, FallbackWarning
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.ir.graph import Graph
    from graphc.ir.types import DType
    from graphc.passes.base import PassContext
    from graphc.passes.templates import Runs, Templates
    from graphc.runtime.device import Device

BACKENDS = ("auto", "triton", "c", "interpret", "eager")
NUMERICS = ("default", "eager")
MODES = ("default", "max")


@dataclass(frozen=True)
class Options:
    """What the user asked of `compile`. `dynamic`: graphs that differ in sizes may share what is built."""

    name: str
    backend: str = "auto"
    numerics: str = "default"
    mode: str = "default"
    dynamic: bool = True

    @property
    def measures(self) -> bool:
        """What runs fastest is measured."""
        return self.mode == "max"


def make_options(
    target: Any,
    backend: str = "auto",
    mode: str = "default",
    dynamic: bool | None = None,
    numerics: str = "default",
    name: str | None = None,
) -> Options:
    """Check the arguments of `compile`.

    Raises:
        TypeError: the target cannot be called, or is a generator or coroutine function.
        ValueError: an option has no such value.
    """
    if not callable(target):
        raise TypeError(f"graphc.compile takes a callable, not {type(target).__name__}")
    if inspect.isgeneratorfunction(target) or inspect.iscoroutinefunction(target):
        kind = "generator" if inspect.isgeneratorfunction(target) else "coroutine"
        raise TypeError(
            f"{target.__name__} is a {kind} function; compile the function that computes one item, "
            "and call that in the loop"
        )
    options = ("backend", backend, BACKENDS), ("numerics", numerics, NUMERICS), ("mode", mode, MODES)
    for option, value, allowed in options:
        if value not in allowed:
            raise ValueError(f"{option}={value!r}; there are {', '.join(allowed)}")
    label = name or getattr(target, "__name__", None) or type(target).__name__
    name = "".join(c if c.isalnum() or c == "_" else "_" for c in label) or "graph"
    return Options(name, backend, numerics, mode, dynamic is not False)


def choose_backend(graph: Graph, options: Options) -> str:
    """The backend that runs a graph: `c`, `triton`, or `interpret` with a warning where neither can.

    Raises:
        BackendUnavailableError: the backend asked for has no code for the devices of the graph.
    """
    from graphc.ir.types import HOST
    from graphc.runtime.device import find_device

    devices = {value.type.device for value in graph.values()} - {"cpu", HOST}
    unknown = sorted(device for device in devices if find_device(device) is None)
    if unknown and options.backend != "interpret":
        if options.backend != "auto":
            raise BackendUnavailableError(f"{options.name}: backend={options.backend!r} has no code for {unknown[0]}")
        reason = f"graphc has no code for {unknown[0]}"
        warnings.warn(FallbackWarning(f"{options.name} runs op by op, as fast as eager, since {reason}"), stacklevel=3)
        return "interpret"
    on_gpu = bool(devices)
    backend = ("triton" if on_gpu else "c") if options.backend == "auto" else options.backend
    if backend == "c" and on_gpu:
        raise BackendUnavailableError(f"{options.name}: backend='c' runs CPU tensors; there are some on a GPU")
    if backend == "c" and settings().compiler() is None:
        warnings.warn(
            FallbackWarning(
                f"no C compiler ({settings().cc}): {options.name} runs op by op, as fast as eager. "
                "Install gcc or name a compiler in GRAPHC_CC."
            ),
            stacklevel=3,
        )
        return "interpret"
    return backend


def for_part(graph: Graph, options: Options) -> Options:
    """Options of one program of several, of a path or backward: one of the CPU alone is not Triton's beside a GPU."""
    from graphc.ir.types import HOST
    from graphc.runtime.device import present_device
    from graphc.runtime.triton_module import is_interpreting

    if options.backend != "triton" or present_device() is None or is_interpreting():
        return options
    on_cpu = all(value.type.device in ("cpu", HOST) for value in graph.values())
    return replace(options, backend="auto") if on_cpu else options


def pass_context(options: Options, backend: str, templates: Templates | None = None) -> PassContext:
    """What passes over graphs go by.

    Args:
        templates: which products are to be kernels; None = as is usual for the backend.
    """
    from graphc.passes.base import PassContext

    templates = templates_for(backend) if templates is None else templates
    if templates is None:
        return PassContext(numerics=options.numerics)
    return PassContext(numerics=options.numerics, target="gpu", templates=templates)


def templates_for(backend: str, choices: Mapping[str, bool] | None = None) -> Templates | None:
    """Which products of matrices are to be Triton kernels, on the current device and with torch's flags.

    Args:
        choices: where it was measured whether they are to be.
    """
    if backend != "triton":
        return None
    import torch

    from graphc.passes.templates import Templates
    from graphc.runtime.device import current_target, present_device

    device = present_device()
    tf32 = device is not None and device.allows_tf32()
    deterministic = torch.are_deterministic_algorithms_enabled()
    runs = None if device is None else _asks(device)
    there = attention_libraries(device)
    return Templates(current_target(), tf32, settings().templates, deterministic, there, choices or {}, runs=runs)


def attention_libraries(device: Device | None) -> dict[str, tuple[str, ...]]:
    """Libraries for attention per kind of device: those of a device, or of one that programs are planned for."""
    from graphc.passes.chips import DEFAULT_TARGET
    from graphc.runtime.device import find_device

    found = device or find_device(DEFAULT_TARGET)
    return {} if found is None else {found.kind: found.attention_libraries()}


def _asks(device: Device) -> Runs:
    """Asks a device whether a library for attention runs on it."""
    from graphc.runtime.tensors import torch_dtype

    def runs(library: str, dtype: DType, query: Sequence[int], keys: int, causal: bool, trains: bool) -> bool:
        return device.runs_attention(library, torch_dtype(dtype), query, keys, causal, trains)

    return runs


def machine(backend: str) -> dict[str, str]:
    """What times depend on besides the machine as `program_key` has it."""
    import torch

    from graphc.runtime.device import present_device

    device = present_device()
    if backend == "triton" and device is not None:
        return {"device": device.model(device.current()), "target": device.target(device.current())}
    return {"threads": str(torch.get_num_threads())}


def cache_key(text: str, options: Options, backend: str) -> str:
    """The key of a program in the disk cache: the text of its graph, and all else that its code depends on."""
    from graphc.runtime.cache import program_key

    facts = {"backend": backend, "numerics": options.numerics, "chunk_bytes": str(settings().chunk_bytes)}
    if backend == "triton":
        facts["templates"] = repr(templates_for(backend))
    if options.measures:
        facts["measured on"] = repr(machine(backend))
    if backend == "c":
        facts["cflags"] = " ".join(settings().cflags)
    return program_key(text, facts)
