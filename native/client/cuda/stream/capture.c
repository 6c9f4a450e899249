/*
 * Stream capture in the client: which captures are under way, what the modes forbid, what a stream says of its capture.
 *
 * Any thread; the list is guarded by a lock that is not held across a call. The worker begins every capture in relaxed mode:
 * modes are about the program's threads, which only this process knows. While no capture is under way every question is
 * answered here; while there is one, a question about the stream that began it is answered here until something fails.
 */
#include "tpc_graph.h"
#include "tpc_memory.h"
#include "tpg_cuda_send.h"
#include <tp_segment.h>

#include <stdlib.h>

#define FIRST_GUESS 8u /* dependencies of a stream: usually one */

/* The arrays that GetCaptureInfo points to; each stream has its own, since they last until the stream is asked again. */
struct answer {
    struct answer *next;
    CUstream stream;
    CUgraphNode *nodes;
    CUgraphEdgeData *edges;
};

struct capture {
    struct capture *next;
    CUstream stream;
    uint32_t thread; /* that began it */
    uint32_t context;
    CUstreamCaptureMode mode;
    uint64_t id, graph;
    bool into;
    uint64_t known; /* tpc_counts.refusals when it was last known to be active */
    struct answer *answers;
};

/* What a stream says of its capture. */
struct info {
    CUstreamCaptureStatus status;
    uint64_t id, graph;
};

_Atomic int tpc_captures;
static struct tp_lock lock;
static struct capture *captures;
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

/* The per-thread default stream is another one for each thread. */
static bool is(const struct capture *capture, CUstream stream) {
    return capture->stream == stream && (stream != CU_STREAM_PER_THREAD || capture->thread == tp_thread_self()->number);
}

static struct capture *find(CUstream stream) {
    struct capture *capture = captures;
    while (capture && !is(capture, stream)) {
        capture = capture->next;
    }
    return capture;
}

/* Takes the capture of a stream, or one of a context, out of the list; the caller ends its graph's handle if that is gone. */
static struct capture *take(CUstream stream, uint32_t context) {
    struct capture *found = NULL;
    tp_lock_take(&lock);
    for (struct capture **at = &captures; *at; at = &(*at)->next) {
        if (context ? (*at)->context == context : is(*at, stream)) {
            found = *at;
            *at = found->next;
            atomic_fetch_sub(&tpc_captures, 1);
            break;
        }
    }
    tp_lock_drop(&lock);
    return found;
}

static void release(struct capture *capture) {
    while (capture && capture->answers) {
        struct answer *answer = capture->answers;
        capture->answers = answer->next;
        free(answer->nodes);
        free(answer->edges);
        free(answer);
    }
    free(capture);
}

/* ---- begin and end ---- */

