"""Program records: exact round trips through JSON, and refusal of damaged text."""

from __future__ import annotations

import math

import pytest

from graphc.errors import CacheError
from graphc.ir.graph import Named
from graphc.ir.types import Location, bf16, f32, i64
from graphc.program.plan import AtenStep, BufferSpec, Check, GemmStep, KernelStep, OutputSpec, View
from graphc.program.record import NATIVE, PYTHON, Program, Segment

VIEW = View(1, bf16, (2, 3), (3, 1), 4)


def sample() -> Program:
    return Program(
        name="step",
        backend="c",
        buffers=[
            BufferSpec(0, "input", f32, (2,), (1,), 8, source=0),
            BufferSpec(1, "arena", i64, (), (), 8, host=True),
        ],
        steps=[
            KernelStep("relu", (0, 1), (0, 2), Location("a.py", 3, "f", "m.0")),
            GemmStep(VIEW, VIEW, VIEW, True),
            AtenStep(
                "aten.foo.default",
                (VIEW, None, True, 2, (1, (2.5, "x\n\u00e9"), ()), f32, Named("memory_format", "channels_last")),
                (("scale", 1e-300), ("big", 2**70), ("z", 1 + 2j)),
                (1, -1),
                (0,),
            ),
        ],
        outputs=[OutputSpec(0, (2,), (1,)), OutputSpec(1, (), (), 3, False)],
        written=(0,),
        arena_bytes=64,
        checks={1: [Check("IndexError", "index {value}", 4, Location("a.py", 3)), Check("RuntimeError", "zero", 5)]},
        segments=[Segment(NATIVE, 0, 2, "graphc_run_0"), Segment(PYTHON, 2, 3)],
        sources={"program.c": "int x; /* \u03b1 */\n"},
        kernels={"relu": {"grid": (1, 2), "constants": {"N": 3, 4: [1, 2]}}},
        symbols=("sgemm_",),
        flags=("-O2",),
        libraries=("-lm",),
        stats={"ops": 3, "reasons": ["a", ("b", None)]},
    )


def test_round_trip_is_exact() -> None:
    program = sample()
    again = Program.from_json(program.to_json())
    assert again == program
    assert again.to_json() == program.to_json()
    assert again.buffers[0].dtype.itemsize == 4  # fields that == does not compare
    assert type(again.kernels["relu"]["constants"][4]) is list


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan])
def test_floats_keep_their_bits(value: float) -> None:
    program = Program("f", "c", stats={"x": value})
    again = Program.from_json(program.to_json()).stats["x"]
    assert repr(again) == repr(value)
    assert math.copysign(1, again) == math.copysign(1, value)


def test_complex_and_bool_keep_their_type() -> None:
    stats = {"a": complex(math.nan, -0.0), "b": True, "c": 1, "d": 1.0}
    again = Program.from_json(Program("f", "c", stats=stats).to_json()).stats
    assert repr(again) == repr(stats)


def test_values_without_a_plain_form_are_refused() -> None:
    with pytest.raises(TypeError, match="object cannot stand in a program record"):
        Program("f", "c", stats={"x": object()}).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged program record"),
        ("{}", "damaged program record: KeyError"),
        ('{"format": 999}', "format 999"),
        ("[1]", "damaged"),
        (sample().to_json().replace('"View"', '"Nonsense"'), "unknown tag 'Nonsense'"),
        (sample().to_json()[:-20], "damaged"),
        (sample().to_json().replace('"bf16"', '"bf17"'), "bf17"),
    ],
)
def test_damaged_text(text: str, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        Program.from_json(text)
