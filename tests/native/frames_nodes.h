/*
 * Kernel, conditional and memory nodes as a client sends them: for cases of test_frames.c, which has what they use.
 */
#ifndef FRAMES_NODES_H
#define FRAMES_NODES_H

/* The parameters of a node that runs `fill`, as they travel; the pointers are nothing that anybody may follow. */
struct kernel_params {
    CUDA_KERNEL_NODE_PARAMS node;
    uint64_t function, size;
    struct fill arguments;
};
static struct kernel_params kernel_params(uint64_t function) {
    void **const wild = (void **)(uintptr_t)0x4141414141414141;
    return (struct kernel_params){.node = {.func = (CUfunction)(void *)wild,
                                           .kernelParams = wild,
                                           .extra = wild,
                                           .kern = (CUkernel)(void *)wild,
                                           .gridDimX = 1,
                                           .gridDimY = 1,
                                           .gridDimZ = 1,
                                           .blockDimX = 64,
                                           .blockDimY = 1,
                                           .blockDimZ = 1},
                                  .function = function,
                                  .size = sizeof fill_arguments,
                                  .arguments = fill_arguments};
}

/* `owner`: a graph, or an executable graph. */
static void kernel_node(uint32_t context, uint64_t owner, uint64_t node, uint64_t function) {
    const struct kernel_params params = kernel_params(function);
    if (tp_handle_is(owner, TPG_GRAPH)) {
        SEND(context, cuGraphAddKernelNode_v2, CALL, .hGraph = owner, .phGraphNode = node, .nodeParams = &params,
             .nodeParams_size = sizeof params);
    } else {
        SEND(context, cuGraphExecKernelNodeSetParams_v2, CALL, .hGraphExec = owner, .hNode = node,
             .nodeParams = &params, .nodeParams_size = sizeof params);
    }
}

static void conditional_node(uint32_t graph, uint64_t condition, uint32_t kind, const uint64_t *bodies, size_t count) {
    SEND(0, cuGraphConditionalHandleCreate, CALL, .hGraph = handle(TPG_GRAPH, graph), .ctx = handle(TPG_CONTEXT, 0),
         .flags = 1);
    SEND(0, graph_conditional, CALL, .owner = handle(TPG_GRAPH, graph), .node = handle(TPG_GRAPHNODE, graph),
         .condition = condition, .kind = kind, .context = handle(TPG_CONTEXT, 0), .bodies = bodies,
         .bodies_count = count);
}

/* Graphs of conditional nodes inside each other, deeper than anybody goes through them; what a node made ends with it alone. */
static void case_conditional(void) {
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    for (uint32_t i = 0; i < 40; i++) {
        const uint64_t body = handle(TPG_GRAPH, i + 1);
        conditional_node(i, i + 1, 0, &body, 1);
    }
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 1));
    SEND(0, graph_instantiate, CALL, .graph = handle(TPG_GRAPH, 0), .exec = handle(TPG_GRAPHEXEC, 0));
    SEND(0, cuGraphDestroyNode, CALL, .hNode = handle(TPG_GRAPHNODE, 0));
    SEND(0, graph_list, CALL, .subject = handle(TPG_GRAPH, 1));
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 0));
}

/* More graphs than a node of that kind has, a kind that is none, and one name for two graphs. */
static void case_conditional_names(void) {
    const uint64_t bodies[] = {handle(TPG_GRAPH, 1), handle(TPG_GRAPH, 2), handle(TPG_GRAPH, 3)};
    const uint64_t twice[] = {handle(TPG_GRAPH, 1), handle(TPG_GRAPH, 1)};
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    conditional_node(0, 1, 0, bodies, 3);
    conditional_node(0, 2, 77, bodies, 1);
    conditional_node(0, 3, 2, NULL, 0);
    conditional_node(0, 4, 0, twice, 2);
}

/* What is no memory of graphs is none of theirs to free, and a node that allocates does so where the client's devices are. */
static void case_graph_memory(void) {
    CUDA_MEM_ALLOC_NODE_PARAMS params = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}},
        .accessDescs = (void *)(uintptr_t)0x4141414141414141,
        .bytesize = 4096,
        .dptr = ADDRESS};
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    SEND(0, graph_alloc, CALL, .owner = handle(TPG_GRAPH, 0), .node = handle(TPG_GRAPHNODE, 0), .params = &params,
         .params_size = sizeof params);
    SEND(0, cuGraphAddMemFreeNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 1),
         .dptr = ADDRESS); /* refused, 1 */
    SEND(0, cuGraphAddMemFreeNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 1),
         .dptr = (uint64_t)(uintptr_t)&params); /* 2 */
    params.poolProps.location.id = 7;
    SEND(0, graph_alloc, CALL, .owner = handle(TPG_GRAPH, 0), .node = handle(TPG_GRAPHNODE, 1), .params = &params,
         .params_size = sizeof params); /* 3 */
    params.poolProps.location.id = 0;
    params.bytesize = UINT64_MAX - 100;
    SEND(0, graph_alloc, CALL, .owner = handle(TPG_GRAPH, 0), .node = handle(TPG_GRAPHNODE, 1), .params = &params,
         .params_size = sizeof params);                                            /* 4 */
    SEND(0, cuGraphDestroyNode, CALL, .hNode = handle(TPG_GRAPHNODE, 0));          /* 5 */
    SEND(0, graph_host_get, CALL, .node = handle(TPG_GRAPHNODE, 0));               /* 6 */
    SEND(0, cuGraphMemFreeNodeGetParams, CALL, .hNode = handle(TPG_GRAPHNODE, 0)); /* 7 */
    SEND(0, cuGraphMemAllocNodeGetParams, CALL, .hNode = handle(TPG_GRAPHNODE, 0));
    SEND(0, graph_dot, CALL, .graph = handle(TPG_GRAPH, 0), .flags = ~0u, .first = UINT64_MAX);
    SEND(0, cuGraphDestroy, CALL, .hGraph = handle(TPG_GRAPH, 0));
}

#endif
