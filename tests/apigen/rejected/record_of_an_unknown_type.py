"""api/cuda/bad.py:6: place: x is 'CUnothing', of no known size or in no good place"""

from tensor_fusion.apigen.describe import record

RECORDS = [
    record("place", x="CUnothing"),
]
