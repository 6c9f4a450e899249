/*
 * Executable graphs: instantiating, launching, updating, destroying.
 *
 * Executor thread only. A launch is one operation of a stream. What it may raise is counted: host functions in a graph make
 * the stream stand as those queued by hand do. Flags that would tell the client addresses of the driver are refused.
 */
#include "tpg_session.h"
#include "tpw_graph.h"

#include <stdlib.h>

#define FLAGS                                                                                                          \
    (CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |                            \
     CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY)

/* A stream, as a frame names it. */
struct place {
    uint64_t stream; /* 0: none */
    uint32_t thread, context;
};

struct exec {
    uint32_t hosts;         /* host functions that each launch raises */
    struct tpw_keeps keeps; /* of nodes that were changed in it; of the others, the driver knows */
    CUevent order;          /* behind the last launch and its copies to the client, NULL while there was none */
    struct tpw_need *need;  /* what its launches take of the limit, NULL: nothing */
    struct place launched;  /* the last time, where there is such a need */
    uint32_t order_context; /* id of the context that it is of, which is that of the launch's stream */
};

static struct exec *record_of(struct tpw_object *object) {
    if (!object->record) {
        object->record = calloc(1, sizeof(struct exec));
    }
    return object->record;
}

static void no_order(struct tpw_session *s, struct exec *exec) {
    if (exec->order) {
        s->cuda.cuEventDestroy_v2(exec->order);
        exec->order = NULL;
    }
}

/* A launch that raises more host functions than were counted would be taken for finished too early. */
static int32_t count_host(struct tpw_session *s, struct tpw_walk *walk, CUgraphNode node, CUgraphNodeType type) {
    (void)s, (void)node;
    *(uint32_t *)walk->what += type == CU_GRAPH_NODE_TYPE_HOST;
    return CUDA_SUCCESS;
}

static int32_t describe(struct tpw_session *s, uint64_t handle, CUgraph graph) {
    struct tpw_object *object = tpw_host_any(s) ? tpw_object(s, TPG_GRAPHEXEC, handle) : NULL;
    if (!object) {
        return CUDA_SUCCESS;
    }
    struct exec *exec = record_of(object);
    if (!exec) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint32_t hosts = 0;
    int32_t error = tpw_walk(s, graph, &(struct tpw_walk){.look = count_host, .what = &hosts});
    if (!error) {
        exec->hosts = hosts;
    }
    return error;
}

