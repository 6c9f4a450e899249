"""What the session tells the client without being asked, in one order with its replies."""

from tensor_fusion.apigen.describe import message

FUNCTIONS = [
    # The bytes of a small download that was posted; this ends the transfer.
    message("host_write", transfer="uint64_t", data="void: bytes"),
    # A post has failed: the next call that may report an error will.
    message("notice", optional=True, error="int", op="unsigned int", frame="uint64_t"),
    # An error broke the device, and every context on it for as long as the session lives.
    message("device_broken", device="int", error="int"),
    # A stream has come to the host function `token`: run it. The stream goes on with host_function_done.
    # `status` is what the driver tells a callback of its stream, `number` is that of the call. The buffers of a graph's copies: what is in
    # `fetch` comes first (host_twin_read), what `fill` is to hold goes there before the word that it is done (host_twin_write).
    message("callback", completes=True, token="uint64_t", status="int", number="uint64_t", fetch="uint64_t: array",
            fill="uint64_t: array"),
    # What kernels wrote into mapped host memory, behind its address on the worker: `runs` are pairs of offset and size, whose bytes
    # follow each other in `data`.
    message("twin_write", address="uint64_t", runs="unsigned int: array", data="void: bytes"),
    # A download that was posted has failed: its bytes never come.
    message("download_ended", transfer="uint64_t"),
    # The stream has come to the copy_in_late `token`: its bytes up to `limit` may come as late_bytes. `quiet`: no host function that was
    # sent before it is outstanding any more. `over`: it has failed, no bytes are wanted.
    message("upload_wanted", completes=True, token="uint64_t", limit="uint64_t", quiet="unsigned int",
            over="unsigned int"),
    # The host function of graphs, or the user object, `token` was needed for the last time.
    message("callback_over", completes=True, token="uint64_t"),
    # The host function `token` was refused with that status and will not be called.
    message("callback_refused", token="uint64_t", status="int"),
    # Graphs had these addresses, and the last of them is gone.
    message("graph_memory_gone", address="uint64_t", size="uint64_t"),
    # Records of the session's work (native/wire/tp_traced.h), `lost` of which had no room so far; `now` is its clock.
    # `token` is that of the trace_tell that asked, or 0.
    message("traced", carries="tp_traced", token="uint64_t", now="uint64_t", lost="uint64_t", records="void: bytes"),
]
