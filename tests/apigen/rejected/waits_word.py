"""api/cuda/bad.py:6: told: waits='always'; it is True, "asked", or C over what it carries"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "post", waits="always", number="uint64_t"),
]
