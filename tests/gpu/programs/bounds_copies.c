/* Copies between pinned memory and the device, by where the memory comes from, the size and what is waited for.
 *
 * Each sample carries a stamp of its own in every STRIDE bytes and in the last word, written and read outside the timed section;
 * each buffer is once compared in full in each direction. One thread.
 */
#include "bounds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STRIDE = 64 * KIB, WAITS = 4, SOURCES = 6, CELLS = SOURCES * WAITS, UNCOUNTED = 2 };

static const char *const waits[WAITS] = {"stream sync", "word", "event poll", "context sync"};
static struct pinned sources[SOURCES];
static struct pinned words; /* where the word is, a page for itself */
static CUdeviceptr device;
static CUevent event;
static uint64_t number;
static uint64_t *stamps; /* of one copy as it stands on the device */

/* The stamps of the device's first `size` bytes, out of or into `stamps`; waits. */
static void device_stamps(size_t size, bool write) {
    CUDA_MEMCPY2D area = {.WidthInBytes = sizeof *stamps, .Height = size / STRIDE};
    area.srcMemoryType = write ? 1 : 2;
    area.dstMemoryType = write ? 2 : 1;
    area.srcHost = area.dstHost = stamps;
    area.srcDevice = area.dstDevice = device;
    area.srcPitch = write ? sizeof *stamps : STRIDE;
    area.dstPitch = write ? STRIDE : sizeof *stamps;
    cu_must(cu.cuMemcpy2D_v2(&area), "cuMemcpy2D");
    const CUdeviceptr last = device + size - sizeof *stamps;
    uint64_t *at = &stamps[size / STRIDE];
    cu_must(write ? cu.cuMemcpyHtoD_v2(last, at, sizeof *at) : cu.cuMemcpyDtoH_v2(at, last, sizeof *at), "cuMemcpy");
}

static uint64_t *stamp_of(const struct pinned *source, size_t size, size_t index) {
    return (uint64_t *)(void *)(source->memory + (index < size / STRIDE ? index * STRIDE : size - sizeof *stamps));
}

static void wait_for(int wait, uint64_t *marked) {
    if (wait == 1)
        cu_must(cu.cuStreamWriteValue64_v2(bounds.stream, words.device, number, 0), "cuStreamWriteValue64");
    else if (wait == 2)
        cu_must(cu.cuEventRecord(event, bounds.stream), "cuEventRecord");
    *marked = cu_now_ns();
    if (wait == 0) {
        cu_must(cu.cuStreamSynchronize(bounds.stream), "cuStreamSynchronize");
    } else if (wait == 1) {
        poll_word((_Atomic uint64_t *)(void *)words.memory, number, "a copy");
    } else if (wait == 2) {
        CUresult result;
        while ((result = cu.cuEventQuery(event)) == 600) /* not ready */
            ;
        cu_must(result, "cuEventQuery");
    } else {
        cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    }
}

static void take(const struct pinned *source, int wait, bool up, size_t size, struct series *series) {
    const size_t count = size / STRIDE + 1;
    number++;
    for (size_t i = 0; i < count; i++) {
        if (up)
            *stamp_of(source, size, i) = number;
        stamps[i] = up ? 0 : number;
    }
    if (!up)
        device_stamps(size, true);
    cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    uint64_t marked = 0;
    const uint64_t begun = cu_now_ns();
    cu_must(up ? cu.cuMemcpyHtoDAsync_v2(device, source->memory, size, bounds.stream)
               : cu.cuMemcpyDtoHAsync_v2(source->memory, device, size, bounds.stream),
            "a pinned copy");
    const uint64_t copied = cu_now_ns();
    wait_for(wait, &marked);
    const uint64_t seen = cu_now_ns();
    bool right = true;
    if (up)
        device_stamps(size, false);
    for (size_t i = 0; i < count; i++)
        right = right && (up ? stamps[i] : *stamp_of(source, size, i)) == number;
    const uint64_t columns[COLUMNS] = {copied - begun, wait == 1 || wait == 2 ? marked - copied : 0, seen - begun, 0};
    if (series != NULL)
        series_add(series, columns, right);
}

