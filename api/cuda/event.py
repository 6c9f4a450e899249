"""Events."""

from tensor_fusion.apigen.describe import alias, custom, per_thread, post

FUNCTIONS = [
    custom("cuEventCreate", ops="event_create"),
    post("cuEventRecord", session="hand", check=True, noted=True),
    post("cuEventRecordWithFlags", session="hand", check=True, noted=True),
    custom("cuIpcGetEventHandle", ops="ipc_event_export", current=True, pHandle="there"),
    custom("cuIpcOpenEventHandle", ops="ipc_event_open", current=True, phEvent="there"),
    custom("cuEventQuery", ops="event_query"),
    custom("cuEventSynchronize", ops="event_query event_wait", shows=True),
    custom("cuEventElapsedTime_v2", ops="event_elapsed", pMilliseconds="there CUDA_ERROR_INVALID_HANDLE", hStart="handle", hEnd="handle"),
    alias("cuEventElapsedTime", "cuEventElapsedTime_v2"),
    post("cuEventDestroy_v2", session="hand", contextless=True, check=True, hEvent="gone event", after_loss="ok"),
    alias("cuEventDestroy", "cuEventDestroy_v2"),
    per_thread("cuEventRecordWithFlags_ptsz", "cuEventRecordWithFlags"),
    per_thread("cuEventRecord_ptsz", "cuEventRecord"),
]
