"""api/cuda/bad.py:6: told: asks='loan'; it is "share", "import" or "import K\""""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    op("told", "call", asks="loan", number="uint64_t", out={"handle": "uint64_t"}),
]
