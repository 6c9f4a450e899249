"""api/cuda/bad.py:6: CU_DEVICE_ATTRIBUTE_FOE: is no attribute of a device; did you mean 'CU_DEVICE_ATTRIBUTE_FOO'?"""

from tensor_fusion.apigen.describe import attribute

ATTRIBUTES = [
    attribute("CU_DEVICE_ATTRIBUTE_FOE", 0),
]
