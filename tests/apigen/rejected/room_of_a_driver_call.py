"""api/cuda/bad.py:6: cuFooMove: moved is room: that is for a call of nvml, and once"""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("cuFooMove", moved="room"),
]
