"""Operations of our own: what the functions marked `custom` send."""

from tensor_fusion.apigen.describe import like, op, record

RECORDS = [
    # Of device memory: `height` rows of `width` bytes, `pitch` apart. A plain range is one row.
    record("area", address="uint64_t", pitch="uint64_t", width="uint64_t", height="uint64_t"),
    record("rows", to="uint64_t", to_pitch="uint64_t", **{"from": "uint64_t"}, from_pitch="uint64_t", width="uint64_t", height="uint64_t"),
    # Of a launch.
    record("shape", grid_x="unsigned int", grid_y="unsigned int", grid_z="unsigned int", block_x="unsigned int", block_y="unsigned int",
           block_z="unsigned int", shared_bytes="unsigned int"),
]

FUNCTIONS = [
    # The list of what this build knows (apigen/layouts.py), 24 bytes for each. Its number and its fields are part of the frame version.
    op("layouts", "call", contextless=True, needed=True, out={"rows": "void: bytes"}),
    # Devices and contexts. `start` answers with one tp_device_description (native/wire/tp_device.h) for each device.
    op("start", "call", contextless=True, needed=True, carries="tp_device_description", flags="unsigned int", out={
        "driver_version": "int", "reserved_base": "uint64_t", "reserved_size": "uint64_t", "devices": "void: bytes"}),
    op("primary_retain", "call", contextless=True, needed=True, device="CUdevice: device", context="uint64_t: new? context"),
    op("primary_release", "post", contextless=True, needed=True, device="CUdevice: device"),
    op("primary_flags", "call", contextless=True, session="s->cuda.cuDevicePrimaryCtxSetFlags_v2(s->devices[device], flags & TPW_FLAGS_FORWARDED)", device="CUdevice: device", flags="unsigned int"),
    # With a share of the device it is that of a green context, and a part of the primary one.
    op("context_create", "call", contextless=True, needed=True, context="uint64_t: new context", device="CUdevice: device",
       flags="unsigned int", share="uint64_t: handle? devdesc"),
    op("resource_split", "call", contextless=True, input="CUdevResource: struct", groups="unsigned int", flags="unsigned int",
       least="unsigned int", wanted="int", out={"count": "unsigned int", "results": "void: bytes"}),
    op("context_destroy", "post", contextless=True, needed=True, context="uint64_t: gone context"),
    # The stack has to be made anew for all that may run.
    op("context_limit", "call", waits="limit == CU_LIMIT_STACK_SIZE", limit="int", value="uint64_t", out={"value_set": "uint64_t"}),
    op("context_flags", "post", flags="unsigned int"),
    # Limits of the current context by CUlimit, and what the driver answered for each.
    op("context_info", "call", out={"limits": "uint64_t: array", "results": "int: array", "priority_low": "int",
       "priority_high": "int"}),
    op("context_synchronize", "call", needed=True, reports=True, completes=True),
    # Modules. The image travels in `data`; a large one as the transfer that an `image_upload` before announces. The answer
    # says what became of it, with the compiler's logs, and describes every kernel: see native/wire/tp_image.h. Functions and kernels are named by their place in that list.
    # A library is loaded whatever its image is (the driver looks at it when it is used): `refused` is what its uses will answer.
    # A `hash` (SHA-256) without an image asks whether the worker has that image, and `missing` answers; with one it allows the worker to keep it.
    op("image_upload", "post", contextless=True, transfer="uint64_t: up", size="uint64_t"),
    op("image_load", "call", carries="tp_kernel_entry", waits=True, size="uint64_t", transfer="uint64_t", owner="uint64_t", is_library="unsigned int",
       data="void: bytes", hash="void: bytes", options="uint64_t: array",
       out={"result": "int", "missing": "unsigned int", "refused": "int", "kernels": "void: bytes", "info_log": "void: bytes", "error_log": "void: bytes"}),
    # A library may be loaded without a context, where the driver tells no layouts: then the list has names only, and this asks for the
    # rest, with a context current, when a kernel is first used.
    op("library_describe", "call", carries="tp_kernel_entry", waits=True, library="uint64_t: handle library", out={"kernels": "void: bytes"}),
    op("module_unload", "post", contextless=True, module="uint64_t: gone module"),
    op("library_unload", "post", contextless=True, library="uint64_t: gone library"),
    op("library_module", "post", waits=True, library="uint64_t: handle library", module="uint64_t: new? module"),
    op("function_get", "post", module="uint64_t: handle module", function="uint64_t: new function", index="unsigned int"),
    op("kernel_get", "post", library="uint64_t: name library", kernel="uint64_t: new kernel", index="unsigned int"),
    op("kernel_name", "call", function="uint64_t: handle function", out={"name": "char: bytes"}),
    op("kernel_function", "post", waits=True, kernel="uint64_t: handle kernel", function="uint64_t: new? function"),
    # `managed`: only a managed variable is wanted, and, of the answer, that it is one; the driver has it in pages of `block`.
    op("global_get", "call", waits="tp_handle_is(owner, TPG_LIBRARY)", owner="uint64_t", name="char: string", managed="unsigned int",
       out={"address": "uint64_t", "size": "uint64_t", "is_managed": "unsigned int", "block": "uint64_t", "block_size": "uint64_t"}),
    op("function_attributes", "call", waits="tp_handle_is(function, TPG_KERNEL)", function="uint64_t: handle function", device="CUdevice: device", out={"values": "int: array"}),
    op("function_attribute_set", "post", waits="tp_handle_is(function, TPG_KERNEL)", function="uint64_t: handle function", device="CUdevice: device", attribute="int", value="int"),
    op("function_config", "post", function="uint64_t: handle function", device="CUdevice: device", what="unsigned int", value="int"),
    # Launches. `params` is the parameter block as the kernel's layout wants it.
    op("launch", "post", waits="tpw_needs_room(s, function)", function="uint64_t: name function", stream="uint64_t: handle stream",
       shape="struct tpg_shape", cooperative="unsigned int", params="void: bytes"),
    op("launch_ex", "post", waits="tpw_needs_room(s, function)", function="uint64_t: name function", stream="uint64_t: handle stream",
       shape="struct tpg_shape", attributes="CUlaunchAttribute: structs by stream", params="void: bytes"),
    # The session asks for the call with the message `callback`; the stream goes on when the client says it is done.
    # contextless: whatever refuses it, the session says so of the token.
    op("host_function", "post", contextless=True, brings="callback callback_refused host_function_done", stream="uint64_t", token="uint64_t", told="unsigned int"),
    # `failed`: the error for which copies of its graph could not be seen to. What follows would read other bytes, so the session ends.
    op("host_function_done", "post", contextless=True, token="uint64_t", number="uint64_t", failed="int"),
    # Everything before it has been executed, and nothing of it is held back behind a host function or a late copy.
    op("caught_up", "call", contextless=True, needed=True),
    # From here on the session tells what it does for this client (message `traced`): tensor-fusion trace. `now` is its clock, `boot`
    # says of which machine. After trace_tell everything recorded so far comes, with the token.
    # What kernels printed since the last time. `left`: there is more. `ended`: not before the contexts that end have come to it.
    op("print_take", "call", contextless=True, ended="int", out={"output": "char: bytes", "errors": "char: bytes", "left": "unsigned int"}),
    op("trace_begin", "call", contextless=True, brings="traced", out={"now": "uint64_t", "boot": "char: bytes"}),
    op("trace_tell", "post", contextless=True, brings="traced", token="uint64_t"),
    # Memory.
    op("memory_alloc", "call", size="uint64_t", out={"address": "uint64_t"}),
    op("memory_free", "post", address="uint64_t"),
    # A handle for other processes, and memory of one: asked of the supervisor, which may say why not.
    op("ipc_memory_export", "call", asks="share", turns=True, address="uint64_t", out={"handle": "CUipcMemHandle"}),
    op("ipc_memory_open", "call", asks="import MEMORY", handle="CUipcMemHandle",
       out={"address": "uint64_t", "size": "uint64_t", "device": "unsigned int"}),
    # Waits for the stream, 0 = for everything, and reports nothing: the program did not ask.
    op("managed_wait", "call", completes=True, stream="uint64_t"),
    # What managed memory holds, in a stream that nothing else uses, and a wait for that alone. They pass frames that are held behind a
    # host function: it may be the one that touches the memory.
    like("managed_in", "copy_in"),
    like("managed_in_bulk", "copy_in_bulk"),
    like("managed_out", "copy_out_post"),
    op("managed_settle", "call", completes=True, stream="uint64_t: handle stream"),
    # `read_only`: kernels do not write it. `wanted`: the address that the memory has in the client, if it may have that here; 0: none.
    # `alone`: it is no memory of the client's twin, but a buffer here that host functions of graphs read and write.
    op("host_twin", "call", brings="twin_write", size="uint64_t", read_only="unsigned int", wanted="uint64_t", alone="unsigned int",
       out={"address": "uint64_t"}),
    op("host_twin_free", "post", contextless=True, address="uint64_t"),
    op("host_twin_write", "post", contextless=True, address="uint64_t", data="void: bytes"),
    op("host_twin_read", "call", contextless=True, address="uint64_t", size="uint64_t", out={"data": "void: bytes"}),
    op("pool_default", "call", contextless=True, pool="uint64_t: new pool", device="CUdevice: device"),
    op("pool_destroy", "post", contextless=True, pool="uint64_t: gone pool"),
    op("pool_create", "call", contextless=True, pool="uint64_t: new pool", props="CUmemPoolProps: struct"),
    op("pool_alloc", "call", pool="uint64_t: handle? pool", size="uint64_t", stream="uint64_t: handle stream", out={
       "address": "uint64_t", "block": "uint64_t", "block_size": "uint64_t"}),
    op("pool_free", "post", address="uint64_t", stream="uint64_t: handle stream"),
    op("pool_export", "call", contextless=True, asks="share", turns=True, pool="uint64_t: handle pool", out={"handle": "CUipcMemHandle"}),
    op("pool_import", "call", contextless=True, asks="import POOL", pool="uint64_t: new pool", handle="CUipcMemHandle",
       out={"known": "uint64_t"}),
    op("pool_pointer", "call", contextless=True, asks="import", pool="uint64_t: handle pool", handle="CUmemPoolPtrExportData",
       out={"address": "uint64_t", "size": "uint64_t", "device": "unsigned int"}),
    op("address_reserve", "call", contextless=True, size="uint64_t", alignment="uint64_t", hint="uint64_t", flags="uint64_t",
       out={"address": "uint64_t"}),
    op("address_free", "call", contextless=True, address="uint64_t", size="uint64_t"),
    op("memory_create", "call", contextless=True, memory="uint64_t: new memory", size="uint64_t",
       prop="CUmemAllocationProp: struct", flags="uint64_t"),
    op("memory_release", "call", contextless=True, memory="uint64_t: gone memory"),
    op("memory_export", "call", contextless=True, asks="share", memory="uint64_t: name memory", out={"handle": "CUipcMemHandle"}),
    op("memory_import", "call", contextless=True, asks="import PHYSICAL", memory="uint64_t: new memory", handle="CUipcMemHandle",
       out={"size": "uint64_t", "device": "unsigned int"}),
    op("memory_map", "call", address="uint64_t", size="uint64_t", offset="uint64_t", memory="uint64_t: name memory",
       flags="uint64_t"),
    op("memory_unmap", "call", address="uint64_t", size="uint64_t"),
    op("memory_access", "call", address="uint64_t", size="uint64_t", access="CUmemAccessDesc: structs"),
    # Copies. Small data travels in the frame or the reply, large data as a transfer on the data connections.
    # The device side of a copy is an area, whose bytes travel packed. contextless: these handlers enter the context themselves, because a failure must still consume
    # the upload or end the download.
    op("copy_in", "post", area="struct tpg_area",
       stream="uint64_t: name stream", ordered="unsigned int", data="void: bytes"),
    op("copy_in_bulk", "post", contextless=True, area="struct tpg_area", stream="uint64_t: name stream", ordered="unsigned int", transfer="uint64_t: up"),
    # A copy whose bytes the client takes when the stream has come to it: the message upload_wanted asks for them by `token`, and
    # they come in order, packed, in pieces.
    op("copy_in_late", "post", contextless=True, brings="upload_wanted late_bytes", area="struct tpg_area", stream="uint64_t: name stream", token="uint64_t"),
    op("late_bytes", "post", contextless=True, token="uint64_t", data="void: bytes"),
    op("copy_out", "call", reports=True, completes=True, area="struct tpg_area",
       stream="uint64_t: name stream", out={"data": "void: bytes"}),
    op("copy_out_bulk", "call", reports=True, completes=True, area="struct tpg_area",
       stream="uint64_t: name stream", transfer="uint64_t: down"),
    op("copy_out_post", "post", contextless=True, brings="host_write download_ended", area="struct tpg_area", stream="uint64_t: name stream", transfer="uint64_t: down"),
    op("copy_device", "post", rows="struct tpg_rows", stream="uint64_t: handle stream"),
    op("copy_box", "call", copy="CUDA_MEMCPY3D: struct", stream="uint64_t: handle stream"),
    # Pinned memory inside the shared segment: runs of the arena, by their offset in the segment. A copy names the device
    # side like the ones above, and the host side by the offset of its first byte and the distance of its rows.
    op("arena_take", "call", contextless=True, size="uint64_t", out={"offset": "uint64_t"}),
    op("arena_give", "post", contextless=True, offset="uint64_t", size="uint64_t"),
    op("arena_copy_in", "post", session="tpw_arena_copy(s, frame, &area, offset, host_pitch, stream, true)", area="struct tpg_area",
       stream="uint64_t: name stream", offset="uint64_t", host_pitch="uint64_t"),
    op("arena_copy_out", "post", session="tpw_arena_copy(s, frame, &area, offset, host_pitch, stream, false)", area="struct tpg_area",
       stream="uint64_t: name stream", offset="uint64_t", host_pitch="uint64_t"),
    # Streams and events.
    op("stream_create", "post", waits="asked", stream="uint64_t: new stream", flags="unsigned int", priority="int"),
    op("stream_destroy", "post", contextless=True, stream="uint64_t: gone stream"),
    op("stream_wait", "call", reports=True, completes=True, stream="uint64_t: handle stream"),
    # Completion by the GPU: it writes `value` into a word of the client's slot when the stream gets there. Shared memory
    # only.
    op("stream_mark", "post", stream="uint64_t: handle stream", word="unsigned int", value="uint64_t"),
    op("copy_out_mark", "post", source="uint64_t", size="uint64_t", stream="uint64_t: handle stream",
       word="unsigned int", value="uint64_t"),
    # The session writes the word when it finds the event, or the stream, complete. Nothing is put into the stream for that.
    op("watch", "post", subject="uint64_t", word="unsigned int", value="uint64_t"),
    op("stream_query", "call", reports=True, completes=True, stream="uint64_t: name stream"),
    op("ipc_event_export", "call", turns=True, event="uint64_t: name event", out={"handle": "CUipcEventHandle"}),
    op("ipc_event_open", "call", asks="import EVENT", event="uint64_t: new event", handle="CUipcEventHandle"),
    # `complete` has a bit for each of `ahead`, up to TP_AHEAD_MAX events that are likely to be asked for next.
    op("event_query", "call", reports=True, completes=True, event="uint64_t: name event", ahead="uint64_t: array",
       out={"complete": "uint64_t"}),
    # Waits for `event`; then tells the time since `start`, unless that is 0, and in `timed` whether it could.
    op("event_wait", "call", reports=True, completes=True, event="uint64_t: name event", start="uint64_t",
       out={"timed": "int", "milliseconds": "float"}),
    # Up to TP_PAIRS_MAX pairs of events. The call's result is that of the first; what the client asks ahead may fail.
    op("event_elapsed", "call", reports=True, completes=True, starts="uint64_t: array", ends="uint64_t: array",
       out={"results": "int: array", "milliseconds": "float: array"}),
    # Capture. The session captures in relaxed mode; what the modes forbid is refused by the client, which breaks the capture.
    # `fresh` are handles for nodes that have none yet; those that the answer does not use were not needed.
    op("capture_begin", "call", stream="uint64_t: handle stream", graph="uint64_t", into="unsigned int",
       dependencies="uint64_t: handles graphnode", edges="CUgraphEdgeData: array", out={"id": "uint64_t"}),
    op("capture_end", "call", stream="uint64_t: handle stream",
       out={"graph": "uint64_t", "result": "int", "ended": "unsigned int", "kept": "unsigned int"}),
    op("capture_info", "call", stream="uint64_t: handle stream", fresh="uint64_t: array", out={
       "id": "uint64_t", "graph": "uint64_t", "count": "uint64_t", "status": "int", "dependencies": "uint64_t: array",
       "edges": "CUgraphEdgeData: array"}),
    # The stream as `thread` names it in `context`: its default stream is its own.
    op("capture_break", "call", contextless=True, stream="uint64_t: name stream", thread="unsigned int", context="unsigned int"),
    op("capture_dependencies", "call", stream="uint64_t: handle stream", flags="unsigned int",
       dependencies="uint64_t: handles graphnode", edges="CUgraphEdgeData: array"),
    # Graphs. The `owner` of a new node is its graph.
    op("graph_list", "call", contextless=True, subject="uint64_t", first="uint64_t", count="uint64_t", what="unsigned int",
       fresh="uint64_t: array", out={"total": "uint64_t", "nodes": "uint64_t: array", "others": "uint64_t: array",
       "edges": "CUgraphEdgeData: array"}),
    # With the client's handles in the places of the driver's.
    op("graph_kernel_get", "call", node="uint64_t: handle graphnode", out={"node": "CUDA_KERNEL_NODE_PARAMS", "params": "void: bytes"}),
    op("graph_attribute_set", "call", session="s->cuda.cuGraphKernelNodeSetAttribute(node, attribute->id, &attribute->value)", node="uint64_t: handle graphnode", attribute="CUlaunchAttribute: struct by node"),
    op("graph_memcpy_get", "call", contextless=True, node="uint64_t: handle graphnode", out={"params": "CUDA_MEMCPY3D"}),
    # Copies between device memory and the program's own. The node knows a buffer on the worker in the place of the
    # program's memory; the client fills it before each launch, or empties it behind. `graph_copies` finds the nodes that
    # have one of the `buffers`, and what stands before them; `graph_order` begins and ends what a launch does with them.
    # `open` has TP_MIX_WORDS words for each: bits of those before it, out of the device, with no host function between.
    op("graph_copies", "call", contextless=True, graph="uint64_t: handle graph", buffers="uint64_t: array",
       fresh="uint64_t: array", out={"total": "uint64_t", "late": "uint64_t", "nodes": "uint64_t: array",
       "addresses": "uint64_t: array", "orders": "unsigned int: array", "open": "uint64_t: array"}),
    op("graph_order", "post", exec="uint64_t: name graphexec", stream="uint64_t: handle stream", end="unsigned int"),
    op("graph_child", "call", owner="uint64_t: handle graph", node="uint64_t", dependencies="uint64_t: handles graphnode",
       child="uint64_t: handle graph", move="unsigned int"),
    op("graph_child_set", "call", node="uint64_t: handle graphnode", child="uint64_t: handle graph"),
    op("graph_host", "call", brings="callback callback_over host_function_done", owner="uint64_t: handle graph", node="uint64_t", dependencies="uint64_t: handles graphnode",
       token="uint64_t"),
    op("graph_host_set", "call", brings="callback callback_over host_function_done", exec="uint64_t: handle? graphexec", node="uint64_t: handle graphnode", token="uint64_t"),
    # A node that runs one of its graphs, or one again and again, by a value that kernels set; `bodies` are handles for these.
    op("graph_conditional", "call", contextless=True, owner="uint64_t: handle graph", node="uint64_t",
       dependencies="uint64_t: handles graphnode", condition="uint64_t", kind="unsigned int",
       context="uint64_t: name context", bodies="uint64_t: array"),
    op("graph_host_get", "call", contextless=True, node="uint64_t: handle graphnode", out={"token": "uint64_t"}),
    # The text that the driver would write into a file, from `first` on.
    op("graph_dot", "call", contextless=True, graph="uint64_t: handle graph", flags="unsigned int", first="uint64_t",
       out={"total": "uint64_t", "text": "void: bytes"}),
    # The addresses of the node, and the block of addresses of graphs that they are part of (as pool_alloc in a capture).
    op("graph_alloc", "call", contextless=True, owner="uint64_t: handle graph", node="uint64_t",
       dependencies="uint64_t: handles graphnode", params="CUDA_MEM_ALLOC_NODE_PARAMS: struct", out={
       "address": "uint64_t", "block": "uint64_t", "block_size": "uint64_t"}),
    # `mixed`: pairs of a buffer and the pinned memory (host_twin) that takes its place in what is made: host functions see to it.
    op("graph_instantiate", "call", brings="callback host_function_done host_twin_read host_twin_write", graph="uint64_t: handle graph", exec="uint64_t: new graphexec", flags="uint64_t",
       upload="uint64_t", detailed="unsigned int", fresh="uint64_t", mixed="uint64_t: array",
       out={"error_node": "uint64_t", "error": "int", "result": "int"}),
    op("graph_update", "call", brings="callback host_function_done host_twin_read host_twin_write", exec="uint64_t: handle graphexec", graph="uint64_t: handle graph", fresh="uint64_t: array",
       mixed="uint64_t: array",
       out={"error_node": "uint64_t", "error_from": "uint64_t", "error": "int", "result": "int"}),
    op("user_object_create", "call", brings="callback callback_over host_function_done", object="uint64_t: new userobject", token="uint64_t",
       references="unsigned int"),
]  # fmt: skip
