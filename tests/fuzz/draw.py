"""What the vocabulary of random programs draws from: the variables that there are, by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

import torch

from tests.fuzz.environments import Environments, Rejected

T = TypeVar("T")
FLOAT_NAMES = ("float32", "float32", "float64", "float16", "bfloat16")
INTEGER_NAMES = ("int64", "int32", "int16", "int8", "uint8")


class Draw:
    """Random choices for one statement.

    Args:
        random: decides everything.
        environments: of the program so far.
        resized: sizes are to be spelled as sizes of tensors.
    """

    def __init__(self, random: Random, environments: Environments, resized: bool) -> None:
        self.random, self.environments, self.resized = random, environments, resized

    def __getitem__(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self.environments[name]
        return value

    def one(self, *choices: T) -> T:
        """One of the arguments."""
        return self.random.choice(choices)

    def chance(self, out_of: int) -> bool:
        """True once in so many times."""
        return not self.random.randrange(out_of)

    def pick(self, accept: Callable[[torch.Tensor], bool] = lambda t: True, exact: bool = False) -> str:
        """A variable, a late one more often.

        Raises:
            Rejected: there is none.
        """
        found = [name for name in self.environments.tensors() if accept(self[name])]
        while found:
            name = self.random.choice(found + found[-3:])
            if not exact or self.environments.exact(name):
                return name
            found = [other for other in found if other != name]
        raise Rejected

    def maybe(self, accept: Callable[[torch.Tensor], bool], otherwise: str) -> str:
        """A variable, or an expression where there is none."""
        try:
            return self.pick(accept)
        except Rejected:
            return otherwise

    def mask(self, name: str) -> str:
        """Bools that broadcast with a variable."""
        shape = self[name].shape
        made = f"({self.beside(name, exact=True)} > 0)" if self.environments.exact(name) else f"torch.isnan({name})"
        return self.maybe(lambda t: t.dtype == torch.bool and _broadcasts(t.shape, shape), made)

    def any(self, exact: bool = False) -> str:
        """Any tensor."""
        return self.pick(exact=exact)

    def real(self, exact: bool = False) -> str:
        """Floats, or now and then integers."""
        floats = bool(self.random.randrange(5))
        return self.pick(
            lambda t: not t.is_complex() and t.dtype != torch.bool and t.is_floating_point() >= floats, exact
        )

    def floats(self, exact: bool = False) -> str:
        """Floats."""
        return self.pick(lambda t: t.is_floating_point(), exact)

    def smooth(self) -> str:
        """Floats or complex numbers, or now and then anything."""
        return self.pick(lambda t: t.is_floating_point() or t.is_complex()) if self.random.randrange(6) else self.any()

    def kinked(self) -> str:
        """Floats at which a function with kinks has the same slope however they are rounded."""
        name = self.real()
        if self[name].requires_grad and not self.environments.exact(name):
            raise Rejected
        return name

    def ints(self) -> str:
        """Integers."""
        return self.pick(lambda t: not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool)

    def integral(self) -> str:
        """Integers or bools."""
        return self.pick(lambda t: not t.is_floating_point() and not t.is_complex())

    def bools(self) -> str:
        """Bools."""
        return self.pick(lambda t: t.dtype == torch.bool)

    def complexes(self) -> str:
        """Complex numbers."""
        return self.pick(lambda t: t.is_complex())

    def matrix(self, least: int = 2, most: int = 9) -> str:
        """Floats of so many dims."""
        return self.pick(lambda t: t.is_floating_point() and least <= t.dim() <= most)

    def beside(self, name: str, exact: bool = False, accept: Callable[[torch.Tensor], bool] = lambda t: True) -> str:
        """A variable that broadcasts with another one."""
        shape = self[name].shape
        return self.pick(lambda t: _broadcasts(t.shape, shape) and accept(t), exact)

    def operand(self, name: str, exact: bool = False) -> str:
        """A variable or a number beside another one."""
        return self.number(name) if self.chance(3) else self.beside(name, exact)

    def number(self, name: str) -> str:
        """A literal that suits a tensor."""
        if self[name].is_floating_point() and self.random.randrange(4):
            return self.one("0.5", "2.0", "-1.5", "0.25", "-0.0", "3.0", "1")
        return self.one("1", "2", "-1", "3", "0", "7", "2")

    def dim(self, name: str, extra: int = 0) -> int:
        """A dim of a tensor, counted from either end."""
        rank = self[name].dim() + extra
        if not rank:
            return self.one(0, -1)
        return self.random.randrange(-rank, rank)

    def dims(self, name: str) -> str:
        """Some dims of a tensor."""
        rank = self[name].dim()
        chosen = [dim - self.one(0, rank) for dim in range(rank) if self.random.randrange(2)]
        return f"({', '.join(map(str, chosen))}{',' if len(chosen) == 1 else ''})"

    def size(self, name: str, dim: int) -> str:
        """The size of a dim, as a number or as an expression."""
        if self.resized or self.chance(3):
            return f"{name}.shape[{dim}]"
        return str(self[name].shape[dim])

    def shape(self, name: str) -> str:
        """The shape of a tensor, as an expression."""
        if self.resized or self.chance(3):
            return f"{name}.shape"
        return str(tuple(self[name].shape))

    def float_dtype(self) -> str:
        """A float dtype, spelled."""
        return f"torch.{self.random.choice(FLOAT_NAMES)}"

    def int_dtype(self) -> str:
        """An integer dtype, spelled."""
        return f"torch.{self.random.choice(INTEGER_NAMES)}"

    def index(self, size: int, count: int) -> str:
        """A tensor of so many indices into a dim of some size."""
        if not size:
            raise Rejected
        low = -size if self.chance(3) else 0
        return f"torch.tensor({[self.random.randrange(low, size) for _ in range(count)]}, dtype=torch.int64)"

    def finite(self, name: str) -> bool:
        """Whether a tensor holds small finite numbers, in both calls."""
        values = [environment.names[name].detach() for environment in self.environments.native]
        return all(bool((value.abs() < 100).all()) for value in values)


def _broadcasts(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return all(a in (b, 1) or b == 1 for a, b in zip(reversed(left), reversed(right), strict=False))
