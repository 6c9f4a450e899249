"""api/cuda/bad.py:6: cuFooWrite: has no parameter 'date'; did you mean 'data'? (it has ['hFoo', 'dst', 'data', 'size', 'hStream'])"""

from tensor_fusion.apigen.describe import post

FUNCTIONS = [
    post("cuFooWrite", date="bytes size"),
]
