// Simulated GPU: arrays, mipmaps, copies with them, texture and surface objects.
#include "array_checks.h"

int main(void) {
    start();
    CUmodule module = load_kernels();
    check_arrays(module);
    OK(cuModuleUnload(module));
    puts("ok");
    return 0;
}
