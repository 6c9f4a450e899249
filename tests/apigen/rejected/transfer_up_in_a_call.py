"""api/cuda/bad.py:6: foo_store: data goes up: only a post of the client can announce that"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_store", "call", data="uint64_t: up"),
]
