// Checks of nodes of any kind: setting their parameters in a graph and in an executable graph, host functions told again, the text
// of a graph. Run on the simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses. Errors are those of driver 580.159.04.
#ifndef GRAPH_SET_CHECKS_H
#define GRAPH_SET_CHECKS_H

#include "described_checks.h"

static inline void add_one(void *counter) { atomic_fetch_add((_Atomic int *)counter, 1); }

static inline void check_host_nodes(graph_bench_t *t) {
    static _Atomic int first, second, third, captured;
    CUgraph graph, by_capture;
    CUgraphNode node, fill, of_capture;
    CUgraphExec exec;
    size_t count = 1;
    CUDA_HOST_NODE_PARAMS p = {add_one, (void *)&first}, told;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddHostNode(&node, graph, NULL, 0, &p));
    fill = add_fill(t, graph, t->a, 1, &node, 1);
    OK(cuGraphHostNodeGetParams(node, &told));
    CHECK(told.fn == add_one && told.userData == (void *)&first);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphHostNodeGetParams(fill, &told));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphHostNodeGetParams(node, NULL));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    p.userData = (void *)&second;
    OK(cuGraphExecHostNodeSetParams(exec, node, &p));
    OK(cuGraphHostNodeGetParams(node, &told));
    CHECK(told.userData == (void *)&first);
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(atomic_load(&first) == 0 && atomic_load(&second) == 1);
    p.userData = (void *)&third;
    OK(cuGraphHostNodeSetParams(node, &p));
    OK(cuGraphHostNodeGetParams(node, &told));
    CHECK(told.userData == (void *)&third);
    OK(cuGraphLaunch(exec, t->stream)); // as it was set
    OK(cuStreamSynchronize(t->stream));
    CHECK(atomic_load(&second) == 2 && atomic_load(&third) == 0);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    CHECK(atomic_load(&third) == 1);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphHostNodeSetParams(fill, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecHostNodeSetParams(exec, fill, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphHostNodeSetParams(node, NULL));
    p.fn = NULL;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphHostNodeSetParams(node, &p));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));

    OK(cuStreamBeginCapture_v2(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuLaunchHostFunc(t->stream, add_one, (void *)&captured));
    OK(cuStreamEndCapture(t->stream, &by_capture));
    OK(cuGraphGetNodes(by_capture, &of_capture, &count));
    OK(cuGraphHostNodeGetParams(of_capture, &told));
    CHECK(told.fn == add_one && told.userData == (void *)&captured);
    OK(cuGraphDestroy(by_capture));
}

