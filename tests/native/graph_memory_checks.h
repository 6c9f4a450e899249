// Checks of memory of graphs: nodes that allocate and free, and stream-ordered allocation in captures. Run on the simulated GPU
// itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses. Errors and numbers are those of driver 580.159.04, unless a comment says otherwise.
#ifndef GRAPH_MEMORY_CHECKS_H
#define GRAPH_MEMORY_CHECKS_H

#include "graph_checks.h"

enum { GRAPH_BYTES = GRAPH_WORDS * 4 };

static inline CUDA_MEM_ALLOC_NODE_PARAMS alloc_params(size_t bytes) {
    CUDA_MEM_ALLOC_NODE_PARAMS params;
    memset(&params, 0, sizeof params);
    params.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    params.poolProps.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    params.bytesize = bytes;
    return params;
}

static inline uint64_t graph_memory(CUgraphMem_attribute attribute) {
    cuuint64_t value = 77;
    OK(cuDeviceGetGraphMemAttribute(0, attribute, &value));
    return value;
}

static inline bool known_memory(CUdeviceptr p) {
    CUmemorytype type = 0;
    CUresult result = cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p);
    CHECK(result == CUDA_SUCCESS || result == CUDA_ERROR_INVALID_VALUE);
    return result == CUDA_SUCCESS;
}

// What PyTorch's backend cudaMallocAsync does in a capture: memory for the capture alone, used, freed, and used again.
static inline void check_captured_memory(graph_bench_t *t) {
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode nodes[16];
    CUdeviceptr first, second, kept, told = 0;
    size_t count = 16;
    uint32_t words[GRAPH_WORDS];
    CUDA_MEM_ALLOC_NODE_PARAMS params;
    CUgraphNodeType type;
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemAllocAsync(&first, GRAPH_BYTES, t->stream));
    OK(cuMemsetD32Async(first, 5, GRAPH_WORDS, t->stream));
    OK(cuMemcpyDtoDAsync_v2(t->a, first, GRAPH_BYTES, t->stream));
    OK(cuMemFreeAsync(first, t->stream));
    OK(cuMemAllocAsync(&second, GRAPH_BYTES, t->stream));
    CHECK(second == first); // over before
    OK(cuMemsetD32Async(second, 6, GRAPH_WORDS, t->stream));
    OK(cuMemAllocAsync(&kept, GRAPH_BYTES, t->stream));
    CHECK(kept != second);
    OK(cuMemcpyDtoDAsync_v2(kept, second, GRAPH_BYTES, t->stream));
    OK(cuMemFreeAsync(second, t->stream));
    // What a capture does not take disturbs it not at all.
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(second, t->stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(t->a, t->stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(kept + 512, t->stream));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, cuMemAllocAsync(&told, (size_t)1 << 44, t->stream));
    CHECK(capture_status(t->stream) == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphGetNodes(graph, nodes, &count));
    CHECK(count == 9);
    OK(cuGraphNodeGetType(nodes[0], &type));
    CHECK(type == CU_GRAPH_NODE_TYPE_MEM_ALLOC);
    OK(cuGraphMemAllocNodeGetParams(nodes[0], &params));
    CHECK(params.dptr == first && params.bytesize == GRAPH_BYTES && params.accessDescCount == 0);
    CHECK(params.poolProps.allocType == CU_MEM_ALLOCATION_TYPE_PINNED && params.poolProps.location.id == 0);
    OK(cuGraphNodeGetType(nodes[3], &type));
    CHECK(type == CU_GRAPH_NODE_TYPE_MEM_FREE);
    OK(cuGraphMemFreeNodeGetParams(nodes[3], &told));
    CHECK(told == first);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphMemFreeNodeGetParams(nodes[0], &told));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphMemAllocNodeGetParams(nodes[3], &params));

    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(kept, t->stream)); // nothing is allocated yet
    for (int i = 0; i < 3; i++) {
        OK(cuGraphLaunch(exec, t->stream));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(exec, t->stream)); // it is allocated
        OK(cuMemcpyDtoHAsync_v2(words, kept, sizeof words, t->stream));
        OK(cuStreamSynchronize(t->stream));
        CHECK(words[0] == 6 && words[GRAPH_WORDS - 1] == 6);
        words_are(t->a, 5);
        CHECK(known_memory(kept));
        if (i == 1) {
            OK(cuMemFree_v2(kept));
            GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(kept));
        } else {
            OK(cuMemFreeAsync(kept, t->stream));
            GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(kept, t->stream));
        }
    }
    CHECK(graph_memory(CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT) == 32u << 20);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuCtxSynchronize());
    OK(cuDeviceGraphMemTrim(0));
    CHECK(graph_memory(CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT) == 0);
    CHECK(graph_memory(CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH) == 32u << 20);
    cuuint64_t zero = 0;
    OK(cuDeviceSetGraphMemAttribute(0, CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH, &zero));
    CHECK(graph_memory(CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH) == 0);
}

