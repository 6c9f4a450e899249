"""Kinds of handle: name, number on the wire, C type, the kinds that the driver also takes in its place, what it answers to one that
is none, as documented for the functions that take it, and how many of them a client may hold, if there is a bound."""

KINDS = [
    ("context", 1, "CUcontext", (), "CUDA_ERROR_INVALID_CONTEXT"),
    ("module", 2, "CUmodule", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("function", 3, "CUfunction", ("kernel",), "CUDA_ERROR_INVALID_HANDLE"),
    ("library", 4, "CUlibrary", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("kernel", 5, "CUkernel", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("stream", 6, "CUstream", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("event", 7, "CUevent", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("graph", 8, "CUgraph", (), "CUDA_ERROR_INVALID_VALUE"),
    ("graphexec", 9, "CUgraphExec", (), "CUDA_ERROR_INVALID_VALUE"),
    ("graphnode", 10, "CUgraphNode", (), "CUDA_ERROR_INVALID_VALUE"),
    ("pool", 11, "CUmemoryPool", (), "CUDA_ERROR_INVALID_VALUE"),
    ("link", 12, "CUlinkState", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("memory", 13, "CUmemGenericAllocationHandle", (), "CUDA_ERROR_INVALID_VALUE"),
    ("array", 14, "CUarray", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("mipmap", 15, "CUmipmappedArray", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("texref", 16, "CUtexref", (), "CUDA_ERROR_INVALID_HANDLE"),
    ("surfref", 17, "CUsurfref", (), "CUDA_ERROR_INVALID_HANDLE"),
    # A green context's id is that of its context: it is in no table of its own.
    ("greenctx", 18, "CUgreenCtx", (), "CUDA_ERROR_INVALID_CONTEXT"),
    ("devdesc", 19, "CUdevResourceDesc", (), "CUDA_ERROR_INVALID_DEVICE"),
    ("userobject", 20, "CUuserObject", (), "CUDA_ERROR_INVALID_VALUE"),
    ("nvmldevice", 32, "nvmlDevice_t", (), "NVML_ERROR_INVALID_ARGUMENT"),
    ("nvmlevents", 33, "nvmlEventSet_t", (), "NVML_ERROR_INVALID_ARGUMENT", "TP_NVML_PLACES"),
    ("nvmlsample", 34, "nvmlGpmSample_t", (), "NVML_ERROR_INVALID_ARGUMENT", "TP_NVML_PLACES"),
]
