"""The figures of `scripts/bench.py`, one module for each; `floor.py` is what they are compared with."""
