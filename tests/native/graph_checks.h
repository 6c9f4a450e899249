// Checks of stream capture and graphs: the same ones run on the simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses, and compares memory byte for byte. Errors are those that the driver documents.
#ifndef GRAPH_CHECKS_H
#define GRAPH_CHECKS_H

#include "simgpu_check.h"

#include <pthread.h>
#include <stdatomic.h>
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
    // NCCL's way: a stream that joined only to see what it depends on goes, and one that captured ends in a node that was added by hand.
    CUstream passing;
    OK(cuStreamCreate(&passing, CU_STREAM_NON_BLOCKING));
    OK(cuEventRecord(t->back, t->other));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuEventRecord(t->event, t->stream));
    OK(cuStreamWaitEvent(t->other, t->event, 0));
    OK(cuStreamWaitEvent(t->other, t->back, CU_EVENT_WAIT_EXTERNAL));
    OK(cuEventRecord(t->event, t->other));
    OK(cuStreamWaitEvent(t->stream, t->event, 0));
    OK(fill(t->module, t->a, 1, 1, t->stream));
    OK(cuEventRecord(t->event, t->stream));
    OK(cuStreamWaitEvent(passing, t->event, 0));
    OK(cuStreamDestroy_v2(passing));
    CUstreamCaptureStatus active;
    CUgraph captured;
    const CUgraphNode *before;
    size_t count;
    CUgraphNode by_hand;
    OK(cuStreamGetCaptureInfo_v2(t->other, &active, NULL, &captured, &before, &count));
    CHECK(active == CU_STREAM_CAPTURE_STATUS_ACTIVE && count == 1);
    OK(cuGraphAddEventRecordNode(&by_hand, captured, before, count, t->back));
    OK(cuStreamUpdateCaptureDependencies(t->other, &by_hand, 1, CU_STREAM_SET_CAPTURE_DEPENDENCIES));
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphGetNodes(graph, NULL, &count));
    CHECK(count == 3); // the wait, the kernel, the record
    OK(cuGraphDestroy(graph));
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
    GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamWaitEvent(t->other, t->event, 0)); // its capture is over
    OK(cuEventRecord(t->event, t->other));
    OK(cuStreamWaitEvent(t->stream, t->event, 0));
    // Copies with pageable memory of the program are part of the graph.
    for (int down = 0; down < 2; down++) {
        OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(down ? cuMemcpyDtoHAsync_v2(pageable, t->a, sizeof pageable, t->stream)
                : cuMemcpyHtoDAsync_v2(t->a, pageable, sizeof pageable, t->stream));
        OK(cuStreamEndCapture(t->stream, &graph));
        CHECK(node_count(graph) == 1);
        OK(cuGraphDestroy(graph));
    }
    // Synchronous copies belong to the legacy stream: no mode forbids them beside a capture, and they are complete.
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    pageable[0] = 77;
    OK(cuMemcpyHtoD_v2(t->a, pageable, sizeof pageable));
    pageable[0] = 0;
    OK(cuMemcpyDtoH_v2(pageable, t->a, sizeof pageable));
    CHECK(pageable[0] == 77 && capture_status(t->stream) == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(node_count(graph) == 0);
    OK(cuGraphDestroy(graph));
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
    OK(cuStreamSynchronize(NULL)); // what follows is in other streams
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

static inline CUgraphNode add_fill(graph_bench_t *t, CUgraph graph, CUdeviceptr p, unsigned value,
                                   const CUgraphNode *after, size_t count) {
    size_t n = GRAPH_WORDS;
    void *values[] = {&p, &value, &n};
    CUDA_KERNEL_NODE_PARAMS params = {.func = kernel(t->module, "fill_u32"),
                                      .gridDimX = (GRAPH_WORDS + 255) / 256,
                                      .gridDimY = 1,
                                      .gridDimZ = 1,
                                      .blockDimX = 256,
                                      .blockDimY = 1,
                                      .blockDimZ = 1,
                                      .kernelParams = values};
    CUgraphNode node;
    OK(cuGraphAddKernelNode_v2(&node, graph, after, count, &params));
    return node;
}

static inline CUDA_MEMCPY3D line_copy(CUdeviceptr to, CUdeviceptr from) {
    return (CUDA_MEMCPY3D){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                           .srcDevice = from,
                           .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                           .dstDevice = to,
                           .WidthInBytes = GRAPH_WORDS * 4,
                           .Height = 1,
                           .Depth = 1};
}

// What XLA does: a graph node by node, launched, its nodes changed, launched again.
static inline void check_built_graph(graph_bench_t *t) {
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode set, copy, empty, nodes[8], from[8], to[8];
    CUgraphNodeType type;
    size_t count = 8;
    OK(cuGraphCreate(&graph, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphCreate(&graph, 1));
    CUgraphNode first = add_fill(t, graph, t->a, 11, NULL, 0);
    CUDA_MEMSET_NODE_PARAMS set_params = {.dst = t->b,
                                          .value = 12,
                                          .elementSize = 4,
                                          .width = GRAPH_WORDS,
                                          .height = 1},
                            read;
    OK(cuGraphAddMemsetNode(&set, graph, NULL, 0, &set_params, t->context));
    CUDA_MEMCPY3D copy_params = line_copy(t->c, t->a);
    CUgraphNode both[] = {first, set};
    OK(cuGraphAddMemcpyNode(&copy, graph, both, 2, &copy_params, t->context));
    OK(cuGraphAddEmptyNode(&empty, graph, &copy, 1));
    // Lists: what was added, in handles that stay the same.
    OK(cuGraphGetNodes(graph, nodes, &count));
    CHECK(count == 4 && nodes[4] == NULL && nodes[7] == NULL);
    for (int i = 0; i < 4; i++)
        CHECK(nodes[i] == first || nodes[i] == set || nodes[i] == copy || nodes[i] == empty);
    count = 8;
    OK(cuGraphGetRootNodes(graph, nodes, &count));
    CHECK(count == 2);
    count = 8;
    OK(cuGraphGetEdges(graph, from, to, &count));
    CHECK(count == 3);
    for (size_t i = 0; i < count; i++)
        CHECK((to[i] == copy && (from[i] == first || from[i] == set)) || (to[i] == empty && from[i] == copy));
    count = 8;
    OK(cuGraphNodeGetDependencies(copy, nodes, &count));
    CHECK(count == 2);
    OK(cuGraphNodeGetDependentNodes(copy, NULL, &count));
    CHECK(count == 1);
    OK(cuGraphNodeGetType(copy, &type));
    CHECK(type == CU_GRAPH_NODE_TYPE_MEMCPY);
    OK(cuGraphMemsetNodeGetParams(set, &read));
    CHECK(read.dst == t->b && read.value == 12 && read.width == GRAPH_WORDS);
    CUDA_KERNEL_NODE_PARAMS back;
    OK(cuGraphKernelNodeGetParams_v2(first, &back));
    CHECK(back.func == kernel(t->module, "fill_u32") && back.blockDimX == 256 &&
          *(unsigned *)back.kernelParams[1] == 11);
    // Edges.
    OK(cuGraphAddDependencies(graph, &first, &set, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddDependencies(graph, &first, &set, 1));
    OK(cuGraphRemoveDependencies(graph, &first, &set, 1));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 11);
    words_are(t->b, 12);
    words_are(t->c, 11);
    // The executable graph is changed, the graph is not.
    unsigned value = 21;
    size_t n = GRAPH_WORDS;
    void *values[] = {&t->b, &value, &n};
    back.kernelParams = values;
    back.extra = NULL;
    OK(cuGraphExecKernelNodeSetParams_v2(exec, first, &back));
    set_params.dst = t->a;
    set_params.value = 22;
    OK(cuGraphExecMemsetNodeSetParams(exec, set, &set_params, t->context));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->b, 21);
    words_are(t->c, 22);
    copy_params = line_copy(t->a, t->b);
    OK(cuGraphExecMemcpyNodeSetParams(exec, copy, &copy_params, t->context));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 21);
    unsigned enabled = 77;
    OK(cuGraphNodeGetEnabled(exec, first, &enabled));
    CHECK(enabled == 1);
    OK(cuGraphNodeSetEnabled(exec, first, 0));
    OK(cuMemsetD32Async(t->b, 5, GRAPH_WORDS, t->stream));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 5);
    // A whole update, and one that does not fit.
    CUgraphExecUpdateResultInfo info;
    OK(cuGraphExecUpdate_v2(exec, graph, &info));
    CHECK(info.result == CU_GRAPH_EXEC_UPDATE_SUCCESS);
    CUgraph clone;
    CUgraphNode there;
    OK(cuGraphClone(&clone, graph));
    OK(cuGraphNodeFindInClone(&there, first, clone));
    CHECK(there != first && node_count(clone) == 4);
    OK(cuGraphDestroyNode(there));
    CHECK(node_count(clone) == 3);
    GIVES(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, cuGraphExecUpdate_v2(exec, clone, &info));
    CHECK(info.result == CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
    OK(cuGraphDestroy(clone));
    // A graph inside a graph, and tracing into a graph.
    CUgraph outer, inside;
    CUgraphNode child;
    OK(cuGraphCreate(&outer, 0));
    OK(cuGraphAddChildGraphNode(&child, outer, NULL, 0, graph));
    OK(cuGraphChildGraphNodeGetGraph(child, &inside));
    CHECK(node_count(inside) == 4 && inside != graph);
    OK(cuStreamBeginCaptureToGraph(t->stream, outer, &child, NULL, 1, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    CHECK(cuGraphDestroy(outer) == CUDA_ERROR_ILLEGAL_STATE); // and the capture goes on (580.159.04)
    CUstreamCaptureStatus status;
    const CUgraphNode *dependencies = NULL;
    OK(cuStreamGetCaptureInfo_v2(t->stream, &status, NULL, &clone, &dependencies, &count));
    CHECK(clone == outer && count == 1 && dependencies[0] == child);
    OK(fill(t->module, t->c, 31, GRAPH_WORDS, t->stream));
    OK(cuStreamGetCaptureInfo_v2(t->stream, &status, NULL, NULL, &dependencies, &count));
    CHECK(count == 1 && dependencies[0] != child);
    CUgraphNode traced = dependencies[0]; // the array lasts until the stream is used again
    OK(cuStreamUpdateCaptureDependencies(t->stream, &child, 1, CU_STREAM_SET_CAPTURE_DEPENDENCIES));
    OK(fill(t->module, t->b, 32, GRAPH_WORDS, t->stream));
    OK(cuStreamUpdateCaptureDependencies(t->stream, &traced, 1, CU_STREAM_ADD_CAPTURE_DEPENDENCIES));
    OK(cuStreamEndCapture(t->stream, &clone));
    CHECK(clone == outer && node_count(outer) == 3);
    CUgraphExec second;
    OK(cuGraphInstantiateWithFlags(&second, outer, 0));
    OK(cuGraphLaunch(second, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 11);
    words_are(t->c, 31);
    words_are(t->b, 32);
    OK(cuGraphExecDestroy(second));
    OK(cuGraphDestroy(outer));
    OK(cuGraphExecDestroy(exec));
    // Cycles have no order.
    OK(cuGraphAddDependencies(graph, &empty, &first, 1));
    CUDA_GRAPH_INSTANTIATE_PARAMS how = {0};
    CHECK(cuGraphInstantiateWithParams(&exec, graph, &how) != CUDA_SUCCESS);
    CHECK(how.result_out != CUDA_GRAPH_INSTANTIATE_SUCCESS);
    OK(cuGraphDestroy(graph));
}

static atomic_int host_calls, host_gone;
static void host_call(void *user) { atomic_fetch_add(&host_calls, *(int *)user); }
static void host_destroy(void *user) { atomic_fetch_add(&host_gone, *(int *)user); }

static inline void wait_until(atomic_int *counter, int value) {
    for (int i = 0; i < 5000 && atomic_load(counter) != value; i++)
        usleep(1000);
    CHECK(atomic_load(counter) == value);
}

// Host functions run at each launch, in order; destructors of user objects run when nothing needs the object.
static inline void check_host_functions(graph_bench_t *t) {
    static int one = 1, ten = 10;
    CUgraph graph;
    CUgraphExec exec;
    CUuserObject object, other;
    atomic_store(&host_calls, 0);
    atomic_store(&host_gone, 0);
    OK(cuUserObjectCreate(&object, &one, host_destroy, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
    OK(cuUserObjectCreate(&other, &ten, host_destroy, 2, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(fill(t->module, t->a, 41, GRAPH_WORDS, t->stream));
    OK(cuLaunchHostFunc(t->stream, host_call, &one));
    OK(fill(t->module, t->a, 42, GRAPH_WORDS, t->stream));
    OK(cuLaunchHostFunc(t->stream, host_call, &ten));
    CUstreamCaptureStatus status;
    OK(cuStreamGetCaptureInfo_v2(t->stream, &status, NULL, &graph, NULL, NULL));
    OK(cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE));
    OK(cuGraphRetainUserObject(graph, other, 1, 0));
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(atomic_load(&host_calls) == 0);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    for (int i = 1; i <= 5; i++) {
        OK(cuGraphLaunch(exec, t->stream));
        OK(cuStreamSynchronize(t->stream));
        CHECK(atomic_load(&host_calls) == 11 * i);
    }
    for (int i = 0; i < 20; i++)
        OK(cuGraphLaunch(exec, t->stream));
    OK(cuGraphExecDestroy(exec)); // what is queued goes on
    OK(cuStreamSynchronize(t->stream));
    CHECK(atomic_load(&host_calls) == 11 * 25);
    words_are(t->a, 42);
    OK(cuUserObjectRetain(other, 1));
    OK(cuUserObjectRelease(other, 2));
    wait_until(&host_gone, 1);
    OK(cuUserObjectRelease(other, 1));
    wait_until(&host_gone, 11);
    // A node of its own, and a callback that cannot be captured.
    CUgraphNode node;
    CUDA_HOST_NODE_PARAMS host = {host_call, &one};
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddHostNode(&node, graph, NULL, 0, &host));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, t->blocking));
    OK(cuStreamSynchronize(t->blocking));
    CHECK(atomic_load(&host_calls) == 11 * 25 + 1);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

static atomic_int calls_begun, calls_let;
static void wait_to_be_let(void *user) {
    (void)user;
    int call = atomic_fetch_add(&calls_begun, 1);
    while (atomic_load(&calls_let) <= call)
        usleep(100);
}

// One function stands in two streams, of two executable graphs: the end of the first call lets the first stream go on.
static inline void check_one_function_in_two_streams(graph_bench_t *t) {
    CUgraph graph;
    CUgraphExec first, second;
    CUgraphNode node;
    CUDA_HOST_NODE_PARAMS params = {.fn = wait_to_be_let};
    calls_begun = calls_let = 0;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddHostNode(&node, graph, NULL, 0, &params));
    OK(cuGraphInstantiateWithFlags(&first, graph, 0));
    OK(cuGraphInstantiateWithFlags(&second, graph, 0));
    OK(cuGraphLaunch(first, t->stream));
    while (!atomic_load(&calls_begun))
        usleep(100);
    OK(cuGraphLaunch(second, t->other));
    usleep(50000); // the second stream stands, too
    atomic_store(&calls_let, 1);
    CUresult result = CUDA_ERROR_NOT_READY;
    for (int i = 0; i < 2000 && result == CUDA_ERROR_NOT_READY; i++) {
        result = cuStreamQuery(t->stream);
        usleep(1000);
    }
    CHECK(result == CUDA_SUCCESS);
    GIVES(CUDA_ERROR_NOT_READY, cuStreamQuery(t->other));
    atomic_store(&calls_let, 2);
    OK(cuStreamSynchronize(t->other));
    OK(cuGraphExecDestroy(first));
    OK(cuGraphExecDestroy(second));
    OK(cuGraphDestroy(graph));
}

typedef struct {
    graph_bench_t *bench;
    CUresult alloc, end;
    CUstreamCaptureMode mode;
} stranger_t;

static void *stranger(void *argument) {
    stranger_t *s = argument;
    CUdeviceptr p = 0;
    CUgraph graph;
    OK(cuCtxSetCurrent(s->bench->context));
    OK(cuThreadExchangeStreamCaptureMode(&s->mode));
    s->alloc = cuMemAlloc_v2(&p, 64);
    if (s->alloc == CUDA_SUCCESS)
        OK(cuMemFree_v2(p));
    s->end = cuStreamEndCapture(s->bench->stream, &graph);
    return NULL;
}

// A capture in `mode`, and what another thread in `other` may do meanwhile.
static inline void check_mode(graph_bench_t *t, CUstreamCaptureMode mode, CUstreamCaptureMode other, CUresult alloc,
                              CUresult end) {
    CUgraph graph;
    pthread_t thread;
    stranger_t s = {.bench = t, .mode = other};
    OK(cuStreamBeginCapture_v2(t->stream, mode));
    OK(fill(t->module, t->a, 1, 1, t->stream));
    CHECK(!pthread_create(&thread, NULL, stranger, &s) && !pthread_join(thread, NULL));
    CHECK(s.alloc == alloc && s.end == end);
    CHECK(capture_status(t->stream) == CU_STREAM_CAPTURE_STATUS_NONE); // whoever ends it, it is over
    GIVES(CUDA_ERROR_ILLEGAL_STATE, cuStreamEndCapture(t->stream, &graph));
}

static inline void check_modes(graph_bench_t *t) {
    const CUstreamCaptureMode global = CU_STREAM_CAPTURE_MODE_GLOBAL, local = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                              relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    const CUresult refused = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, wrong = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    check_mode(t, global, global, refused, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    check_mode(t, global, relaxed, CUDA_SUCCESS, wrong);
    check_mode(t, global, local, CUDA_SUCCESS, wrong);
    check_mode(t, local, global, CUDA_SUCCESS, wrong);
    check_mode(t, relaxed, global, CUDA_SUCCESS, CUDA_SUCCESS);
    // The thread that captures.
    CUdeviceptr p;
    OK(cuStreamBeginCapture_v2(t->stream, local));
    GIVES(refused, cuMemAlloc_v2(&p, 64));
    ends_invalidated(t->stream);
    CUstreamCaptureMode mode = relaxed;
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(t->stream, global));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    CHECK(mode == global);
    OK(cuMemAlloc_v2(&p, 64));
    OK(cuMemFree_v2(p));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphDestroy(graph));
}

static inline void check_graphs(CUmodule module) {
    graph_bench_t bench = graph_bench(module);
    check_capture_and_replay(&bench);
    check_capture_errors(&bench);
    check_work_beside_a_capture(&bench);
    check_built_graph(&bench);
    check_host_functions(&bench);
    check_one_function_in_two_streams(&bench);
    check_modes(&bench);
    check_capture_and_replay(&bench);
    graph_bench_end(&bench);
}

#endif
