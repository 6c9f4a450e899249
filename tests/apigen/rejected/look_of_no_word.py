"""api/cuda/bad.py:6: cuFooLook: flags of a function by hand is one of there, device, handle, handle?, uncaptured, handle or E, bits N, most N, below N, is N, version N, not 'zero'"""

from tensor_fusion.apigen.describe import local

FUNCTIONS = [
    local("cuFooLook", flags="zero"),
]
