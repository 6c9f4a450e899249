"""api/cuda/bad.py:6: told: completes=True, but a post has no answer that could say so"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "post", completes=True, number="uint64_t"),
]
