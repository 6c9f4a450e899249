"""api/cuda/bad.py:6: cuFooAddBar: phBar is to end with 'hFu', which is no parameter"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooAddBar", phBar="new bar of hFu", items="structs count"),
]
