"""ATen calls from C, through the C shim that libtorch exports for compiled programs (`aoti_torch_cpu_*`).

The shim's header inside the torch package is the source of truth: a call is written only when its prototype, the
operator's schema and the values of the step fit together argument by argument. Anything else is left to Python.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphc.codegen.gemm import address, longs
from graphc.ir.graph import Named
from graphc.ir.sizes import Size
from graphc.ir.types import BY_TORCH_NAME, DType
from graphc.program.plan import AtenStep, BufferSpec, View

_HEADERS = ("c_shim_cpu.h", "c_shim_aten.h")
_CTYPES = {"f64": "double", "f32": "float", "i64": "int64_t", "i32": "int32_t", "i16": "int16_t", "i8": "int8_t",
           "u8": "uint8_t", "bool": "uint8_t"}  # fmt: skip


class NotNative(Exception):
    """This step cannot be written in C; its text says why. Never leaves codegen."""


@dataclass(frozen=True)
class ShimCall:
    """One ATen call in C.

    Args:
        symbols: prototypes of the library functions it needs, by name.
        body: C function body over the buffers `b[0]`, `b[1]`, ...; equal bodies are emitted once.
        buffers: which buffers those are.
    """

    symbols: dict[str, str]
    body: str
    buffers: tuple[int, ...]


@functools.cache
def libtorch() -> ctypes.CDLL | None:
    """The libtorch_cpu that this process already runs, or None where there is no such library."""
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None


@functools.cache
def exported(symbol: str) -> bool:
    """True when the running libtorch exports this function."""
    library = libtorch()
    return library is not None and hasattr(library, symbol)


@functools.cache
def constant(name: str) -> int:
    """A constant of the shim, such as `dtype_float32` or `layout_strided`.

    Raises:
        NotNative: the running libtorch has no such constant.
    """
    symbol = f"aoti_torch_{name}"
    if not exported(symbol):
        raise NotNative(f"libtorch has no {symbol}")
    return int(getattr(libtorch(), symbol)())


def dtype_code(dtype: DType) -> int:
    return constant(f"dtype_{dtype.torch_name}")


@functools.cache
def _prototypes() -> dict[str, list[tuple[str, str]]]:
    """Parameters (type, name) of every function in the shim's headers, by function name."""
    import torch

    folder = Path(torch.__file__).parent / "include/torch/csrc/inductor/aoti_torch/generated"
    found: dict[str, list[tuple[str, str]]] = {}
    for header in _HEADERS:
        path = folder / header
        if not path.is_file():
            continue
        for name, text in re.findall(r"AOTITorchError (aoti_torch_\w+)\(([^)]*)\);", path.read_text()):
            parameters = [re.fullmatch(r"\s*(.*?)(\w+)\s*", item) for item in text.split(",")]
            found[name] = [(match[1].replace(" ", ""), match[2]) for match in parameters if match]
    return found


def _symbol_of(op: str) -> str:
    namespace, name, overload = op.split(".")
    if namespace != "aten":
        raise NotNative(f"{op} is not an ATen operator")
    suffix = "" if overload == "default" else f"_{overload}"
    for device in ("cpu", "aten"):
        symbol = f"aoti_torch_{device}_{name}{suffix}"
        if symbol in _prototypes() and exported(symbol):
            return symbol
    raise NotNative(f"{op} is not in libtorch's C shim")


class CallWriter:
    """Collects the C text of one call."""

    def __init__(self, buffers: list[BufferSpec]) -> None:
        self.specs = buffers
        self.numbers: list[int] = []
        self.declarations: list[str] = []
        self.tensors: list[str] = []

    def buffer(self, index: int) -> str:
        """C expression for the number of a buffer."""
        if index not in self.numbers:
            self.numbers.append(index)
        return f"b[{self.numbers.index(index)}]"

    def tensor(self, view: View) -> str:
        """Declare a borrowed tensor over a view and return its name."""
        name = f"t{len(self.tensors)}"
        place = address(view, self.buffer(view.buffer))
        self.declarations.append(
            f"AtenTensorHandle {name} = borrow({place}, {len(view.shape)}, {longs(view.shape)}, "
            f"{longs(view.strides)}, {dtype_code(view.dtype)});"
        )
        self.tensors.append(name)
        return name

    def number(self, value: Any, ctype: str) -> str:
        """C expression for a Python number, or for one that is computed at run time in a host cell."""
        if isinstance(value, View):
            spec = self.specs[value.buffer]
            if not spec.host:
                raise NotNative("a tensor stands where a number is expected")
            cell = "double" if spec.dtype.is_float else "int64_t"
            return f"({ctype})*({cell} *)p[{self.buffer(value.buffer)}]"
        if ctype == "double":
            return _double(float(value))
        if isinstance(value, float):
            raise NotNative("a float stands where an integer is expected")
        if isinstance(value, DType):
            return str(dtype_code(value))
        if isinstance(value, Named):
            return _named(value)
        if type(value) is Size:
            return str(value)
        return f"{int(value)}LL" if ctype == "int64_t" else str(int(value))


