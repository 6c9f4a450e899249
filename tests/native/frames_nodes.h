/*
 * Kernel nodes as a client sends them: for cases of test_frames.c, which has what they use.
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

#endif
