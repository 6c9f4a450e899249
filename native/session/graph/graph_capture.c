/*
 * Operations on captures: beginning, ending, asking, changing what comes next.
 *
 * Executor thread only. Every capture is begun in relaxed mode, because the driver's modes are about threads and all of the
 * client's threads act through this one; what the modes forbid is refused in the client. The list holds the captures that
 * this session began and has not seen end; a capture of whose end it did not hear costs questions, nothing else. Counts are
 * bounded by the frame they came in.
 */
#include "tpg_session.h"
#include "tpw_graph.h"

#include <stdlib.h>

#define DEPENDENCIES_MAX 4096u /* told to the client at once; streams depend on a handful */

uint64_t tpw_captured_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error) {
    CUgraph graph = TP_UNLIKELY(s->captures && !*error) ? tpw_capturing_graph(s, stream, error) : NULL;
    return graph ? tpw_known(s, TPG_GRAPH, (uint64_t)(uintptr_t)graph) : 0;
}

/* Nodes that a stream captures are in its context. */
static int32_t hold_context(struct tpw_session *s, uint64_t graph, const struct tpw_stream *stream) {
    return tpw_hold_object(s, graph, TPG_CONTEXT, tp_handle_make(TPG_CONTEXT, stream->context_id));
}

/* ---- the list ---- */

static void drop(struct tpw_session *s, struct tpw_capture *capture, bool keep_graph) {
    TP_UNLINK(s->captures, capture);
    if (!keep_graph && !capture->into) {
        tpw_forget(s, TPG_GRAPH, capture->graph);
    }
    free(capture);
}

static void stream_gone(struct tpw_session *s, const struct tpw_stream *stream) {
    struct tpw_capture *capture = TP_FIND(s->captures, it->origin == stream);
    if (capture) {
        drop(s, capture, false);
    }
}
TP_REGISTER(tpw_stream_gone, stream_gone);

/* Else it would go on, and forbid others something, as long as work from before the capture is outstanding. */
static void stream_leaves(struct tpw_session *s, const struct tpw_stream *stream) {
    const struct tpw_capture *capture = TP_FIND(s->captures, it->origin == stream);
    CUgraph graph = NULL;
    if (capture && !s->cuda.cuStreamEndCapture(stream->native, &graph) && !capture->into) {
        s->cuda.cuGraphDestroy(graph);
    }
    stream_gone(s, stream);
}
TP_REGISTER(tpw_stream_leaves, stream_leaves);

/* ---- operations ---- */

static bool fits(size_t dependencies, size_t edges) { return !edges || edges == dependencies; }

int32_t tpw_capture_begin(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_begin_in *in,
                          struct tpg_capture_begin_out *out, struct tpw_stream *stream, CUgraphNode *nodes) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph graph = NULL;
    bool named = false;
    tpw_waits_settle(s);
    int32_t error = tpw_enter(s, frame);
    struct tpw_capture *capture = error ? NULL : calloc(1, sizeof *capture);
    if (!error && !capture) {
        error = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!error && in->into) {
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
    struct tpw_capture *capture = TP_FIND(s->captures, it->origin == stream);
    out->result = (int32_t)s->cuda.cuStreamEndCapture(stream->native, &graph);
    if (!capture) {
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
    out->graph = capture->graph;
    if (out->ended) {
        out->kept = !out->result || capture->into;
        struct tpw_object *object = tpw_object(s, TPG_GRAPH, out->graph);
        if (!out->result && object) {
            object->native = (uint64_t)(uintptr_t)graph;
        }
        drop(s, capture, out->kept != 0);
    }
    return CUDA_SUCCESS;
}

int32_t tpw_capture_break(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_break_in *in) {
    struct tp_frame of = *frame;
    of.thread = in->thread;
    of.context = in->context;
    int32_t error = tpw_enter(s, &of);
    const struct tpw_stream *stream = tpw_stream_find(s, &of, in->stream, &error);
    return stream ? tpw_refuse_capture(s, stream) : error;
}

int32_t tpw_capture_info(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_capture_info_in *in,
                         struct tpg_capture_info_out *out, struct tpw_stream *stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    CUgraph graph = NULL;
    const CUgraphNode *nodes = NULL;
    const CUgraphEdgeData *edges = NULL;
    size_t count = 0;
    int32_t error =
        (int32_t)s->cuda.cuStreamGetCaptureInfo_v3(stream->native, &status, &id, &graph, &nodes, &edges, &count);
    if (error == CUDA_ERROR_NOT_SUPPORTED) { /* a driver before 12.3 */
        error = (int32_t)s->cuda.cuStreamGetCaptureInfo_v2(stream->native, &status, &id, &graph, &nodes, &count);
    }
    out->status = (int32_t)status;
    out->id = id;
    if (error || status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return error;
    }
    const struct tpw_capture *capture = TP_FIND(s->captures, it->id == id);
    out->graph = capture ? capture->graph : 0;
    out->count = count;
    if (!in->fresh_count || count > DEPENDENCIES_MAX || !out->graph) {
        return CUDA_SUCCESS;
    }
    struct tpw_fresh fresh = {.handles = in->fresh, .count = in->fresh_count};
    unsigned char *memory = tpw_scratch(s, count + 1, sizeof(uint64_t) + sizeof(CUgraphEdgeData), &error);
    TPW_TRY(error);
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
                                 const struct tpg_capture_dependencies_in *in, struct tpw_stream *stream,
                                 CUgraphNode *nodes) {
    size_t count = in->dependencies_count;
    if (!fits(count, in->edges_count)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    nodes = count ? nodes : NULL;
    return (
        int32_t)(in->edges_count
                     ? s->cuda.cuStreamUpdateCaptureDependencies_v2(stream->native, nodes, in->edges, count, in->flags)
                     : s->cuda.cuStreamUpdateCaptureDependencies(stream->native, nodes, count, in->flags));
}
