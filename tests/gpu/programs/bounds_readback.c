/* A few bytes that a kernel has just written, in every way in which the CPU could come to see them.
 *
 * `mixed`: variants in turn, the stream synchronised (untimed) after each sample, so that none inherits the driver's state
 * of another. `burst`: many of one variant in a row, the first few not counted, as in a loop of v.sum().item(); nothing
 * but what the variant itself waits for. Every sample has another value, which is looked at.
 *
 * One thread, and a second that submits in the variant `handed_over`: what the hand-over to another core costs.
 */
#include "bounds.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST = 256, WORD_AT = 0, LANDING_AT = 4096, ROOM = 8192, NUMBERS = 1 << 16, BURST = 24, UNCOUNTED = 4 };

/* Two kernels that store to the host themselves: bounds_store the bytes, bounds_store_word the bytes and, when all of them are
 * visible to the host, the word. One thread a byte, one block. Old versions, which every driver's compiler takes. */
static const char store_text[] =
    ".address_size 64\n"
    ".visible .entry bounds_store(.param .u64 to, .param .u64 from, .param .u32 size) {\n"
    "  .reg .pred %p; .reg .b16 %h; .reg .b32 %r<3>; .reg .b64 %d<5>;\n"
    "  ld.param.u64 %d0, [to]; ld.param.u64 %d1, [from]; ld.param.u32 %r0, [size];\n"
    "  cvta.to.global.u64 %d0, %d0; cvta.to.global.u64 %d1, %d1;\n"
    "  mov.u32 %r1, %tid.x; setp.ge.u32 %p, %r1, %r0; @%p bra done;\n"
    "  cvt.u64.u32 %d2, %r1; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;\n"
    "  ld.global.u8 %h, [%d4]; st.global.u8 [%d3], %h;\n"
    "done: ret;\n}\n"
    ".visible .entry bounds_store_word(.param .u64 to, .param .u64 from, .param .u32 size, .param .u64 word,\n"
    "                                  .param .u64 number) {\n"
    "  .reg .pred %p<2>; .reg .b16 %h; .reg .b32 %r<3>; .reg .b64 %d<7>;\n"
    "  ld.param.u64 %d0, [to]; ld.param.u64 %d1, [from]; ld.param.u32 %r0, [size];\n"
    "  ld.param.u64 %d5, [word]; ld.param.u64 %d6, [number];\n"
    "  cvta.to.global.u64 %d0, %d0; cvta.to.global.u64 %d1, %d1; cvta.to.global.u64 %d5, %d5;\n"
    "  mov.u32 %r1, %tid.x; setp.ge.u32 %p0, %r1, %r0; @%p0 bra stored;\n"
    "  cvt.u64.u32 %d2, %r1; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;\n"
    "  ld.global.u8 %h, [%d4]; st.global.u8 [%d3], %h; membar.sys;\n"
    "stored: bar.sync 0;\n"
    "  setp.ne.u32 %p1, %r1, 0; @%p1 bra done;\n"
    "  membar.sys; st.volatile.global.u64 [%d5], %d6;\n"
    "done: ret;\n}\n";

static struct {
    CUfunction store, store_word; /* NULL: not there */
    CUdeviceptr source, numbers;  /* what fill_u32 writes; 0, 1, 2, … as 64-bit words */
    struct pinned host, shared;
    CUstream stream;
    size_t size;
    uint64_t number; /* of the last sample */
} r;

static _Atomic uint64_t *word(void) { return (_Atomic uint64_t *)(void *)(r.shared.memory + WORD_AT); }
static CUdeviceptr shared_landing(void) { return r.shared.device + LANDING_AT; }

/* When each call had returned. `landing`: where the value must be then, NULL for a variant that brings none. */
struct sample {
    uint64_t begun, launched, copied, marked, seen;
    const unsigned char *landing;
};

static void kernel(struct sample *s) {
    s->begun = cu_now_ns();
    launch_fill(r.source, (uint32_t)r.number, r.size / 4, r.stream);
    s->marked = s->copied = s->launched = cu_now_ns();
}

