/*
 * Stream capture: which captures are under way, what the modes forbid, what a stream says of its capture. The calls that begin
 * and end one are in graph/graph_capture.c.
 *
 * Any thread; the list is guarded by a lock that is not held across a call. The worker begins every capture in relaxed mode:
 * modes are about the program's threads, which only this process knows. While no capture is under way every question is
 * answered here; while there is one, a question about the stream that began it is answered here until something fails.
 */
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

/* The arrays that GetCaptureInfo points to; each stream has its own, since they last until the stream is asked again. */
struct tpc_answer {
    struct tpc_answer *next;
    CUstream stream;
    CUgraphNode *nodes;
    CUgraphEdgeData *edges;
};

static struct tp_lock lock;
static struct tpc_capture *captures;
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

/* The per-thread default stream is another one for each thread. */
static bool is(const struct tpc_capture *capture, CUstream stream) {
    return capture->stream == stream && (stream != CU_STREAM_PER_THREAD || capture->thread == tp_thread_self()->number);
}

static struct tpc_capture *find(CUstream stream) { return TP_FIND(captures, is(it, stream)); }

/* Takes the capture of a stream, or one of a context, out of the list; the caller ends its graph's handle if that is gone. */
static struct tpc_capture *take(CUstream stream, uint32_t context) {
    tp_lock_take(&lock);
    struct tpc_capture *found = TP_TAKE(captures, context ? it->context == context : is(it, stream));
    atomic_fetch_sub(&tpc_captures, found ? 1 : 0);
    tp_lock_drop(&lock);
    return found;
}

void tpc_capture_free(struct tpc_capture *capture) {
    while (capture && capture->answers) {
        struct tpc_answer *answer = capture->answers;
        capture->answers = answer->next;
        free(answer->nodes);
        free(answer->edges);
        free(answer);
    }
    free(capture);
}

/* The handles of their graphs stay taken: the worker forgets them later, when all work in the context is over. */
static void end_of_context(const struct tpc_context *context) {
    struct tpc_capture *capture;
    while ((capture = take(NULL, tp_handle_id(context->handle))) != NULL) {
        tpc_capture_free(capture);
    }
}
TP_REGISTER(tpc_context_gone, end_of_context);

void tpc_capture_add(struct tpc_capture *capture) {
    tp_lock_take(&lock);
    TP_PUSH(captures, capture);
    tp_lock_drop(&lock);
}

bool tpc_capture_find(CUstream stream, struct tpc_capture *out) {
    tp_lock_take(&lock);
    const struct tpc_capture *capture = find(stream);
    if (capture) {
        *out = *capture;
    }
    tp_lock_drop(&lock);
    return capture != NULL;
}

struct tpc_capture *tpc_capture_take(CUstream stream) { return take(stream, 0); }

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

static CUresult break_of(const char *name, CUstream stream, uint32_t thread, uint32_t context) {
    CUresult result = tpc_call_capture_break(name, (uint64_t)(uintptr_t)stream, thread, context);
    tpc_happened(&tpc_counts.refusals);
    return result;
}

CUresult tpc_capture_break(const char *name, CUstream stream) {
    const struct tp_thread *self = tp_thread_self();
    return break_of(name, stream, self->number, self->context);
}

