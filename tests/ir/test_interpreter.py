"""The interpreter: results, writes, aliases and layouts of outputs, and extern calls, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from graphc.errors import InvalidGraphError
from graphc.ir import Graph, parse, run
from graphc.ops.extern import effect, overload, own_returns, resolve
from tests.strategies import graphs, random_inputs


def _run(text: str, *inputs: object) -> list:
    return run(parse(text), inputs)


def test_ops_in_order() -> None:
    x, y = torch.randn(3, 4), torch.randn(4)
    (result,) = _run(
        """graph f(%x: f32[3, 4] arg "x", %y: f32[4] arg "y") {
          %0: f32[3, 4] = mul(%x, %y)
          %1: f32[3, 4] = add(%0, 1.5)
          %2: f32[3] = sum(%1) {dims=[1], keepdim=False}
          return %2
        }""",
        x,
        y,
    )
    torch.testing.assert_close(result, (x * y + 1.5).sum(1))


def test_writes_happen_at_the_end_and_all_at_once() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    before = a.data_ptr()
    outputs = _run(
        """graph swap(%a: f32[2] arg "a", %b: f32[2] state "b") {
          %0: f32[2] = reshape(%a) {shape=[2]}
          write %a <- %b
          write %b <- %0
          return %0, %a
        }""",
        a,
        b,
    )
    assert a.tolist() == [3.0, 4.0] and b.tolist() == [1.0, 2.0]
    assert outputs[0].tolist() == [1.0, 2.0]
    assert outputs[1] is a and a.data_ptr() == before


def test_parameters_that_require_grad_are_written() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    _run(
        """graph f(%p: f32[2] param "p") {
          %0: f32[2] = mul(%p, 3.0)
          write %p <- %0
          return
        }""",
        p,
    )
    assert p.tolist() == [3.0, 3.0] and p.requires_grad


def test_aliases() -> None:
    x = torch.arange(6.0)
    whole, view, first, second, fresh = _run(
        """graph f(%x: f32[6] arg "x") {
          %0: f32[6] = add(%x, 1.0)
          %1: f32[6] = reshape(%x) {shape=[6]}
          write %x <- %0
          return %x, %x as [2, 2]{3, 1}+1, %0, %0 as [3]{2}+0, %1
        }""",
        x,
    )
    assert whole is x
    assert view.data_ptr() == x[1:].data_ptr() and view.tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert first.data_ptr() == second.data_ptr() != x.data_ptr()
    assert second.tolist() == [1.0, 3.0, 5.0]
    assert fresh.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert fresh.untyped_storage().data_ptr() not in (x.data_ptr(), first.data_ptr())


def test_the_offset_of_a_view_of_an_input_counts_from_its_first_element() -> None:
    base = torch.arange(8.0)
    (view,) = _run('graph f(%x: f32[4] arg "x") { return %x as [2]{1}+1 }', base[3:7])
    assert view.tolist() == [4.0, 5.0]
    view.zero_()
    assert base.tolist() == [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 6.0, 7.0]


@pytest.mark.parametrize("strides", [(1, 2), (3, 1), (0, 1), (4, 1)])
def test_fresh_outputs_have_the_strides_of_their_value(strides: tuple[int, ...]) -> None:
    x = torch.arange(3.0)
    (result,) = _run(
        f"""graph f(%x: f32[3] arg "x") {{
          %0: f32[2, 3] strides=[{strides[0]}, {strides[1]}] = expand(%x) {{shape=[2, 3]}}
          return %0
        }}""",
        x,
    )
    assert result.stride() == strides
    assert torch.equal(result, x.expand(2, 3))
    assert result.data_ptr() != x.data_ptr()


def test_outputs_without_a_hint_are_contiguous() -> None:
    (result,) = _run(
        """graph f(%x: f32[2, 3] arg "x" strides=[1, 2]) {
          %0: f32[2, 3] = exp(%x)
          return %0
        }""",
        torch.randn(3, 2).t(),
    )
    assert result.stride() == (3, 1)


def test_host_scalars_are_python_numbers() -> None:
    x = torch.tensor([1.0, 2.0])
    number, scaled, same = _run(
        """graph f(%x: f32[2] arg "x", %lr: f64[]@host scalar "lr") {
          %0: f32[] = sum(%x) {dims=[0], keepdim=False}
          %1: f64[]@host = item(%0)
          %2: f64[]@host = mul(%1, %lr)
          %3: f32[2] = mul(%x, %2)
          return %2, %3, %lr
        }""",
        x,
        0.5,
    )
    assert number == 1.5 and isinstance(number, float)
    assert scaled.tolist() == [1.5, 3.0]
    assert same == 0.5


def test_an_empty_tensor_and_no_output() -> None:
    (result,) = _run(
        'graph f(%x: f32[0, 3] arg "x") {\n %0: f32[3] = sum(%x) {dims=[0], keepdim=False}\n return %0 }',
        torch.empty(0, 3),
    )
    assert result.tolist() == [0.0, 0.0, 0.0]
    assert _run('graph f(%x: f32[0] arg "x") { return }', torch.empty(0)) == []


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(InvalidGraphError, match="graph f takes 1 inputs, 2 were given"):
        _run('graph f(%x: f32[1] arg "x") { return %x }', torch.ones(1), torch.ones(1))


def test_symbolic_layout() -> None:
    with pytest.raises(InvalidGraphError, match=r"the interpreter needs static sizes, not \[s0\*2\]"):
        _run('graph f(%x: f32[4] arg "x") { return %x as [s0*2]{1}+0 }', torch.ones(4))


def test_wrong_number_of_results() -> None:
    text = """graph f(%x: f32[2] arg "x") {
      %0: f32[2], %1: f32[2] = extern(%x) {op="aten.sin.default", args=[$0]}  # model.py:3
      return %1
    }"""
    with pytest.raises(InvalidGraphError, match=r"extern gave 1 results instead of 2\n  at model.py:3"):
        _run(text, torch.ones(2))


# extern


def test_extern_with_lists_constants_and_keywords() -> None:
    x = torch.randn(2, 3)
    stacked, made = _run(
        """graph f(%x: f32[2, 3] arg "x") {
          %0: f32[2, 2, 3] = extern(%x, %x) {op="aten.stack.default", args=[[$0, $1], 0]}
          %1: f64[2, 3] = extern(%x) {op="aten._to_copy.default", args=[$0],
            kwargs={dtype=f64, device=@device.cpu, memory_format=@memory_format.contiguous_format}}
          return %0, %1
        }""",
        x,
    )
    assert torch.equal(stacked, torch.stack([x, x]))
    assert torch.equal(made, x.double())


def test_extern_that_mutates_works_on_clones() -> None:
    x = torch.tensor([3.0, 1.0, 2.0])
    before = x.clone()
    (result,) = _run(
        """graph f(%x: f32[3] arg "x") {
          %0: f32[3] = extern(%x) {op="aten.sin_.default", args=[$0], mutates=[0]}
          return %0
        }""",
        x,
    )
    assert torch.equal(x, before)
    assert torch.equal(result, before.sin())


def test_extern_returns_come_before_clones_and_none_is_left_out() -> None:
    values, indices = torch.empty(3), torch.empty(3, dtype=torch.int64)
    x = torch.tensor([3.0, 1.0, 2.0])
    outs = _run(
        """graph f(%x: f32[3] arg "x", %v: f32[3] arg "v", %i: i64[3] arg "i") {
          %0: f32[3], %1: i64[3] = extern(%x, %v, %i) {op="aten.sort.values", args=[$0],
            kwargs={values=$1, indices=$2}, mutates=[1, 2]}
          %2: f32[2], %3: f32[1] = extern(%x) {op="aten.split.Tensor", args=[$0, 2]}
          return %0, %1
        }""",
        x,
        values,
        indices,
    )
    assert outs[0].tolist() == [1.0, 2.0, 3.0] and outs[1].tolist() == [1, 2, 0]
    call = overload("aten.native_layer_norm_backward.default")
    ones = torch.ones(2, 3)
    answer = call(ones, ones, [3], ones[:, :1], ones[:, :1], None, None, [True, False, False])
    assert answer[1] is None or answer[1].numel() == 0
    assert len(own_returns(call, (answer[0], None, None))) == 1


@pytest.mark.parametrize("name", ["aten.nothing.default", "aten.sin.nothing", "nowhere.sin.default", "sin"])
def test_unknown_overload(name: str) -> None:
    with pytest.raises(InvalidGraphError, match=f"has no operator overload '{name}'"):
        overload(name)


@pytest.mark.parametrize("constant", ["@memory_format.nothing", "@layout.float32", "@generator.default"])
def test_unknown_constant(constant: str) -> None:
    graph = parse(f"graph f() {{\n  f() {{a={constant}}}\n  return\n}}")
    with pytest.raises(InvalidGraphError, match=f"torch has no constant {constant}"):
        resolve(graph.ops[0].attrs["a"], [])


def test_symbolic_size_in_extern() -> None:
    graph = parse("graph f() {\n  f() {a=[s0*2]}\n  return\n}")
    with pytest.raises(InvalidGraphError, match=r"symbolic size s0\*2"):
        resolve(graph.ops[0].attrs["a"], [])


def test_effects() -> None:
    graph = parse(
        """graph f(%x: f32[2] arg "x") {
          %0: f32[2] = extern(%x) {op="aten.bernoulli.default", args=[$0], effect="random"}
          %1: f32[2] = extern(%x) {op="aten.sin.default", args=[$0]}
          %2: f32[2] = exp(%x)
          return
        }"""
    )
    assert [effect(op) for op in graph.ops] == ["random", "", ""]


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_random_graphs_give_the_stated_types(graph: Graph) -> None:
    inputs = random_inputs(graph, specials=True)
    originals = [item.clone() for item in inputs]
    outputs = run(graph, inputs)
    for output, datum in zip(graph.outputs, outputs, strict=True):
        shape = output.value.shape if output.view is None else output.view.shape
        assert tuple(datum.shape) == shape
        assert str(datum.dtype) == f"torch.{output.value.dtype.torch_name}"
    written = {write.target for write in graph.writes}
    for value, item, original in zip(graph.inputs, inputs, originals, strict=True):
        assert value in written or torch.equal(item.nan_to_num(), original.nan_to_num())
