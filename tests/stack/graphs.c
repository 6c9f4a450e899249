/*
 * Stream capture and graphs through the whole stack: the checks that the simulated GPU passes by itself, in a client.
 *
 * One thread, except where a check says otherwise; nothing is read but the test's own words.
 */
#include "../native/described_checks.h"
#include "../native/graph_copy_checks.h"
#include "stack.h"

int role_graphs(int count, char **words) {
    (void)count, (void)words;
    start();
    CUmodule module = load_kernels();
    check_graphs(module);
    check_graph_copies(module);
    check_described(module);
    OK(cuModuleUnload(module));
    say("right");
    return 0;
}
