// Simulated GPU: stream capture, graphs built node by node, executable graphs, user objects.
#include "described_checks.h"
#include "graph_copy_checks.h"
#include "graph_mix_checks.h"
#include "graph_memory_checks.h"
#include "graph_set_checks.h"
#include "graph_condition_checks.h"

int main(void) {
    start();
    CUmodule module = load_kernels();
    check_graphs(module);
    check_graph_copies(module);
    check_graph_mixes(module);
    check_described(module);
    check_graph_memory_all(module);
    check_graph_set(module);
    check_conditions(module);
    OK(cuModuleUnload(module));
    puts("ok");
    return 0;
}
