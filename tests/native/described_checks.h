// Checks of functions that one line of api/ describes: event nodes, words written and waited for, access to pools. Run on the
// simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses. Errors are those that the driver documents.
#ifndef DESCRIBED_CHECKS_H
#define DESCRIBED_CHECKS_H

#include "graph_checks.h"

#include <stdbool.h>

static inline CUstreamBatchMemOpParams word_wait(CUdeviceptr word, uint32_t value) {
    CUstreamBatchMemOpParams op;
    memset(&op, 0x5a, sizeof op); // what does not count may be anything
    op.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    op.waitValue.address = word;
    op.waitValue.value = value;
    op.waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
    return op;
}

static inline CUstreamBatchMemOpParams word_write(CUdeviceptr word, uint64_t value, bool large) {
    CUstreamBatchMemOpParams op;
    memset(&op, 0x5a, sizeof op);
    op.operation = large ? CU_STREAM_MEM_OP_WRITE_VALUE_64 : CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op.writeValue.address = word;
    op.writeValue.value64 = value;
    op.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
    return op;
}

static inline uint32_t word_at(CUdeviceptr p) {
    uint32_t word = 0;
    OK(cuMemcpyDtoH_v2(&word, p, sizeof word));
    return word;
}

// A stream of its own lends its context to a thread that has none; default streams and the synchronous forms have none to lend.
// Every answer as of 580.159.04.
static inline void check_lent_contexts(graph_bench_t *t) {
    unsigned char bytes[64] = {7};
    void *pinned;
    CUcontext before, owner = NULL;
    CUevent event;
    CUdeviceptr pooled;
    CUstreamCaptureStatus status;
    CUgraph graph;
    CUmemoryPool pool;
    unsigned flags;
    int priority;
    float ms;
    OK(cuEventCreate(&event, CU_EVENT_DEFAULT));
    OK(cuMemHostAlloc(&pinned, 64, 0));
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuCtxPopCurrent_v2(&before));
    OK(cuMemcpyHtoDAsync_v2(t->c, bytes, 64, t->stream));
    OK(cuMemcpyHtoDAsync_v2(t->c, pinned, 64, t->stream));
    OK(cuMemcpyDtoHAsync_v2(bytes, t->c, 64, t->stream));
    OK(cuMemcpyAsync(t->c, t->c + 64, 64, t->stream));
    OK(cuMemcpyDtoDAsync_v2(t->c, t->c + 64, 64, t->stream));
    OK(cuMemsetD8Async(t->c, 0, 64, t->stream));
    OK(cuMemsetD2D8Async(t->c, 64, 0, 8, 2, t->stream));
    OK(cuMemAllocAsync(&pooled, 64, t->stream));
    OK(cuMemFreeAsync(pooled, t->stream));
    OK(cuMemAllocFromPoolAsync(&pooled, 64, pool, t->stream));
    OK(cuMemFreeAsync(pooled, t->stream));
    OK(cuEventRecord(event, t->stream));
    OK(cuStreamWaitEvent(t->stream, event, 0));
    OK(cuStreamWriteValue32_v2(t->stream, t->c, 1, 0));
    OK(cuStreamWaitValue32_v2(t->stream, t->c, 1, 0));
    OK(cuStreamSynchronize(t->stream));
    OK(cuStreamQuery(t->stream));
    OK(cuEventSynchronize(event));
    OK(cuEventQuery(event));
    OK(cuEventElapsedTime(&ms, event, event));
    OK(cuStreamGetCtx(t->stream, &owner));
    CHECK(owner == before);
    OK(cuStreamGetFlags(t->stream, &flags));
    OK(cuStreamGetPriority(t->stream, &priority));
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemsetD8Async(t->c, 0, 64, t->stream));
    OK(cuStreamIsCapturing(t->stream, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuStreamEndCapture(t->stream, &graph));
    CHECK(cuMemcpyHtoDAsync_v2(t->c, bytes, 64, NULL) == CUDA_ERROR_INVALID_CONTEXT);
    CHECK(cuMemsetD8Async(t->c, 0, 64, NULL) == CUDA_ERROR_INVALID_CONTEXT);
    CHECK(cuMemcpyHtoD_v2(t->c, bytes, 4) == CUDA_ERROR_INVALID_CONTEXT);
    CHECK(cuEventRecord(event, NULL) == CUDA_ERROR_INVALID_CONTEXT);
    CHECK(cuStreamQuery(CU_STREAM_LEGACY) == CUDA_ERROR_INVALID_CONTEXT);
    CHECK(cuStreamSynchronize(NULL) == CUDA_ERROR_INVALID_CONTEXT);
    CHECK(cuMemcpyHtoDAsync_v2(t->c, bytes, 64, CU_STREAM_PER_THREAD) == CUDA_ERROR_INVALID_CONTEXT);
    OK(cuEventDestroy_v2(event));
    OK(cuCtxGetCurrent(&owner));
    CHECK(!owner);
    OK(cuCtxSetCurrent(before));
    OK(cuGraphDestroy(graph));
    OK(cuMemFreeHost(pinned));
}

