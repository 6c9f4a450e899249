"""Kinds of handle of the small API that the tests describe."""

KINDS = [
    ("stream", 1, "CUstream", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("foo", 2, "CUfoo", (), "CUDA_ERROR_INVALID_VALUE"),
    ("bar", 3, "CUbar", (), "CUDA_ERROR_INVALID_VALUE", "7"),
]
