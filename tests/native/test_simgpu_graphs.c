// Simulated GPU: stream capture, graphs built node by node, executable graphs, user objects.
#include "described_checks.h"
#include "graph_copy_checks.h"

int main(void) {
    start();
    CUmodule module = load_kernels();
    check_graphs(module);
    check_graph_copies(module);
    check_described(module);
    OK(cuModuleUnload(module));
    puts("ok");
    return 0;
}