static inline void check_batches(graph_bench_t *t) {
    CUstreamBatchMemOpParams ops[300];
    OK(cuMemsetD32_v2(t->c, 0, GRAPH_WORDS));
    OK(cuCtxSynchronize());
    ops[0] = word_wait(t->c, 7);
    ops[1] = word_write(t->c + 4, 11, false);
    ops[2] = word_write(t->c + 8, 0x1200000013ull, true);
    OK(cuStreamBatchMemOp_v2(t->stream, 3, ops, 0));
    CHECK(cuStreamQuery(t->stream) == CUDA_ERROR_NOT_READY);
    OK(cuStreamWriteValue32_v2(t->other, t->c, 7, 0));
    OK(cuStreamSynchronize(t->stream));
    CHECK(word_at(t->c + 4) == 11 && word_at(t->c + 8) == 0x13 && word_at(t->c + 12) == 0x12);

    CUdeviceptr pooled; /* the driver takes no words in memory of pools */
    OK(cuMemAllocAsync(&pooled, 64, t->stream));
    ops[0] = word_write(pooled, 1, false);
    CHECK(cuStreamWriteValue32_v2(t->stream, pooled, 1, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuStreamWaitValue64_v2(t->stream, pooled, 0, CU_STREAM_WAIT_VALUE_GEQ) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuStreamBatchMemOp_v2(t->stream, 1, ops, 0) == CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFreeAsync(pooled, t->stream));

    for (size_t i = 0; i < 300; i++)
        ops[i] = word_write(t->c + 4 * i, i, false);
    OK(cuStreamBatchMemOp_v2(t->stream, 0, ops, 0)); // nothing to do (580.159.04, measured)
    CHECK(cuStreamBatchMemOp_v2(t->stream, 256, ops, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuStreamBatchMemOp_v2(t->stream, 1, NULL, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuStreamBatchMemOp_v2(t->stream, 1, ops, 1) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuStreamBatchMemOp_v2((CUstream)(uintptr_t)0x1234, 1, ops, 0) == CUDA_ERROR_INVALID_HANDLE);
    OK(cuStreamBatchMemOp_v2(t->stream, 255, ops, 0));
    OK(cuStreamSynchronize(t->stream));
    CHECK(word_at(t->c + 4 * 254) == 254);
    ops[1].writeValue.address = t->c + 2;
    CHECK(cuStreamBatchMemOp_v2(t->stream, 2, ops, 0) == CUDA_ERROR_INVALID_VALUE);
    ops[1].writeValue.address = 0x1000;
    CHECK(cuStreamBatchMemOp_v2(t->stream, 2, ops, 0) == CUDA_ERROR_INVALID_VALUE);
    ops[1].operation = (CUstreamBatchMemOpType)99;
    CHECK(cuStreamBatchMemOp_v2(t->stream, 2, ops, 0) == CUDA_ERROR_INVALID_VALUE);
    OK(cuStreamSynchronize(t->stream));
}

// A node that records its event, behind one that holds it back; then the same with another event and another word.
static inline void check_record_nodes(graph_bench_t *t) {
    CUgraph graph;
    CUgraphNode hold, fill, record, wrong;
    CUgraphExec exec;
    CUevent told = NULL, gone;
    CUstreamBatchMemOpParams op = word_wait(t->c, 1);
    CUDA_BATCH_MEM_OP_NODE_PARAMS batch = {.ctx = t->context, .count = 1, .paramArray = &op};
    OK(cuMemsetD32_v2(t->c, 0, GRAPH_WORDS));
    OK(cuMemsetD32_v2(t->a, 0, GRAPH_WORDS));
    OK(cuCtxSynchronize());
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddBatchMemOpNode(&hold, graph, NULL, 0, &batch));
    fill = add_fill(t, graph, t->a, 5, &hold, 1);
    OK(cuGraphAddEventRecordNode(&record, graph, &fill, 1, t->event));
    OK(cuGraphEventRecordNodeGetEvent(record, &told));
    CHECK(told == t->event);
    CHECK(cuGraphEventRecordNodeGetEvent(hold, &told) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuGraphEventWaitNodeGetEvent(record, &told) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuGraphEventRecordNodeGetEvent(record, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuGraphAddEventRecordNode(NULL, graph, NULL, 0, t->event) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuGraphAddEventRecordNode(&wrong, graph, NULL, 1, t->event) == CUDA_ERROR_INVALID_VALUE);
    OK(cuEventCreate(&gone, 0));
    OK(cuEventDestroy_v2(gone));
    CHECK(cuGraphAddEventRecordNode(&wrong, graph, NULL, 0, gone) == CUDA_ERROR_INVALID_HANDLE);
    CHECK(cuGraphEventRecordNodeSetEvent(record, gone) == CUDA_ERROR_INVALID_HANDLE);
    CHECK(node_count(graph) == 3);

    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, t->stream));
    CHECK(cuEventQuery(t->event) == CUDA_ERROR_NOT_READY);
    OK(cuStreamWriteValue32_v2(t->other, t->c, 1, 0));
    OK(cuEventSynchronize(t->event));
    words_are(t->a, 5);

    // What is set in the executable graph is what the next launch does; the node itself stays as it is.
    op = word_wait(t->c + 4, 1);
    OK(cuGraphExecBatchMemOpNodeSetParams(exec, hold, &batch));
    OK(cuGraphExecEventRecordNodeSetEvent(exec, record, t->back));
    OK(cuGraphEventRecordNodeGetEvent(record, &told));
    CHECK(told == t->event);
    OK(cuGraphLaunch(exec, t->stream));
    CHECK(cuEventQuery(t->back) == CUDA_ERROR_NOT_READY);
    OK(cuStreamWriteValue32_v2(t->other, t->c + 4, 1, 0));
    OK(cuEventSynchronize(t->back));
    OK(cuGraphExecDestroy(exec));

    batch.count = 2; // a list that is shorter than it says cannot be seen; none at all can
    batch.paramArray = NULL;
    CHECK(cuGraphBatchMemOpNodeSetParams(hold, &batch) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuGraphBatchMemOpNodeSetParams(hold, NULL) == CUDA_ERROR_INVALID_VALUE);
    batch = (CUDA_BATCH_MEM_OP_NODE_PARAMS){.count = 1, .paramArray = &op};
    CHECK(cuGraphBatchMemOpNodeSetParams(hold, &batch) == CUDA_ERROR_INVALID_CONTEXT);
    op = word_write(t->c + 8, 3, false);
    batch.ctx = t->context;
    CHECK(cuGraphBatchMemOpNodeSetParams(record, &batch) == CUDA_ERROR_INVALID_VALUE);
    OK(cuGraphBatchMemOpNodeSetParams(hold, &batch));
    OK(cuGraphEventRecordNodeSetEvent(record, t->back));
    OK(cuGraphEventRecordNodeGetEvent(record, &told));
    CHECK(told == t->back);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(word_at(t->c + 8) == 3);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

// A node that waits for an event, added by its own name and as a node of any kind, with an edge that has a port.
static inline void check_wait_nodes(graph_bench_t *t) {
    CUgraph graph, elsewhere;
    CUgraphNode wait, fill, last, wrong;
    CUgraphExec exec;
    CUevent told = NULL;
    CUgraphEdgeData edge = {0};
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD};
    params.eventRecord.event = t->back;
    OK(cuMemsetD32_v2(t->c, 0, GRAPH_WORDS));
    OK(cuMemsetD32_v2(t->b, 0, GRAPH_WORDS));
    OK(cuCtxSynchronize());
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEventWaitNode(&wait, graph, NULL, 0, t->back));
    OK(cuGraphEventWaitNodeSetEvent(wait, t->event));
    OK(cuGraphEventWaitNodeGetEvent(wait, &told));
    CHECK(told == t->event);
    CHECK(cuGraphEventRecordNodeSetEvent(wait, t->back) == CUDA_ERROR_INVALID_VALUE);
    fill = add_fill(t, graph, t->b, 6, &wait, 1);
    OK(cuGraphAddNode_v2(&last, graph, &fill, &edge, 1, &params));
    params.eventRecord.event = NULL;
    CHECK(cuGraphAddNode_v2(&wrong, graph, &fill, &edge, 1, &params) == CUDA_ERROR_INVALID_VALUE);
    params.eventRecord.event = t->back;
    edge.from_port = 1; // a kernel's programmatic port; the edge is from another graph, so the node does not come about
    edge.type = CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC;
    OK(cuGraphCreate(&elsewhere, 0));
    CUgraphNode stranger = add_fill(t, elsewhere, t->b, 1, NULL, 0);
    CHECK(cuGraphAddNode_v2(&wrong, graph, &stranger, &edge, 1, &params) == CUDA_ERROR_INVALID_VALUE);
    OK(cuGraphDestroy(elsewhere));
    CHECK(node_count(graph) == 3);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));

    OK(cuStreamWaitValue32_v2(t->other, t->c, 1, CU_STREAM_WAIT_VALUE_EQ));
    OK(cuEventRecord(t->event, t->other));
    OK(cuGraphLaunch(exec, t->stream));
    CHECK(cuStreamQuery(t->stream) == CUDA_ERROR_NOT_READY);
    CHECK(cuEventQuery(t->back) == CUDA_ERROR_NOT_READY);
    OK(cuStreamWriteValue32_v2(t->blocking, t->c, 1, 0));
    OK(cuEventSynchronize(t->back));
    words_are(t->b, 6);
    OK(cuGraphExecEventWaitNodeSetEvent(exec, wait, t->back)); // which is complete
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

