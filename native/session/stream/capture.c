/*
 * Stream capture: beginning, ending, asking; and keeping the session itself out of it.
 *
 * Executor thread only. Every capture is begun in relaxed mode, because the driver's modes are about threads and all of the
 * client's threads act through this one; what the modes forbid is refused in the client. The list holds the captures that
 * this session began and has not seen end; a capture of whose end it did not hear costs questions, nothing else. Counts are
 * bounded by the frame they came in.
 */
#include "tpg_session.h"
#include "tpw_graph.h"
#include "tpw_keep.h"

#include <stdlib.h>

#define DEPENDENCIES_MAX 4096u /* told to the client at once; streams depend on a handful */

bool tpw_touchable(struct tpw_session *s, const struct tpw_stream *stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (TP_LIKELY(!s->captures)) {
        return true;
    }
    /* For the legacy stream the driver answers CUDA_ERROR_STREAM_CAPTURE_IMPLICIT while a blocking stream captures, and
     * this question disturbs nothing. */
    CUcontext before = s->entered_native;
    const uint32_t entered = s->entered;
    if (before != stream->context) {
        tpw_go_into(s, stream->context);
    }
    int32_t error = (int32_t)s->cuda.cuStreamIsCapturing(stream->native, &status);
    /* What else goes wrong is no capture: whatever is done in the stream then fails with the driver's own error. */
    bool free_of = error ? error != CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : status == CU_STREAM_CAPTURE_STATUS_NONE;
    if (before != stream->context) {
        tpw_go_into(s, before);
        s->entered = s->entered_native == before ? entered : 0;
    }
    return free_of;
}

int32_t tpw_refuse_capture(struct tpw_session *s, const struct tpw_stream *stream) {
    if (tpw_touchable(s, stream)) {
        return CUDA_SUCCESS;
    }
    /* A query is not allowed during a capture, never waits, and ends it as any other such operation does. */
    int32_t error = (int32_t)s->cuda.cuStreamQuery(stream->native);
    return error && error != CUDA_ERROR_NOT_READY ? error : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

void tpw_refuse_capturing(struct tpw_session *s, CUstream native, int32_t *error) {
    const struct tpw_stream *stream = s->captures && !*error ? tpw_stream_native(s, native) : NULL;
    if (stream) {
        *error = tpw_refuse_capture(s, stream);
    }
}

int32_t tpw_refuse_captures(struct tpw_session *s) {
    int32_t error = CUDA_SUCCESS;
    for (struct tpw_capture *capture = s->captures; capture; capture = capture->next) {
        if (capture->origin->context_id == s->entered) {
            int32_t broken = tpw_refuse_capture(s, capture->origin);
            error = error ? error : broken;
        }
    }
    return error;
}

CUgraph tpw_capturing_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    CUgraph graph = NULL;
    if (!s->captures) {
        return NULL;
    }
    *error = (int32_t)s->cuda.cuStreamGetCaptureInfo_v2(stream->native, &status, &id, &graph, NULL, NULL);
    if (*error == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) { /* the legacy stream, while another captures */
        *error = CUDA_SUCCESS;
        return NULL;
    }
    return !*error && status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? graph : NULL;
}

uint64_t tpw_captured_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error) {
    CUgraph graph = TP_UNLIKELY(s->captures && !*error) ? tpw_capturing_graph(s, stream, error) : NULL;
    return graph ? tpw_graph_handle(s, graph) : 0;
}

/* Nodes that a stream captures are in its context. */
static int32_t hold_context(struct tpw_session *s, uint64_t graph, const struct tpw_stream *stream) {
    return tpw_hold_object(s, graph, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, stream->context_id));
}

/* ---- the list ---- */

static struct tpw_capture **find(struct tpw_session *s, const struct tpw_stream *origin) {
    struct tpw_capture **at = &s->captures;
    while (*at && (*at)->origin != origin) {
        at = &(*at)->next;
    }
    return at;
}

static void drop(struct tpw_session *s, struct tpw_capture **at, bool keep_graph) {
    struct tpw_capture *capture = *at;
    *at = capture->next;
    if (!keep_graph && !capture->into) {
        tpw_graph_forget(s, capture->graph);
    }
    free(capture);
}

void tpw_capture_stream_gone(struct tpw_session *s, const struct tpw_stream *stream) {
    struct tpw_capture **at = find(s, stream);
    if (*at) {
        drop(s, at, false);
    }
}

/* ---- operations ---- */

static bool fits(size_t dependencies, size_t edges) { return !edges || edges == dependencies; }

