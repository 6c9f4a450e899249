/*
 * A client that works until somebody ends it: copies up and down, memsets, streams and events, allocations of many sizes, and
 * looks at every byte that comes back. Exit codes: 3 the worker is lost, 4 a byte is wrong, 5 a call gave what it should not.
 *
 *     endure SEED        until standard input ends
 *     endure free        prints the free bytes of device 0 and ends
 */
#include "tpg_cuda.h"

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOST 46
#define MOST (3u << 20)

static uint64_t state;

static uint32_t some(uint32_t below) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33) % below;
}

static void must(CUresult result, const char *what) {
    if (result == (CUresult)LOST) {
        exit(3);
    }
    if (result) {
        printf("%s gave %d\n", what, (int)result);
        exit(5);
    }
}
#define MUST(call) must(call, #call)

static void turn(unsigned char *sent, unsigned char *came, CUstream stream) {
    CUdeviceptr memory;
    CUevent event;
    const size_t size = some(4) ? 1 + some(64u << 10) : 1 + some(MOST), half = size / 2;
    const unsigned char value = (unsigned char)some(256);
    MUST(cuMemAlloc_v2(&memory, size));
    MUST(cuEventCreate(&event, 0));
    for (size_t i = 0; i < size; i += 1 + some(4096)) {
        sent[i] = (unsigned char)some(256);
    }
    MUST(cuMemcpyHtoDAsync_v2(memory, sent, size, stream));
    MUST(cuMemsetD8Async(memory + half, value, size - half, stream));
    MUST(cuEventRecord(event, stream));
    MUST(some(2) ? cuEventSynchronize(event) : cuStreamSynchronize(stream));
    MUST(cuMemcpyDtoH_v2(came, memory, size));
    if (memcmp(came, sent, half) != 0) {
        exit(4);
    }
    for (size_t i = half; i < size; i++) {
        if (came[i] != value) {
            exit(4);
        }
    }
    MUST(cuEventDestroy_v2(event));
    MUST(cuMemFree_v2(memory));
}

int main(int count, char **words) {
    CUcontext context;
    CUstream stream;
    size_t left, total;
    state = count > 1 ? strtoull(words[1], NULL, 10) : 1;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
    if (count > 1 && strcmp(words[1], "free") == 0) {
        MUST(cuMemGetInfo_v2(&left, &total));
        printf("%zu\n", left);
        return 0;
    }
    unsigned char *sent = calloc(2, MOST);
    MUST(cuStreamCreate(&stream, 0));
    printf("works\n");
    fflush(stdout);
    for (struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN}; sent && poll(&input, 1, 0) == 0;) {
        turn(sent, sent + MOST, stream);
    }
    return sent ? 0 : 5;
}
