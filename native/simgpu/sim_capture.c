// Stream capture: while a stream captures, what would be queued in it becomes a node of a graph.
//
// A stream's front is the list of nodes that the next one depends on; an event recorded in a capturing stream keeps a
// copy of the front, and a stream that waits for such an event joins the capture with it. What may not be done during
// a capture invalidates it, as in CUDA; ending it then gives 901. Every stream is of this process, so that nothing here
// waits. Everything is under sim.lock but the exported functions, which take it.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

static sim_capture_t *captures;
static atomic_uint capture_count; // read without the lock by calls that captures may forbid
static unsigned long long last_id;
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

bool sim_capturing(void) { return atomic_load_explicit(&capture_count, memory_order_relaxed) != 0; }

static void release(sim_capture_t *capture) {
    if (--capture->refs == 0)
        free(capture);
}

static void invalidate(sim_capture_t *capture, CUresult why) {
    if (!capture->invalid)
        capture->invalid = why;
}

static void leave(sim_stream_t *stream) {
    free(stream->front.items);
    stream->front = (sim_node_list_t){0};
    if (stream->capture)
        release(stream->capture);
    stream->capture = NULL;
}

static CUresult join(sim_stream_t *stream, sim_capture_t *capture, const sim_node_list_t *front) {
    for (size_t i = 0; i < front->count; i++)
        if (!sim_list_add(&stream->front, front->items[i]))
            return CUDA_ERROR_OUT_OF_MEMORY;
    if (!stream->capture) {
        stream->capture = capture;
        capture->refs++;
    }
    return CUDA_SUCCESS;
}

// Every stream of the process that takes part leaves.
static void end(sim_capture_t *capture) {
    capture->refs++;
    capture->ended = true;
    for (sim_context_t *context = sim.contexts; context; context = context->next)
        for (sim_stream_t *stream = context->streams; stream; stream = stream->next)
            if (stream->capture == capture)
                leave(stream);
    for (sim_capture_t **at = &captures; *at; at = &(*at)->next) {
        if (*at != capture)
            continue;
        *at = capture->next;
        atomic_fetch_sub(&capture_count, 1);
        release(capture);
        break;
    }
    if (capture->graph)
        capture->graph->capture = NULL;
    release(capture);
}

// ---- What other functions ask ------------------------------------------------------------------------------------

