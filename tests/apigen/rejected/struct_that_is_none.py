"""api/cuda/bad.py:6: CUfooPlaces: no struct of the snapshot"""

from tensor_fusion.apigen.describe import struct

STRUCTS = [
    struct("CUfooPlaces"),
]