int32_t tpw_capture_begin(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_begin_in *in,
                          struct tpg_capture_begin_out *out, struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph graph = NULL;
    bool named = false;
    tpw_waits_settle(s);
    error = tpw_enter(s, frame);
    struct tpw_capture *capture = error ? NULL : calloc(1, sizeof *capture);
    if (!error && !capture) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!error && in->into) {
        CUgraphNode *nodes = tpw_nodes(s, in->dependencies, in->dependencies_count, &error);
        graph = tpw_graph(s, in->graph, &error);
        if (!error && !fits(in->dependencies_count, in->edges_count)) {
            error = CUDA_ERROR_INVALID_VALUE;
        }
        if (!error) {
            error = (int32_t)s->cuda.cuStreamBeginCaptureToGraph(
                stream->native, graph, in->dependencies_count ? nodes : NULL, in->edges_count ? in->edges : NULL,
                in->dependencies_count, CU_STREAM_CAPTURE_MODE_RELAXED);
        }
    } else if (!error) {
        error = (int32_t)s->cuda.cuStreamBeginCapture_v2(stream->native, CU_STREAM_CAPTURE_MODE_RELAXED);
    }
    if (error) {
        free(capture);
        return error;
    }
    cuuint64_t id = 0;
    error = (int32_t)s->cuda.cuStreamGetCaptureInfo_v2(stream->native, &status, &id, &graph, NULL, NULL);
    if (!error && !in->into) {
        error = tpw_made(s, frame, TPG_GRAPH, in->graph, (uint64_t)(uintptr_t)graph, 0);
        named = !error;
    }
    error = error ? error : hold_context(s, in->graph, stream);
    if (error && named) {
        tpw_forget(s, TPG_GRAPH, in->graph);
    }
    if (error) { /* without a graph that can be named the capture is of no use */
        CUgraph unnamed = NULL;
        if (!s->cuda.cuStreamEndCapture(stream->native, &unnamed) && !in->into) {
            s->cuda.cuGraphDestroy(unnamed);
        }
        free(capture);
        return error;
    }
    *capture = (struct tpw_capture){
        .next = s->captures, .origin = stream, .id = id, .graph = in->graph, .into = in->into != 0};
    s->captures = capture;
    out->id = id;
    return CUDA_SUCCESS;
}

int32_t tpw_capture_end(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_end_in *in,
                        struct tpg_capture_end_out *out, struct tpw_stream *stream) {
    CUgraph graph = NULL;
    struct tpw_capture **at = find(s, stream);
    out->result = (int32_t)s->cuda.cuStreamEndCapture(stream->native, &graph);
    if (!*at) {
        return CUDA_SUCCESS;
    }
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    int32_t untold = out->result ? (int32_t)s->cuda.cuStreamIsCapturing(stream->native, &status) : CUDA_SUCCESS;
    if (untold && untold == out->result) {
        untold = CUDA_SUCCESS; /* the context is broken, and the capture with it */
    } else if (untold) { /* one of whose end nobody heard costs questions; one taken for ended would be disturbed */
        tp_log(TP_WARN, "the driver does not tell whether a stream still captures: error %d", untold);
        return CUDA_SUCCESS;
    }
    out->ended = !out->result || status == CU_STREAM_CAPTURE_STATUS_NONE;
    out->graph = (*at)->graph;
    if (out->ended) {
        out->kept = !out->result || (*at)->into;
        struct tpw_object *object = tpw_object(s, TPG_GRAPH, out->graph);
        if (!out->result && object) {
            object->native = (uint64_t)(uintptr_t)graph;
        }
        drop(s, at, out->kept != 0);
    }
    return CUDA_SUCCESS;
}

int32_t tpw_capture_break(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_break_in *in,
                          struct tpw_stream *stream) {
    (void)frame, (void)in;
    return tpw_refuse_capture(s, stream);
}