int32_t tpw_graph_instantiate(struct tpw_session *s, const struct tp_frame *frame,
                              const struct tpg_graph_instantiate_in *in, struct tpg_graph_instantiate_out *out,
                              CUgraph graph) {
    int32_t error = CUDA_SUCCESS;
    CUgraphExec exec = NULL;
    if (in->flags & ~(uint64_t)FLAGS) {
        tp_log(TP_WARN, "a graph was to be instantiated with flags 0x%llx: launches from the device are not supported",
               (unsigned long long)in->flags);
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    struct tpw_need *need = NULL;
    const bool uploads = (in->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) != 0;
    error = error ? error : tpw_graph_need(s, graph, &need);
    error = error || !uploads ? error : tpw_need_charge(s, need);
    struct tpw_mix *mix = NULL;
    error = error ? error : tpw_mix_begin(s, graph, in->mixed, in->mixed_count, &mix);
    if (!error && in->detailed) {
        CUDA_GRAPH_INSTANTIATE_PARAMS params = {.flags = in->flags};
        if (uploads) {
            params.hUploadStream = tpw_stream(s, frame, in->upload, &error);
        }
        error = error ? error : (int32_t)s->cuda.cuGraphInstantiateWithParams(&exec, graph, &params);
        out->result = (int32_t)params.result_out;
        if (error && params.hErrNode_out) {
            struct tpw_fresh fresh = {.handles = &in->fresh, .count = 1};
            out->error_node = tpw_node_blamed(s, frame, params.hErrNode_out, in->graph, &fresh);
        }
    } else if (!error) {
        error = (int32_t)s->cuda.cuGraphInstantiateWithFlags(&exec, graph, in->flags);
    }
    error = tpw_mix_end(s, graph, mix, error);
    if (error && exec) {
        s->cuda.cuGraphExecDestroy(exec);
    }
    if (uploads) {
        tpw_need_taken(s, need, error);
    }
    if (!error) {
        error = tpw_made(s, frame, TPG_GRAPHEXEC, in->exec, (uint64_t)(uintptr_t)exec, 0);
        error = error ? error : describe(s, in->exec, graph);
        struct exec *record = need && !error ? record_of(tpw_object(s, TPG_GRAPHEXEC, in->exec)) : NULL;
        if (record) {
            record->need = need;
        } else if (need) {
            error = error ? error : CUDA_ERROR_OUT_OF_MEMORY;
        }
        if (error) {
            tpw_forget(s, TPG_GRAPHEXEC, in->exec);
            s->cuda.cuGraphExecDestroy(exec);
        }
    }
    if (error) {
        free(need);
    }
    out->error = error; /* the answer carries more than the result */
    return CUDA_SUCCESS;
}

static struct place place_of(const struct tp_frame *frame, uint64_t stream) {
    const uint64_t name = stream ? stream : (uint64_t)(uintptr_t)CU_STREAM_LEGACY;
    const bool of_thread = name == (uint64_t)(uintptr_t)CU_STREAM_PER_THREAD;
    const bool of_context = of_thread || name == (uint64_t)(uintptr_t)CU_STREAM_LEGACY;
    return (struct place){name, of_thread ? frame->thread : 0, of_context ? frame->context : 0};
}

/* The driver (580.159.04) may wait in the launch of a graph with memory nodes until one before it, in another stream, has begun. */
bool tpw_waits_cuGraphLaunch(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_cuGraphLaunch_in *in) {
    const struct exec *exec = tpw_record(s, TPG_GRAPHEXEC, in->hGraph);
    const struct place place = place_of(frame, in->hStream);
    return exec && exec->launched.stream && memcmp(&exec->launched, &place, sizeof place) != 0;
}

int32_t tpw_cuGraphLaunch(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_cuGraphLaunch_in *in,
                          CUgraphExec hGraph, struct tpw_stream *hStream) {
    struct exec *exec = tpw_object(s, TPG_GRAPHEXEC, in->hGraph)->record;
    int32_t untold = CUDA_SUCCESS;
    uint64_t graph = exec && exec->keeps.count ? tpw_captured_graph(s, hStream, &untold) : 0;
    if (untold) {
        return untold;
    }
    for (size_t i = 0; graph && i < exec->keeps.count; i++) {
        TPW_TRY(tpw_hold(s, graph, exec->keeps.items[i]));
    }
    bool calls = exec && exec->hosts && tpw_touchable(s, hStream);
    if (TP_UNLIKELY(calls)) {
        tpw_host_expect(s, hStream, exec->hosts);
    }
    tpw_launches(s, hStream);
    struct tpw_need *need = exec ? exec->need : NULL;
    int32_t error = tpw_need_charge(s, need);
    error = error ? error : (int32_t)s->cuda.cuGraphLaunch(hGraph, hStream->native);
    if (need && !error && tpw_touchable(s, hStream)) {
        exec->launched = place_of(frame, in->hStream);
    }
    tpw_need_taken(s, need, error);
    if (TP_UNLIKELY(error && calls)) {
        tpw_host_never(s, exec->hosts);
    }
    return error;
}

int32_t tpw_cuGraphUpload(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_cuGraphUpload_in *in,
                          CUgraphExec hGraph, struct tpw_stream *hStream) {
    const struct exec *exec = tpw_object(s, TPG_GRAPHEXEC, in->hGraph)->record;
    struct tpw_need *need = exec ? exec->need : NULL;
    int32_t error = tpw_need_charge(s, need);
    error = error ? error : (int32_t)s->cuda.cuGraphUpload(hGraph, hStream->native);
    tpw_need_taken(s, need, error);
    return error;
}

/* Launches of one executable graph follow each other in whatever streams they are, and so must what is copied before and
 * behind each: into buffers that the launch before may still read, out of those that the next one will write. */
int32_t tpw_graph_order(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_order_in *in,
                        struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    (void)tpw_native(s, frame, TPG_GRAPHEXEC, in->exec, false, &error);
    TPW_TRY(error);
    TPW_TRY(tpw_refuse_capture(s, stream));
    struct exec *exec = record_of(tpw_object(s, TPG_GRAPHEXEC, in->exec));
    if (!exec) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!in->end) {
        return exec->order ? (int32_t)s->cuda.cuStreamWaitEvent(stream->native, exec->order, 0) : CUDA_SUCCESS;
    }
    if (exec->order_context != stream->context_id) {
        no_order(s, exec);
    }
    if (!exec->order) {
        tpw_enter_stream(s, stream);
        error = (int32_t)s->cuda.cuEventCreate(&exec->order, CU_EVENT_DISABLE_TIMING);
        exec->order_context = stream->context_id;
    }
    return error ? error : (int32_t)s->cuda.cuEventRecord(exec->order, stream->native);
}

