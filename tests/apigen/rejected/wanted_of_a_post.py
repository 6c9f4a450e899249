"""api/cuda/bad.py:6: cuFooGetCount: a post has no reply that could bring count"""

from tensor_fusion.apigen.describe import post

FUNCTIONS = [
    post("cuFooGetCount", count="wanted"),
]