static void copy(struct sample *s, const struct pinned *to) {
    unsigned char *landing = to->memory + LANDING_AT;
    cu_must(cu.cuMemcpyDtoHAsync_v2(landing, r.source, r.size, r.stream), "cuMemcpyDtoHAsync");
    s->landing = landing;
    s->marked = s->copied = cu_now_ns();
}

static void store(struct sample *s, struct pinned *to) {
    CUdeviceptr address = to->device + LANDING_AT;
    uint32_t size = (uint32_t)r.size;
    void *arguments[] = {&address, &r.source, &size};
    cu_must(cu.cuLaunchKernel(r.store, 1, 1, 1, LARGEST, 1, 1, 0, r.stream, arguments, NULL), "launch of bounds_store");
    s->landing = to->memory + LANDING_AT;
    s->marked = s->copied = cu_now_ns();
}

static void write_word(struct sample *s) {
    cu_must(cu.cuStreamWriteValue64_v2(r.stream, r.shared.device + WORD_AT, r.number, 0), "cuStreamWriteValue64");
    s->marked = cu_now_ns();
}

static void synchronize(struct sample *s) {
    cu_must(cu.cuStreamSynchronize(r.stream), "cuStreamSynchronize");
    s->seen = cu_now_ns();
}

static void poll(struct sample *s) {
    poll_word(word(), r.number, "a read-back");
    s->seen = cu_now_ns();
}

static void copy_sync(struct sample *s) {
    kernel(s);
    copy(s, &r.host);
    synchronize(s);
}
static void copy_shared_sync(struct sample *s) {
    kernel(s);
    copy(s, &r.shared);
    synchronize(s);
}
static void copy_word(struct sample *s) {
    kernel(s);
    copy(s, &r.shared);
    write_word(s);
    poll(s);
}
static void copy_copy(struct sample *s) {
    kernel(s);
    copy(s, &r.shared);
    cu_must(cu.cuMemcpyDtoHAsync_v2(r.shared.memory + WORD_AT, r.numbers + r.number % NUMBERS * 8, 8, r.stream),
            "cuMemcpyDtoHAsync of the word");
    s->marked = cu_now_ns();
    poll_word(word(), r.number % NUMBERS, "a read-back by two copies");
    s->seen = cu_now_ns();
}
static void store_word_by_driver(struct sample *s) {
    kernel(s);
    store(s, &r.host);
    write_word(s);
    poll(s);
}
static void store_word_by_kernel(struct sample *s) {
    CUdeviceptr to = shared_landing(), at = r.shared.device + WORD_AT;
    uint32_t size = (uint32_t)r.size;
    void *arguments[] = {&to, &r.source, &size, &at, &r.number};
    kernel(s);
    cu_must(cu.cuLaunchKernel(r.store_word, 1, 1, 1, LARGEST, 1, 1, 0, r.stream, arguments, NULL),
            "launch of bounds_store_word");
    s->landing = r.shared.memory + LANDING_AT;
    s->marked = s->copied = cu_now_ns();
    poll(s);
}
static void word_alone(struct sample *s) {
    kernel(s);
    write_word(s);
    poll(s);
}
static void sync_alone(struct sample *s) {
    kernel(s);
    synchronize(s);
}

/* ---- the same from another core ---- */

static _Atomic uint64_t asked; /* the number that the other thread is to submit; UINT64_MAX: end */
static struct sample theirs;   /* written by the other thread before the GPU gets the word: read after it was seen */

static void *submit(void *unused) {
    cu_must(cu.cuCtxSetCurrent(bounds.context), "cuCtxSetCurrent");
    for (uint64_t last = 0, now;;) {
        unsigned looks = 0;
        while ((now = atomic_load_explicit(&asked, memory_order_acquire)) == last) /* pairs with handed_over() */
            if (++looks % 4096 == 0)
                sched_yield();
        if (now == UINT64_MAX)
            return unused;
        last = now;
        kernel(&theirs);
        copy(&theirs, &r.shared);
        write_word(&theirs);
    }
}

