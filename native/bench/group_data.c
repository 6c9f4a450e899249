/*
 * Groups that move or provide memory: copies by size, direction, memory and call; memset; allocation.
 *
 * Small copies go to as many places as fit into 16 MiB before they are looked at, large ones are looked at one by one, always
 * outside the timed section. Each copy takes its bytes from another offset of one pattern than the copy before it to the same
 * place, so that a copy that did not happen leaves wrong bytes. Single-threaded; the device is the only other writer.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OFFSETS 16u
#define SHIFT 64u
#define SPARE ((size_t)OFFSETS * SHIFT)
#define ROUND_BYTES (16 * MIB)
#define COPIES 64u

static void fill_pattern(unsigned char *memory, size_t size) {
    uint64_t state = 0x243f6a8885a308d3u;
    for (size_t at = 0; at < size; at += sizeof state) {
        state += 0x9e3779b97f4a7c15u;
        uint64_t word = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
        word ^= word >> 27;
        memcpy(memory + at, &word, size - at < sizeof word ? size - at : sizeof word);
    }
}

struct memory {
    bool pinned;
    unsigned char *pattern; /* the bytes to be copied */
    unsigned char *host;    /* where copies from the device arrive */
    CUdeviceptr device;
};

static unsigned char *host_alloc(bool pinned, size_t size) {
    void *memory = NULL;
    if (pinned)
        MUST(cuMemAllocHost_v2, &memory, size);
    else
        memory = malloc(size);
    if (!memory)
        fail("There is no memory for %zu bytes.", size);
    return memory;
}

static void host_free(bool pinned, unsigned char *memory) {
    if (pinned)
        MUST(cuMemFreeHost, memory);
    else
        free(memory);
}

struct copy {
    bool to_device, asynchronous;
    size_t size;
    unsigned copies;
};

/* The piece of the pattern that copy `number` of a round carries; never that of the round before. */
static size_t offset_of(unsigned round, unsigned number) { return (round + number) % OFFSETS * SHIFT; }

static void copy_once(const struct memory *m, const struct copy *c, unsigned round, unsigned number, struct series *s) {
    size_t from = offset_of(round, number), to = number * c->size;
    struct series unwanted = {.most = 0};
    struct series *timed = s ? s : &unwanted;
    sample_begin(timed);
    if (c->to_device && c->asynchronous)
        MUST(cuMemcpyHtoDAsync_v2, m->device + to, m->pattern + from, c->size, stream);
    else if (c->to_device)
        MUST(cuMemcpyHtoD_v2, m->device + to, m->pattern + from, c->size);
    else if (c->asynchronous)
        MUST(cuMemcpyDtoHAsync_v2, m->host + to, m->device + from, c->size, stream);
    else
        MUST(cuMemcpyDtoH_v2, m->host + to, m->device + from, c->size);
    if (c->asynchronous)
        MUST(cuStreamSynchronize, stream);
    sample_end(timed);
}

static void check_round(const struct memory *m, const struct copy *c, unsigned round, const char *what) {
    if (c->to_device)
        MUST(cuMemcpyDtoH_v2, m->host, m->device, c->copies * c->size);
    for (unsigned number = 0; number < c->copies; number++)
        expect_same(m->host + number * c->size, m->pattern + offset_of(round, number), c->size, what);
}

/* One round, checked. With a series its copies are samples. */
static void run_round(const struct memory *m, const struct copy *c, unsigned round, struct series *s,
                      const char *what) {
    for (unsigned number = 0; number < c->copies; number++)
        copy_once(m, c, round, number, s);
    check_round(m, c, round, what);
}

static void measure_copy(const struct memory *m, const struct copy *c) {
    char name[96];
    struct series s;
    unsigned round = 0;
    snprintf(name, sizeof name, "%s %s %s", c->to_device ? "H2D" : "D2H", m->pinned ? "pinned" : "pageable",
             c->asynchronous ? "async" : "sync");
    memset(m->host, 0xa5, c->copies * c->size);
    if (c->to_device)
        MUST(cuMemcpyHtoD_v2, m->device, m->host, c->copies * c->size);
    else
        MUST(cuMemcpyHtoD_v2, m->device, m->pattern, c->size + SPARE);
    MUST(cuCtxSynchronize);
    run_round(m, c, round, NULL, name);
    series_open(&s, name, c->size, options.quick ? 256 : 4096);
    while (series_wants(&s))
        run_round(m, c, ++round, &s, name);
    series_close(&s);
    /* the digest is of round 1, whatever the number of rounds was */
    if (round % OFFSETS == 1)
        run_round(m, c, 2, NULL, name);
    run_round(m, c, 1, NULL, name);
    group_digest(m->host, c->copies * c->size);
}

void group_copy(void) {
    size_t room = (options.most_bytes > ROUND_BYTES ? options.most_bytes : ROUND_BYTES) + SPARE;
    for (int pinned = 0; pinned < 2; pinned++) {
        struct memory m = {.pinned = pinned};
        m.pattern = host_alloc(pinned, room);
        m.host = host_alloc(pinned, room);
        fill_pattern(m.pattern, room);
        MUST(cuMemAlloc_v2, &m.device, room);
        for (size_t size = 4; size <= options.most_bytes; size *= 4) {
            for (int way = 0; way < 4; way++) {
                struct copy c = {.to_device = way < 2, .asynchronous = way & 1, .size = size};
                size_t fit = ROUND_BYTES / size;
                c.copies = fit > COPIES ? COPIES : fit ? (unsigned)fit : 1;
                measure_copy(&m, &c);
            }
        }
        MUST(cuMemFree_v2, m.device);
        host_free(pinned, m.host);
        host_free(pinned, m.pattern);
    }
}

