// Checks of stream capture and graphs: the same ones run on the simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses, and compares memory byte for byte. Errors are those that the driver documents.
#ifndef GRAPH_CHECKS_H
#define GRAPH_CHECKS_H

#include "simgpu_check.h"

#include <pthread.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

enum { GRAPH_WORDS = 1000 };

typedef struct {
    CUmodule module;
    CUstream stream, other, blocking;
    CUdeviceptr a, b, c;
    CUevent event, back;
    CUcontext context;
} graph_bench_t;

static inline graph_bench_t graph_bench(CUmodule module) {
    graph_bench_t t = {.module = module};
    OK(cuCtxGetCurrent(&t.context));
    OK(cuStreamCreate(&t.stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&t.other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&t.blocking, CU_STREAM_DEFAULT));
    OK(cuEventCreate(&t.event, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&t.back, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&t.a, GRAPH_WORDS * 4));
    OK(cuMemAlloc_v2(&t.b, GRAPH_WORDS * 4));
    OK(cuMemAlloc_v2(&t.c, GRAPH_WORDS * 4));
    return t;
}

static inline void graph_bench_end(graph_bench_t *t) {
    OK(cuCtxSynchronize());
    OK(cuMemFree_v2(t->a));
    OK(cuMemFree_v2(t->b));
    OK(cuMemFree_v2(t->c));
    OK(cuEventDestroy_v2(t->event));
    OK(cuEventDestroy_v2(t->back));
    OK(cuStreamDestroy_v2(t->stream));
    OK(cuStreamDestroy_v2(t->other));
    OK(cuStreamDestroy_v2(t->blocking));
}

static inline void words_are(CUdeviceptr p, uint32_t value) {
    uint32_t words[GRAPH_WORDS];
    OK(cuMemcpyDtoH_v2(words, p, sizeof words));
    for (size_t i = 0; i < GRAPH_WORDS; i++)
        CHECK(words[i] == value);
}

static inline CUstreamCaptureStatus capture_status(CUstream stream) {
    CUstreamCaptureStatus status = (CUstreamCaptureStatus)77;
    OK(cuStreamIsCapturing(stream, &status));
    return status;
}

static inline size_t node_count(CUgraph graph) {
    size_t count = 77;
    OK(cuGraphGetNodes(graph, NULL, &count));
    return count;
}

