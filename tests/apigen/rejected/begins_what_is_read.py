"""api/cuda/bad.py:6: cuFooWrite: data is 'const void *', which is no output"""

from tensor_fusion.apigen.describe import begins

BEGINNINGS = [
    begins("cuFooWrite", data="0"),
]
