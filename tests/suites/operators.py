"""Every operator that PyTorch's own tests know, compiled and in eager: `python -m tests.suites.operators`.

Samples and erroneous inputs come from `torch.testing._internal.common_methods_invocations.op_db`. Each form of an
operator is a suite of its own: `forward`, `in-place`, `method`, `strided` (inputs that are not contiguous), `backward`
(gradients by random cotangents, taken inside the compiled function), `outside` (gradients of a compiled function, its
results copied), and `erroneous`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import click
import torch

from graphc.frontend import tree
from tests.suites.batches import SIZE, Call, judge_all
from tests.suites.gradients import cotangents, with_gradients
from tests.suites.tables import fused
from tests.suites.verdicts import Tally, first_samples, report, seed, timed

UNINITIALISED = frozenset((
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted",
))  # fmt: skip
FORMS = ("forward", "in-place", "method", "strided", "backward", "outside", "erroneous")


def operators(dtype: torch.dtype, form: str = "forward", device: str = "cpu") -> list[Any]:
    """The operators that eager has for a dtype on a device, in a form."""
    from torch.testing._internal import common_methods_invocations, common_utils
    from torch.testing._internal.opinfo import core

    # samples are made for no unittest, so their iterators need not look for one on the stack, which takes a while
    common_utils.extract_test_fn = core.extract_test_fn = lambda: None
    common_utils.set_rng_seed = seed
    # random ones come wrapped in a call that seeds the generator, which is no part of an operator
    common_methods_invocations.wrapper_set_seed = lambda op, *args, **kwargs: op(*args, **kwargs)
    found = [op for op in common_methods_invocations.op_db if dtype in op.supported_dtypes(device)]
    if form in ("backward", "outside"):
        return [op for op in found if op.supports_autograd and dtype in op.supported_backward_dtypes(device)]
    if form == "erroneous":
        return [op for op in found if op.error_inputs_func is not None]
    return [op for op in found if _variant(op, form) is not None]


def label(op: Any) -> str:
    """Name of an operator with its variant."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def calls(
    op: Any, dtype: torch.dtype, form: str = "forward", count: int | None = None, device: str = "cpu"
) -> list[Call]:
    """The first samples of an operator in a form, all made before any is run."""
    seed()
    if form == "erroneous":
        samples = [erroneous.sample_input for erroneous in itertools.islice(op.error_inputs(device), count)]
    else:
        graded = form in ("backward", "outside")
        samples = list(itertools.islice(op.sample_inputs(device, dtype, requires_grad=graded), count))
    if form == "strided":
        samples = [sample.noncontiguous() for sample in samples if _is_strided(sample)]
    make = {"backward": _inside, "outside": _outside}.get(form, _plain)
    operator = _variant(op, form)
    return [make(f"{label(op)}[{number}]", operator, sample) for number, sample in enumerate(samples)]


def _is_strided(sample: Any) -> bool:
    """Sparse tensors have no strides."""
    leaves = tree.flatten((sample.input, sample.args, sample.kwargs))[0]
    return all(leaf.layout == torch.strided for leaf in leaves if isinstance(leaf, torch.Tensor))


def _variant(op: Any, form: str) -> Callable[..., Any]:
    return {"in-place": op.inplace_variant, "method": op.method_variant}.get(form, op.op)


def _plain(name: str, operator: Callable[..., Any], sample: Any) -> Call:
    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return operator(input, *args, **kwargs)

    return Call(name, call, (sample.input, sample.args, sample.kwargs))


def _processed(name: str, operator: Callable[..., Any], sample: Any) -> Call:
    """With the part of its results that a gradient is defined of."""
    process, plain = sample.output_process_fn_grad, _plain(name, operator, sample)
    return Call(name, lambda input, args, kwargs: process(plain.fn(input, args, kwargs)), plain.args)


def _inside(name: str, operator: Callable[..., Any], sample: Any) -> Call:
    call = _processed(name, operator, sample)
    leaves, node = tree.flatten(call.args)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    plain = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    with torch.enable_grad():
        given = _given(call)
    return Call(name, with_gradients(call.fn), (tree.rebuild(node, iter(plain)), places, given))


def _outside(name: str, operator: Callable[..., Any], sample: Any) -> Call:
    call = _processed(name, operator, sample)
    leaves, node = tree.flatten(call.args)
    fresh = [_leaf(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def copied(*args: Any) -> Any:  # views of arguments that require grad are left to eager
        results, made = tree.flatten(call.fn(*args))
        return tree.rebuild(made, iter([leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in results]))

    return Call(name, copied, tree.rebuild(node, iter(fresh)), _given(call))


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _given(call: Call) -> list[torch.Tensor]:
    """Cotangents of a call's results; none where eager raises, and so will what is judged."""
    seed()
    try:
        results = call.fn(*call.args)
    except Exception:
        return []
    return cotangents(results)


def sweep(
    tally: Tally, op: Any, backend: str, dtype: torch.dtype, form: str = "forward", count: int | None = None,
    explain: bool = False, device: str = "cpu",
) -> None:  # fmt: skip
    """Judge the first samples of one operator in a form."""
    with timed(tally), torch.set_grad_enabled(form in ("backward", "outside")):
        found = calls(op, dtype, form, count, device)
        size = 1 if form == "erroneous" else SIZE
        values = op.name not in UNINITIALISED
        tally.verdicts += judge_all(found, backend, values=values, explain=explain, size=size)


@click.command()
@click.option("--dtype", default="float32", show_default=True)
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="Forms of operators; all by default.")
@click.option("--samples", "count", default=None, type=int, help="Samples of each operator; all by default.")
@click.option("--backend", default="c", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where tensors lie.")
@click.option("--only", default="", help="Operators whose name starts so.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th operator, from the i-th.")
@click.option("--explain", is_flag=True, help="Count the operators with no ATen call left in their programs.")
def main(
    dtype: str,
    forms: tuple[str, ...],
    count: int | None,
    backend: str,
    device: str,
    only: str,
    part: str,
    explain: bool,
) -> None:
    """Compare every operator with eager; exits with 1 when an answer is wrong."""
    torch.set_num_threads(1)
    kind: torch.dtype = getattr(torch, dtype)
    first, step = map(int, part.split("/"))
    tallies = []
    for form in forms or FORMS:
        tally = Tally(f"operators, {form}, {dtype}, {backend}{first_samples(count)}")
        for op in operators(kind, form, device)[first::step]:
            if op.name.startswith(only):
                sweep(tally, op, backend, kind, form, count, explain, device)
        if explain:
            tally.notes.append("{} of {} operators have no ATen call left in any program".format(*fused(tally)))
        tallies.append(tally)
    raise SystemExit(report(tallies))


if __name__ == "__main__":
    main()
