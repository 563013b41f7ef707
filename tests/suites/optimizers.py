"""Every optimizer of PyTorch with every option its own tests know: `python -m tests.suites.optimizers`.

Configurations come from `torch.testing._internal.common_optimizers.optim_db`, each as for-loop, foreach, fused and
differentiable where the optimizer has it; differentiable ones twice, with gradients that autograd follows through the
steps and with plain ones. Five steps compiled and five in eager must leave the same parameters, the same state and the
same history. Muon, which makes its updates orthogonal in bfloat16, and differentiable forms, which count steps in
float32 tensors, are held to eager's own error against float64. A configuration that eager itself refuses would compare
nothing, and counts as wrong.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
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
PLAIN, FOLLOWED = "plain gradients", "followed by autograd"


@dataclass(frozen=True)
class Configuration:
    """What is trained with.

    Args:
        name: optimizer, number, form and description.
        kind: the class of the optimizer.
        options: of its constructor.
        followed: gradients of the first parameters are wanted behind the steps; of differentiable optimizers.
    """

    name: str
    kind: type[torch.optim.Optimizer]
    options: dict[str, Any]
    followed: bool = False


def configurations() -> Iterator[Configuration]:
    """All that are valid on a CPU."""
    from torch.testing._internal.common_optimizers import optim_db

    for info in optim_db:
        for number, given in enumerate(info.optim_inputs_func(device="cpu")):
            for form in ("for-loop", *info.supported_impls):
                options = {key: value for key, value in given.kwargs.items() if key not in info.supported_impls}
                if form != "for-loop":
                    options[form] = True
                elif "foreach" in info.supported_impls:
                    options["foreach"] = False
                name = f"{info.name}[{number}] {form}, {given.desc}"
                if form == "differentiable":
                    yield Configuration(f"{name}, {FOLLOWED}", info.optim_cls, options, followed=True)
                    name = f"{name}, {PLAIN}"
                yield Configuration(name, info.optim_cls, options)


def parameters(optimizer: type[torch.optim.Optimizer]) -> list[torch.nn.Parameter]:
    """Parameters of differing shapes, empty, 0-d and transposed ones among them, as far as eager takes them: Muon wants
    matrices, Adafactor divides by sizes, LBFGS views gradients as vectors, and a 0-d gradient cannot be sparse."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    name = optimizer.__name__
    if name == "Muon":
        return [torch.nn.Parameter(random(2 + size % 3, 3)) for size in range(9)]
    without = {"Adafactor": (0, 3), "SparseAdam": ()}.get(name)
    found = [random(*shape) for shape in SHAPES if shape != without]
    transposed = random(3, 6).t()
    last = random(2, 2)
    return [torch.nn.Parameter(item) for item in (*found, *([] if name == "LBFGS" else [transposed]), last)]


