"""No value of a size reaches anything unseen through a float, which Python asks first."""

import subprocess
import sys

import pytest


def run(*names):
    done = subprocess.run([sys.executable, "-m", "tests.sizes.watched", *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[0])


def test_some_programs():
    assert run("reductions", "attention", "images", "whole_windows") >= 8


@pytest.mark.suite
def test_all_programs():
    assert run() >= 100
