"""api/cuda/bad.py:6: cuFooGetBar: phBar is to end with 'index', which is no handle"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooGetBar", phBar="fresh bar of index"),
]