def _double(value: float) -> str:
    if value != value:
        return '__builtin_nan("")'
    if value in (float("inf"), float("-inf")):
        return "__builtin_inf()" if value > 0 else "-__builtin_inf()"
    return value.hex()


def _named(value: Named) -> str:
    if value.kind == "dtype" and value.name in BY_TORCH_NAME:
        return str(dtype_code(BY_TORCH_NAME[value.name]))
    if value.kind in ("memory_format", "layout"):
        return str(constant(f"{value.kind}_{value.name}"))
    if value.kind == "device" and value.name == "cpu":
        return str(constant("device_type_cpu"))
    raise NotNative(f"no C value for {value!r}")


def _is_host(value: Any, specs: list[BufferSpec]) -> bool:
    return isinstance(value, View) and specs[value.buffer].host


def shim_call(step: AtenStep, buffers: list[BufferSpec]) -> ShimCall:
    """The step as C.

    Args:
        step: the call.
        buffers: all buffers of the plan.

    Raises:
        NotNative: it cannot be written; the step is then run from Python.
    """
    if step.op == "aten._local_scalar_dense.default":
        return _read_scalar(step, buffers)
    import torch

    symbol = _symbol_of(step.op)
    namespace, name, overload = step.op.split(".")
    schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
    values = bind(step, schema)
    writer = CallWriter(buffers)
    parameters = list(_prototypes()[symbol])
    arguments: list[str] = []
    operands = [view.dtype for view in step.views() if not buffers[view.buffer].host]
    floating = all(dtype.is_float for dtype in operands or [buffers[out].dtype for out in step.outs])
    for argument, value in zip(schema.arguments, values, strict=True):
        _marshal(writer, arguments, parameters, argument, value, floating)
    results = [_take(parameters, "AtenTensorHandle*") for _ in schema.returns]
    if parameters:
        raise NotNative(f"{symbol} has parameters that its schema does not")
    arguments += [f"&r[{i}]" for i in range(len(results))]
    mask = next((v for a, v in zip(schema.arguments, values, strict=True) if a.name == "output_mask"), ())
    call = f"{symbol}({', '.join(arguments)})"
    body = call_text(writer, call, receivers(step, schema, mask), buffers)
    prototype = ", ".join(f"{kind} {name}" for kind, name in _prototypes()[symbol]).replace("const", "const ")
    return ShimCall({symbol: f"AOTITorchError NAME({prototype})"}, body, tuple(writer.numbers))


def bind(step: AtenStep, schema: Any) -> list[Any]:
    """One value per schema argument, defaults filled in."""
    given, named = list(step.args), dict(step.kwargs)
    values: list[Any] = []
    for argument in schema.arguments:
        if given and not argument.kwarg_only:
            values.append(given.pop(0))
        elif argument.name in named:
            values.append(named.pop(argument.name))
        elif argument.has_default_value():
            values.append(argument.default_value)
        else:
            raise NotNative(f"{step.op} lacks its argument {argument.name}")
    if given or named:
        raise NotNative(f"{step.op} has arguments that its schema does not")
    return values


def _take(parameters: list[tuple[str, str]], *kinds: str) -> str:
    """Drop the next C parameter, which must have one of these types."""
    if not parameters or parameters[0][0] not in kinds:
        raise NotNative(f"the C shim wants {parameters[:1]} where {kinds} is expected")
    return parameters.pop(0)[0]


def _marshal(
    writer: CallWriter, out: list[str], parameters: list[tuple[str, str]], argument: Any, value: Any, floating: bool
) -> None:
    """Append the C arguments for one schema argument."""
    kind = str(argument.real_type)
    optional = kind.startswith("Optional[")
    inner = kind[len("Optional[") : -1] if optional else kind
    if inner.startswith("List["):
        return _marshal_list(writer, out, parameters, inner[len("List[") : -1], argument.N, value, optional)
    if inner == "Generator":
        _take(parameters, "AtenGeneratorHandle*")
        if value is not None:
            raise NotNative("a random generator is passed")
        out.append("NULL")
        return None
    ctypes_of = {"Tensor": "AtenTensorHandle", "float": "double", "number": "double", "int": "int64_t"}
    ctype = "constchar*" if inner == "str" else ctypes_of.get(inner, "int32_t")
    _take(parameters, f"{ctype}*" if optional else ctype)
    if value is None:
        if not optional:
            raise NotNative(f"None for {argument.name}")
        out.append("NULL")
    elif inner == "Tensor":
        if not isinstance(value, View) or _is_host(value, writer.specs):
            raise NotNative(f"a number stands for the tensor {argument.name}")
        out.append(("&" if optional else "") + writer.tensor(value))
    elif inner == "str":
        text = '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        out.append(f"&(const char *){{{text}}}" if optional else text)
    else:
        if inner == "number":
            _check_scalar(value, writer.specs, floating)
        text = writer.number(value, ctype)
        out.append(f"&({ctype}){{{text}}}" if optional else text)
    if inner == "Device":
        _take(parameters, "int32_t")
        out.append("0")
    return None


