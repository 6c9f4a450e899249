"""api/cuda/bad.py:6: told: reports=True without completes=True; what reports a late error has waited"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "call", reports=True, number="uint64_t"),
]
