/* Loading of the driver library and the few helpers that every C program here shares; see cu.h.
 *
 * Owns the function table `cu`. Entered by the main thread only, before anything else. Reads /proc/self/maps and the
 * file named by KERNELS_PTX, both trusted: these are test programs that run on the tester's own machine.
 */
#include "cu.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

_Static_assert(sizeof(CUDA_MEMCPY2D) == 128, "layout of CUDA_MEMCPY2D");
_Static_assert(sizeof(CUlaunchAttribute) == 72, "layout of CUlaunchAttribute");
_Static_assert(sizeof(CUlaunchConfig) == 56, "layout of CUlaunchConfig");
_Static_assert(sizeof(CUmemPoolProps) == 88, "layout of CUmemPoolProps");
_Static_assert(sizeof(CUmemAllocationProp) == 32, "layout of CUmemAllocationProp");
_Static_assert(sizeof(CUmemAccessDesc) == 12, "layout of CUmemAccessDesc");

struct cu_table cu;

void cu_load(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (library == NULL) {
        fprintf(stderr, "libcuda.so.1 cannot be loaded: %s\n", dlerror());
        exit(3);
    }
    int missing = 0;
    void *symbol;
#define CU_RESOLVE(name, parameters)                                                                                   \
    symbol = dlsym(library, #name);                                                                                    \
    if (symbol == NULL) {                                                                                              \
        fprintf(stderr, "libcuda.so.1 does not export %s\n", #name);                                                   \
        missing++;                                                                                                     \
    }                                                                                                                  \
    memcpy(&cu.name, &symbol, sizeof symbol);
    CU_FUNCTIONS(CU_RESOLVE)
#undef CU_RESOLVE
    if (missing != 0) {
        fprintf(stderr, "%d functions are missing from libcuda.so.1\n", missing);
        exit(3);
    }
}

void cu_must(CUresult result, const char *what) {
    if (result != 0) {
        fprintf(stderr, "%s failed with %d\n", what, result);
        exit(4);
    }
}

char *cu_kernels_ptx(void) {
    const char *path = getenv("KERNELS_PTX");
    FILE *file = path != NULL ? fopen(path, "rb") : NULL;
    if (file == NULL) {
        fprintf(stderr, "KERNELS_PTX must name the file kernels.ptx, it is %s\n", path != NULL ? path : "not set");
        exit(2);
    }
    enum { LIMIT = 1 << 20 };
    char *text = malloc(LIMIT);
    size_t length = text != NULL ? fread(text, 1, LIMIT - 1, file) : 0;
    fclose(file);
    if (length == 0 || length == LIMIT - 1) {
        fprintf(stderr, "%s is empty or larger than %d bytes\n", path, LIMIT);
        exit(2);
    }
    text[length] = '\0';
    return text;
}

void cu_mapped_libraries(char *text, size_t size) {
    char line[4400], last[4400] = "";
    size_t used = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    used += (size_t)snprintf(text, size, "[");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        char *path = strchr(line, '/');
        if (path == NULL)
            continue;
        path[strcspn(path, "\n")] = '\0';
        const char *base = strrchr(path, '/') + 1;
        if (strncmp(base, "libcuda.so", 10) != 0 && strncmp(base, "libteleport.so", 14) != 0)
            continue;
        if (strcmp(path, last) == 0)
            continue;
        strcpy(last, path);
        int wrote = snprintf(text + used, size - used, "%s\"%s\"", used > 1 ? ", " : "", path);
        if (wrote < 0 || (size_t)wrote >= size - used)
            break;
        used += (size_t)wrote;
    }
    if (maps != NULL)
        fclose(maps);
    if (used + 2 <= size)
        strcpy(text + used, "]");
}

uint64_t cu_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