// A blocking stream of the context captures: the legacy stream would have to depend on it.
static CUresult legacy_conflict(const sim_stream_t *stream) {
    CUresult result = CUDA_SUCCESS;
    if (stream != stream->context->legacy)
        return result;
    for (sim_stream_t *other = stream->context->streams; other; other = other->next)
        if (other->capture && !(other->flags & CU_STREAM_NON_BLOCKING)) {
            invalidate(other->capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
            result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    return result;
}

CUresult sim_capture_touch(sim_stream_t *stream) {
    if (!captures)
        return CUDA_SUCCESS;
    if (stream->capture) {
        invalidate(stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return legacy_conflict(stream);
}

CUresult sim_capture_touch_context(sim_context_t *context) {
    CUresult result = CUDA_SUCCESS;
    for (sim_stream_t *stream = captures ? context->streams : NULL; stream; stream = stream->next)
        if (stream->capture)
            result = sim_capture_touch(stream);
    return result;
}

CUresult sim_capture_forbids(void) {
    CUresult result = CUDA_SUCCESS;
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return result;
    for (sim_capture_t *capture = captures; capture; capture = capture->next) {
        bool own = pthread_equal(capture->thread, pthread_self());
        bool concerns =
            own ? capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED
                : capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (concerns) {
            invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return result;
}

// An event that was recorded in a capture says so before the modes of captures are asked.
CUresult sim_capture_touch_event(sim_event_t *event) {
    if (!event->capture)
        return sim_capture_forbids();
    if (event->capture->ended)
        return CUDA_ERROR_INVALID_VALUE;
    invalidate(event->capture, CUDA_ERROR_CAPTURED_EVENT);
    return CUDA_ERROR_CAPTURED_EVENT;
}

CUresult sim_capture_unsafe(void) {
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_capture_forbids();
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult sim_capture_bars(sim_context_t *context, CUstream handle) {
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, handle, &stream);
    if (result == CUDA_SUCCESS)
        result = sim_capture_touch(stream);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult sim_capture_implicit(sim_context_t *context, CUstream handle) {
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, handle, &stream);
    if (result == CUDA_SUCCESS && captures)
        result = legacy_conflict(stream);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

void sim_capture_fails(sim_stream_t *stream, CUresult why) {
    if (stream->capture)
        invalidate(stream->capture, why);
}

void sim_capture_event_drop(sim_event_t *event) {
    free(event->front.items);
    event->front = (sim_node_list_t){0};
    if (event->capture)
        release(event->capture);
    event->capture = NULL;
}

// A capture whose first stream goes has nobody to end it. Another may go when what it captured is joined, or will be: NCCL lets a stream
// wait for an event only to see what it depends on then.
void sim_capture_stream_gone(sim_stream_t *stream) {
    sim_capture_t *capture = stream->capture;
    if (!capture)
        return;
    if (capture->origin != stream) {
        leave(stream);
        return;
    }
    sim_graph_t *graph = capture->own_graph ? capture->graph : NULL;
    end(capture);
    if (graph)
        sim_graph_delete(graph);
}

// ---- Operations --------------------------------------------------------------------------------------------------

CUresult sim_capture_append(sim_stream_t *stream, sim_node_t *node) {
    stream->front.count = 0;
    return sim_list_add(&stream->front, node) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static bool node_type(sim_op_t *op, CUgraphNodeType *type) {
    switch (op->kind) {
    case SIM_OP_LAUNCH:
        *type = CU_GRAPH_NODE_TYPE_KERNEL;
        return true;
    case SIM_OP_COPY: // pageable memory is read at each launch
        *type = CU_GRAPH_NODE_TYPE_MEMCPY;
        if (op->u.copy.staging) {
            free(op->u.copy.staging);
            op->u.copy.staging = NULL;
            op->u.copy.src = op->u.copy.staged;
        }
        return true;
    case SIM_OP_SET:
        *type = CU_GRAPH_NODE_TYPE_MEMSET;
        return true;
    case SIM_OP_HOST_FUNCTION:
        *type = CU_GRAPH_NODE_TYPE_HOST;
        return true;
    case SIM_OP_WRITE_VALUE:
    case SIM_OP_WAIT_VALUE:
    case SIM_OP_BATCH:
        *type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP;
        return true;
    case SIM_OP_RECORD_NODE:
        *type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
        return true;
    case SIM_OP_WAIT_NODE:
        *type = CU_GRAPH_NODE_TYPE_WAIT_EVENT;
        return true;
    case SIM_OP_GRAPH_ALLOC:
        *type = CU_GRAPH_NODE_TYPE_MEM_ALLOC;
        return true;
    case SIM_OP_GRAPH_FREE:
        *type = CU_GRAPH_NODE_TYPE_MEM_FREE;
        return true;
    case SIM_OP_NOP:
    case SIM_OP_GRAPH:
    case SIM_OP_RECORD:
    case SIM_OP_WAIT_IPC:
    case SIM_OP_CALLBACK:
    case SIM_OP_FREE:
        return false;
    }
    return false;
}

// Pinned memory is told by its device address, other memory of the program by its own.
static CUDA_MEMCPY3D copy_params(const sim_copy_t *copy) {
    CUDA_MEMCPY3D params = {.srcMemoryType = copy->src.mapped ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
                            .srcPitch = copy->src.pitch,
                            .dstMemoryType = copy->dst.mapped ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST,
                            .dstPitch = copy->dst.pitch,
                            .WidthInBytes = copy->width,
                            .Height = copy->height,
                            .Depth = copy->depth};
    if (copy->src.mapped)
        params.srcDevice = copy->src.address;
    else
        params.srcHost = (const void *)(uintptr_t)copy->src.address;
    if (copy->dst.mapped)
        params.dstDevice = copy->dst.address;
    else
        params.dstHost = (void *)(uintptr_t)copy->dst.address;
    return params;
}

static void keep_params(sim_node_t *node) {
    if (node->type == CU_GRAPH_NODE_TYPE_KERNEL)
        node->params.kernel = node->op.u.launch.request;
    if (node->type == CU_GRAPH_NODE_TYPE_MEMSET)
        node->params.set = (CUDA_MEMSET_NODE_PARAMS){.dst = node->op.u.set.dst.address,
                                                     .pitch = node->op.u.set.dst.pitch,
                                                     .value = node->op.u.set.value,
                                                     .elementSize = node->op.u.set.element,
                                                     .width = node->op.u.set.width / node->op.u.set.element,
                                                     .height = node->op.u.set.height};
    if (node->type == CU_GRAPH_NODE_TYPE_MEMCPY)
        node->params.copy = copy_params(&node->op.u.copy);
    if (node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        node->params.alloc =
            (CUDA_MEM_ALLOC_NODE_PARAMS){.bytesize = node->op.u.memory.size, .dptr = node->op.u.memory.address};
        node->params.alloc.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
        node->params.alloc.poolProps.location =
            (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = node->op.u.memory.device};
    }
}

CUresult sim_capture_push(sim_stream_t *stream, sim_op_t *op, bool *taken) {
    *taken = true;
    CUresult result = legacy_conflict(stream);
    sim_capture_t *capture = stream->capture;
    if (result != CUDA_SUCCESS)
        return result;
    if (!capture) {
        *taken = false;
        return CUDA_SUCCESS;
    }
    if (capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    CUgraphNodeType type;
    if (!node_type(op, &type)) {
        invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    sim_node_t *node;
    result = sim_graph_memory_prepare(capture->graph, &stream->front, op);
    if (result != CUDA_SUCCESS) // which disturbs the capture not at all (580.159.04, measured)
        return result;
    result = sim_node_new(capture->graph, type, (const CUgraphNode *)(void *)stream->front.items, stream->front.count,
                          op, &node);
    if (result == CUDA_SUCCESS) {
        op->kind = SIM_OP_NOP; // the node has what it owned
        keep_params(node);
        node->context = stream->context;
        node->captured = true;
        result = sim_capture_append(stream, node);
    }
    if (result != CUDA_SUCCESS)
        invalidate(capture, result);
    return result;
}

CUresult sim_capture_record(sim_stream_t *stream, sim_event_t *event, bool *taken) {
    CUresult result = legacy_conflict(stream);
    *taken = result != CUDA_SUCCESS || stream->capture;
    if (result != CUDA_SUCCESS)
        return result;
    sim_capture_event_drop(event); // recorded again: what it was is forgotten
    if (!stream->capture)
        return CUDA_SUCCESS;
    if (stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    for (size_t i = 0; i < stream->front.count; i++)
        if (!sim_list_add(&event->front, stream->front.items[i]))
            return CUDA_ERROR_OUT_OF_MEMORY;
    event->capture = stream->capture;
    event->capture->refs++;
    return CUDA_SUCCESS;
}

CUresult sim_capture_wait(sim_stream_t *stream, sim_event_t *event, bool *taken) {
    sim_capture_t *from = event->capture, *to = stream->capture;
    CUresult result = legacy_conflict(stream);
    *taken = true;
    if (result != CUDA_SUCCESS)
        return result;
    if (!from && !to) {
        *taken = false;
        return CUDA_SUCCESS;
    }
    if (!from) {
        if (event->page ? !sim_ipc_event_last(event) : !event->stream)
            return CUDA_SUCCESS; // never recorded
        invalidate(to, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (from->ended) {
        if (to)
            invalidate(to, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        return to ? CUDA_ERROR_STREAM_CAPTURE_ISOLATION : CUDA_ERROR_INVALID_VALUE;
    }
    if (from->invalid || (to && to->invalid))
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (to && to != from) {
        invalidate(to, CUDA_ERROR_STREAM_CAPTURE_MERGE);
        invalidate(from, CUDA_ERROR_STREAM_CAPTURE_MERGE);
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (stream == stream->context->legacy) {
        invalidate(from, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    return join(stream, from, &event->front);
}

// ---- The API -----------------------------------------------------------------------------------------------------

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    SIM_ENTER();
    if (!mode || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode previous = thread_mode;
    thread_mode = *mode;
    *mode = previous;
    return CUDA_SUCCESS;
}

static CUresult begin(sim_context_t *context, CUstream handle, CUgraph into, const CUgraphNode *dependencies,
                      size_t count, CUstreamCaptureMode mode, bool to_graph) {
    sim_stream_t *stream;
    sim_capture_t *capture = NULL;
    if ((unsigned)mode > CU_STREAM_CAPTURE_MODE_RELAXED || (count && !dependencies))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, handle, &stream);
    sim_graph_t *graph = to_graph ? sim_graph_of(into) : NULL;
    if (result == CUDA_SUCCESS && to_graph && (!graph || graph->capture))
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS && stream == stream->context->legacy)
        result = legacy_conflict(stream) ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (result == CUDA_SUCCESS && stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++) {
        const sim_node_t *node = sim_node_of(dependencies[i]);
        if (!node || node->graph != graph)
            result = CUDA_ERROR_INVALID_VALUE;
    }
    if (result == CUDA_SUCCESS && (!(capture = calloc(1, sizeof *capture)) || (!graph && !(graph = sim_graph_new())))) {
        free(capture);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS) {
        *capture = (sim_capture_t){.refs = 1,
                                   .id = ++last_id,
                                   .mode = mode,
                                   .thread = pthread_self(),
                                   .graph = graph,
                                   .own_graph = !to_graph,
                                   .first = graph->nodes.count,
                                   .origin = stream,
                                   .next = captures};
        captures = capture;
        atomic_fetch_add(&capture_count, 1);
        graph->capture = capture;
        sim_node_list_t front = {.items = (sim_node_t **)(void *)(uintptr_t)dependencies, .count = count};
        result = join(stream, capture, &front);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
    SIM_ENTER_STREAM(context, hStream);
    return begin(context, hStream, NULL, NULL, 0, mode, false);
}

CUresult cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                                     const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                     CUstreamCaptureMode mode) {
    SIM_ENTER_STREAM(context, hStream);
    (void)dependencyData; // ports matter on hardware only
    return begin(context, hStream, hGraph, dependencies, numDependencies, mode, true);
}

// A captured node that the first stream's front does not lead to was forked off and not joined again. Nodes that the program added to
// the graph, and those that it took out of a front, need not be: NCCL ends its streams' parts of a capture with such ones.
static void reach(sim_node_t *node) {
    if (node->listed)
        return;
    node->listed = true;
    for (size_t i = 0; i < node->dependencies.count; i++)
        reach(node->dependencies.items[i]);
}

static bool joined(const sim_stream_t *origin, const sim_capture_t *capture) {
    bool all = true;
    sim_graph_t *graph = capture->graph;
    for (size_t i = 0; i < graph->nodes.count; i++)
        graph->nodes.items[i]->listed = false;
    for (size_t i = 0; i < origin->front.count; i++)
        reach(origin->front.items[i]);
    for (size_t i = capture->first; i < graph->nodes.count; i++)
        all = all && (graph->nodes.items[i]->listed || !graph->nodes.items[i]->captured);
    return all;
}

CUresult cuStreamEndCapture(CUstream hStream, CUgraph *phGraph) {
    SIM_BEGINS(phGraph, NULL);
    SIM_ENTER_STREAM(context, hStream);
    sim_stream_t *stream;
    CUgraph unused;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    sim_capture_t *capture = result == CUDA_SUCCESS ? stream->capture : NULL;
    if (!phGraph && (!capture || capture->own_graph)) { // whoever captures into a graph has it already
        pthread_mutex_unlock(&sim.lock);
        return CUDA_ERROR_INVALID_VALUE;
    }
    phGraph = phGraph ? phGraph : &unused;
    *phGraph = NULL;
    if (result == CUDA_SUCCESS && !capture) {
        result = CUDA_ERROR_ILLEGAL_STATE;
    } else if (capture && capture->origin != stream) {
        invalidate(capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        result = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    } else if (capture) {
        if (capture->invalid)
            result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        else if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(capture->thread, pthread_self()))
            result = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD; // and it is over all the same
        else if (!joined(stream, capture))
            result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        sim_graph_t *graph = capture->graph;
        bool own = capture->own_graph;
        end(capture);
        if (result == CUDA_SUCCESS)
            *phGraph = (CUgraph)(void *)graph;
        else if (own)
            sim_graph_delete(graph);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult info(sim_context_t *context, CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                     CUgraph *graph, const CUgraphNode **dependencies, size_t *count) {
    if (!status)
        return CUDA_ERROR_INVALID_VALUE;
    sim_stream_t *stream;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, handle, &stream);
    if (result == CUDA_SUCCESS && captures && stream == stream->context->legacy)
        for (sim_stream_t *other = context->streams; other; other = other->next)
            if (other->capture && !(other->flags & CU_STREAM_NON_BLOCKING))
                result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT; // asking invalidates nothing
    if (result == CUDA_SUCCESS) {
        const sim_capture_t *capture = stream->capture;
        *status = !capture           ? CU_STREAM_CAPTURE_STATUS_NONE
                  : capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                     : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        bool active = *status == CU_STREAM_CAPTURE_STATUS_ACTIVE;
        if (capture && id)
            *id = capture->id;
        if (active && graph)
            *graph = (CUgraph)(void *)capture->graph;
        if (active && dependencies)
            *dependencies = (const CUgraphNode *)(void *)stream->front.items;
        if (active && count)
            *count = stream->front.count;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
    SIM_ENTER_STREAM(context, hStream);
    return info(context, hStream, captureStatus, NULL, NULL, NULL, NULL);
}

CUresult cuStreamGetCaptureInfo_v2(CUstream hStream, CUstreamCaptureStatus *captureStatus_out, cuuint64_t *id_out,
                                   CUgraph *graph_out, const CUgraphNode **dependencies_out,
                                   size_t *numDependencies_out) {
    SIM_ENTER_STREAM(context, hStream);
    return info(context, hStream, captureStatus_out, id_out, graph_out, dependencies_out, numDependencies_out);
}

CUresult cuStreamGetCaptureInfo_v3(CUstream hStream, CUstreamCaptureStatus *captureStatus_out, cuuint64_t *id_out,
                                   CUgraph *graph_out, const CUgraphNode **dependencies_out,
                                   const CUgraphEdgeData **edgeData_out, size_t *numDependencies_out) {
    SIM_ENTER_STREAM(context, hStream);
    if (edgeData_out)
        *edgeData_out = NULL; // every edge is a full dependency
    return info(context, hStream, captureStatus_out, id_out, graph_out, dependencies_out, numDependencies_out);
}

CUresult cuStreamUpdateCaptureDependencies_v2(CUstream hStream, CUgraphNode *dependencies,
                                              const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                              unsigned int flags) {
    SIM_ENTER_STREAM(context, hStream);
    (void)dependencyData;
    sim_stream_t *stream;
    if (flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES || (numDependencies && !dependencies))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS && !stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    else if (result == CUDA_SUCCESS && stream->capture->invalid)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    for (size_t i = 0; result == CUDA_SUCCESS && i < numDependencies; i++) {
        const sim_node_t *node = sim_node_of(dependencies[i]);
        if (!node || node->graph != stream->capture->graph)
            result = CUDA_ERROR_INVALID_VALUE;
    }
    if (result == CUDA_SUCCESS) {
        sim_node_list_t added = {.items = (sim_node_t **)(void *)dependencies, .count = numDependencies};
        for (size_t i = 0; flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES && i < stream->front.count; i++)
            stream->front.items[i]->captured = false;
        if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES)
            stream->front.count = 0;
        result = join(stream, stream->capture, &added);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuStreamUpdateCaptureDependencies(CUstream hStream, CUgraphNode *dependencies, size_t numDependencies,
                                           unsigned int flags) {
    return cuStreamUpdateCaptureDependencies_v2(hStream, dependencies, NULL, numDependencies, flags);
}
