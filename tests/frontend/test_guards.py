"""A changed fact is noticed, and named."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
import torch
from torch import nn

from graphc import driver
from graphc.frontend.capture import capture
from graphc.frontend.captured import Captured
from graphc.options import make_options
from graphc.runtime.library import key_set_offset
from tests.frontend.harness import call

FACTOR = 2.0
CONFIG = types.SimpleNamespace(scale=3.0, nested=types.SimpleNamespace(flag=True))
WEIGHT = torch.ones(2)


def _helper(x):
    return x * FACTOR


def _reads_globals(x):
    if CONFIG.nested.flag:
        return _helper(x) * CONFIG.scale + WEIGHT
    return x


def miss(captured, *args, **kwargs) -> str:
    """The reason for a miss; the match must fail."""
    assert captured.match(args, kwargs) is None
    reason = captured.explain_miss(args, kwargs)
    assert reason
    return reason


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (torch.randn(3, 4), "argument x: shape (3, 4), compiled for (2, 4)"),
        (torch.randn(2, 4).double(), "argument x: dtype torch.float64, compiled for torch.float32"),
        (torch.randn(4, 2).t(), "argument x: strides (1, 2), compiled for (4, 1)"),
        (torch.randn(2, 4, requires_grad=True), "argument x: requires_grad True, compiled for False"),
        (nn.Parameter(torch.randn(2, 4), requires_grad=False), "argument x: type Parameter, compiled for Tensor"),
        (3.0, "argument x: a float, compiled for a tensor"),
    ],
)
def test_tensor_metadata(other, words) -> None:
    captured = capture(lambda x: x + 1, (torch.randn(2, 4),))
    assert captured.explain_miss((torch.randn(2, 4),), {}) == ""
    assert miss(captured, other) == words


def test_python_arguments_are_compared_by_type_and_value() -> None:
    captured = capture(lambda x, n, mode: x + n, (torch.randn(2), 1, "sum"))
    assert captured.match((torch.randn(2), 1, "".join(["s", "um"])), {}) is not None
    assert miss(captured, torch.randn(2), 2, "sum") == "argument n: 2, compiled for 1"
    assert miss(captured, torch.randn(2), 1.0, "sum") == "argument n: 1.0, compiled for 1"
    assert miss(captured, torch.randn(2), True, "sum") == "argument n: True, compiled for 1"
    assert miss(captured, torch.randn(2), 1, "mean") == "argument mode: 'mean', compiled for 'sum'"


def test_signed_zero_and_nan_arguments() -> None:
    captured = capture(lambda x, n: x * n, (torch.randn(2), 0.0))
    assert miss(captured, torch.randn(2), -0.0) == "argument n: -0.0, compiled for 0.0"
    captured = capture(lambda x, n: x * n, (torch.randn(2), float("nan")))
    assert captured.match((torch.randn(2), float("nan")), {}) is not None


@dataclasses.dataclass
class Options:
    scale: float
    bias: torch.Tensor


def test_structure() -> None:
    def fn(xs, options):
        return xs[0] * options.scale + options.bias

    x = torch.randn(2)
    captured = capture(fn, ([x], Options(2.0, x)))
    assert captured.match(([x], Options(2.0, x)), {}) is not None
    assert "length of a list" in miss(captured, [x, x], Options(2.0, x))
    assert "list expected" in miss(captured, (x,), Options(2.0, x))
    assert miss(captured, [x], Options(3.0, x)) == "argument options.scale: 3.0, compiled for 2.0"
    assert "positional arguments" in miss(captured, [x])
    assert captured.match(([x],), {"options": Options(2.0, x)}) is None


def test_numpy_arguments_are_compared_by_value() -> None:
    array = np.arange(3.0)
    captured = capture(lambda x, a: x * torch.tensor(a), (torch.ones(3), array))
    assert captured.match((torch.ones(3), np.arange(3.0)), {}) is not None
    array[0] = 5
    assert "argument a" in miss(captured, torch.ones(3), array)


def _scaled(x, options):
    return x * options.scale


def test_objects_as_arguments() -> None:
    options = types.SimpleNamespace(scale=2.0, inner=types.SimpleNamespace(flag=True))
    captured = capture(lambda x, options: _scaled(x, options), (torch.ones(3), options))
    assert captured.match((torch.ones(3), options), {}) is not None
    options.inner.flag = False
    assert miss(captured, torch.ones(3), options) == "argument options.inner.flag: False, compiled for True"
    options.inner.flag, options.scale = True, 3.0
    assert miss(captured, torch.ones(3), options) == "argument options.scale: 3.0, compiled for 2.0"


def test_keyword_and_dict_keys() -> None:
    captured = capture(lambda d, *, k: d["a"] + k, ({"a": torch.ones(1)},), {"k": torch.ones(1)})
    assert "keys of a dict" in miss(captured, {"b": torch.ones(1)}, k=torch.ones(1))
    assert "keyword arguments" in miss(captured, {"a": torch.ones(1)}, j=torch.ones(1))


def test_globals_and_closures(monkeypatch) -> None:
    x = torch.randn(2)
    captured = capture(_reads_globals, (x,))
    torch.testing.assert_close(call(captured, x), x * 6 + 1)
    with monkeypatch.context() as patch:
        patch.setattr(CONFIG, "scale", 4.0)
        assert miss(captured, x) == "CONFIG.scale: 4.0, compiled for 3.0"
    with monkeypatch.context() as patch:
        patch.setattr(CONFIG.nested, "flag", False)
        assert miss(captured, x) == "CONFIG.nested.flag: False, compiled for True"
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "FACTOR", 1.0)
        assert miss(captured, x) == "FACTOR: 1.0, compiled for 2.0"
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "WEIGHT", torch.zeros(2))
        assert "WEIGHT" in miss(captured, x)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "_helper", lambda x: x)
        assert "_helper" in miss(captured, x)
    assert captured.match((x,), {}) is not None


def test_closure_cells() -> None:
    scale, table = 2.0, torch.ones(2)

    def fn(x):
        return x * scale + table

    captured = capture(fn, (torch.randn(2),))
    scale = 3.0
    assert miss(captured, torch.randn(2)) == "scale: 3.0, compiled for 2.0"
    scale, table = 2.0, torch.zeros(2)
    assert "table" in miss(captured, torch.randn(2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.scale = nn.Linear(3, 3), nn.Dropout(0.5), 2.0
        self.config = types.SimpleNamespace(power=2)
        self.register_buffer("shift", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc(x)) * self.scale**self.config.power


def _replace_child(net: Net) -> None:
    net.fc = nn.Linear(3, 3)


def _hook(net: Net) -> None:
    net.fc.register_forward_hook(lambda module, args, out: out + 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net: net.train(), "attribute training: True, compiled for False"),
        (lambda net: net.drop.train(), "attribute drop.training: True, compiled for False"),
        (lambda net: setattr(net, "scale", 3.0), "attribute scale: 3.0, compiled for 2.0"),
        (lambda net: setattr(net.config, "power", 3), "config.power: 3, compiled for 2"),
        (lambda net: setattr(net.fc, "weight", nn.Parameter(torch.ones(3, 3))), "tensor fc.weight"),
        (lambda net: setattr(net, "shift", torch.ones(1)), "tensor shift"),
        (lambda net: net.double(), "tensor fc.weight: dtype torch.float64"),
        (lambda net: net.requires_grad_(False), "tensor fc.weight: requires_grad"),
        (_replace_child, "submodules of the module"),
        (_hook, "forward hooks"),
        (lambda net: setattr(net, "extra", 1), "attributes of the module"),
    ],
)
def test_modules(change, words) -> None:
    net = Net().eval()
    captured = capture(net, (torch.randn(2, 3),))
    assert captured.match((torch.randn(2, 3),), {}) is not None
    change(net)
    assert words in miss(captured, torch.randn(2, 3))


def test_a_hook_elsewhere_changes_nothing() -> None:
    net = Net().eval()
    captured = capture(net, (torch.randn(2, 3),))
    _hook(Net())
    assert captured.match((torch.randn(2, 3),), {}) is not None


def test_torch_state() -> None:
    captured = capture(lambda x: x + 1, (torch.randn(2),))
    with torch.no_grad():
        assert "grad mode: False, compiled for True" in miss(captured, torch.randn(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in miss(captured, torch.randn(2))
    with torch.inference_mode():
        assert miss(captured, torch.randn(2))
    torch.set_default_dtype(torch.float64)
    try:
        assert "default dtype" in miss(captured, torch.randn(2, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert captured.match((torch.randn(2),), {}) is not None


def test_inputs_are_in_the_order_of_the_graph() -> None:
    net = Net().eval()
    captured = capture(net, (torch.randn(2, 3),))
    x = torch.randn(2, 3)
    inputs = captured.match((x,), {})
    assert inputs is not None and inputs[0] is x
    by_path = dict(zip([value.path for value in captured.graph.inputs], inputs, strict=True))
    assert by_path["fc.weight"] is net.fc.weight


def test_guard_source_is_readable() -> None:
    captured = capture(lambda x: x + 1, (torch.randn(2),))
    text = captured.guards.source()
    assert text.startswith("def match(args, kwargs):")
    assert "len(args) == 1" in text


class Tied(nn.Module):
    """Two names for one parameter, a buffer, a plain tensor attribute, and a parameter of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.fc.weight
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.ones(3))
        self.register_buffer("unused", None)
        self.offset = torch.ones(3)
        self.steps = 2

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.again(self.fc(x)) * self.gain + self.shift + self.offset
        return x * self.steps + y


