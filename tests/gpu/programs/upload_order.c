/* When the driver reads the source of a copy to the device: behind host functions and downloads that write it.
 *
 * Prints one line for each question, "QUESTION = ANSWER". A host function waits, writes 2 over 1, and the answer is what the
 * device then has: 2 if the source was read when the stream got there, 1 if at the call, "mixed" if partly. "returns" says
 * whether the call came back while the function was still waiting: there the function waits for the caller, but for
 * 0.2 s at most, so that a call that blocks is an answer, too. The same binary runs on the machine's driver and
 * on the remote one. Host functions only sleep and write memory. Asynchronous copies of more than 1 MiB from pageable
 * memory are left out: the driver reads a first part at the call and the others when the stream is there.
 */
#include "cu.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MUST(call) cu_must((call), #call)

enum { ALLOCATED, REGISTERED, PAGEABLE };
enum { NON_BLOCKING = 1, DISABLE_TIMING = 2 };
static const char *const kinds[] = {"allocated", "registered", "pageable"};
static const size_t sizes[] = {4, 4096, 65536, 65540, 1 << 20, (1 << 20) + 4, 4 << 20, 64 << 20};

static struct {
    unsigned char *at;
    size_t size;
    _Atomic int returned, waited; /* the call came back; the function gave up waiting for that */
    _Atomic int kept;             /* the function waits for the caller */
} work;

static void write_two(void *user) {
    (void)user;
    usleep(20000);
    for (int i = 0; work.kept && !work.returned && i < 200; i++) {
        usleep(1000);
    }
    work.waited = work.kept && !work.returned;
    memset(work.at, 2, work.size);
}

static CUdeviceptr memory;
static unsigned char *got;

static unsigned char *make(int kind, size_t size) {
    void *at = NULL;
    const size_t whole = (size + 4095) & ~(size_t)4095;
    if (kind == ALLOCATED) {
        MUST(cu.cuMemHostAlloc(&at, size, 0));
    } else if (posix_memalign(&at, 4096, whole) != 0) {
        exit(1);
    }
    if (kind == REGISTERED) {
        MUST(cu.cuMemHostRegister_v2(at, whole, 0));
    }
    memset(at, 1, size);
    return at;
}

static void unmake(int kind, unsigned char *at) {
    if (kind == ALLOCATED) {
        MUST(cu.cuMemFreeHost(at));
        return;
    }
    if (kind == REGISTERED) {
        MUST(cu.cuMemHostUnregister(at));
    }
    free(at);
}

static void begin(unsigned char *at, size_t size, int kept) {
    work.at = at;
    work.size = size;
    work.returned = work.waited = 0;
    work.kept = kept;
}

static void tell(const char *what, int kind, size_t size) {
    size_t twos = 0;
    MUST(cu.cuCtxSynchronize());
    MUST(cu.cuMemcpyDtoH_v2(got, memory, size));
    for (size_t i = 0; i < size; i++) {
        twos += got[i] == 2;
    }
    printf("%s, %s, %zu bytes = %s%s\n", what, kinds[kind], size,
           twos == size ? "2"
           : twos       ? "mixed"
                        : "1",
           !work.kept    ? ""
           : work.waited ? ", blocks"
                         : ", returns");
}

/* A function that waits for the caller, and an asynchronous copy behind it in its stream. */
static void one_stream(int kind, size_t size, CUstream stream) {
    unsigned char *at = make(kind, size);
    begin(at, size, 1);
    MUST(cu.cuLaunchHostFunc(stream, write_two, NULL));
    MUST(cu.cuMemcpyHtoDAsync_v2(memory, at, size, stream));
    work.returned = 1;
    tell("one stream", kind, size);
    unmake(kind, at);
}

/* Behind an event of another stream. */
static void two_streams(int kind, size_t size, CUstream stream, CUstream other, CUevent event) {
    unsigned char *at = make(kind, size);
    begin(at, size, 1);
    MUST(cu.cuLaunchHostFunc(stream, write_two, NULL));
    MUST(cu.cuEventRecord(event, stream));
    MUST(cu.cuStreamWaitEvent(other, event, 0));
    MUST(cu.cuMemcpyHtoDAsync_v2(memory, at, size, other));
    work.returned = 1;
    tell("behind an event", kind, size);
    unmake(kind, at);
}

