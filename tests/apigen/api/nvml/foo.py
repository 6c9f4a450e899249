"""The part of NVML in the small API."""

from tensor_fusion.apigen.describe import call

FUNCTIONS = [
    call("nvmlFooGetThings", count="room", things="filled count"),
    call("nvmlFooSetThings", things="changed count"),
]