class OwnParameter(nn.Parameter):
    pass


def _swap_data(data: torch.Tensor):
    def change(net: Tied) -> None:
        net.fc.weight.data = data

    return change


def _inference_buffer(net: Tied) -> None:
    with torch.inference_mode():
        net.shift = torch.ones(3)


def _negative_view(net: Tied) -> None:
    net.shift.data = torch._neg_view(torch.ones(3))


def _replace_table(net: Tied) -> None:
    net.fc.__dict__["_parameters"] = {"weight": nn.Parameter(torch.zeros(3, 3)), "bias": net.fc.bias}


def _swap(net: Tied) -> None:
    torch.utils.swap_tensors(net.shift, torch.ones(3, dtype=torch.float64))


def _in_place(net: Tied) -> None:
    net.fc.weight.transpose_(0, 1)


CHANGES = [
    (_swap_data(torch.ones(3, 3, dtype=torch.float64)), "tensor fc.weight: dtype torch.float64"),
    (_swap_data(torch.ones(4, 3)), "tensor fc.weight: shape (4, 3)"),
    (_swap_data(torch.ones(3)), "tensor fc.weight: shape (3,)"),
    (_swap_data(torch.ones(3, 3).t()), "tensor fc.weight: strides (1, 3)"),
    (_in_place, "tensor fc.weight: strides (1, 3)"),
    (lambda net: net.shift.resize_(4), "tensor shift: shape (4,)"),
    (lambda net: net.shift.set_(torch.ones(6)[::2]), "tensor shift: strides (2,)"),
    (lambda net: net.fc.half(), "tensor fc.weight: dtype torch.float16"),
    (lambda net: setattr(net, "shift", torch.ones(3)), "tensor shift"),
    (lambda net: setattr(net, "offset", torch.ones(4)), "tensor offset"),
    (lambda net: setattr(net, "gain", nn.Parameter(torch.ones(1))), "tensor gain"),
    (lambda net: setattr(net.again, "weight", nn.Parameter(net.fc.weight.clone())), "tensor fc.weight"),
    (lambda net: setattr(net.fc.weight, "__class__", OwnParameter), "tensor fc.weight: type OwnParameter"),
    (lambda net: setattr(net, "unused", torch.ones(1)), "tensor unused"),
    (lambda net: setattr(net, "steps", 3), "attribute steps: 3, compiled for 2"),
    (lambda net: delattr(net, "offset"), "tensor offset"),
    (lambda net: net.train(), "attribute training: True"),
    (_inference_buffer, "tensor shift"),
    (_negative_view, "tensor shift: dispatch keys"),
    (_replace_table, "fc._parameters"),
    (_swap, "tensor shift: dtype torch.float64"),
]


