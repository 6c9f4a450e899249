"""api/cuda/bad.py:6: foo_store: data is a second transfer: a frame announces one"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("foo_store", "post", data="uint64_t: up", more="uint64_t: up"),
]
