"""The op registry as a whole."""

from __future__ import annotations

import pkgutil

import pytest

from graphc import ops
from graphc.errors import InvalidGraphError
from graphc.ops import Kind

HELPERS = {"registry", "rules", "composite", "checks"}


def test_every_family_is_imported() -> None:
    modules = {module.name for module in pkgutil.iter_modules(ops.__path__)}
    assert {family.__name__.rpartition(".")[2] for family in ops.FAMILIES} == modules - HELPERS


def test_every_op_can_be_computed_somehow() -> None:
    for definition in ops.all_ops():
        ways = (definition.lower, definition.expand, definition.call)
        assert any(ways) or definition.kind in (Kind.EXTERN, Kind.LOOP), (
            f"{definition.name} has no lowering, expansion or call"
        )
        assert definition.doc.rstrip().endswith((".", ")")), f"{definition.name}: {definition.doc!r}"


def test_unknown_op() -> None:
    with pytest.raises(InvalidGraphError, match="no op named 'matmull'; did you mean 'matmul'"):
        ops.get("matmull")
    assert not ops.exists("matmull")


def test_an_op_is_registered_once() -> None:
    with pytest.raises(ValueError, match="op add is registered twice"):
        ops.register(ops.get("add"))