int32_t tpw_capture_info(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_info_in *in,
                         struct tpg_capture_info_out *out, struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    CUgraph graph = NULL;
    const CUgraphNode *nodes = NULL;
    const CUgraphEdgeData *edges = NULL;
    size_t count = 0;
    error = (int32_t)s->cuda.cuStreamGetCaptureInfo_v3(stream->native, &status, &id, &graph, &nodes, &edges, &count);
    if (error == CUDA_ERROR_NOT_SUPPORTED) { /* a driver before 12.3 */
        error = (int32_t)s->cuda.cuStreamGetCaptureInfo_v2(stream->native, &status, &id, &graph, &nodes, &count);
    }
    out->status = (int32_t)status;
    out->id = id;
    if (error || status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return error;
    }
    for (struct tpw_capture *capture = s->captures; capture; capture = capture->next) {
        if (capture->id == id) {
            out->graph = capture->graph;
        }
    }
    out->count = count;
    if (!in->fresh_count || count > DEPENDENCIES_MAX || !out->graph) {
        return CUDA_SUCCESS;
    }
    struct tpw_fresh fresh = {.handles = in->fresh, .count = in->fresh_count};
    unsigned char *memory = tpw_scratch(s, count + 1, sizeof(uint64_t) + sizeof(CUgraphEdgeData), &error);
    if (error) {
        return error;
    }
    uint64_t *names = (uint64_t *)(void *)memory;
    CUgraphEdgeData *data = (CUgraphEdgeData *)(void *)(memory + count * sizeof *names);
    for (size_t i = 0; i < count; i++) {
        names[i] = tpw_node_name(s, frame, nodes[i], out->graph, &fresh);
        if (edges) {
            data[i] = edges[i];
        }
    }
    out->dependencies = names;
    out->edges = data;
    out->dependencies_count = out->edges_count = count;
    return CUDA_SUCCESS;
}

int32_t tpw_capture_dependencies(struct tpw_session *s, const struct tp_frame *frame,
                                 const struct tpg_capture_dependencies_in *in, struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    size_t count = in->dependencies_count;
    CUgraphNode *nodes = tpw_nodes(s, in->dependencies, count, &error);
    if (!error && !fits(count, in->edges_count)) {
        error = CUDA_ERROR_INVALID_VALUE;
    }
    if (error) {
        return error;
    }
    nodes = count ? nodes : NULL;
    return (
        int32_t)(in->edges_count
                     ? s->cuda.cuStreamUpdateCaptureDependencies_v2(stream->native, nodes, in->edges, count, in->flags)
                     : s->cuda.cuStreamUpdateCaptureDependencies(stream->native, nodes, count, in->flags));
}

/* An event that becomes part of a capture may not be queried: whoever still waits for what it was before is answered now. */
static void recorded(struct tpw_session *s, const struct tp_frame *frame, uint64_t event, uint64_t handle) {
    int32_t error = CUDA_SUCCESS;
    const struct tpw_stream *stream = tpw_stream_of(s, frame, handle, &error);
    if (!error && !tpw_touchable(s, stream)) {
        tpw_waits_end_event(s, event);
    }
}

int32_t tpw_cuEventRecord(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_cuEventRecord_in *in,
                          CUevent hEvent, struct tpw_stream *hStream) {
    if (TP_UNLIKELY(s->captures)) {
        recorded(s, frame, in->hEvent, in->hStream);
    }
    return (int32_t)s->cuda.cuEventRecord(hEvent, hStream->native);
}

int32_t tpw_cuEventRecordWithFlags(struct tpw_session *s, const struct tp_frame *frame,
                                   const struct tpg_cuEventRecordWithFlags_in *in, CUevent hEvent,
                                   struct tpw_stream *hStream) {
    if (TP_UNLIKELY(s->captures && !(in->flags & CU_EVENT_RECORD_EXTERNAL))) { /* that one stays what it is */
        recorded(s, frame, in->hEvent, in->hStream);
    }
    int32_t error = CUDA_SUCCESS;
    uint64_t graph = in->flags & CU_EVENT_RECORD_EXTERNAL ? tpw_captured_graph(s, hStream, &error) : 0;
    if (graph) { /* a node of its own */
        error = tpw_hold_object(s, graph, TPG_EVENT, in->hEvent);
    }
    if (error) {
        return error;
    }
    return (int32_t)s->cuda.cuEventRecordWithFlags(hEvent, hStream->native, in->flags);
}

/* A stream that waits for a captured event becomes part of the capture: what it has queued must have its point before. */
int32_t tpw_cuStreamWaitEvent(struct tpw_session *s, const struct tp_frame *frame,
                              const struct tpg_cuStreamWaitEvent_in *in, struct tpw_stream *hStream, CUevent hEvent) {
    int32_t error = CUDA_SUCCESS;
    if (TP_UNLIKELY(s->captures)) {
        tpw_waits_settle(s);
        error = tpw_enter(s, frame);
    }
    uint64_t graph = in->Flags & CU_EVENT_WAIT_EXTERNAL ? tpw_captured_graph(s, hStream, &error) : 0;
    if (graph) {
        error = tpw_hold_object(s, graph, TPG_EVENT, in->hEvent);
    }
    error = error ? error : (int32_t)s->cuda.cuStreamWaitEvent(hStream->native, hEvent, in->Flags);
    graph = tpw_captured_graph(s, hStream, &error); /* which it may have joined just now */
    return graph ? hold_context(s, graph, hStream) : error;
}
