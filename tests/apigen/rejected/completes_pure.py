"""api/cuda/bad.py:6: told: completes=True, but a pure has no answer that could say so"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "pure", completes=True, number="uint64_t"),
]
