"""api/cuda/bad.py:6: foo_run: turns=True of a post of cuda; only who waits for the driver API takes turns"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", turns=True, foo="uint64_t: handle foo"),
]
