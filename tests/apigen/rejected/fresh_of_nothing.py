"""api/cuda/bad.py:6: cuFooGetBar: phBar is fresh: say of what, as 'fresh bar of …'"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooGetBar", phBar="fresh bar"),
]
