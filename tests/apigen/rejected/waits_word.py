'''api/cuda/bad.py:6: told: waits='always'; it is True or "asked"'''

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "post", waits="always", number="uint64_t"),
]