def _checked_natively(net: Tied) -> Captured:
    """Captured, and its guards left to the native code of the program made of it."""
    if torch.__version__ < "2.13" and key_set_offset() is None:
        pytest.skip("this older torch keeps its dispatch keys where they are not found: Python checks the guards")
    args = (torch.ones(2, 3), torch.ones(2, 3))
    captured = capture(net, args)
    checker = driver.compile_graph(captured.graph, make_options(net, backend="c")).execute.fact_check
    captured.guards.use(checker)
    assert "_native" in captured.guards.source()
    assert "['weight']" not in captured.guards.source()
    assert captured.match(args, {}) is not None
    return captured


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("native", [False, True])
def test_what_parameters_and_buffers_may_become(change, words, native) -> None:
    net = Tied().eval()
    args = (torch.ones(2, 3), torch.ones(2, 3))
    with torch.no_grad():
        captured = _checked_natively(net) if native else capture(net, args)
        change(net)
        assert words in miss(captured, *args)


def test_native_guards_see_what_torch_sees() -> None:
    """Arguments and torch's own state, with grad mode off and on."""
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            net = Tied().eval().requires_grad_(not enabled)
            captured = _checked_natively(net)
            x, y = torch.zeros(2, 3), torch.zeros(2, 3)
            assert captured.match((x, y), {}) is not None
            assert "one tensor with another" in miss(captured, x, x)
            assert "shape" in miss(captured, x, torch.ones(3))
            assert "type Parameter" in miss(captured, x, nn.Parameter(y, requires_grad=False))
            assert "a float" in miss(captured, x, 1.0)
            assert "dispatch keys" in miss(captured, x, torch._neg_view(y))
            with torch.inference_mode():
                assert "mode" in miss(captured, x, y)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert "autocast" in miss(captured, x, y)
            with torch.set_grad_enabled(not enabled):
                assert "grad mode" in miss(captured, x, y)
            net.requires_grad_(enabled)
            grown = torch.ones(2, 3, requires_grad=True)
            if enabled:
                assert "tensor fc.weight: requires_grad True" in miss(captured, x, y)
                net.requires_grad_(False)
                assert "argument y: requires_grad True" in miss(captured, x, grown)
            assert captured.match((x, y), {}) is not None
            assert (captured.match((x, grown), {}) is None) == enabled