/* A capture that this thread began in another mode than relaxed, or another thread in global mode. */
static bool forbids(const struct tpc_capture *capture) {
    if (capture->thread == tp_thread_self()->number) {
        return capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    }
    return capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

CUresult tpc_capture_unsafe(const char *name) {
    enum { AT_ONCE = 16 };
    struct tpc_capture broken[AT_ONCE];
    size_t count = 0;
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_SUCCESS;
    }
    tp_lock_take(&lock);
    for (const struct tpc_capture *capture = captures; capture && count < AT_ONCE; capture = capture->next) {
        if (forbids(capture)) {
            broken[count++] = *capture;
        }
    }
    tp_lock_drop(&lock);
    for (size_t i = 0; i < count; i++) {
        break_of(name, broken[i].stream, broken[i].thread, broken[i].context);
    }
    return count ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult tpc_capture_refuse(const char *name, CUstream stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = tpc_capture_status(stream, &status);
    if (result == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_NONE) {
        return CUDA_SUCCESS;
    }
    CUresult broken = tpc_capture_break(name, stream);
    return result != CUDA_SUCCESS ? result : broken != CUDA_SUCCESS ? broken : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult tpc_capture_unserved(const char *name, CUstream stream, const char *what) {
    static _Atomic bool said;
    if (TP_LIKELY(!atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        return CUDA_SUCCESS;
    }
    CUresult result = tpc_capture_refuse(name, stream);
    if (result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) {
        tp_say_once(&said, "%s of %s cannot be part of a graph here", name, what);
        result = CUDA_ERROR_NOT_SUPPORTED;
    }
    return result;
}

/* ---- what a stream says of its capture ---- */

static bool remembered(CUstream stream, struct tpc_capture_info *info) {
    tp_lock_take(&lock);
    const struct tpc_capture *capture = find(stream);
    bool known = capture && capture->known == tpc_count(&tpc_counts.refusals);
    if (known) {
        *info = (struct tpc_capture_info){
            .status = CU_STREAM_CAPTURE_STATUS_ACTIVE, .id = capture->id, .graph = capture->graph};
    }
    tp_lock_drop(&lock);
    return known;
}

static void remember(CUstream stream, uint64_t known) {
    tp_lock_take(&lock);
    struct tpc_capture *capture = find(stream);
    if (capture) {
        capture->known = known;
    }
    tp_lock_drop(&lock);
}

CUresult tpc_capture_ask(CUstream stream, const uint64_t *fresh, size_t count, struct tpg_capture_info_out *out,
                         struct tp_reply *reply) {
    struct tpg_capture_info_in in = {.stream = (uint64_t)(uintptr_t)stream, .fresh = fresh, .fresh_count = count};
    uint64_t known = tpc_count(&tpc_counts.refusals);
    CUresult result = tpc_call_capture_info("cuStreamGetCaptureInfo", &in, out, reply);
    if (result == CUDA_SUCCESS && out->status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        remember(stream, known);
    }
    return result;
}

CUresult tpc_capture_look(CUstream stream, struct tpc_capture_info *info) {
    struct tpg_capture_info_out out;
    *info = (struct tpc_capture_info){.status = CU_STREAM_CAPTURE_STATUS_NONE};
    if (!atomic_load_explicit(&tpc_captures, memory_order_relaxed) || remembered(stream, info)) {
        return CUDA_SUCCESS;
    }
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_capture_ask(stream, NULL, 0, &out, &reply));
    *info = (struct tpc_capture_info){.status = (CUstreamCaptureStatus)out.status, .id = out.id, .graph = out.graph};
    return CUDA_SUCCESS;
}

CUresult tpc_capture_status(CUstream stream, CUstreamCaptureStatus *status) {
    struct tpc_capture_info info;
    CUresult result = tpc_capture_look(stream, &info);
    *status = info.status;
    return result;
}

CUresult tpc_capture_needed(CUstream stream) {
    CUstreamCaptureStatus status;
    TPC_TRY(tpc_capture_status(stream, &status));
    return status == CU_STREAM_CAPTURE_STATUS_NONE ? CUDA_ERROR_ILLEGAL_STATE : CUDA_SUCCESS;
}

CUresult tpc_capture_keep(CUstream stream, const struct tpg_capture_info_out *out, const CUgraphNode **kept_nodes,
                          const CUgraphEdgeData **kept_edges) {
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    size_t count = out->dependencies_count;
    CUgraphNode *nodes = calloc(count + 1, sizeof *nodes);
    CUgraphEdgeData *edges = calloc(count + 1, sizeof *edges);
    struct tpc_answer *answer = NULL;
    tp_lock_take(&lock);
    struct tpc_capture *capture = TP_FIND(captures, it->id == out->id);
    for (answer = capture ? capture->answers : NULL; answer && answer->stream != stream; answer = answer->next) {
    }
    if (!answer && capture && (answer = calloc(1, sizeof *answer))) {
        answer->stream = stream;
        TP_PUSH(capture->answers, answer);
    }
    if (answer && nodes && edges) {
        for (size_t i = 0; i < count; i++) {
            nodes[i] = (CUgraphNode)(uintptr_t)tp_word_at(out->dependencies, i);
        }
        if (out->edges_count == count && count) {
            memcpy(edges, out->edges, count * sizeof *edges);
        }
        free(answer->nodes);
        free(answer->edges);
        answer->nodes = nodes;
        answer->edges = edges;
        *kept_nodes = nodes;
        *kept_edges = edges;
        nodes = NULL;
        edges = NULL;
        result = CUDA_SUCCESS;
    }
    tp_lock_drop(&lock);
    free(nodes);
    free(edges);
    return result;
}
