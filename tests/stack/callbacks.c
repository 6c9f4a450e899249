/*
 * Host functions: what is permitted in them, and what becomes of those that the driver refuses.
 *
 * One thread, and the one that runs host functions. The names that `forbidden` calls come from the test.
 */
#include "stack.h"

#include <dlfcn.h>

static char **names;
static int name_count, wrong;

typedef CUresult (*any_function)(size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t,
                                 size_t);

static void call_all(void *unused) {
    (void)unused;
    for (int i = 0; i < name_count; i++) {
        void *found = dlsym(RTLD_DEFAULT, names[i]);
        any_function function;
        memcpy(&function, &found, sizeof function);
        CUresult result =
            function ? function(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) : CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND;
        if (result != CUDA_ERROR_NOT_PERMITTED) {
            fprintf(stderr, "%s gives %d in a host function\n", names[i], result);
            wrong++;
        }
    }
}

static void call_permitted(void *unused) {
    int version = 0;
    void *address = NULL;
    (void)unused;
    OK(cuDriverGetVersion(&version));
    OK(cuGetProcAddress_v2("cuInit", &address, 12000, CU_GET_PROC_ADDRESS_DEFAULT, NULL));
    CHECK(version && address);
}

static void call_all_in_callback(CUstream stream, CUresult status, void *user) {
    (void)stream;
    CHECK(status == CUDA_SUCCESS);
    call_all(user);
}

/* Every function of the library, with zeros for arguments, in host functions of all kinds. */
static void forbidden(void) {
    CUstream stream;
    CUuserObject object;
    int attribute = 0;
    start();
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuLaunchHostFunc(stream, call_permitted, NULL));
    OK(cuLaunchHostFunc(stream, call_all, NULL));
    OK(cuStreamAddCallback(stream, call_all_in_callback, NULL, 0));
    OK(cuStreamSynchronize(stream));
    OK(cuUserObjectCreate(&object, NULL, call_all, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
    OK(cuUserObjectRelease(object, 1));
    /* Behind them, since one thread runs all; and this thread may call. */
    OK(cuLaunchHostFunc(stream, call_permitted, NULL));
    OK(cuStreamSynchronize(stream));
    OK(cuDeviceGetAttribute(&attribute, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0));
    CHECK(attribute == 32 && name_count > 300);
    CHECK(!wrong);
}

static const struct check checks[] = {{"forbidden", forbidden}};

int role_callbacks(int count, char **words) {
    names = words + 1;
    name_count = count - 1;
    return run_check(checks, sizeof checks / sizeof *checks, count ? 1 : 0, words);
}