def test_a_parameter_as_argument_is_seen() -> None:
    net = Tied().eval()
    square = torch.ones(3, 3)
    with torch.no_grad():
        net.offset = square
        captured = capture(net, (torch.ones(3, 3), torch.ones(3, 3)))
        options = make_options(net, backend="c")
        captured.guards.use(driver.compile_graph(captured.graph, options).execute.fact_check)
        assert captured.match((torch.ones(3, 3), torch.ones(3, 3)), {}) is not None
        assert "offset is one tensor with another argument" in miss(captured, torch.ones(3, 3), square)


def test_a_tensor_found_nowhere_is_guarded_by_its_metadata() -> None:
    hidden = torch.ones(3)
    give = types.SimpleNamespace(deep=hidden).__getattribute__
    captured = capture(lambda x: x + give("deep"), (torch.ones(3),))
    assert captured.warnings
    assert captured.match((torch.ones(3),), {}) is not None
    hidden.data = torch.ones(3, dtype=torch.float64)
    assert "dtype torch.float64" in miss(captured, torch.ones(3))


def _layouts(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.ones(shape), torch.ones(500).as_strided(shape, strides)]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("shape", "strides", "is_fact"),
    [
        ((1, 3), (9, 1), False),
        ((3, 1), (1, 7), False),
        ((2, 1, 3), (3, 50, 1), False),
        ((0, 3), (1, 1), False),
        ((2, 1, 3), (9, 3, 1), True),
        ((3, 3), (1, 3), True),
        ((2, 1, 3, 3), (9, 1, 3, 1), True),  # channels last or not: the layout of a convolution's result
    ],
)
def test_strides_by_which_nothing_is_found(shape, strides, is_fact, native) -> None:
    """Those of dims of size 1 and of empty tensors, unless torch reads a memory format off them."""
    first, second = _layouts(shape, strides)
    captured = capture(lambda x: x + 1, (first,))
    if native:
        if torch.__version__ < "2.13" and key_set_offset() is None:
            pytest.skip("this older torch keeps its dispatch keys where they are not found: Python checks the guards")
        options = make_options(lambda x: x, backend="c")
        captured.guards.use(driver.compile_graph(captured.graph, options).execute.fact_check)
        assert "_native" in captured.guards.source() or 0 in shape  # a program without kernels has no native code
    assert captured.match((first,), {}) is not None
    if is_fact:
        assert "strides" in miss(captured, second)
    else:
        assert captured.match((second,), {}) is not None
