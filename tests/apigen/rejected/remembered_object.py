"""api/cuda/bad.py:6: cuFooCreate: an answer that is remembered cannot make or end phFoo"""

from tensor_fusion.apigen.describe import pure

FUNCTIONS = [
    pure("cuFooCreate"),
]
