"""Events."""

from tensor_fusion.apigen.describe import alias, custom, per_thread, post

FUNCTIONS = [
    post("cuEventCreate", wrapped=True, Flags="bits CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS"),
    post("cuEventRecord", session="hand", check="tpc_event_may_record(hEvent, hStream, 0)", noted="tpc_event_recorded(hEvent, 0)"),
    post("cuEventRecordWithFlags", session="hand", check="tpc_event_may_record(hEvent, hStream, flags)", noted="tpc_event_recorded(hEvent, flags)", flags="bits CU_EVENT_RECORD_EXTERNAL"),
    custom("cuIpcGetEventHandle", ops="ipc_event_export", current=True, pHandle="there", event="handle or CUDA_ERROR_INVALID_VALUE",
           finds={"struct tpg_ipc_event_export_out told": 'tpc_call_ipc_event_export("cuIpcGetEventHandle", (uint64_t)(uintptr_t)event, &told)'},
           gives={"pHandle": "told.handle"}),
    custom("cuIpcOpenEventHandle", ops="ipc_event_open", current=True, phEvent="there"),
    custom("cuEventQuery", ops="event_query", hEvent="handle"),
    custom("cuEventSynchronize", ops="event_query event_wait", shows=True, hEvent="handle"),
    custom("cuEventElapsedTime_v2", ops="event_elapsed", pMilliseconds="there CUDA_ERROR_INVALID_HANDLE", hStart="handle", hEnd="handle"),
    alias("cuEventElapsedTime", "cuEventElapsedTime_v2"),
    post("cuEventDestroy_v2", session="hand", contextless=True, check="tpc_event_may_end()", hEvent="gone event", after_loss="ok"),
    alias("cuEventDestroy", "cuEventDestroy_v2"),
    per_thread("cuEventRecordWithFlags_ptsz", "cuEventRecordWithFlags"),
    per_thread("cuEventRecord_ptsz", "cuEventRecord"),
]
