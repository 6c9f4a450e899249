/*
 * The calls about captures whose subject is the graph: begin, end, what has been captured so far, and dependencies.
 *
 * Any thread; owns nothing. Which captures are under way, and what they forbid, is known in stream/capture.c.
 */
#include "tpc_graph.h"
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

#define FIRST_GUESS 8u /* dependencies of a stream: usually one */

/* ---- begin and end ---- */

CUresult tpc_capture_begin(const char *name, CUstream stream, CUstreamCaptureMode mode, CUgraph into,
                           const CUgraphNode *dependencies, const CUgraphEdgeData *edges, size_t count) {
    TPC_CONTEXT(context);
    if ((unsigned)mode > CU_STREAM_CAPTURE_MODE_RELAXED || (count && !dependencies)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(STREAM, stream, true);
    struct tpg_capture_begin_in in = {.stream = (uint64_t)(uintptr_t)stream,
                                      .graph = into ? (uint64_t)(uintptr_t)into : tpc_mint(TPG_GRAPH),
                                      .into = into != NULL,
                                      .dependencies = (const uint64_t *)(const void *)dependencies,
                                      .dependencies_count = count,
                                      .edges = edges,
                                      .edges_count = edges ? count : 0};
    uint64_t id;
    struct tpc_capture *capture = calloc(1, sizeof *capture);
    if (!in.graph || !capture) {
        free(capture);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    atomic_fetch_add(&tpc_captures, 1); /* before it begins, so that no failure of another thread goes unseen */
    uint64_t known = tpc_count(&tpc_counts.refusals);
    CUresult result = tpc_call_capture_begin(name, &in, &id);
    if (result == CUDA_SUCCESS) {
        const struct tp_thread *self = tp_thread_self();
        *capture = (struct tpc_capture){.stream = stream,
                                        .thread = self->number,
                                        .context = self->context,
                                        .mode = mode,
                                        .id = id,
                                        .graph = in.graph,
                                        .into = into != NULL,
                                        .known = known};
        tpc_capture_add(capture);
    } else {
        atomic_fetch_sub(&tpc_captures, 1);
        free(capture);
        if (!into) {
            tpc_unmint(TPG_GRAPH, in.graph);
        }
    }
    return result;
}

CUresult tpc_cuStreamEndCapture(CUstream hStream, CUgraph *phGraph) {
    TPC_CONTEXT(context);
    struct tpc_capture capture;
    bool known = tpc_capture_find(hStream, &capture);
    /* Whoever captures into a graph has it already. */
    if (!phGraph && !(known && capture.into)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    CUgraph unused;
    phGraph = phGraph ? phGraph : &unused;
    *phGraph = NULL;
    bool stranger =
        known && capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture.thread != tp_thread_self()->number;
    bool into = known && capture.into;
    struct tpg_capture_end_out out;
    CUresult result = tpc_call_capture_end("cuStreamEndCapture", (uint64_t)(uintptr_t)hStream, &out);
    TPC_TRY(result);
    if (out.ended) {
        tpc_capture_free(tpc_capture_take(hStream));
        if (!out.kept) {
            tpc_unmint(TPG_GRAPH, out.graph);
        }
    }
    result = (CUresult)out.result;
    if (result == CUDA_SUCCESS && stranger) { /* the capture is over all the same */
        if (!into) {
            tpc_cuGraphDestroy((CUgraph)(uintptr_t)out.graph);
        }
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    if (result == CUDA_SUCCESS) {
        *phGraph = (CUgraph)(uintptr_t)out.graph;
    }
    return result;
}

static void end_of_stream(CUstream stream) {
    struct tpc_capture *capture = tpc_capture_take(stream);
    if (capture && !capture->into) {
        tpc_unmint(TPG_GRAPH, capture->graph);
    }
    tpc_capture_free(capture);
}
TP_REGISTER(tpc_stream_gone, end_of_stream);

/* ---- what has been captured ---- */

/* The arrays stay until the stream is asked again or the capture ends. */
static CUresult dependencies_of(CUstream stream, struct tpc_capture_info *info, const CUgraphNode **nodes,
                                const CUgraphEdgeData **edges, size_t *count) {
    struct tpg_capture_info_out out;
    struct tp_reply reply;
    CUresult result;
    size_t guess = FIRST_GUESS;
    for (int attempt = 0;; attempt++) {
        struct tpc_fresh fresh;
        if (!tpc_fresh_make(&fresh, guess)) {
            return TPC_NO_HANDLES;
        }
        result = tpc_capture_ask(stream, fresh.handles, fresh.count, &out, &reply);
        bool complete = true;
        for (size_t i = 0; result == CUDA_SUCCESS && i < out.dependencies_count; i++) {
            const uint64_t handle = tp_word_at(out.dependencies, i);
            tpc_fresh_note(&fresh, handle, out.graph);
            complete = complete && handle;
        }
        tpc_fresh_end(&fresh);
        if (result != CUDA_SUCCESS || (complete && out.dependencies_count == out.count) || attempt) {
            break;
        }
        guess = out.count;
        tp_reply_free(&reply);
    }
    if (result == CUDA_SUCCESS) {
        *info =
            (struct tpc_capture_info){.status = (CUstreamCaptureStatus)out.status, .id = out.id, .graph = out.graph};
        *count = out.count;
        if (info->status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
            result = out.dependencies_count == out.count ? tpc_capture_keep(stream, &out, nodes, edges)
                                                         : CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_capture_told(CUstream hStream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                          const CUgraphNode **dependencies, const CUgraphEdgeData **edges, size_t *count) {
    struct tpc_capture_info info;
    const CUgraphNode *kept_nodes = NULL;
    const CUgraphEdgeData *kept_edges = NULL;
    size_t number = 0;
    CUresult result = tpc_capture_look(hStream, &info);
    if (result == CUDA_SUCCESS && info.status == CU_STREAM_CAPTURE_STATUS_ACTIVE && (dependencies || count)) {
        result = dependencies_of(hStream, &info, &kept_nodes, &kept_edges, &number);
    }
    if (result == CUDA_SUCCESS && kept_edges && !edges && dependencies && !tpc_edges_plain(kept_edges, number)) {
        result = CUDA_ERROR_LOSSY_QUERY;
    }
    TPC_TRY(result);
    *status = info.status;
    if (info.status != CU_STREAM_CAPTURE_STATUS_NONE && id) {
        *id = info.id;
    }
    if (info.status != CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        return CUDA_SUCCESS;
    }
    if (graph) {
        *graph = (CUgraph)(uintptr_t)info.graph;
    }
    if (dependencies) {
        *dependencies = kept_nodes;
    }
    if (edges) {
        *edges = kept_edges;
    }
    if (count) {
        *count = number;
    }
    return CUDA_SUCCESS;
}

/* ---- dependencies ---- */

CUresult tpc_cuStreamUpdateCaptureDependencies_v2(CUstream stream, CUgraphNode *dependencies,
                                                  const CUgraphEdgeData *edges, size_t count, unsigned int flags) {
    TPC_CONTEXT(context);
    if (flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES || (count && !dependencies)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(STREAM, stream, true);
    struct tpg_capture_dependencies_in in = {.stream = (uint64_t)(uintptr_t)stream,
                                             .flags = flags,
                                             .dependencies = (const uint64_t *)(const void *)dependencies,
                                             .dependencies_count = count,
                                             .edges = edges,
                                             .edges_count = edges ? count : 0};
    return tpc_call_capture_dependencies("cuStreamUpdateCaptureDependencies", &in);
}
