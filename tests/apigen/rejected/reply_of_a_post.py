"""api/cuda/bad.py:6: foo_run: a post has no reply that could bring count"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_run", "post", out={"count": "uint64_t"}),
]
