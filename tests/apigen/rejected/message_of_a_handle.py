"""api/cuda/bad.py:6: told: a message carries values and bytes; nothing would translate stream"""

from tensor_fusion.apigen.describe import message

FUNCTIONS = [
    message("told", stream="uint64_t: handle stream"),
]