class Training:
    """Parameters with an optimizer."""

    def __init__(self, made: Configuration) -> None:
        self.made = made
        self.leaves: list[torch.Tensor] = list(parameters(made.kind))
        if "differentiable" in made.options:  # which updates no leaves that require grad
            self.leaves = [param.detach().requires_grad_(made.followed) for param in self.leaves]
        self.params = [leaf.clone() for leaf in self.leaves] if made.followed else self.leaves
        self.optimizer = made.kind(self.params, **copy.deepcopy(made.options))
        self.gradients: list[torch.Tensor] = []

    def give_gradients(self, number: int) -> None:
        """The gradients of a step; the last parameter has none."""
        generator = torch.Generator().manual_seed(number)
        for param in self.params[:-1]:
            gradient = torch.empty_like(param.detach()).copy_(torch.randn(param.shape, generator=generator))
            if self.made.kind.__name__ == "SparseAdam":
                gradient = gradient.to_sparse(1)
            param.grad = gradient.requires_grad_(self.made.followed)
            self.gradients.append(gradient)

    def step(self) -> None:
        """One step, with a closure for the optimizers that need one."""
        if self.made.kind.__name__ == "LBFGS":
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

    def history(self) -> list[torch.Tensor] | None:
        """Gradients of some loss behind the steps with respect to what went into them; None where autograd refuses, as
        some optimizers write over what their gradients need."""
        try:
            torch.stack([param.sin().sum() for param in self.params]).sum().backward()
        except RuntimeError:
            return None
        return [torch.zeros(()) if t.grad is None else t.grad for t in (*self.leaves, *self.gradients)]

    def numbers(self) -> torch.Tensor:
        """All numbers as one vector, so that the largest errors are compared and not the luck of six of them."""
        kept = self.optimizer.state_dict()["state"]
        states = [item for key in sorted(kept) for item in kept[key].values() if isinstance(item, torch.Tensor)]
        return torch.cat([item.detach().flatten().double() for item in (*self.params, *states)])


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """For the block: what asks for bfloat16 keeps its dtype, and steps are counted in float64."""
    plain, default = torch.Tensor.bfloat16, torch.get_default_dtype()
    torch.Tensor.bfloat16 = lambda self: self  # type: ignore[method-assign,assignment]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.bfloat16 = plain  # type: ignore[method-assign]


def judge(made: Configuration, backend: str) -> Verdict:
    """Train compiled and in eager, and compare."""
    name, rounds = made.name, made.kind.__name__ == "Muon" or "differentiable" in made.options
    ours, theirs, exact = Training(made), Training(made), Training(made)
    compiled = graphc.compile(ours.step, backend=backend)
    with warnings.catch_warnings(record=True) as caught, limited():
        warnings.simplefilter("always")
        for number in range(STEPS):
            ours.give_gradients(number)
            theirs.give_gradients(number)
            theirs.step()
            if rounds:
                exact.give_gradients(number)
                with in_float64():
                    exact.step()
            try:
                compiled()
            except TooSlow:
                return Verdict(name, WRONG, "too slow")
            except GraphcError as error:
                return Verdict(name, REFUSED, _first_line(error))
            except Exception as error:
                return Verdict(name, WRONG, f"{error!r}; eager: no error"[:300])
    try:
        compare(ours, theirs, exact if rounds else None)
    except AssertionError as mismatch:
        return Verdict(name, WRONG, str(mismatch).replace("\n", " ")[:300])
    if compiled.stats().eager_calls:
        reasons = [item.message for item in caught if issubclass(item.category, FallbackWarning)]
        if not reasons:
            return Verdict(name, WRONG, "runs eager silently")
        return Verdict(name, REFUSED, _first_line(reasons[0]))
    return Verdict(name, RIGHT)


def compare(ours: Training, theirs: Training, exact: Training | None) -> None:
    """Assert that two trainings have come to the same parameters, state and history.

    Args:
        exact: the same in float64 throughout, where eager rounds more.
    """
    try:
        torch.testing.assert_close(ours.state(), theirs.state(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    except AssertionError:
        if exact is None:
            raise
        torch.testing.assert_close(ours.state(), theirs.state(), rtol=1.0, atol=1.0, equal_nan=True)  # dtypes, shapes
        assert_contract(ours.numbers(), theirs.numbers(), exact.numbers())
    if ours.made.followed:
        found, expected = ours.history(), theirs.history()
        assert (found is None) == (expected is None), f"gradients {found}, eager {expected}"
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _first_line(said: Any) -> str:
    """What an error or a warning says, without its place."""
    return str(said).partition("\n")[0][:200]


def sweep(tally: Tally, backend: str, only: str = "", first: int = 0, every: int = 1) -> None:
    """Judge every so-manieth configuration."""
    with timed(tally):
        for made in list(configurations())[first::every]:
            if made.name.startswith(only):
                try:
                    tally.verdicts.append(judge(made, backend))
                except Exception as error:
                    tally.verdicts.append(Verdict(made.name, WRONG, f"in eager: {error!r}"[:300]))


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
