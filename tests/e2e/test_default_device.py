"""Compiled functions where the user has a default device: torch keeps a mode for that, which sees every call."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.e2e import features

for name in ("attribute", "backward", "gradient", "scaler", "state", "step"):
    importlib.import_module(f"tests.e2e.{name}_features")

NAMES = (
    "counter_mod",
    "counter_arg",
    "backward_inputs_arg",
    "arg_attack_loop",
    "grad_param_as_arg",
    "scaler_accumulates",
)
"""Features whose backward passes run in the compiled function, on what autograd hands to graphc by itself."""


@pytest.mark.parametrize("name", NAMES)
def test_features_of_training(name: str) -> None:
    with torch.device("cpu"):
        features.CASES[name].check()
