/*
 * What is older than CUDA 4, older forms, texture references, contexts, and what a driver was asked last, through the whole stack: the checks that
 * the simulated GPU passes by itself, in a client.
 *
 * One thread; nothing is read but the test's own bytes.
 */
#include "../native/answered_checks.h"
#include "../native/context_checks.h"
#include "../native/measured_checks.h"
#include "../native/older_checks.h"
#include "../native/parts_checks.h"
#include "../native/reference_checks.h"
#include "stack.h"

int role_parts(int count, char **words) {
    (void)count, (void)words;
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
    say("right");
    return 0;
}