static CUresult begin(const char *name, CUstream stream, CUstreamCaptureMode mode, CUgraph into,
                      const CUgraphNode *dependencies, const CUgraphEdgeData *edges, size_t count) {
    TPC_CONTEXT(context);
    (void)context;
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
    struct tpg_capture_begin_out out;
    struct tp_reply reply;
    struct capture *capture = calloc(1, sizeof *capture);
    if (!in.graph || !capture) {
        free(capture);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    atomic_fetch_add(&tpc_captures, 1); /* before it begins, so that no failure of another thread goes unseen */
    uint64_t known = tpc_count(&tpc_counts.refusals);
    CUresult result = tpc_call_capture_begin(name, &in, &out, &reply);
    if (result == CUDA_SUCCESS) {
        const struct tp_thread *self = tp_thread_self();
        *capture = (struct capture){.stream = stream,
                                    .thread = self->number,
                                    .context = self->context,
                                    .mode = mode,
                                    .id = out.id,
                                    .graph = in.graph,
                                    .into = into != NULL,
                                    .known = known};
        tp_lock_take(&lock);
        capture->next = captures;
        captures = capture;
        tp_lock_drop(&lock);
    } else {
        atomic_fetch_sub(&tpc_captures, 1);
        free(capture);
        if (!into) {
            tpc_unmint(TPG_GRAPH, in.graph);
        }
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
    return begin("cuStreamBeginCapture", hStream, mode, NULL, NULL, NULL, 0);
}

CUresult tpc_cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                                         const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                         CUstreamCaptureMode mode) {
    TPC_CHECK_HANDLE(GRAPH, hGraph, false);
    return begin("cuStreamBeginCaptureToGraph", hStream, mode, hGraph, dependencies, dependencyData, numDependencies);
}

CUresult tpc_cuStreamEndCapture(CUstream hStream, CUgraph *phGraph) {
    TPC_CONTEXT(context);
    (void)context;
    if (!phGraph) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    *phGraph = NULL;
    tp_lock_take(&lock);
    const struct capture *capture = find(hStream);
    bool stranger =
        capture && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != tp_thread_self()->number;
    bool into = capture && capture->into;
    tp_lock_drop(&lock);
    struct tpg_capture_end_in in = {.stream = (uint64_t)(uintptr_t)hStream};
    struct tpg_capture_end_out out;
    struct tp_reply reply;
    CUresult result = tpc_call_capture_end("cuStreamEndCapture", &in, &out, &reply);
    tp_reply_free(&reply);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    if (out.ended) {
        release(take(hStream, 0));
        if (!out.kept) {
            tpc_graph_forget(out.graph);
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

void tpc_capture_stream_gone(CUstream stream) {
    struct capture *capture = take(stream, 0);
    if (capture && !capture->into) {
        tpc_graph_forget(capture->graph);
    }
    release(capture);
}

/* The handles of their graphs stay taken: the worker forgets them later, when all work in the context is over. */
void tpc_capture_context_gone(uint32_t context) {
    struct capture *capture;
    while ((capture = take(NULL, context)) != NULL) {
        release(capture);
    }
}

/* ---- what captures forbid ---- */

CUresult tpc_cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    if (!mode || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUstreamCaptureMode previous = thread_mode;
    thread_mode = *mode;
    *mode = previous;
    return CUDA_SUCCESS;
}

static CUresult break_capture(const char *name, CUstream stream) {
    struct tpg_capture_break_in in = {.stream = (uint64_t)(uintptr_t)stream};
    struct tp_reply reply;
    CUresult result = tpc_call_capture_break(name, &in, &reply);
    tp_reply_free(&reply);
    tpc_happened(&tpc_counts.refusals);
    return result;
}

/* A capture that this thread began in another mode than relaxed, or another thread in global mode. */
static bool forbids(const struct capture *capture) {
    if (capture->thread == tp_thread_self()->number) {
        return capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    }
    return capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

CUresult tpc_capture_unsafe(const char *name) {
    enum { AT_ONCE = 16 };
    CUstream broken[AT_ONCE];
    size_t count = 0;
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_SUCCESS;
    }
    tp_lock_take(&lock);
    for (const struct capture *capture = captures; capture && count < AT_ONCE; capture = capture->next) {
        if (forbids(capture)) {
            broken[count++] = capture->stream;
        }
    }
    tp_lock_drop(&lock);
    for (size_t i = 0; i < count; i++) {
        break_capture(name, broken[i]);
    }
    return count ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult tpc_capture_refuse(const char *name, CUstream stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = tpc_capture_status(stream, &status);
    if (result == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_NONE) {
        return CUDA_SUCCESS;
    }
    CUresult broken = break_capture(name, stream);
    return result != CUDA_SUCCESS ? result : broken != CUDA_SUCCESS ? broken : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

/* The one place that decides how host memory becomes part of a graph. As it is if the GPU reaches the memory itself, at an
 * address that stays the same for as long as the memory lives: pinned memory in the shared segment. Otherwise by a buffer,
 * see graph_copy.c. */
bool tpc_host_in_graph(const void *host, size_t size, uint64_t *device) {
    uint64_t offset = tpc_host_offset(host, size);
    *device = TP_SEGMENT_ADDRESS + offset;
    return offset != 0;
}

static CUresult look(CUstream stream, struct info *info);

CUresult tpc_capture_copy(const char *name, CUstream stream, const void *host, size_t size, bool sync, CUgraph *graph) {
    struct info info;
    uint64_t device;
    *graph = NULL;
    CUresult result = look(stream, &info);
    if (result == CUDA_SUCCESS && info.status == CU_STREAM_CAPTURE_STATUS_NONE) {
        return CUDA_SUCCESS;
    }
    if (result == CUDA_SUCCESS && info.status == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (result == CUDA_SUCCESS && !sync) {
        *graph = tpc_host_in_graph(host, size, &device) ? NULL : (CUgraph)(uintptr_t)info.graph;
        return CUDA_SUCCESS;
    }
    CUresult broken = break_capture(name, stream);
    return result != CUDA_SUCCESS ? result : broken != CUDA_SUCCESS ? broken : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

/* ---- what a stream says of its capture ---- */

static bool remembered(CUstream stream, struct info *info) {
    tp_lock_take(&lock);
    const struct capture *capture = find(stream);
    bool known = capture && capture->known == tpc_count(&tpc_counts.refusals);
    if (known) {
        *info = (struct info){.status = CU_STREAM_CAPTURE_STATUS_ACTIVE, .id = capture->id, .graph = capture->graph};
    }
    tp_lock_drop(&lock);
    return known;
}

static void remember(CUstream stream, uint64_t known) {
    tp_lock_take(&lock);
    struct capture *capture = find(stream);
    if (capture) {
        capture->known = known;
    }
    tp_lock_drop(&lock);
}

static CUresult ask(CUstream stream, const struct tpc_fresh *fresh, struct tpg_capture_info_out *out,
                    struct tp_reply *reply) {
    struct tpg_capture_info_in in = {.stream = (uint64_t)(uintptr_t)stream,
                                     .fresh = fresh ? fresh->handles : NULL,
                                     .fresh_count = fresh ? fresh->count : 0};
    uint64_t known = tpc_count(&tpc_counts.refusals);
    CUresult result = tpc_call_capture_info("cuStreamGetCaptureInfo", &in, out, reply);
    if (result == CUDA_SUCCESS && out->status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        remember(stream, known);
    }
    return result;
}

static CUresult look(CUstream stream, struct info *info) {
    struct tpg_capture_info_out out;
    struct tp_reply reply;
    *info = (struct info){.status = CU_STREAM_CAPTURE_STATUS_NONE};
    if (!atomic_load_explicit(&tpc_captures, memory_order_relaxed) || remembered(stream, info)) {
        return CUDA_SUCCESS;
    }
    CUresult result = ask(stream, NULL, &out, &reply);
    if (result == CUDA_SUCCESS) {
        *info = (struct info){.status = (CUstreamCaptureStatus)out.status, .id = out.id, .graph = out.graph};
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_capture_status(CUstream stream, CUstreamCaptureStatus *status) {
    struct info info;
    CUresult result = look(stream, &info);
    *status = info.status;
    return result;
}

CUresult tpc_cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
    if (!captureStatus) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    return tpc_capture_status(hStream, captureStatus);
}

/* Keeps the arrays of an answer until the stream is asked again or the capture ends. */
static CUresult keep(CUstream stream, uint64_t id, const struct tpg_capture_info_out *out, struct answer **kept) {
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    size_t count = out->dependencies_count;
    CUgraphNode *nodes = calloc(count + 1, sizeof *nodes);
    CUgraphEdgeData *edges = calloc(count + 1, sizeof *edges);
    struct answer *answer = NULL;
    tp_lock_take(&lock);
    struct capture *capture = captures;
    while (capture && capture->id != id) {
        capture = capture->next;
    }
    for (answer = capture ? capture->answers : NULL; answer && answer->stream != stream; answer = answer->next) {
    }
    if (!answer && capture && (answer = calloc(1, sizeof *answer))) {
        answer->stream = stream;
        answer->next = capture->answers;
        capture->answers = answer;
    }
    if (answer && nodes && edges) {
        for (size_t i = 0; i < count; i++) {
            uint64_t handle;
            memcpy(&handle, out->dependencies + i, sizeof handle);
            nodes[i] = (CUgraphNode)(uintptr_t)handle;
        }
        if (out->edges_count == count && count) {
            memcpy(edges, out->edges, count * sizeof *edges);
        }
        free(answer->nodes);
        free(answer->edges);
        answer->nodes = nodes;
        answer->edges = edges;
        nodes = NULL;
        edges = NULL;
        result = CUDA_SUCCESS;
    }
    tp_lock_drop(&lock);
    free(nodes);
    free(edges);
    *kept = answer;
    return result;
}

static CUresult dependencies_of(CUstream stream, struct info *info, struct answer **kept, size_t *count) {
    struct tpg_capture_info_out out;
    struct tp_reply reply;
    CUresult result;
    size_t guess = FIRST_GUESS;
    for (int attempt = 0;; attempt++) {
        struct tpc_fresh fresh;
        if (!tpc_fresh_make(&fresh, guess)) {
            return TPC_NO_HANDLES;
        }
        result = ask(stream, &fresh, &out, &reply);
        bool complete = true;
        for (size_t i = 0; result == CUDA_SUCCESS && i < out.dependencies_count; i++) {
            uint64_t handle;
            memcpy(&handle, out.dependencies + i, sizeof handle);
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
        *info = (struct info){.status = (CUstreamCaptureStatus)out.status, .id = out.id, .graph = out.graph};
        *count = out.count;
        if (info->status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
            result = out.dependencies_count == out.count ? keep(stream, out.id, &out, kept) : CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    tp_reply_free(&reply);
    return result;
}

CUresult tpc_cuStreamGetCaptureInfo_v3(CUstream hStream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                       const CUgraphNode **dependencies, const CUgraphEdgeData **edges, size_t *count) {
    struct info info;
    struct answer *kept = NULL;
    size_t number = 0;
    if (!status) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(STREAM, hStream, true);
    CUresult result = look(hStream, &info);
    if (result == CUDA_SUCCESS && info.status == CU_STREAM_CAPTURE_STATUS_ACTIVE && (dependencies || count)) {
        result = dependencies_of(hStream, &info, &kept, &number);
    }
    if (result == CUDA_SUCCESS && kept && !edges && dependencies && !tpc_edges_plain(kept->edges, number)) {
        result = CUDA_ERROR_LOSSY_QUERY;
    }
    if (result != CUDA_SUCCESS) {
        return result;
    }
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
        *dependencies = kept->nodes;
    }
    if (edges) {
        *edges = kept ? kept->edges : NULL;
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
    (void)context;
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
    struct tp_reply reply;
    CUresult result = tpc_call_capture_dependencies("cuStreamUpdateCaptureDependencies", &in, &reply);
    tp_reply_free(&reply);
    return result;
}
