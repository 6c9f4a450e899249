/*
 * Arrays and textures through the whole stack: the checks that the simulated GPU passes by itself, in a client.
 *
 * One thread; nothing is read but the test's own bytes.
 */
#include "../native/array_checks.h"
#include "stack.h"

/* Levels end with their mipmap in the client, too: their places are taken again (tp_handle_make has the bits). */
static void levels_give_their_places_back(void) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = array_shape(16, 16, 0, 0);
    for (int i = 0; i < 1000; i++) {
        CUmipmappedArray mipmap;
        CUarray level;
        OK(cuMipmappedArrayCreate(&mipmap, &shape, 1));
        OK(cuMipmappedArrayGetLevel(&level, mipmap, 0));
        CHECK(((uintptr_t)level >> 4 & 0xfffff) < 500);
        OK(cuMipmappedArrayDestroy(mipmap));
        CHECK(cuMipmappedArrayGetLevel(&level, mipmap, 0) == CUDA_ERROR_INVALID_HANDLE);
    }
}

int role_arrays(int count, char **words) {
    (void)count, (void)words;
    start();
    CUmodule module = load_kernels();
    check_arrays(module);
    levels_give_their_places_back();
    OK(cuModuleUnload(module));
    say("right");
    return 0;
}
