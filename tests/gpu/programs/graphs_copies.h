/*
 * Questions about copies between the program's memory and the device in graphs. The middle of graphs.c, whose names it uses; one
 * thread.
 */
#ifndef GRAPHS_COPIES_H
#define GRAPHS_COPIES_H

/* A graph that copies from and to pageable memory reads and writes it at each launch. */
static void pageable_nodes(void) {
    CUgraph graph;
    CUgraphExec exec;
    uint32_t *up = malloc(WORDS * 4), *down = malloc(WORDS * 4);
    for (int i = 0; i < WORDS; i++)
        up[i] = (uint32_t)i;
    memset(down, 0, WORDS * 4);
    begin(plain, global);
    ASK("pageable nodes: upload", cuMemcpyHtoDAsync_v2(a, up, WORDS * 4, plain));
    ASK("pageable nodes: copy", cuMemcpyDtoDAsync_v2(b, a, WORDS * 4, plain));
    ASK("pageable nodes: download", cuMemcpyDtoHAsync_v2(down, b, WORDS * 4, plain));
    if (ASK("pageable nodes: end", cuStreamEndCapture(plain, &graph)) == CUDA_SUCCESS) {
        value("pageable nodes: before the launch", down[WORDS - 1]);
        MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
        for (uint32_t turn = 1; turn < 4; turn++) {
            up[WORDS - 1] = turn;
            MUST(cuGraphLaunch(exec, plain));
            MUST(cuStreamSynchronize(plain));
            value("pageable nodes: after a launch", down[WORDS - 1]);
        }
        MUST(cuGraphExecDestroy(exec));
        MUST(cuGraphDestroy(graph));
    }
    free(up);
    free(down);
}

/* What a launch writes the next one reads, without a wait between them. */
static void copies_in_place(void) {
    CUgraph graph;
    CUgraphExec exec;
    uint32_t *state = calloc(WORDS, 4);
    state[0] = 77;
    MUST(cuMemsetD32Async(b, 0, WORDS, plain));
    begin(plain, global);
    MUST(cuMemcpyHtoDAsync_v2(a, state, WORDS * 4, plain));
    MUST(cuMemcpyDtoDAsync_v2(b + 4, a, WORDS * 4 - 4, plain));
    MUST(cuMemcpyDtoHAsync_v2(state, b, WORDS * 4, plain));
    MUST(cuStreamEndCapture(plain, &graph));
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cuGraphDestroy(graph));
    for (int turn = 0; turn < 12; turn++)
        ASK("copies in place: launch", cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    value("copies in place: where it is now", state[12]);
    value("copies in place: where it was", state[11]);
    MUST(cuGraphExecDestroy(exec));
    free(state);
}

static void told(const char *label, CUgraphNode node, const void *source, const void *destination) {
    CUDA_MEMCPY3D params;
    memset(&params, 0x5a, sizeof params);
    ASK(label, cuGraphMemcpyNodeGetParams(node, &params));
    value("the type of the source", (unsigned)params.srcMemoryType);
    value("the type of the destination", (unsigned)params.dstMemoryType);
    value("the source is the program's", source && params.srcHost == source);
    value("the destination is the program's", destination && params.dstHost == destination);
    value("the width", params.WidthInBytes);
}

/* By hand: read back, changed in the executable graph, left out; and what a captured one is told as. */
static void built_host_copies(void) {
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode first, second, nodes[1];
    size_t count = 1;
    uint32_t *up = malloc(WORDS * 4), *another = malloc(WORDS * 4), *down = calloc(WORDS, 4);
    for (int i = 0; i < WORDS; i++) {
        up[i] = 1;
        another[i] = 2;
    }
    CUDA_MEMCPY3D in = {.srcMemoryType = MEMORY_HOST,
                        .srcHost = up,
                        .dstMemoryType = MEMORY_DEVICE,
                        .dstDevice = a,
                        .WidthInBytes = WORDS * 4,
                        .Height = 1,
                        .Depth = 1};
    CUDA_MEMCPY3D out = {.srcMemoryType = MEMORY_DEVICE,
                         .srcDevice = a,
                         .dstMemoryType = MEMORY_HOST,
                         .dstHost = down,
                         .WidthInBytes = WORDS * 4,
                         .Height = 1,
                         .Depth = 1};
    MUST(cuGraphCreate(&graph, 0));
    ASK("host copies: add upload", cuGraphAddMemcpyNode(&first, graph, NULL, 0, &in, context));
    ASK("host copies: add download", cuGraphAddMemcpyNode(&second, graph, &first, 1, &out, context));
    told("host copies: told of the upload", first, up, NULL);
    told("host copies: told of the download", second, NULL, down);
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    value("host copies: after a launch", down[WORDS - 1]);
    in.srcHost = another;
    ASK("host copies: another source", cuGraphExecMemcpyNodeSetParams(exec, first, &in, context));
    MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    value("host copies: from the other", down[WORDS - 1]);
    down[WORDS - 1] = 9;
    ASK("host copies: leave the download out", cuGraphNodeSetEnabled(exec, second, 0));
    MUST(cuGraphLaunch(exec, plain));
    MUST(cuStreamSynchronize(plain));
    value("host copies: left out", down[WORDS - 1]);
    MUST(cuGraphExecDestroy(exec));
    MUST(cuGraphDestroy(graph));
    begin(plain, global);
    MUST(cuMemcpyHtoDAsync_v2(a, up, WORDS * 4, plain));
    MUST(cuStreamEndCapture(plain, &graph));
    MUST(cuGraphGetNodes(graph, nodes, &count));
    told("host copies: told of a captured one", nodes[0], up, NULL);
    MUST(cuGraphDestroy(graph));
    free(up);
    free(another);
    free(down);
}

#endif