int32_t tpw_exec_hold(struct tpw_session *s, uint64_t handle, struct tpw_kept *kept) {
    struct tpw_object *object = tpw_object(s, TPG_GRAPHEXEC, handle);
    struct exec *exec = object ? record_of(object) : NULL;
    return exec ? tpw_keep_in_list(&exec->keeps, kept) : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Ends the driver's. Launches under way go on. */
static int32_t end(struct tpw_session *s, struct tpw_object *object) {
    struct exec *exec = object->record;
    if (exec) {
        no_order(s, exec);
    }
    int32_t error = (int32_t)s->cuda.cuGraphExecDestroy((CUgraphExec)(uintptr_t)object->native);
    if (exec) {
        tpw_keeps_drop(s, &exec->keeps);
        tpw_need_end(s, exec->need);
        exec->need = NULL;
    }
    return error;
}

/* The place is free afterwards whatever the driver said: the client uses it again. Launches under way go on. */
int32_t tpw_cuGraphExecDestroy(struct tpw_session *s, const struct tp_frame *frame,
                               const struct tpg_cuGraphExecDestroy_in *in) {
    struct tpw_object *object = tpw_object(s, TPG_GRAPHEXEC, in->hGraphExec);
    if (!object) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tp_frame inside = *frame;
    inside.context = object->context;
    bool there = !object->error && tpw_enter(s, &inside) == CUDA_SUCCESS;
    int32_t error = there ? end(s, object) : CUDA_SUCCESS;
    tpw_forget(s, TPG_GRAPHEXEC, in->hGraphExec);
    return error;
}

/* The executable graphs that were made in a context end, and what others have in it. */
static void context_ends(struct tpw_session *s, const struct tpw_gone *gone) {
    const uint32_t context = gone->id;
    tpw_go_into(s, gone->native);
    s->entered = 0; /* the next frame looks its context up */
    struct tpw_object *object;
    for (uint32_t at = 0; (object = tpw_next_object(s, TPG_GRAPHEXEC, &at));) {
        struct exec *exec = object->record;
        if (exec && exec->order_context == context) {
            no_order(s, exec);
        }
        if (object->context == context && object->native) {
            end(s, object);
            object->native = 0;
        }
    }
}
TP_REGISTER(tpw_context_ends, context_ends);

int32_t tpw_graph_update(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_update_in *in,
                         struct tpg_graph_update_out *out, CUgraphExec exec, CUgraph graph) {
    int32_t error = CUDA_SUCCESS;
    CUgraphExecUpdateResultInfo info = {.result = CU_GRAPH_EXEC_UPDATE_ERROR};
    struct tpw_mix *mix = NULL;
    error = tpw_mix_begin(s, graph, in->mixed, in->mixed_count, &mix);
    error = error ? error : (int32_t)s->cuda.cuGraphExecUpdate_v2(exec, graph, &info);
    error = tpw_mix_end(s, graph, mix, error);
    error = error ? error : describe(s, in->exec, graph);
    out->error = error;
    out->result = (int32_t)info.result;
    if (error && (info.errorNode || info.errorFromNode)) {
        struct tpw_fresh fresh = {.handles = in->fresh, .count = in->fresh_count};
        out->error_node = tpw_node_blamed(s, frame, info.errorNode, in->graph, &fresh);
        out->error_from = tpw_node_blamed(s, frame, info.errorFromNode, in->graph, &fresh);
    }
    return CUDA_SUCCESS;
}
