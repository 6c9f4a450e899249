"""api/cuda/bad.py:6: cuFooMove: check is 'tpc_foo_lives', which is no call"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooMove", check="tpc_foo_lives"),
]
