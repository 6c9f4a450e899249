// Simulated GPU: launching by parts, uses of contexts, texture references, older forms, files.
#include "answered_checks.h"
#include "context_checks.h"
#include "measured_checks.h"
#include "older_checks.h"
#include "parts_checks.h"
#include "reference_checks.h"

int main(void) {
    OK(cuInit(0));
    check_primary_that_is_over();
    CUcontext primary = start();
    check_measured(load_kernels);
    CUmodule module = load_kernels();
    check_answered(module);
    check_parts_launch(module);
    check_uses_of_contexts(primary);
    check_older_graphs(module);
    check_older_capture();
    check_names(module);
    check_files(kernels_ptx);
    OK(cuModuleUnload(module));
    check_references();
    check_contexts(load_kernels);
    check_parts_in_a_broken_context();
    puts("ok");
    return 0;
}