// cuMemFree returns when the memory is free, and a launch in any stream may allocate there again.
static inline void check_freed_and_allocated_again(graph_bench_t *t) {
    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr kept;
    uint32_t word = 0;
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemAllocAsync(&kept, GRAPH_BYTES, t->stream));
    OK(cuMemsetD32Async(kept, 6, GRAPH_WORDS, t->stream));
    OK(cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    for (int i = 0; i < 300; i++) {
        OK(cuGraphLaunch(exec, t->stream));
        OK(cuMemcpyDtoHAsync_v2(&word, kept, sizeof word, t->stream));
        OK(cuStreamSynchronize(t->stream));
        CHECK(word == 6);
        OK(cuMemFree_v2(kept));
    }
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuDeviceGraphMemTrim(0));
}

// Nodes by name and as nodes of any kind; one graph allocates, others use and free.
static inline void check_memory_nodes(graph_bench_t *t) {
    CUgraph graph, frees, any;
    CUgraphNode alloc, fill, node, end;
    CUgraphExec exec, freeing;
    CUdeviceptr told = 0;
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUDA_MEM_ALLOC_NODE_PARAMS p = alloc_params(GRAPH_BYTES), again;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphCreate(&frees, 0));
    OK(cuGraphCreate(&any, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemAllocNode(NULL, graph, NULL, 0, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemAllocNode(&alloc, NULL, NULL, 0, &p));
    p.bytesize = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &p));
    p = alloc_params(GRAPH_BYTES);
    p.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_INVALID;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &p));
    p = alloc_params(GRAPH_BYTES);
    p.poolProps.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    GIVES(CUDA_ERROR_NOT_SUPPORTED, cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &p));
    CHECK(node_count(graph) == 0);
    p = alloc_params(GRAPH_BYTES);
    p.accessDescs = &access;
    p.accessDescCount = 1;
    OK(cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &p));
    CHECK(p.dptr != 0);
    fill = add_fill(t, graph, p.dptr, 9, &alloc, 1);
    OK(cuGraphMemAllocNodeGetParams(alloc, &again));
    CHECK(again.dptr == p.dptr && again.accessDescCount == 1 && again.accessDescs != &access);
    CHECK(again.accessDescs->location.id == 0 && again.accessDescs->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    const CUmemAccessDesc *descs = again.accessDescs;
    OK(cuGraphMemAllocNodeGetParams(alloc, &again));
    CHECK(again.accessDescs == descs);

    // Before it is allocated it is nobody's; the client knows the addresses, and the driver refuses what uses them.
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(p.dptr, t->stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(p.dptr));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuStreamWriteValue32_v2(t->stream, p.dptr, 1, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemFreeNode(&node, frees, NULL, 0, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemFreeNode(&node, frees, NULL, 0, 0x1000));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemFreeNode(&node, frees, NULL, 0, t->a));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphAddMemFreeNode(&node, frees, NULL, 0, p.dptr + 512));
    OK(cuGraphAddMemFreeNode(&end, frees, NULL, 0, p.dptr));
    OK(cuGraphMemFreeNodeGetParams(end, &told));
    CHECK(told == p.dptr);

    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphInstantiateWithFlags(&freeing, frees, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(freeing, t->stream));
    OK(cuGraphUpload(exec, t->stream));
    CHECK(graph_memory(CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT) == 32u << 20);
    for (int i = 0; i < 2; i++) {
        OK(cuGraphLaunch(exec, t->stream));
        OK(cuStreamSynchronize(t->stream));
        words_are(p.dptr, 9);
        OK(cuGraphLaunch(freeing, t->stream));
        GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(freeing, t->stream));
    }
    // Memory outlives the graph that allocated it, until it is freed; as a node of a capture, once.
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuStreamSynchronize(t->stream));
    words_are(p.dptr, 9);
    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuGraphLaunch(freeing, t->stream));
    CHECK(capture_status(t->stream) == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(t->stream, &graph));
    OK(cuGraphLaunch(freeing, t->stream));
    OK(cuStreamSynchronize(t->stream));
    OK(cuGraphExecDestroy(freeing));
    OK(cuGraphDestroy(frees));

    // Freed by itself at each launch; a graph that has the node as one of any kind.
    CUgraphNodeParams params;
    memset(&params, 0, sizeof params);
    params.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC;
    p = alloc_params(GRAPH_BYTES);
    memcpy(&params.alloc, &p, sizeof p);
    OK(cuGraphAddNode_v2(&alloc, any, NULL, NULL, 0, &params));
    CHECK(params.alloc.dptr != 0);
    CUdeviceptr memory = params.alloc.dptr;
    fill = add_fill(t, any, memory, 3, &alloc, 1);
    OK(cuGraphInstantiateWithFlags(&exec, any, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
    for (int i = 0; i < 3; i++) {
        OK(cuGraphLaunch(exec, t->stream));
    }
    OK(cuStreamSynchronize(t->stream));
    words_are(memory, 3);
    OK(cuMemFree_v2(memory));
    OK(cuGraphExecDestroy(exec));
    memset(&params, 0, sizeof params);
    params.type = CU_GRAPH_NODE_TYPE_MEM_FREE;
    params.free.dptr = memory;
    OK(cuGraphAddNode_v2(&end, any, &fill, NULL, 1, &params));
    OK(cuGraphInstantiateWithFlags(&exec, any, 0));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(any));
    OK(cuDeviceGraphMemTrim(0));
}

static inline void check_graph_memory_all(CUmodule module) {
    graph_bench_t t = graph_bench(module);
    check_captured_memory(&t);
    check_freed_and_allocated_again(&t);
    check_memory_nodes(&t);
    graph_bench_end(&t);
}

#endif
