/*
 * Arrays and textures through the whole stack: the checks that the simulated GPU passes by itself, in a client.
 *
 * One thread; nothing is read but the test's own bytes.
 */
#include "../native/array_checks.h"
#include "stack.h"

int role_arrays(int count, char **words) {
    (void)count, (void)words;
    start();
    CUmodule module = load_kernels();
    check_arrays(module);
    OK(cuModuleUnload(module));
    say("right");
    return 0;
}