/* The synchronous form, behind a function in a blocking stream. */
static void synchronous(int kind, size_t size, CUstream blocking) {
    unsigned char *at = make(kind, size);
    begin(at, size, 1);
    MUST(cu.cuLaunchHostFunc(blocking, write_two, NULL));
    MUST(cu.cuMemcpyHtoD_v2(memory, at, size));
    work.returned = 1;
    tell("synchronous, behind a blocking stream", kind, size);
    unmake(kind, at);
}

static void rows(int kind, CUstream stream) {
    enum { WIDTH = 1000, PITCH = 1200, HEIGHT = 200 };
    unsigned char *at = make(kind, (size_t)PITCH * HEIGHT);
    CUDA_MEMCPY2D copy;
    memset(&copy, 0, sizeof copy);
    copy.srcMemoryType = 1;
    copy.srcHost = at;
    copy.srcPitch = PITCH;
    copy.dstMemoryType = 2;
    copy.dstDevice = memory;
    copy.dstPitch = WIDTH;
    copy.WidthInBytes = WIDTH;
    copy.Height = HEIGHT;
    begin(at, (size_t)PITCH * HEIGHT, 1);
    MUST(cu.cuLaunchHostFunc(stream, write_two, NULL));
    MUST(cu.cuMemcpy2DAsync_v2(&copy, stream));
    work.returned = 1;
    tell("rows", kind, (size_t)WIDTH * HEIGHT);
    unmake(kind, at);
}

/* What a download in front of it wrote. */
static void download(int kind, size_t size, CUstream stream, CUdeviceptr twos) {
    unsigned char *at = make(kind, size);
    unsigned char nothing[1];
    begin(nothing, 1, kind != PAGEABLE); /* a download into pageable memory waits for its stream */
    MUST(cu.cuMemsetD8Async(twos, 2, size, stream));
    MUST(cu.cuLaunchHostFunc(stream, write_two, NULL));
    MUST(cu.cuMemcpyDtoHAsync_v2(at, twos, size, stream));
    MUST(cu.cuMemcpyHtoDAsync_v2(memory, at, size, stream));
    work.returned = 1;
    tell("behind a download", kind, size);
    unmake(kind, at);
}

/* Whether the source's end waits for the copy, and what the device has then. */
static void freed(int kind, size_t size, CUstream stream) {
    unsigned char *at = make(kind, size);
    unsigned char nothing[1];
    begin(nothing, 1, 1);
    MUST(cu.cuMemsetD8Async(memory, 0, size, stream));
    memset(at, 2, size);
    MUST(cu.cuLaunchHostFunc(stream, write_two, NULL));
    MUST(cu.cuMemcpyHtoDAsync_v2(memory, at, size, stream));
    CUresult result = kind == ALLOCATED ? cu.cuMemFreeHost(at) : cu.cuMemHostUnregister(at);
    work.returned = 1;
    if (kind == REGISTERED) {
        memset(at, 9, size); /* the program may, once it has come back */
    }
    printf("the end of a source, %s, %zu bytes = %d\n", kinds[kind], size, result);
    tell("a source that ends", kind, size);
    if (kind == REGISTERED) {
        free(at);
    }
}

int main(void) {
    CUcontext context;
    CUstream one, other, blocking;
    CUevent event;
    CUdeviceptr twos;
    const size_t largest = sizes[sizeof sizes / sizeof *sizes - 1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    cu_load();
    MUST(cu.cuInit(0));
    MUST(cu.cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cu.cuCtxSetCurrent(context));
    MUST(cu.cuStreamCreate(&one, NON_BLOCKING));
    MUST(cu.cuStreamCreate(&other, NON_BLOCKING));
    MUST(cu.cuStreamCreate(&blocking, 0));
    MUST(cu.cuEventCreate(&event, DISABLE_TIMING));
    MUST(cu.cuMemAlloc_v2(&memory, largest));
    MUST(cu.cuMemAlloc_v2(&twos, largest));
    got = malloc(largest);
    for (int kind = ALLOCATED; kind <= PAGEABLE; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            if (kind != PAGEABLE || sizes[i] <= 1 << 20) {
                one_stream(kind, sizes[i], one);
                two_streams(kind, sizes[i], one, other, event);
            }
            synchronous(kind, sizes[i], blocking);
            download(kind, sizes[i], one, twos);
        }
        rows(kind, one);
    }
    for (int kind = ALLOCATED; kind <= REGISTERED; kind++) {
        freed(kind, 4, one);
        freed(kind, 4 << 20, one);
    }
    free(got);
    char libraries[8192];
    cu_mapped_libraries(libraries, sizeof libraries);
    printf("{\"digest\": \"\", \"metrics\": {}, \"libraries\": %s}\n", libraries);
    return 0;
}