static void handed_over(struct sample *s) {
    s->begun = cu_now_ns();
    atomic_store_explicit(&asked, r.number, memory_order_release);
    poll_word(word(), r.number, "a read-back by another thread");
    s->seen = cu_now_ns();
    /* Its calls overlap the wait here, so they are no columns of this one. */
    s->launched = s->copied = s->marked = s->begun;
    s->landing = r.shared.memory + LANDING_AT;
}

/* ---- turns ---- */

static const struct variant {
    const char *name;
    void (*run)(struct sample *s);
    const CUfunction *needs;
    bool bursts_only;
} variants[] = {
    {"copy, sync", copy_sync, NULL, false},
    {"copy to shared, sync", copy_shared_sync, NULL, false},
    {"copy, word", copy_word, NULL, false},
    {"copy, copy of word", copy_copy, NULL, false},
    {"own store, word", store_word_by_driver, &r.store, false},
    {"own store of both", store_word_by_kernel, &r.store_word, false},
    {"word alone", word_alone, NULL, false},
    {"sync alone", sync_alone, NULL, false},
    {"copy, word, handed over", handed_over, NULL, true},
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static void take(const struct variant *variant, struct series *series) {
    struct sample s = {.landing = NULL};
    uint32_t came[LARGEST / 4];
    /* The word of copy_copy is a number below NUMBERS: it must differ from every word that can stand there. */
    r.number++;
    if (r.number % NUMBERS == 0)
        r.number++;
    variant->run(&s);
    bool right = true;
    if (s.landing != NULL) {
        memcpy(came, s.landing, r.size);
        for (size_t i = 0; i < r.size / 4; i++)
            right = right && came[i] == (uint32_t)r.number;
    }
    const uint64_t columns[COLUMNS] = {s.launched - s.begun, s.copied - s.launched, s.marked - s.copied,
                                       s.seen - s.begun};
    if (series != NULL)
        series_add(series, columns, right);
}

static bool there(const struct variant *variant, bool bursts) {
    return (variant->needs == NULL || *variant->needs != NULL) && (bursts || !variant->bursts_only);
}

static void burst_of(const struct variant *variant, struct series *series) {
    pthread_t other = 0;
    const bool two = variant->run == handed_over;
    if (two) {
        atomic_store(&asked, 0);
        if (pthread_create(&other, NULL, submit, NULL) != 0) {
            fprintf(stderr, "no second thread\n");
            exit(1);
        }
    }
    for (unsigned i = 0; i < BURST + UNCOUNTED; i++)
        take(variant, i < UNCOUNTED ? NULL : series);
    if (two) {
        atomic_store(&asked, UINT64_MAX);
        pthread_join(other, NULL);
    }
    cu_must(cu.cuStreamSynchronize(r.stream), "cuStreamSynchronize");
}

static void group(unsigned index, unsigned groups, bool own_stream, bool bursts, size_t size) {
    static const char *const columns[COLUMNS] = {"launch", "copy", "word", "total"};
    struct series series[VARIANTS];
    unsigned order[VARIANTS];
    char head[160];
    r.stream = own_stream ? bounds.stream : NULL;
    r.size = size;
    for (unsigned i = 0; i < VARIANTS; i++)
        series_open(&series[i], variants[i].name);
    for (unsigned i = 0; i < VARIANTS; i++)
        if (there(&variants[i], bursts))
            burst_of(&variants[i], NULL);
    for (unsigned turn = 0; time_left(index, groups, turn); turn += bursts ? BURST : 1) {
        shuffle(order, VARIANTS);
        for (unsigned i = 0; i < VARIANTS; i++) {
            const struct variant *variant = &variants[order[i]];
            if (!there(variant, bursts))
                continue;
            if (bursts) {
                burst_of(variant, &series[order[i]]);
            } else {
                take(variant, &series[order[i]]);
                cu_must(cu.cuStreamSynchronize(r.stream), "cuStreamSynchronize");
            }
        }
    }
    snprintf(head, sizeof head, "\"part\": \"readback\", \"stream\": \"%s\", \"mode\": \"%s\", \"bytes\": %zu",
             own_stream ? "own" : "default", bursts ? "burst" : "mixed", size);
    for (unsigned i = 0; i < VARIANTS; i++) {
        if (there(&variants[i], bursts))
            series_print(&series[i], columns, head);
        else
            free(series[i].values);
    }
}

/* Both kernels compiled, launched once and looked at: one that does nothing would end the part at its first sample. */
static void load_stores(void) {
    static const char *const versions[] = {".version 6.0\n.target sm_52\n", ".version 6.4\n.target sm_75\n"};
    char text[sizeof store_text + 64];
    CUmodule module = NULL;
    CUresult result = 0;
    for (size_t i = 0; i < sizeof versions / sizeof *versions && module == NULL; i++) {
        snprintf(text, sizeof text, "%s%s", versions[i], store_text);
        result = cu.cuModuleLoadData(&module, text);
        if (result != 0) {
            module = NULL;
            say_absent("readback", "own kernels for an old target", "cuModuleLoadData of text %zu gave %d", i, result);
        }
    }
    if (module == NULL) {
        say_absent("readback", "own store, word", "cuModuleLoadData gave %d", result);
        say_absent("readback", "own store of both", "cuModuleLoadData gave %d", result);
        return;
    }
    cu_must(cu.cuModuleGetFunction(&r.store, module, "bounds_store"), "cuModuleGetFunction");
    cu_must(cu.cuModuleGetFunction(&r.store_word, module, "bounds_store_word"), "cuModuleGetFunction");
    uint32_t size = 4;
    uint64_t number = UINT64_MAX; /* no number of a sample */
    CUdeviceptr to = shared_landing(), at = r.shared.device + WORD_AT;
    void *arguments[] = {&to, &r.source, &size, &at, &number};
    CUfunction *const functions[] = {&r.store, &r.store_word};
    static const char *const names[] = {"own store, word", "own store of both"};
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t came = 0;
        launch_fill(r.source, i + 1, 1, bounds.stream);
        result = cu.cuLaunchKernel(*functions[i], 1, 1, 1, LARGEST, 1, 1, 0, bounds.stream, arguments, NULL);
        result = result != 0 ? result : cu.cuStreamSynchronize(bounds.stream);
        memcpy(&came, r.shared.memory + LANDING_AT, sizeof came);
        if (result != 0)
            say_absent("readback", names[i], "cuLaunchKernel gave %d", result);
        else if (came != i + 1 || (i == 1 && atomic_load(word()) != number))
            say_absent("readback", names[i], "it stored %u instead of %u, or no word", came, i + 1);
        if (result != 0 || came != i + 1 || (i == 1 && atomic_load(word()) != number))
            *functions[i] = NULL;
    }
    atomic_store(word(), 0);
}

void bounds_readback(void) {
    static uint64_t numbers[NUMBERS];
    static const size_t sizes[] = {4, 256};
    enum { GROUPS = 8 };
    for (uint64_t i = 0; i < NUMBERS; i++)
        numbers[i] = i;
    cu_must(cu.cuMemAlloc_v2(&r.source, LARGEST), "cuMemAlloc");
    cu_must(cu.cuMemAlloc_v2(&r.numbers, sizeof numbers), "cuMemAlloc");
    cu_must(cu.cuMemcpyHtoD_v2(r.numbers, numbers, sizeof numbers), "cuMemcpyHtoD");
    cu_must(cu.cuCtxSynchronize(), "cuCtxSynchronize");
    if (!pinned_alloc(&r.host, "readback", "hostalloc", ROOM) || !pinned_alloc(&r.shared, "readback", "shm", ROOM)) {
        fprintf(stderr, "without shared memory that the driver takes there is nothing to compare\n");
        exit(1);
    }
    load_stores();
    for (unsigned i = 0; i < GROUPS; i++)
        group(i, GROUPS, (i & 1) == 0, (i & 2) != 0, sizes[i >> 2]);
    pinned_free(&r.shared);
    pinned_free(&r.host);
}
