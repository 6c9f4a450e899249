/*
 * Cases of test_frames.c: host functions between copies of one graph, and the copies that are made while one runs.
 */
#ifndef FRAMES_MIX_H
#define FRAMES_MIX_H

/* Copies beside all order are checked as others are, one at a time. */
static void case_beside(void) {
    static const unsigned char data[100];
    const uint64_t stream = handle(TPG_STREAM, 0);
    SEND(0, beside_out, CALL, .source = 4096, .size = 4096, .stream = stream);
    SEND(0, beside_in, CALL, .destination = ADDRESS, .stream = handle(TPG_STREAM, 77), .data = data, .data_size = 100);
    for (int i = 0; i < 3; i++) {
        SEND(0, beside_in, CALL, .destination = ADDRESS, .stream = stream, .data = data, .data_size = 100);
        fuzz_link_pause(the_link);
        SEND(0, beside_out, CALL, .source = ADDRESS, .size = 100, .stream = stream);
        fuzz_link_pause(the_link);
    }
}

static void case_beside_two(void) {
    SEND(0, beside_out, CALL, .source = ADDRESS, .size = 100, .stream = handle(TPG_STREAM, 0));
    SEND(0, beside_out, CALL, .source = ADDRESS, .size = 100, .stream = handle(TPG_STREAM, 0));
}

static void case_beside_long(void) {
    SEND(0, beside_out, CALL, .source = ADDRESS, .size = TP_INLINE_MAX + 1, .stream = handle(TPG_STREAM, 0));
}

static void case_beside_post(void) {
    SEND(0, beside_out, 0, .source = ADDRESS, .size = 100, .stream = handle(TPG_STREAM, 0));
}

/* A client says for which executable graph it wants to be told of functions: any number, twice, also where nothing comes of it. */
static void case_mix(void) {
    const uint64_t graph = handle(TPG_GRAPH, 0), exec = handle(TPG_GRAPHEXEC, 0);
    SEND(0, cuGraphCreate, CALL, .phGraph = graph);
    SEND(0, graph_host, CALL, .owner = graph, .node = handle(TPG_GRAPHNODE, 0), .token = 5);
    SEND(0, graph_host, CALL, .owner = graph, .node = handle(TPG_GRAPHNODE, 1), .token = 6);
    SEND(0, graph_instantiate, CALL, .graph = graph, .exec = exec, .mix = UINT64_MAX);
    SEND(0, graph_instantiate, CALL, .graph = graph, .exec = handle(TPG_GRAPHEXEC, 1), .mix = UINT64_MAX);
    SEND(0, graph_instantiate, CALL, .graph = graph, .exec = handle(TPG_GRAPHEXEC, 2), .flags = 4, .mix = 9);
    SEND(0, graph_update, CALL, .exec = exec, .graph = graph, .mix = 7);
    SEND(0, cuGraphLaunch, CALL, .hGraph = exec, .hStream = handle(TPG_STREAM, 0));
    SEND(0, graph_update, CALL, .exec = exec, .graph = graph, .mix = 7);
    SEND(0, graph_update, CALL, .exec = exec, .graph = graph);
    SEND(0, graph_host_get, CALL, .node = handle(TPG_GRAPHNODE, 1));
    SEND(0, cuGraphExecDestroy, 0, .hGraphExec = exec);
    SEND(0, graph_destroy, CALL, .graph = graph);
    let_it_look();
    for (uint64_t number = 0; number < 4; number++) {
        SEND(0, host_function_done, 0, .token = 5 + number % 2, .number = number);
        SEND(0, host_function_done, 0, .token = 6 - number % 2, .number = number);
        let_it_look();
    }
}

#endif
