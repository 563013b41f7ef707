"""These tests need TRITON_INTERPRET=1 before triton is imported; `tests/triton/test_interpreted.py` runs them so."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
