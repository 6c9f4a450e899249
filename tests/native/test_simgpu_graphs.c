// Simulated GPU: stream capture, graphs built node by node, executable graphs, user objects.
#include "graph_checks.h"

int main(void) {
    start();
    CUmodule module = load_kernels();
    graph_bench_t bench = graph_bench(module);
    check_capture_and_replay(&bench);
    check_capture_errors(&bench);
    check_work_beside_a_capture(&bench);
    graph_bench_end(&bench);
    OK(cuModuleUnload(module));
    puts("ok");
    return 0;
}