static inline void check_set_by_kind(graph_bench_t *t) {
    static _Atomic int calls;
    CUgraph graph;
    CUgraphNode empty, fill, set, host, record, batch;
    CUgraphExec exec;
    CUgraphNodeParams p;
    uint32_t value = 21;
    size_t count = GRAPH_WORDS;
    void *arguments[] = {&t->a, &value, &count};
    CUstreamBatchMemOpParams op = word_write(t->c, 3, false);
    CUDA_BATCH_MEM_OP_NODE_PARAMS words = {.ctx = t->context, .count = 1, .paramArray = &op}, told, again;
    CUDA_MEMSET_NODE_PARAMS bytes = {.dst = t->b, .elementSize = 4, .value = 2, .width = GRAPH_WORDS, .height = 1};
    CUDA_HOST_NODE_PARAMS call = {add_one, (void *)&calls};
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEmptyNode(&empty, graph, NULL, 0));
    fill = add_fill(t, graph, t->a, 1, &empty, 1);
    OK(cuGraphAddMemsetNode(&set, graph, &fill, 1, &bytes, t->context));
    OK(cuGraphAddHostNode(&host, graph, &set, 1, &call));
    OK(cuGraphAddEventRecordNode(&record, graph, &host, 1, t->event));
    OK(cuGraphAddBatchMemOpNode(&batch, graph, &record, 1, &words));
    OK(cuGraphBatchMemOpNodeGetParams(batch, &told));
    CHECK(told.count == 1 && told.ctx == t->context && told.paramArray != &op);
    CHECK(told.paramArray->operation == CU_STREAM_MEM_OP_WRITE_VALUE_32);
    CHECK(told.paramArray->writeValue.address == t->c && told.paramArray->writeValue.value == 3);
    OK(cuGraphBatchMemOpNodeGetParams(batch, &again));
    CHECK(again.paramArray == told.paramArray);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphBatchMemOpNodeGetParams(fill, &again));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphBatchMemOpNodeGetParams(batch, NULL));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));

    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_EMPTY;
    OK(cuGraphNodeSetParams(empty, &p));
    OK(cuGraphExecNodeSetParams(exec, empty, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(fill, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(NULL, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(empty, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecNodeSetParams(NULL, empty, &p));
    p.reserved0[1] = 1;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(empty, &p));
    p.reserved0[1] = 0;
    p.reserved2 = 1;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(empty, &p));
    p.reserved2 = 0;
    p.type = (CUgraphNodeType)77;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(empty, &p));

    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_KERNEL;
    CUDA_KERNEL_NODE_PARAMS kernel_params;
    OK(cuGraphKernelNodeGetParams_v2(fill, &kernel_params));
    kernel_params.kernelParams = arguments;
    kernel_params.extra = NULL;
    memcpy(&p.kernel, &kernel_params, sizeof kernel_params);
    OK(cuGraphExecNodeSetParams(exec, fill, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphExecNodeSetParams(exec, set, &p));
    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_MEMSET;
    bytes.value = 22;
    memcpy(&p.memset, &bytes, sizeof bytes);
    p.memset.ctx = t->context;
    OK(cuGraphExecNodeSetParams(exec, set, &p));
    OK(cuGraphNodeSetParams(set, &p));
    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_HOST;
    memcpy(&p.host, &call, sizeof call);
    OK(cuGraphExecNodeSetParams(exec, host, &p));
    OK(cuGraphNodeSetParams(host, &p));
    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
    p.eventRecord.event = t->back;
    OK(cuGraphExecNodeSetParams(exec, record, &p));
    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP;
    op = word_write(t->c, 23, false);
    memcpy(&p.memOp, &words, sizeof words);
    OK(cuGraphExecNodeSetParams(exec, batch, &p));
    OK(cuMemsetD32_v2(t->c, 0, GRAPH_WORDS));
    OK(cuCtxSynchronize());
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 21);
    words_are(t->b, 22);
    CHECK(word_at(t->c) == 23 && atomic_load(&calls) == 1);
    OK(cuEventQuery(t->back));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

// The graph of a child graph node becomes a copy of another, in the node and in an executable graph.
static inline void check_set_child(graph_bench_t *t) {
    CUgraph graph, first, second, inside, told = NULL;
    CUgraphNode node;
    CUgraphExec exec;
    CUgraphNodeParams p;
    size_t count;
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphCreate(&first, 0));
    OK(cuGraphCreate(&second, 0));
    add_fill(t, first, t->a, 31, NULL, 0);
    add_fill(t, second, t->a, 32, NULL, 0);
    OK(cuGraphAddChildGraphNode(&node, graph, NULL, 0, first));
    OK(cuGraphChildGraphNodeGetGraph(node, &inside));
    memset(&p, 0, sizeof p);
    p.type = CU_GRAPH_NODE_TYPE_GRAPH;
    p.graph.graph = second;
    OK(cuGraphNodeSetParams(node, &p));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphGetNodes(inside, NULL, &count)); // it is gone (assumed)
    OK(cuGraphChildGraphNodeGetGraph(node, &told));
    CHECK(node_count(told) == 1 && told != second);
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 32);
    p.graph.graph = first;
    OK(cuGraphExecNodeSetParams(exec, node, &p));
    OK(cuGraphLaunch(exec, t->stream));
    OK(cuStreamSynchronize(t->stream));
    words_are(t->a, 31);
    p.graph.graph = NULL;
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphNodeSetParams(node, &p));
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    OK(cuGraphDestroy(first));
    OK(cuGraphDestroy(second));
}

static inline void check_dot(graph_bench_t *t) {
    enum { NODES = 6000 };
    CUgraph graph;
    CUgraphNode node;
    char path[] = "/tmp/tensor-fusion-dot-XXXXXX", *text;
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    OK(cuGraphCreate(&graph, 0));
    node = add_fill(t, graph, t->a, 1, NULL, 0);
    for (int i = 0; i < NODES; i++) { // more than is sent at once
        CUgraphNode before = node;
        OK(cuGraphAddEmptyNode(&node, graph, &before, 1));
    }
    CHECK(write(fd, "what was there before", 21) == 21);
    OK(cuGraphDebugDotPrint(graph, path, 0));
    off_t size = lseek(fd, 0, SEEK_END);
    CHECK(size > NODES * 20);
    text = malloc((size_t)size + 1);
    CHECK(text && pread(fd, text, (size_t)size, 0) == (ssize_t)size);
    text[size] = 0;
    CHECK(strncmp(text, "digraph dot {\n", 14) == 0 && strcmp(text + size - 4, "}\n}\n") == 0);
    char last[64];
    snprintf(last, sizeof last, "_node_%d\" -> ", NODES - 1);
    CHECK(strstr(text, last) && !strstr(text, "before"));
    free(text);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphDebugDotPrint(graph, NULL, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphDebugDotPrint(NULL, path, 0));
    GIVES(CUDA_ERROR_OPERATING_SYSTEM, cuGraphDebugDotPrint(graph, "/no/such/folder/x", 0));
    GIVES(CUDA_ERROR_OPERATING_SYSTEM, cuGraphDebugDotPrint(graph, "", 0));
    close(fd);
    unlink(path);
    OK(cuGraphDestroy(graph));
}