def _check_scalar(value: Any, specs: list[BufferSpec], floating: bool) -> None:
    """The shim passes numbers as doubles, which says nothing about integers: fine only among floating tensors.

    Where no operand is a tensor, those are the results.
    """
    if isinstance(value, View):
        is_double, exact = specs[value.buffer].dtype.is_float, False
    else:
        is_double = isinstance(value, float)
        exact = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    if not is_double and not (exact and floating):
        raise NotNative("the C shim would make a float of an integer")


def _marshal_list(
    writer: CallWriter,
    out: list[str],
    parameters: list[tuple[str, str]],
    item: str,
    fixed: int | None,
    value: Any,
    optional: bool,
) -> None:
    if item == "Tensor":
        _take(parameters, "constAtenTensorHandle*")
        _take(parameters, "int64_t")
        if not all(isinstance(view, View) and not _is_host(view, writer.specs) for view in value):
            raise NotNative("a list of tensors holds something else")
        names = [writer.tensor(view) for view in value]
        out += [f"(const AtenTensorHandle[]){{{', '.join(names) or '0'}}}", str(len(names))]
        return
    if item == "Optional[Tensor]":
        _take(parameters, "constAtenTensorHandle**")
        _take(parameters, "int64_t")
        names = ["NULL" if view is None else f"&{writer.tensor(view)}" for view in value]
        out += [f"(const AtenTensorHandle *[]){{{', '.join(names) or '0'}}}", str(len(names))]
        return
    ctype = {"int": "int64_t", "float": "double", "bool": "int32_t"}.get(item)
    if ctype is None:
        raise NotNative(f"a list of {item}")
    _take(parameters, f"const{ctype}**" if optional else f"const{ctype}*")
    _take(parameters, "int64_t")
    if value is None:
        out += ["NULL", "0"]
        return
    items = [value] * (fixed or 1) if not isinstance(value, (tuple, list)) else list(value)
    text = f"(const {ctype}[]){{{', '.join(writer.number(x, ctype) for x in items) or '0'}}}"
    out += [f"&(const {ctype} *){{{text}}}" if optional else text, str(len(items))]


def receivers(step: AtenStep, schema: Any, mask: Sequence[bool]) -> list[int]:
    """Per returned tensor the buffer that takes it, or -1: returns that alias a written operand, and gradients that the
    argument `output_mask` does not ask for, take none."""
    if len(step.outs) == len(schema.returns):
        return list(step.outs)
    rest = list(step.outs)
    absent = [r.alias_info is not None and r.alias_info.is_write for r in schema.returns]
    absent = [gone or (i < len(mask) and not mask[i]) for i, gone in enumerate(absent)]
    found = [-1 if gone or not rest else rest.pop(0) for gone in absent]
    if rest or absent.count(False) != len(step.outs):
        raise NotNative(f"{step.op} returns fewer tensors than the plan takes")
    return found


def call_text(writer: CallWriter, call: str, takers: list[int], buffers: list[BufferSpec]) -> str:
    """The C function body around a call.

    Args:
        writer: has declared the tensors that go in.
        call: C expression, true on failure, that leaves the handles of the returned tensors in `r[0]`, `r[1]`, ...
        takers: per returned tensor the buffer that takes it, or -1.
        buffers: all buffers of the plan.
    """
    count, tensors = len(takers), writer.tensors
    lines = list(writer.declarations)
    lines.append(f"AtenTensorHandle r[{max(count, 1)}] = {{NULL}}, t[] = {{{', '.join(tensors) or 'NULL'}}};")
    missing = " || ".join(f"!{name}" for name in tensors) or "0"
    lines.append(f"int bad = {missing} || {call};")
    for i, index in enumerate(takers):
        if index < 0:
            lines.append(f"drop(r[{i}]);")
            continue
        spec = buffers[index]
        layout = f"{len(spec.shape)}, {longs(spec.shape)}, {longs(spec.strides)}, {dtype_code(spec.dtype)}"
        number = writer.buffer(index)
        if spec.host:
            raise NotNative("a tensor is returned where a number is expected")
        taken = (
            f"keep(p, h, {number}, r[{i}], {layout}, t, {len(tensors)})"
            if spec.kind == "external"
            else f"copy_out(p[{number}], r[{i}], {layout})"
        )
        lines.append(f"if (!bad) bad = {taken}; else drop(r[{i}]);")
    if tensors:
        lines.append(f"for (int i = 0; i < {len(tensors)}; i++) drop(t[i]);")
    lines.append("return bad;")
    return "\n".join(f"  {line}" for line in lines)


def _read_scalar(step: AtenStep, buffers: list[BufferSpec]) -> ShimCall:
    """`.item()`: read one element into a host cell."""
    (view,), (out,) = step.args, step.outs
    if not isinstance(view, View) or view.dtype.name not in _CTYPES or out < 0 or not buffers[out].host:
        raise NotNative("no C form of this .item()")
    source = f"(({_CTYPES[view.dtype.name]} *)p[b[0]])[{view.offset}]"
    cell = "double" if buffers[out].dtype.is_float else "int64_t"
    return ShimCall({}, f"  *({cell} *)p[b[1]] = {source};\n  return 0;", (view.buffer, out))
