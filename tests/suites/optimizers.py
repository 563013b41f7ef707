"""Every optimizer of PyTorch with every option its own tests know: `python -m tests.suites.optimizers`.

Configurations come from `torch.testing._internal.common_optimizers.optim_db`, each as for-loop, foreach, fused and
differentiable where the optimizer has it. Five steps compiled and five in eager must leave the same parameters and the
same state. Muon, which makes its updates orthogonal in bfloat16, is held to eager's own error against float64.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import click
import torch

import graphc
from graphc.errors import FallbackWarning, GraphcError
from tests.suites.verdicts import REFUSED, RIGHT, WRONG, Tally, TooSlow, Verdict, limited, report, timed
from tests.support import assert_contract

STEPS = 5
SHAPES = ((3,), (5, 7), (1,), (2, 3, 4), (0, 3), (17,), (4, 4), (1, 9), (33,), ())
TOLERANCE = 1e-9
"""Of parameters and states in float64, where what is left is wrong formulas."""


def configurations() -> Iterator[tuple[str, type[torch.optim.Optimizer], dict[str, Any]]]:
    """(name, optimizer, options) of all that are valid on a CPU."""
    from torch.testing._internal.common_optimizers import optim_db

    for info in optim_db:
        for number, given in enumerate(info.optim_inputs_func(device="cpu")):
            for form in ("for-loop", *info.supported_impls):
                options = {key: value for key, value in given.kwargs.items() if key not in info.supported_impls}
                if form != "for-loop":
                    options[form] = True
                elif "foreach" in info.supported_impls:
                    options["foreach"] = False
                yield f"{info.name}[{number}] {form}, {given.desc}", info.optim_cls, options


def parameters(optimizer: type[torch.optim.Optimizer]) -> list[torch.nn.Parameter]:
    """Parameters of differing shapes: empty, 0-d, transposed ones among them; matrices only for Muon."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if optimizer.__name__ == "Muon":
        return [torch.nn.Parameter(random(2 + size % 3, 3)) for size in range(9)]
    found = [random(*shape) for shape in SHAPES]
    return [torch.nn.Parameter(item) for item in (*found, random(3, 6).t(), random(2, 2))]


class Training:
    """Parameters with an optimizer.

    Args:
        kind: the class of the optimizer.
        options: of its constructor.
    """

    def __init__(self, kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
        self.params = parameters(kind)
        self.optimizer = kind(self.params, **copy.deepcopy(options))

    def give_gradients(self, number: int) -> None:
        """The gradients of a step; the last parameter has none."""
        generator = torch.Generator().manual_seed(number)
        for param in self.params[:-1]:
            param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator))
            if type(self.optimizer).__name__ == "SparseAdam" and param.dim():
                param.grad = param.grad.to_sparse(1)

    def step(self) -> None:
        """One step, with a closure for the optimizers that need one."""
        if type(self.optimizer).__name__ == "LBFGS":
            self.optimizer.step(self.closure)
        else:
            self.optimizer.step()

    def closure(self) -> torch.Tensor:
        """The loss and its gradients."""
        self.optimizer.zero_grad()
        loss = torch.stack([(param - 1).square().sum() for param in self.params]).sum()
        loss.backward()
        return loss

    def state(self) -> list[Any]:
        """What a step changes."""
        kept = self.optimizer.state_dict()["state"]
        return [list(self.params), [kept[key] for key in sorted(kept)]]

    def numbers(self) -> torch.Tensor:
        """All parameters as one vector, so that the largest errors are compared and not the luck of six numbers."""
        return torch.cat([param.detach().flatten() for param in self.params])


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """For the block: what asks for bfloat16 keeps its dtype."""
    plain = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = lambda self: self  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.bfloat16 = plain  # type: ignore[method-assign]


def judge(name: str, kind: type[torch.optim.Optimizer], options: dict[str, Any], backend: str) -> Verdict:
    """Train compiled and in eager, and compare."""
    ours, theirs, exact = Training(kind, options), Training(kind, options), Training(kind, options)
    compiled = graphc.compile(ours.step, backend=backend)
    with warnings.catch_warnings(record=True) as caught, limited():
        warnings.simplefilter("always")
        for number in range(STEPS):
            ours.give_gradients(number)
            theirs.give_gradients(number)
            expected = _error(theirs.step)
            if kind.__name__ == "Muon" and expected is None:
                exact.give_gradients(number)
                with in_float64():
                    exact.step()
            try:
                found = _error(compiled)
            except TooSlow:
                return Verdict(name, WRONG, "too slow")
            if isinstance(found, GraphcError):
                return Verdict(name, REFUSED, str(found).partition("\n")[0][:200])
            if type(found) is not type(expected):
                return Verdict(name, WRONG, f"{found!r}; eager: {expected!r}"[:300])
            if expected is not None:
                return Verdict(name, RIGHT)
    try:
        if kind.__name__ == "Muon":
            assert_contract(ours.numbers(), theirs.numbers(), exact.numbers())
        else:
            torch.testing.assert_close(ours.state(), theirs.state(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    except AssertionError as mismatch:
        return Verdict(name, WRONG, str(mismatch).replace("\n", " ")[:300])
    stats = compiled.stats()
    if stats.eager_calls:
        reasons = [str(item.message) for item in caught if issubclass(item.category, FallbackWarning)]
        return Verdict(
            name, REFUSED if reasons else WRONG, f"runs eager: {reasons[0][:200] if reasons else 'silently'}"
        )
    return Verdict(name, RIGHT)


def _error(step: Any) -> Exception | None:
    try:
        step()
    except Exception as error:
        return error
    return None


def sweep(tally: Tally, backend: str, only: str = "", first: int = 0, every: int = 1) -> None:
    """Judge every so-manieth configuration."""
    with timed(tally):
        for name, kind, options in list(configurations())[first::every]:
            if name.startswith(only):
                tally.verdicts.append(judge(name, kind, options, backend))


@click.command()
@click.option("--backend", default="c", show_default=True)
@click.option("--only", default="", help="Optimizers whose name starts so.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th configuration, from the i-th.")
def main(backend: str, only: str, part: str) -> None:
    """Compare every optimizer with eager; exits with 1 when one is wrong."""
    torch.set_num_threads(1)
    tally = Tally(f"optimizers, {backend}")
    first, every = map(int, part.split("/"))
    sweep(tally, backend, only, first, every)
    raise SystemExit(report([tally]))


if __name__ == "__main__":
    main()
