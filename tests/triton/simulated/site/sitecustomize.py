"""Python imports this before anything else in a process of `python -m tests.triton.simulated`."""

import tests.triton.simulated.start

tests.triton.simulated.start.start()