// A capture takes a memset at an address that nobody has: cuDNN looks at its kernels so, with NULL and an offset as workspace, and
// would find a refusal as the last error of its CUDA runtime at its next launch.
static inline void check_set_nowhere(void) {
    enum { NOWHERE = 0x80 };
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode nodes[2] = {0};
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    CUDA_MEMSET_NODE_PARAMS told = {0};
    size_t count = 2;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(NOWHERE, 0, 16384, stream));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuMemsetD8Async(NOWHERE, 3, 16384, stream));
    OK(cuMemsetD2D32Async(NOWHERE, 64, 4, 8, 2, stream));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD2D32Async(NOWHERE, 16, 4, 8, 2, stream)); // rows that overlap
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD32Async(NOWHERE + 1, 4, 8, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphGetNodes(graph, nodes, &count));
    CHECK(count == 2);
    OK(cuGraphNodeGetType(nodes[0], &type));
    OK(cuGraphMemsetNodeGetParams(nodes[0], &told));
    CHECK(type == CU_GRAPH_NODE_TYPE_MEMSET && told.dst == NOWHERE && told.value == 3);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(NOWHERE, 0, 16384, stream));
    OK(cuStreamDestroy_v2(stream));
}

// No external semaphore can exist: whatever is asked of such nodes, and of nodes of no type, gives 1.
static inline void check_nodes_of_no_kind(void) {
    CUgraph graph;
    CUgraphNode node, empty;
    CUgraphExec exec;
    CUDA_EXT_SEM_SIGNAL_NODE_PARAMS signal;
    CUDA_EXT_SEM_WAIT_NODE_PARAMS wait;
    CUgraphNodeParams any;
    size_t count = 9;
    memset(&signal, 0, sizeof signal);
    memset(&wait, 0, sizeof wait);
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEmptyNode(&empty, graph, NULL, 0));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    GIVES(1, cuGraphAddExternalSemaphoresSignalNode(&node, graph, NULL, 0, NULL));
    GIVES(1, cuGraphAddExternalSemaphoresWaitNode(&node, NULL, NULL, 0, &wait));
    GIVES(1, cuGraphExternalSemaphoresSignalNodeGetParams(empty, &signal));
    GIVES(1, cuGraphExternalSemaphoresSignalNodeSetParams(empty, &signal));
    GIVES(1, cuGraphExternalSemaphoresWaitNodeGetParams(empty, &wait));
    GIVES(1, cuGraphExternalSemaphoresWaitNodeSetParams(empty, &wait));
    GIVES(1, cuGraphExecExternalSemaphoresSignalNodeSetParams(exec, empty, &signal));
    GIVES(1, cuGraphExecExternalSemaphoresWaitNodeSetParams(exec, empty, &wait));
    for (int type = 0; type < 78; type += type == 20 ? 57 : 1) {
        if (type <= CU_GRAPH_NODE_TYPE_CONDITIONAL && type != CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL &&
            type != CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT)
            continue;
        memset(&any, 0, sizeof any);
        any.type = (CUgraphNodeType)type;
        GIVES(1, cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &any));
        GIVES(1, cuGraphNodeSetParams(empty, &any));
        GIVES(1, cuGraphExecNodeSetParams(exec, empty, &any));
    }
    OK(cuGraphGetNodes(graph, NULL, &count));
    CHECK(count == 1);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
}

static inline void check_graph_set(CUmodule module) {
    graph_bench_t t = graph_bench(module);
    check_set_nowhere();
    check_host_nodes(&t);
    check_set_by_kind(&t);
    check_set_child(&t);
    check_dot(&t);
    check_nodes_of_no_kind();
    graph_bench_end(&t);
}

#endif
