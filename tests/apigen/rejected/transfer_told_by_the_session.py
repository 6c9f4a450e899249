"""api/cuda/bad.py:6: foo_told: data goes down: only a post or a call of the client can announce that"""

from tensor_fusion.apigen.describe import message

FUNCTIONS = [
    message("foo_told", data="uint64_t: down"),
]
