"""api/cuda/bad.py:6: told: says_why=True of what gets no answer of its own; only a call does"""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "pure", says_why=True, number="uint64_t"),
]
