"""ATen calls from C by name, through the dispatcher that libtorch exports: for operators without a shim of their own.

Arguments and results travel in one array of 64-bit values, each made as the operator's schema wants it: handles for
tensors and lists, which the dispatcher takes over, plain bits for numbers, a cell of its own for an optional that is
there. Kinds that the dispatcher does not convert (Scalar, above all) are left to Python.

Source: torch/csrc/stable/c/shim.h and stableivalue_conversions.h of PyTorch's stable ABI.
"""

from __future__ import annotations

from typing import Any

from graphc.codegen.aten_shim import (
    CallWriter,
    NotNative,
    ShimCall,
    bind,
    call_text,
    constant,
    exported,
    receivers,
    shim_call,
)
from graphc.ir.graph import Named
from graphc.ir.types import DType
from graphc.program.plan import AtenStep, BufferSpec, View

_SYMBOLS = {
    "torch_call_dispatcher": "AOTITorchError NAME(const char *, const char *, uint64_t *, uint64_t)",
    "aoti_torch_new_tensor_handle": "AOTITorchError NAME(AtenTensorHandle, AtenTensorHandle *)",
    "torch_new_stable_ivalue": "AOTITorchError NAME(uint64_t **)",
    "torch_new_list_reserve_size": "AOTITorchError NAME(size_t, void **)",
    "torch_list_push_back": "AOTITorchError NAME(void *, uint64_t)",
}
_INTEGERS = ("int", "SymInt", "bool", "ScalarType", "Layout", "MemoryFormat")


def aten_call(step: AtenStep, buffers: list[BufferSpec]) -> ShimCall:
    """The step as C: by the operator's own function in the shim, else by name.

    Raises:
        NotNative: neither way; the step is then run from Python.
    """
    try:
        return shim_call(step, buffers)
    except NotNative as reason:
        if not step.op.startswith("aten."):
            raise
        try:
            return dispatcher_call(step, buffers)
        except NotNative as other:
            raise NotNative(f"{reason}; by name: {other}") from None


def dispatcher_call(step: AtenStep, buffers: list[BufferSpec]) -> ShimCall:
    """The step as C, through the dispatcher.

    Raises:
        NotNative: it cannot be written.
    """
    import torch

    namespace, name, overload = step.op.split(".")
    schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
    if any(str(returned.type) != "Tensor" for returned in schema.returns):
        raise NotNative("it returns something else than tensors")
    values = bind(step, schema)
    call = _Arguments(CallWriter(buffers))
    for place, (argument, value) in enumerate(zip(schema.arguments, values, strict=True)):
        call.put(f"s[{place}]", str(argument.real_type), value)
    mask = next((v for a, v in zip(schema.arguments, values, strict=True) if a.name == "output_mask"), ())
    takers = receivers(step, schema, mask)
    symbol = "torch_call_dispatcher"
    overload_name = "" if overload == "default" else overload
    call.need(symbol)
    size = max(len(values), len(takers), 1)
    call.writer.declarations.append(f"uint64_t s[{size}] = {{0}};")
    call.steps.append(f'{symbol}("{namespace}::{name}", "{overload_name}", s, {_version()}ULL)')
    call.steps += [f"(r[{i}] = (AtenTensorHandle)s[{i}], 0)" for i in range(len(takers))]
    for i, out in enumerate(takers):  # memory is handed on without the bit that says it is to be read conjugated
        if out >= 0 and buffers[out].dtype.kind == "complex":
            call.steps += [
                f"(s[0] = (uint64_t)r[{i}], r[{i}] = 0, 0)",
                f'{symbol}("aten::resolve_conj", "", s, {_version()}ULL)',
                f"(r[{i}] = (AtenTensorHandle)s[0], 0)",
            ]
    body = call_text(call.writer, "\n      || ".join(call.steps), takers, buffers)
    return ShimCall(call.symbols, body, tuple(call.writer.numbers))


def _version() -> int:
    """The version of libtorch whose conversions are meant, as its headers encode it."""
    import torch

    major, minor, *_ = (int("".join(c for c in part if c.isdigit()) or 0) for part in torch.__version__.split(".")[:2])
    return major << 56 | minor << 48


class _Arguments:
    """Collects the steps, C expressions true on failure, that fill the array of arguments."""

    def __init__(self, writer: CallWriter) -> None:
        self.writer = writer
        self.steps: list[str] = []
        self.symbols: dict[str, str] = {}

    def need(self, symbol: str) -> None:
        if not exported(symbol):
            raise NotNative(f"libtorch exports no {symbol}")
        self.symbols[symbol] = _SYMBOLS[symbol]

    def put(self, place: str, kind: str, value: Any) -> None:
        """Put a value of a schema type at a place, a C lvalue of type uint64_t."""
        if kind.startswith("Optional["):
            if value is None:
                return  # the array starts out as zeros
            self.need("torch_new_stable_ivalue")
            self.steps.append(f"torch_new_stable_ivalue((uint64_t **)&{place})")
            return self.put(f"*(uint64_t *){place}", kind[len("Optional[") : -1], value)
        if value is None:
            raise NotNative(f"None for an argument of type {kind}")
        if kind.startswith("List["):
            return self._put_list(place, kind[len("List[") : -1], value)
        if kind == "Tensor":
            if not isinstance(value, View) or self.writer.specs[value.buffer].host:
                raise NotNative("a number stands for a tensor")
            self.need("aoti_torch_new_tensor_handle")
            tensor = self.writer.tensor(value)
            self.steps.append(f"aoti_torch_new_tensor_handle({tensor}, (AtenTensorHandle *)&{place})")
            return None
        self.steps.append(f"({place} = {self._bits(kind, value)}, 0)")
        return None

    def _put_list(self, place: str, kind: str, value: Any) -> None:
        if not isinstance(value, (tuple, list)) or kind not in ("int", "SymInt", "float", "bool"):
            raise NotNative(f"a list of {kind}")
        self.need("torch_new_list_reserve_size")
        self.steps.append(f"torch_new_list_reserve_size({len(value)}, (void **)&{place})")
        for item in value:
            self.need("torch_list_push_back")
            self.steps.append(f"torch_list_push_back((void *){place}, {self._bits(kind, item)})")

    def _bits(self, kind: str, value: Any) -> str:
        """C expression for the 64 bits of a number or constant."""
        if kind == "float":
            return f"((union {{double number; uint64_t bits;}}){{{self.writer.number(value, 'double')}}}).bits"
        if kind == "Device":
            if not isinstance(value, Named) or value.name != "cpu":
                raise NotNative(f"the device {value!r}")
            return f"{constant('device_type_cpu') << 32 | 0xFFFFFFFF}ULL"
        is_float = isinstance(value, View) and self.writer.specs[value.buffer].dtype.is_float
        if kind in _INTEGERS and isinstance(value, (bool, int, DType, Named, View)) and not is_float:
            return f"(uint64_t)(int64_t){self.writer.number(value, 'int64_t')}"
        raise NotNative(f"the dispatcher takes no {kind} from C")
