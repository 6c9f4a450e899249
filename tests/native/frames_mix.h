/*
 * Cases of test_frames.c: buffers alone, and host functions between copies of one graph that use them.
 */
#ifndef FRAMES_MIX_H
#define FRAMES_MIX_H

/* What is read and written beside all order lies in memory of the client, and fits a frame. */
static void case_twin_alone(void) {
    static const unsigned char data[TP_INLINE_MAX];
    SEND(0, host_twin_read, CALL, .address = ADDRESS, .size = 64);
    SEND(0, host_twin, CALL, .size = 4096, .alone = 1);
    SEND(0, host_twin_read, CALL, .address = TWIN, .size = 4096);
    SEND(0, host_twin_read, CALL, .address = TWIN + 1, .size = 4096);
    SEND(0, host_twin_read, CALL, .address = TWIN, .size = UINT64_MAX);
    SEND(0, host_twin_write, 0, .address = TWIN + 4095, .data = data, .data_size = 2);
    SEND(0, host_twin_write, 0, .address = TWIN, .data = data, .data_size = 4096);
    SEND(0, host_twin, CALL, .size = 1 << 20, .alone = 1, .wanted = TP_PINNED_ADDRESS);
    SEND(0, host_twin_read, CALL, .address = TP_PINNED_ADDRESS, .size = TP_INLINE_MAX + 1);
    SEND(0, host_twin_read, CALL, .address = TP_PINNED_ADDRESS + (1 << 20) - 64, .size = 64);
    SEND(0, host_twin_free, 0, .address = TP_PINNED_ADDRESS);
    SEND(0, host_twin_read, CALL, .address = TP_PINNED_ADDRESS, .size = 1);
    SEND(0, host_twin_free, 0, .address = TWIN);
    SEND(0, host_twin_free, 0, .address = TWIN);
}

/* As many as the client has memory for are refused in time. */
static void case_twins_alone(void) {
    for (int i = 0; i < 70000; i++) {
        SEND(0, host_twin, CALL, .size = 1, .alone = 1);
        if (i % 256 == 255) {
            fuzz_link_pause(the_link);
        }
    }
}

/* Pairs of any kind, calls that are over twice or never, and executable graphs that end between. */
static void case_mix(void) {
    const uint64_t graph = handle(TPG_GRAPH, 0), stream = handle(TPG_STREAM, 0);
    const uint64_t nodes[] = {handle(TPG_GRAPHNODE, 0), handle(TPG_GRAPHNODE, 1), handle(TPG_GRAPHNODE, 2)};
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = ADDRESS,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = ADDRESS + 4096,
                          .WidthInBytes = 64,
                          .Height = 1,
                          .Depth = 1};
    SEND(0, host_twin, CALL, .size = 4096, .alone = 1);
    SEND(0, host_twin_read, CALL, .address = TWIN, .size = 8);
    SEND(0, cuGraphCreate, CALL, .phGraph = graph);
    SEND(0, cuGraphAddMemcpyNode, CALL, .hGraph = graph, .phGraphNode = nodes[0], .copyParams = &copy,
         .copyParams_size = sizeof copy);
    SEND(0, graph_host, CALL, .owner = graph, .node = nodes[1], .token = 5, .dependencies = nodes,
         .dependencies_count = 1);
    copy.srcDevice = ADDRESS + 8192;
    copy.dstDevice = ADDRESS;
    SEND(0, cuGraphAddMemcpyNode, CALL, .hGraph = graph, .phGraphNode = nodes[2], .copyParams = &copy,
         .copyParams_size = sizeof copy, .dependencies = nodes + 1, .dependencies_count = 1, .numDependencies = 1);
    const uint64_t good[] = {ADDRESS + 8192, TWIN + 64, ADDRESS + 4096, TWIN},
                   same[] = {ADDRESS + 4096, ADDRESS + 4096}, outside[] = {ADDRESS + 4096, 4096},
                   no_room[] = {ADDRESS + 8192, TWIN + 4033}, none[] = {1, 2, 1, 3};
    const struct {
        const uint64_t *pairs;
        size_t count;
    } tries[] = {{good, 4}, {good, 3}, {good, 1}, {same, 2}, {outside, 2}, {no_room, 2}, {none, 4}, {good, 2}};
    for (uint32_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        SEND(0, graph_instantiate, CALL, .graph = graph, .exec = handle(TPG_GRAPHEXEC, i), .mixed = tries[i].pairs,
             .mixed_count = tries[i].count);
        SEND(0, graph_update, CALL, .exec = handle(TPG_GRAPHEXEC, 0), .graph = graph, .mixed = tries[i].pairs,
             .mixed_count = tries[i].count);
        SEND(0, cuGraphLaunch, CALL, .hGraph = handle(TPG_GRAPHEXEC, i), .hStream = stream);
        SEND(0, cuGraphLaunch, CALL, .hGraph = handle(TPG_GRAPHEXEC, 0), .hStream = handle(TPG_STREAM, 1));
    }
    SEND(0, graph_host_set, CALL, .exec = handle(TPG_GRAPHEXEC, 0), .node = nodes[1], .token = 6);
    SEND(0, graph_memcpy_get, CALL, .node = nodes[0]);
    SEND(0, host_twin_free, 0, .address = TWIN);
    SEND(0, cuGraphExecDestroy, 0, .hGraphExec = handle(TPG_GRAPHEXEC, 0));
    SEND(0, cuGraphDestroy, CALL, .hGraph = graph);
    for (uint64_t number = 0; number < 20; number++) {
        let_it_look();
        SEND(0, host_function_done, 0, .token = 5, .number = number);
        SEND(0, host_function_done, 0, .token = 5, .number = number);
        SEND(0, host_function_done, 0, .token = 6, .number = number);
    }
    let_it_look();
}

/* A client that could not fetch, or fill: its graph must not go on with other bytes. */
static void case_mix_failed(void) {
    SEND(0, host_function_done, 0, .token = 5, .number = 1, .failed = CUDA_ERROR_OUT_OF_MEMORY);
}

#endif
