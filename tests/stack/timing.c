/*
 * Times between events, asked for as benchmarks do: many pairs after one wait, one pair again and again, and what must
 * never be answered from before: pairs that were recorded anew, by whatever thread, or that are gone.
 *
 * Threads: the main one, and one that records beside it.
 */
#include "stack.h"

#define PAIRS 100
#define ROUNDS 20
#define SPIN_NS 200000u

struct span {
    CUevent start, end;
};

static struct span span_make(void) {
    struct span made;
    OK(cuEventCreate(&made.start, 0));
    OK(cuEventCreate(&made.end, 0));
    return made;
}

static void span_end(struct span span) {
    OK(cuEventDestroy_v2(span.start));
    OK(cuEventDestroy_v2(span.end));
}

static void record(struct span span, const struct kernels *k, uint64_t ns, CUstream stream) {
    void *params[] = {&ns};
    OK(cuEventRecord(span.start, stream));
    OK(launch(k->spin_ns, 1, stream, params));
    OK(cuEventRecord(span.end, stream));
}

static float elapsed(CUevent start, CUevent end) {
    float ms = -1;
    OK(cuEventElapsedTime_v2(&ms, start, end));
    return ms;
}

/* `once`: nothing is asked but the time of each pair. */
static void many(const struct kernels *k, CUstream stream, bool once) {
    struct span spans[PAIRS];
    float first[PAIRS];
    for (int i = 0; i < PAIRS; i++) {
        spans[i] = span_make();
    }
    for (int i = 0; i < PAIRS; i++) {
        record(spans[i], k, (uint64_t)(1 + i % 3) * SPIN_NS, stream);
    }
    OK(cuStreamSynchronize(stream));
    for (int i = 0; i < PAIRS; i++) {
        first[i] = elapsed(spans[i].start, spans[i].end);
        CHECK(first[i] >= (float)(1 + i % 3) * SPIN_NS / 1e6f - 0.001f);
    }
    for (int i = 0; i < PAIRS && !once; i++) { /* the same bits, and the sum of the parts */
        CHECK(elapsed(spans[i].start, spans[i].end) == first[i]);
    }
    float whole = once ? 0 : elapsed(spans[0].start, spans[PAIRS - 1].end), sum = 0;
    for (int i = 0; i < PAIRS && !once; i++) {
        sum += first[i] + (i ? elapsed(spans[i - 1].end, spans[i].start) : 0);
    }
    CHECK(sum > whole - 0.1f && sum < whole + 0.1f);
    for (int i = 0; i < PAIRS; i++) {
        span_end(spans[i]);
    }
}

static void one_pair(const struct kernels *k, CUstream stream) {
    struct span span = span_make();
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t ns = (uint64_t)(1 + i % 3) * SPIN_NS;
        record(span, k, ns, stream);
        OK(cuEventSynchronize(span.end));
        CHECK(elapsed(span.start, span.end) >= (float)ns / 1e6f - 0.001f);
    }
    span_end(span);
}

struct recording {
    const struct kernels *k;
    CUcontext context;
    CUstream stream;
    struct span span;
};

static void *record_beside(void *argument) {
    struct recording *it = argument;
    OK(cuCtxSetCurrent(it->context));
    record(it->span, it->k, 300000000, it->stream);
    return NULL;
}

/* Answers that are known must not outlive what they are about. */
static void stale(const struct kernels *k, CUstream stream) {
    struct span span = span_make(), other = span_make();
    struct recording beside = {.k = k, .stream = stream, .span = span};
    CUevent untimed;
    CUgraph graph;
    CUgraphExec exec;
    pthread_t thread;
    float ms = -1;
    OK(cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime_v2(NULL, span.start, span.end));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime_v2(&ms, span.start, span.end)); /* never recorded */
    record(span, k, SPIN_NS, stream);
    record(other, k, SPIN_NS, stream);
    OK(cuEventRecord(untimed, stream));
    OK(cuStreamSynchronize(stream));
    float before = elapsed(span.start, span.end);
    CHECK(elapsed(span.start, span.end) == before && elapsed(other.start, other.end) > 0);
    CHECK(elapsed(span.end, span.start) == -before);
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime_v2(&ms, span.start, untimed));
    OK(cuCtxGetCurrent(&beside.context));
    CHECK(pthread_create(&thread, NULL, record_beside, &beside) == 0 && pthread_join(thread, NULL) == 0);
    GIVES(CUDA_ERROR_NOT_READY, cuEventElapsedTime_v2(&ms, span.start, span.end));
    OK(cuEventSynchronize(span.end));
    CHECK(elapsed(span.start, span.end) >= 299.9f);

    /* A graph records them, too: nobody but its launch tells. */
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuEventRecordWithFlags(span.start, stream, CU_EVENT_RECORD_EXTERNAL));
    uint64_t ns = 100000000;
    void *params[] = {&ns};
    OK(launch(k->spin_ns, 1, stream, params));
    OK(cuEventRecordWithFlags(span.end, stream, CU_EVENT_RECORD_EXTERNAL));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    CHECK(elapsed(span.start, span.end) >= 299.9f);
    OK(cuEventQuery(span.end));
    OK(cuGraphLaunch(exec, stream));
    CUresult ended = cuEventQuery(span.end), timed = cuEventElapsedTime_v2(&ms, span.start, span.end);
    GIVES(CUDA_ERROR_NOT_READY, ended);
    GIVES(CUDA_ERROR_NOT_READY, timed);
    OK(cuEventSynchronize(span.end));
    ms = elapsed(span.start, span.end);
    CHECK(ms >= 99.9f && ms < 299.9f);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));

    OK(cuEventDestroy_v2(other.start));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime_v2(&ms, other.start, other.end));
    OK(cuEventDestroy_v2(other.end));
    span_end(span);
    OK(cuEventDestroy_v2(untimed));
}

int role_timing(int count, char **words) {
    const char *what = count > 0 ? words[0] : "all";
    bool all = strcmp(what, "all") == 0;
    start();
    struct kernels k = load_all();
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    bool once = strcmp(what, "once") == 0;
    if (all || once || strcmp(what, "many") == 0) {
        many(&k, stream, once);
    }
    if (all || strcmp(what, "one") == 0) {
        one_pair(&k, stream);
    }
    if (all) {
        stale(&k, stream);
    }
    OK(cuStreamDestroy_v2(stream));
    say("right");
    return 0;
}