static inline void check_pool_access(void) {
    CUmemoryPool pool;
    CUmemAccess_flags flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
    CUmemLocation here = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0};
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuMemPoolGetAccess(&flags, pool, &here));
    CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    CHECK(cuMemPoolGetAccess(NULL, pool, &here) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemPoolGetAccess(&flags, pool, NULL) == CUDA_ERROR_INVALID_VALUE);
    here.id = 1000;
    CHECK(cuMemPoolGetAccess(&flags, pool, &here) == CUDA_ERROR_INVALID_VALUE);
    here.type = CU_MEM_LOCATION_TYPE_INVALID;
    CHECK(cuMemPoolGetAccess(&flags, pool, &here) == CUDA_ERROR_INVALID_VALUE);
    here.type = CU_MEM_LOCATION_TYPE_HOST; // whatever the number
    OK(cuMemPoolGetAccess(&flags, pool, &here));
    CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_NONE);
    for (int managed = 0; managed < 2; managed++) {
        CUmemPoolProps props = {
            .allocType = managed ? CU_MEM_ALLOCATION_TYPE_MANAGED : CU_MEM_ALLOCATION_TYPE_PINNED,
            .location = {.type = managed ? CU_MEM_LOCATION_TYPE_DEVICE : CU_MEM_LOCATION_TYPE_HOST}};
        CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
                                  .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
        OK(cuMemPoolCreate(&pool, &props));
        here = (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = 9};
        OK(cuMemPoolGetAccess(&flags, pool, &here));
        CHECK(flags == (managed ? CU_MEM_ACCESS_FLAGS_PROT_NONE : CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
        here = access.location;
        OK(cuMemPoolGetAccess(&flags, pool, &here));
        CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_NONE); // until it is given
        OK(cuMemPoolSetAccess(pool, &access, 1));
        OK(cuMemPoolGetAccess(&flags, pool, &here));
        CHECK(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_NONE; // it may be taken from the device that the memory prefers
        OK(cuMemPoolSetAccess(pool, &access, 1));
        access.location.type = CU_MEM_LOCATION_TYPE_HOST;
        CHECK(cuMemPoolSetAccess(pool, &access, 1) == (managed ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED));
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        OK(cuMemPoolSetAccess(pool, &access, 1));
        access.location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
        CHECK(cuMemPoolSetAccess(pool, &access, 1) == CUDA_ERROR_INVALID_VALUE);
        OK(cuMemPoolDestroy(pool));
        props.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        CHECK(cuMemPoolCreate(&pool, &props) == CUDA_ERROR_INVALID_VALUE); // no other process maps that
    }
    static const struct {
        int type, id, pinned, managed;
    } places[] = {{0, 0, 1, 0},  {1, 99, 1, 1},  {1, -1, 1, 1}, {2, 9, 0, 0},  {3, 0, 0, 0},
                  {3, -1, 1, 1}, {3, 999, 1, 1}, {4, 0, 1, 0},  {5, 0, 1, 801}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        for (int managed = 0; managed < 2; managed++) {
            CUmemPoolProps props = {.allocType =
                                        managed ? CU_MEM_ALLOCATION_TYPE_MANAGED : CU_MEM_ALLOCATION_TYPE_PINNED,
                                    .location = {.type = (CUmemLocationType)places[i].type, .id = places[i].id}};
            GIVES(managed ? places[i].managed : places[i].pinned, cuMemPoolCreate(&pool, &props));
            if (!(managed ? places[i].managed : places[i].pinned))
                OK(cuMemPoolDestroy(pool));
        }
}

static inline void check_graph_memory(void) {
    cuuint64_t value = 77;
    OK(cuDeviceGetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &value));
    CHECK(value == 0);
    CHECK(cuDeviceGetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, NULL) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuDeviceGetGraphMemAttribute(0, (CUgraphMem_attribute)99, &value) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuDeviceGetGraphMemAttribute(1000, CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, &value) == CUDA_ERROR_INVALID_DEVICE);
    OK(cuDeviceSetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, &value));
    value = 1;
    CHECK(cuDeviceSetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_USED_MEM_HIGH, &value) == CUDA_ERROR_INVALID_VALUE);
    value = 0;
    CHECK(cuDeviceSetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, &value) == CUDA_ERROR_INVALID_VALUE);
    OK(cuDeviceGraphMemTrim(0));
    CHECK(cuDeviceGraphMemTrim(1000) == CUDA_ERROR_INVALID_DEVICE);
}

// A number that is no error has neither a name nor a text, and NULL says so.
static inline void check_error_texts(void) {
    const char *text = "unset";
    OK(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
    CHECK(strcmp(text, "CUDA_ERROR_OUT_OF_MEMORY") == 0);
    CHECK(cuGetErrorName((CUresult)12345, &text) == CUDA_ERROR_INVALID_VALUE && !text);
    text = "unset";
    CHECK(cuGetErrorString((CUresult)-1, &text) == CUDA_ERROR_INVALID_VALUE && !text);
}

static inline void check_described(CUmodule module) {
    graph_bench_t t = graph_bench(module);
    check_batches(&t);
    check_lent_contexts(&t);
    check_record_nodes(&t);
    check_wait_nodes(&t);
    check_pool_access();
    check_graph_memory();
    check_error_texts();
    graph_bench_end(&t);
}

#endif
