"""Operations of our own: what the functions marked `custom` and `local` in the other files send."""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    # The devices that CUDA shows to this session, in NVML's order; UUIDs and serials are 96 and 32 bytes for each. The
    # session makes an nvmldevice of generation 1 for each, so handles need no further question.
    op("nvml_start", "call", contextless=True, out={
        "cuda_version": "int", "pci": "nvmlPciInfo_t: array", "uuids": "void: bytes", "serials": "void: bytes",
        "nvml_version": "void: bytes"}),
    op("nvml_fields", "call", device="uint64_t: handle nvmldevice", values="nvmlFieldValue_t: array", out={
        "results": "nvmlFieldValue_t: array"}),
    # Whether this session uses the device, and how much memory it holds there.
    op("nvml_process", "call", device="uint64_t: handle nvmldevice", out={
        "present": "unsigned int", "used": "uint64_t"}),
    # One event of a set, if there is one: it never waits.
    op("nvml_event", "call", set="uint64_t: handle nvmlevents", out={
        "device": "uint64_t", "type": "uint64_t", "data": "uint64_t", "gpu_instance": "unsigned int",
        "compute_instance": "unsigned int"}),
    # Metrics by number, and their results in the same order; of each three texts, each with a NUL: empty where the
    # driver names nothing.
    op("nvml_gpm_metrics", "call", first="uint64_t: handle? nvmlsample", second="uint64_t: handle? nvmlsample",
       ids="unsigned int: array", out={"results": "int: array", "values": "double: array", "texts": "char: bytes"}),
]  # fmt: skip