static void size_and_direction(unsigned index, unsigned groups, bool up, size_t size) {
    static const char *const columns[COLUMNS] = {"copy", "mark", "total", NULL};
    struct series series[CELLS];
    unsigned order[CELLS];
    char head[CELLS][200];
    for (unsigned i = 0; i < CELLS; i++) {
        const struct pinned *source = &sources[i / WAITS];
        series_open(&series[i], waits[i % WAITS]);
        snprintf(head[i], sizeof head[i],
                 "\"part\": \"copies\", \"direction\": \"%s\", \"bytes\": %zu, \"source\": \"%s\"",
                 up ? "to device" : "from device", size, source->name);
        for (unsigned warm = 0; source->memory != NULL && warm < UNCOUNTED; warm++)
            take(source, (int)(i % WAITS), up, size, NULL);
    }
    for (unsigned turn = 0; time_left(index, groups, turn); turn++) {
        shuffle(order, CELLS);
        for (unsigned i = 0; i < CELLS; i++)
            if (sources[order[i] / WAITS].memory != NULL)
                take(&sources[order[i] / WAITS], (int)(order[i] % WAITS), up, size, &series[order[i]]);
    }
    for (unsigned i = 0; i < CELLS; i++) {
        if (sources[i / WAITS].memory != NULL)
            series_print(&series[i], columns, head[i]);
        else
            free(series[i].values);
    }
}

static void compare_in_full(struct pinned *source, unsigned char *pattern, size_t size) {
    memcpy(source->memory, pattern, size);
    cu_must(cu.cuMemsetD8_v2(device, 0, size), "cuMemsetD8");
    cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize"); /* our stream does not wait for the default one */
    cu_must(cu.cuMemcpyHtoDAsync_v2(device, source->memory, size, bounds.stream), "cuMemcpyHtoDAsync");
    cu_must(cu.cuStreamSynchronize(bounds.stream), "cuStreamSynchronize");
    memset(source->memory, 0, size);
    cu_must(cu.cuMemcpyDtoHAsync_v2(source->memory, device, size, bounds.stream), "cuMemcpyDtoHAsync");
    cu_must(cu.cuStreamSynchronize(bounds.stream), "cuStreamSynchronize");
    if (memcmp(source->memory, pattern, size) != 0) {
        fprintf(stderr, "%s: a copy there and back differs\n", source->name);
        exit(1);
    }
}

void bounds_copies(void) {
    static const char *const names[SOURCES] = {"hostalloc", "shm",       "shm_large",
                                               "shm_thp",   "memfd_thp", "memfd_hugetlb"};
    static const size_t sizes[] = {MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB};
    const size_t most = bounds.most_bytes;
    unsigned char *pattern = malloc(most);
    stamps = malloc((most / STRIDE + 1) * sizeof *stamps);
    if (pattern == NULL || stamps == NULL || !pinned_alloc(&words, "copies", "shm", 4096)) {
        fprintf(stderr, "there is no memory for the pattern, the stamps or the word\n");
        exit(1);
    }
    uint64_t state = 20261122;
    for (size_t i = 0; i < most; i++)
        pattern[i] = (unsigned char)((state = state * 6364136223846793005u + 1442695040888963407u) >> 56);
    cu_must(cu.cuMemAlloc_v2(&device, most), "cuMemAlloc");
    cu_must(cu.cuEventCreate(&event, 2), "cuEventCreate"); /* without timing */
    for (int i = 0; i < SOURCES; i++) {
        /* The session registers one large segment and copies from a part of it. */
        const size_t size = strcmp(names[i], "shm_large") == 0 ? 8 * most : most;
        if (pinned_alloc(&sources[i], "copies", names[i], size)) {
            compare_in_full(&sources[i], pattern, most);
            pinned_say(&sources[i]);
        }
        sources[i].name = names[i];
    }
    unsigned groups = 0;
    while (groups < sizeof sizes / sizeof *sizes && sizes[groups] <= most)
        groups++;
    for (unsigned i = 0; i < 2 * groups; i++)
        size_and_direction(i, 2 * groups, (i & 1) == 0, sizes[i / 2]);
    for (int i = 0; i < SOURCES; i++)
        pinned_free(&sources[i]);
    pinned_free(&words);
    free(pattern);
    free(stamps);
}
