"""api/cuda/bad.py:6: foo_run: foo needs a kind behind 'handle', not ''"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", foo="uint64_t: handle"),
]
