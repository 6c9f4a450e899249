"""Operations of our own: what the functions marked `custom` and `local` in the other files send."""

from tensor_fusion.apigen.describe import op

FUNCTIONS = [
    # The devices that CUDA shows to this session, in NVML's order; UUIDs and serials are 96 and 32 bytes for each. The
    # session makes an nvmldevice of generation 1 for each, so handles need no further question.
    op("nvml_start", "call", contextless=True, out={
        "cuda_version": "int", "pci": "nvmlPciInfo_t: array", "uuids": "void: bytes", "serials": "void: bytes",
        "nvml_version": "void: bytes"}),
    # The processes of this client's machine and tenant that use the device, by their numbers there, and how much memory
    # each holds on it.
    op("nvml_processes", "call", device="uint64_t: handle nvmldevice", out={
        "pids": "unsigned int: array", "used": "uint64_t: array"}),
    # Their samples that are newer; status is NVML's own result, because the count is an answer even when the room was
    # too small.
    op("nvml_utilization", "call", device="uint64_t: handle nvmldevice", since="uint64_t", capacity="unsigned int", out={
        "status": "int", "count": "unsigned int", "samples": "nvmlProcessUtilizationInfo_v1_t: array"}),
    # Metrics by number, and their results in the same order; of each three texts, each with a NUL: empty where the
    # driver names nothing.
    op("nvml_gpm_metrics", "call", first="uint64_t: handle? nvmlsample", second="uint64_t: handle? nvmlsample",
       ids="unsigned int: array", out={"results": "int: array", "values": "double: array", "texts": "char: bytes"}),
]  # fmt: skip