/* ---- memset ---- */

static void check_bytes(CUdeviceptr device, unsigned char *host, size_t size, unsigned char value, const char *what) {
    MUST(cuMemcpyDtoH_v2, host, device, size);
    for (size_t i = 0; i < size; i++)
        if (host[i] != value)
            fail("Wrong result of %s: byte %zu is %#x and should be %#x.", what, i, host[i], value);
}

void group_memset(void) {
    static const size_t sizes[] = {4 * KIB, MIB, 64 * MIB};
    struct series s;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && sizes[i] <= options.most_bytes; i++) {
        CUdeviceptr device;
        unsigned char value = 0;
        unsigned char *host = host_alloc(false, sizes[i]);
        MUST(cuMemAlloc_v2, &device, sizes[i]);
        for (int asynchronous = 0; asynchronous < 2; asynchronous++) {
            const char *name =
                asynchronous ? "cuMemsetD8Async + cuStreamSynchronize" : "cuMemsetD32 + cuCtxSynchronize";
            series_open(&s, name, sizes[i], 2000);
            while (series_wants(&s)) {
                value++;
                sample_begin(&s);
                if (asynchronous) {
                    MUST(cuMemsetD8Async, device, value, sizes[i], stream);
                    MUST(cuStreamSynchronize, stream);
                } else {
                    MUST(cuMemsetD32_v2, device, 0x01010101u * value, sizes[i] / 4);
                    MUST(cuCtxSynchronize);
                }
                sample_end(&s);
                /* all of it when small; when large reading back would take the whole budget */
                size_t looked_at = sizes[i] <= MIB ? sizes[i] : 4 * KIB;
                check_bytes(device + sizes[i] - looked_at, host, looked_at, value, name);
            }
            series_close(&s);
            check_bytes(device, host, sizes[i], value, name);
        }
        MUST(cuMemsetD8Async, device, 0x3c, sizes[i], stream);
        MUST(cuStreamSynchronize, stream);
        check_bytes(device, host, sizes[i], 0x3c, "cuMemsetD8Async");
        group_digest(host, sizes[i]);
        MUST(cuMemFree_v2, device);
        host_free(false, host);
    }
}

/* ---- allocation ---- */

enum way { LINEAR, POOL, PINNED };

static void series_of_allocation(enum way way, size_t size, size_t most) {
    static const char *const allocate[] = {"cuMemAlloc", "cuMemAllocAsync", "cuMemAllocHost"};
    static const char *const release[] = {"cuMemFree", "cuMemFreeAsync", "cuMemFreeHost"};
    struct series a, f;
    uint32_t back = 0, value = 0;
    series_open(&a, allocate[way], size, most);
    series_open(&f, release[way], size, most);
    while (series_wants(&a)) {
        CUdeviceptr device = 0;
        void *host = NULL;
        sample_begin(&a);
        if (way == LINEAR)
            MUST(cuMemAlloc_v2, &device, size);
        else if (way == POOL)
            MUST(cuMemAllocAsync, &device, size, stream);
        else
            MUST(cuMemAllocHost_v2, &host, size);
        sample_end(&a);
        /* the memory is used, both ends of it, or its allocation would be a promise only */
        value++;
        if (way == PINNED) {
            ((volatile unsigned char *)host)[0] = (unsigned char)value;
            ((volatile unsigned char *)host)[size - 1] = (unsigned char)value;
        } else {
            launch_fill(device, value, 1);
            launch_fill(device + size - 4, value, 1);
            MUST(cuMemcpyDtoHAsync_v2, &back, device + size - 4, sizeof back, stream);
            MUST(cuStreamSynchronize, stream);
            expect_same(&back, &value, sizeof back, allocate[way]);
        }
        sample_begin(&f);
        if (way == LINEAR)
            MUST(cuMemFree_v2, device);
        else if (way == POOL)
            MUST(cuMemFreeAsync, device, stream);
        else
            MUST(cuMemFreeHost, host);
        sample_end(&f);
    }
    series_close(&a);
    series_close(&f);
}

void group_memory(void) {
    series_of_allocation(LINEAR, MIB, 2000);
    if (64 * MIB <= options.most_bytes)
        series_of_allocation(LINEAR, 64 * MIB, 500);
    series_of_allocation(POOL, MIB, 5000);
    series_of_allocation(PINNED, MIB, 500);
    CUdeviceptr device;
    uint32_t words[64];
    MUST(cuMemAlloc_v2, &device, sizeof words);
    launch_fill(device, 0xA110Cu, 64);
    MUST(cuStreamSynchronize, stream);
    MUST(cuMemcpyDtoH_v2, words, device, sizeof words);
    group_digest(words, sizeof words);
    MUST(cuMemFree_v2, device);
}
