"""api/cuda/bad.py:6: cuNobody: the driver exports no such name"""

from tensor_fusion.apigen.describe import begins

BEGINNINGS = [
    begins("cuNobody", data="0"),
]
