/*
 * Stream capture and graphs through the whole stack: the checks that the simulated GPU passes by itself, in a client.
 *
 * One thread, except where a check says otherwise; nothing is read but the test's own words.
 */
#include "../native/graph_checks.h"
#include "stack.h"

int role_graphs(int count, char **words) {
    (void)count, (void)words;
    start();
    CUmodule module = load_kernels();
    graph_bench_t bench = graph_bench(module);
    check_capture_and_replay(&bench);
    check_capture_errors(&bench);
    check_work_beside_a_capture(&bench);
    graph_bench_end(&bench);
    OK(cuModuleUnload(module));
    say("right");
    return 0;
}