// Ends a capture that something has invalidated.
static inline void ends_invalidated(CUstream stream) {
    CUgraph graph = (CUgraph)(uintptr_t)1;
    CHECK(capture_status(stream) == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
    CHECK(!graph);
    CHECK(capture_status(stream) == CU_STREAM_CAPTURE_STATUS_NONE);
}

// What PyTorch does: capture on one stream with a fork, instantiate, destroy the graph, replay many times.
static inline void check_capture_and_replay(graph_bench_t *t) {
    CUgraph graph, seen = NULL;
    CUgraphExec exec;
    CUstreamCaptureStatus status;
    cuuint64_t id = 0, again = 0;
    OK(fill(t->module, t->a, 1, GRAPH_WORDS, t->stream)); // work before the capture is not part of it
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    GIVES(CUDA_ERROR_ILLEGAL_STATE, cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK(capture_status(t->stream) == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    CHECK(capture_status(t->other) == CU_STREAM_CAPTURE_STATUS_NONE);
    OK(cuStreamGetCaptureInfo_v2(t->stream, &status, &id, &seen, NULL, NULL));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE && id && seen);
    OK(fill(t->module, t->a, 7, GRAPH_WORDS, t->stream));
    OK(cuEventRecord(t->event, t->stream));
    OK(cuStreamWaitEvent(t->other, t->event, 0));
    CHECK(capture_status(t->other) == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuStreamGetCaptureInfo_v2(t->other, &status, &again, &graph, NULL, NULL));
    CHECK(again == id && graph == seen);
    OK(cuMemcpyDtoDAsync_v2(t->b, t->a, GRAPH_WORDS * 4, t->other));
    OK(cuMemsetD32Async(t->c, 9, GRAPH_WORDS, t->stream));
    OK(cuEventRecord(t->back, t->other));
    OK(cuStreamWaitEvent(t->stream, t->back, 0));
    OK(fill(t->module, t->a, 8, GRAPH_WORDS, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(graph == seen);
    CHECK(capture_status(t->stream) == CU_STREAM_CAPTURE_STATUS_NONE);
    CHECK(capture_status(t->other) == CU_STREAM_CAPTURE_STATUS_NONE);
    CHECK(node_count(graph) == 4);
    OK(cuGraphInstantiateWithFlags(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
    OK(cuGraphDestroy(graph));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 1); // nothing of the capture was executed
    OK(cuGraphUpload(exec, t->stream));
    for (int i = 0; i < 50; i++) {
        OK(cuMemsetD32Async(t->b, (unsigned)i, GRAPH_WORDS, t->stream));
        OK(cuGraphLaunch(exec, t->stream));
    }
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 8);
    words_are(t->b, 7);
    words_are(t->c, 9);
    cuuint64_t flags = 99;
    OK(cuGraphExecGetFlags(exec, &flags));
    CHECK(flags == CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    OK(cuGraphExecDestroy(exec));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuStreamGetCaptureInfo_v2(t->stream, &status, &again, NULL, NULL, NULL));
    CHECK(again != id);
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(node_count(graph) == 0);
    OK(cuGraphDestroy(graph));
}

// Everything that ends a capture, and the error of each.
static inline void check_capture_errors(graph_bench_t *t) {
    CUgraph graph;
    uint32_t *pinned, pageable[4] = {0};
    GIVES(CUDA_ERROR_ILLEGAL_STATE, cuStreamEndCapture(t->stream, &graph));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(NULL, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(t->stream));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, fill(t->module, t->a, 1, 1, t->stream));
    ends_invalidated(t->stream);
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamQuery(t->stream));
    ends_invalidated(t->stream);
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuCtxSynchronize());
    ends_invalidated(t->stream);
    // A blocking stream: whatever uses the legacy stream would depend on it.
    OK(cuStreamBeginCapture_v2(t->blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
    CUstreamCaptureStatus status;
    GIVES(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, cuStreamIsCapturing(NULL, &status));
    CHECK(capture_status(t->blocking) == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    GIVES(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, fill(t->module, t->a, 1, 1, NULL));
    ends_invalidated(t->blocking);
    OK(cuStreamBeginCapture_v2(t->blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, cuMemcpyHtoD_v2(t->a, pageable, sizeof pageable));
    ends_invalidated(t->blocking);
    // A fork that is not joined; an end in the stream that was forked.
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecord(t->event, t->stream));
    OK(cuStreamWaitEvent(t->other, t->event, 0));
    OK(fill(t->module, t->a, 1, 1, t->other));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(t->stream, &graph));
    CHECK(capture_status(t->other) == CU_STREAM_CAPTURE_STATUS_NONE);
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecord(t->event, t->stream));
    OK(cuStreamWaitEvent(t->other, t->event, 0));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, cuStreamEndCapture(t->other, &graph));
    ends_invalidated(t->stream);
    // Two captures may not meet; a capture may not wait for work that is not in it.
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuStreamBeginCapture_v2(t->other, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecord(t->event, t->stream));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_MERGE, cuStreamWaitEvent(t->other, t->event, 0));
    ends_invalidated(t->stream);
    ends_invalidated(t->other);
    OK(cuEventRecord(t->back, t->other));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(t->stream, t->back, 0));
    ends_invalidated(t->stream);
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecord(t->event, t->stream));
    GIVES(CUDA_ERROR_CAPTURED_EVENT, cuEventQuery(t->event));
    ends_invalidated(t->stream);
    // Copies with memory of the program.
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemcpyHtoDAsync_v2(t->a, pageable, sizeof pageable, t->stream));
    ends_invalidated(t->stream);
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemcpyDtoHAsync_v2(pageable, t->a, sizeof pageable, t->stream));
    ends_invalidated(t->stream);
    // Nothing is left over: the next operations and captures work.
    OK(cuMemAllocHost_v2((void **)&pinned, sizeof pageable));
    OK(fill(t->module, t->a, 5, GRAPH_WORDS, t->stream));
    OK(cuMemcpyDtoHAsync_v2(pinned, t->a, sizeof pageable, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(pinned[3] == 5);
    OK(cuMemFreeHost(pinned));
}

// The legacy stream, allocation, frees and other streams go on while a non-blocking stream captures.
static inline void check_work_beside_a_capture(graph_bench_t *t) {
    CUgraph graph;
    CUdeviceptr fresh[20];
    OK(cuMemAlloc_v2(&fresh[19], 4096));
    OK(fill(t->module, fresh[19], 3, 1024, t->stream));
    OK(fill(t->module, t->b, 3, GRAPH_WORDS, NULL));
    OK(fill(t->module, t->c, 3, GRAPH_WORDS, t->other));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(fill(t->module, t->a, 1, GRAPH_WORDS, t->stream));
    OK(cuMemFree_v2(fresh[19])); // used by work from before the capture
    for (int i = 0; i < 19; i++)
        OK(cuMemAlloc_v2(&fresh[i], 1u << (i + 1)));
    OK(cuMemsetD32Async(fresh[18], 4, 1u << 17, t->other));
    OK(cuMemsetD32_v2(t->b, 5, GRAPH_WORDS));
    words_are(t->b, 5);
    OK(cuEventRecord(t->event, t->other));
    OK(cuEventSynchronize(t->event));
    OK(cuStreamSynchronize(t->other));
    for (int i = 0; i < 19; i++)
        OK(cuMemFree_v2(fresh[i]));
    words_are(t->c, 3);
    OK(cuMemsetD32Async(t->c, 6, GRAPH_WORDS, t->other));
    OK(cuMemsetD32Async(t->a, 2, GRAPH_WORDS, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(node_count(graph) == 2); // only what the program did
    OK(cuGraphDestroy(graph));
    // The same beside a blocking stream, where the legacy stream may not be used at all.
    OK(fill(t->module, t->b, 3, GRAPH_WORDS, NULL));
    OK(cuStreamBeginCapture_v2(t->blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemAlloc_v2(&fresh[0], 1 << 20));
    OK(cuMemsetD32Async(fresh[0], 4, 100, t->other));
    OK(cuMemFree_v2(fresh[0]));
    OK(cuStreamSynchronize(t->other));
    OK(fill(t->module, t->a, 1, GRAPH_WORDS, t->blocking));
    OK(cuStreamEndCapture(t->blocking, &graph));
    CHECK(node_count(graph) == 1);
    OK(cuGraphDestroy(graph));
    words_are(t->b, 3);
}

#endif
