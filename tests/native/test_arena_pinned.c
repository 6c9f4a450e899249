/*
 * The client's pinned memory in the shared segment, by itself: runs, copies, and offsets that a client makes up.
 *
 * A real segment of this process with a real owners table, in which two clients have their rings; the fake driver checks
 * that nothing outside the memory that is pinned is ever copied. Part of test_arena.c. One thread.
 */
#include "test_arena.h"

#include <sys/mman.h>
#include <tp_segment.h>

#define SEGMENT (64 * MIB)
#define SLOT 3u
#define OTHER 5u

static struct tpw_segment segment;
static struct {
    uint64_t offset, size;
} runs[2000];
static size_t run_count;
static struct tp_interval all_of_it;

static bool pinned(const void *memory, size_t size) {
    uint64_t offset = (uint64_t)((const unsigned char *)memory - segment.base);
    for (size_t i = 0; i < run_count; i++) {
        if (offset >= runs[i].offset && offset - runs[i].offset <= runs[i].size &&
            size <= runs[i].size - (offset - runs[i].offset)) {
            return true;
        }
    }
    return false;
}

static int32_t take(uint64_t size, uint64_t *offset) {
    struct tpg_arena_take_in in = {.size = size};
    struct tpg_arena_take_out out = {0};
    int32_t error = tpw_arena_take(&session, &frame, &in, &out);
    if (!error) {
        CHECK(out.offset % TP_GRANULE == 0);
        CHECK(tp_arena_owns(segment.owners, SEGMENT, SLOT, out.offset, size));
        runs[run_count].offset = out.offset;
        runs[run_count++].size = size;
        *offset = out.offset;
    }
    return error;
}

static int32_t give(uint64_t offset, uint64_t size) {
    struct tpg_arena_give_in in = {.offset = offset, .size = size};
    int32_t error = tpw_arena_give(&session, &frame, &in);
    for (size_t i = 0; i < run_count && !error; i++) {
        if (runs[i].offset == offset) {
            runs[i] = runs[--run_count];
            break;
        }
    }
    return error;
}

static int32_t copy(bool in, uint64_t device, uint64_t pitch, uint64_t width, uint64_t height, uint64_t offset,
                    uint64_t host_pitch) {
    const struct tpg_area area = {device, pitch, width, height};
    return tpw_arena_copy(&session, &frame, &area, offset, host_pitch, 1, in);
}

static uint64_t device_alloc(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    GIVES(0, tpw_memory_alloc(&session, &frame, &in, &out));
    return out.address;
}

static void open_segment(void) {
    uint32_t first = 0, blocks = 0;
    begin(0);
    void *got = mmap((void *)TP_SEGMENT_ADDRESS, SEGMENT, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(got == (void *)TP_SEGMENT_ADDRESS);
    segment = (struct tpw_segment){.base = got,
                                   .size = SEGMENT,
                                   .device = TP_SEGMENT_ADDRESS,
                                   .owners = calloc(1, TP_OWNERS_BYTES(SEGMENT)),
                                   .slot = SLOT,
                                   .pieces = {{.offset = 0, .size = SEGMENT}},
                                   .piece_count = 1,
                                   .registered = true};
    CHECK(tp_segment_grant(got, SEGMENT, segment.owners, SLOT, &first, &blocks));
    CHECK(tp_segment_grant(got, SEGMENT, segment.owners, OTHER, &first, &blocks));
    all_of_it = (struct tp_interval){.start = TP_SEGMENT_ADDRESS, .size = SEGMENT};
    CHECK(tp_interval_add(&mapped, &all_of_it));
    session.segment = &segment;
    host_good = pinned;
    run_count = 0;
}

static void close_segment(void) {
    tpw_poll(&session);
    host_good = NULL;
    tp_interval_remove(&mapped, TP_SEGMENT_ADDRESS);
    end();
    munmap(segment.base, SEGMENT);
    free(segment.owners);
}

static void test_runs(void) {
    uint64_t a = 0, b = 0, c = 0;
    struct tpg_arena_take_out out;
    GIVES(CUDA_ERROR_INVALID_VALUE, take(0, &a));
    static const uint64_t huge[] = {SEGMENT, SEGMENT + 1, 1ull << 40, 1ull << 63, UINT64_MAX - TP_GRANULE, UINT64_MAX};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        GIVES(CUDA_ERROR_OUT_OF_MEMORY, take(huge[i], &a));
    }
    GIVES(0, take(1, &a));
    GIVES(0, take(TP_GRANULE + 1, &b));
    GIVES(0, take(TP_GRANULE, &c));
    CHECK(a != b && b != c && a != c);
    /* Only whole runs, once, from their beginning; and never the rings, which carry the slot's number too. */
    GIVES(CUDA_ERROR_INVALID_VALUE, give(a, 2));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(b, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(b + TP_GRANULE, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(tp_arena_at(), TP_GRANULE));
    CHECK(tp_arena_owns(segment.owners, SEGMENT, SLOT, tp_arena_at(), TP_GRANULE));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(UINT64_MAX, 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(0, 0));
    /* A run that was given up is not another's before the GPU has done what was queued, and no copy finds it. */
    uint64_t device = device_alloc(MIB), left = tp_arena_left(segment.owners, SEGMENT);
    GIVES(0, give(b, TP_GRANULE + 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(b, TP_GRANULE + 1));
    CHECK(tp_arena_left(segment.owners, SEGMENT) == left);
    CHECK(tp_arena_take(segment.owners, SEGMENT, OTHER, TP_GRANULE) != b);
    tp_segment_release(segment.base, SEGMENT, segment.owners, OTHER);
    uint64_t again = 0;
    GIVES(0, take(1, &again));
    CHECK(again != b && again != b + TP_GRANULE);
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(true, device, 1, 1, 1, b, 1));
    tpw_poll(&session);
    CHECK(!tp_arena_owns(segment.owners, SEGMENT, SLOT, b, 1));
    /* Another family's memory is not a run, and a run no device memory to be freed. */
    struct tpg_memory_free_in wrong = {.address = TP_SEGMENT_ADDRESS + a};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_free(&session, &frame, &wrong));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(device - TP_SEGMENT_ADDRESS, MIB));
    GIVES(0, give(a, 1));
    GIVES(0, give(c, TP_GRANULE));
    GIVES(0, give(again, 1));
    /* Full: what one client may have leaves a share for the next. */
    enum { MOST = 1000 };
    size_t before = run_count;
    while (take(TP_GRANULE, &a) == 0) {
        CHECK(run_count - before < MOST);
    }
    uint64_t kept = tp_arena_left(segment.owners, SEGMENT);
    CHECK(run_count > 100 && kept >= tp_arena_granules(SEGMENT) / 8 && kept >= tp_run_layout(0, 1).granules);
    uint32_t first, blocks;
    CHECK(tp_segment_grant(segment.base, SEGMENT, segment.owners, OTHER, &first, &blocks));
    /* What was given up comes back when the GPU goes on, and the next wish waits for it. */
    tp_segment_release(segment.base, SEGMENT, segment.owners, OTHER);
    GIVES(0, give(runs[0].offset, TP_GRANULE));
    gpu_runs = true;
    GIVES(0, take(TP_GRANULE, &a));
    while (run_count) {
        GIVES(0, give(runs[0].offset, runs[0].size));
    }
    /* Without a segment that the driver reaches at its address nobody is given anything. */
    segment.registered = false;
    GIVES(CUDA_ERROR_NOT_SUPPORTED, take(1, &a));
    segment.registered = true;
    segment.device += 4096;
    GIVES(CUDA_ERROR_NOT_SUPPORTED, take(1, &a));
    segment.device -= 4096;
    session.segment = NULL;
    struct tpg_arena_take_in in = {.size = 1};
    GIVES(CUDA_ERROR_NOT_SUPPORTED, tpw_arena_take(&session, &frame, &in, &out));
    GIVES(CUDA_ERROR_INVALID_VALUE, give(a, TP_GRANULE));
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(true, device, 1, 1, 1, a, 1));
    session.segment = &segment;
    struct tpg_memory_free_in in_use = {.address = device};
    GIVES(0, tpw_memory_free(&session, &frame, &in_use));
    tpw_poll(&session);
}

static void test_copies(void) {
    enum { WIDTH = 3001, HEIGHT = 100, PITCH = 3500, HOST_PITCH = 3333 };
    uint64_t run = 0, size = (uint64_t)HOST_PITCH * (HEIGHT - 1) + WIDTH + 10;
    GIVES(0, take(size, &run));
    device_base = device_alloc((uint64_t)PITCH * HEIGHT);
    device_memory = calloc(PITCH, HEIGHT);
    unsigned char *host = segment.base + run;
    for (uint64_t i = 0; i < size; i++) {
        host[i] = (unsigned char)(i * 7 + i / 251);
    }
    GIVES(0, copy(true, device_base, PITCH, WIDTH, HEIGHT, run + 10, HOST_PITCH));
    for (uint64_t y = 0; y < HEIGHT; y++) {
        CHECK(memcmp(device_memory + y * PITCH, host + 10 + y * HOST_PITCH, WIDTH) == 0);
    }
    memset(host, 0, size);
    GIVES(0, copy(false, device_base, PITCH, WIDTH, HEIGHT, run, HOST_PITCH));
    for (uint64_t y = 0; y < HEIGHT; y++) {
        CHECK(memcmp(device_memory + y * PITCH, host + y * HOST_PITCH, WIDTH) == 0);
        CHECK(y == HEIGHT - 1 || host[y * HOST_PITCH + WIDTH] == 0); /* between the rows nothing is written */
    }
    /* One past the end on either side, and every odd value in every place: the driver above checks what gets through. */
    GIVES(0, copy(true, device_base, size, size, 1, run, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(true, device_base, size, size, 1, run + 1, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(false, device_base, PITCH, WIDTH, HEIGHT, run + 11, HOST_PITCH));
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(false, device_base, PITCH, WIDTH, HEIGHT, run, WIDTH - 1));
    GIVES(0, copy(true, device_base, 0, 0, 5, UINT64_MAX, 0));
    const uint64_t odd[] = {0,           1,
                            WIDTH,       size - 1,
                            size,        size + 1,
                            run,         run + size - 1,
                            run + size,  tp_arena_at(),
                            SEGMENT - 1, SEGMENT,
                            1ull << 32,  1ull << 62,
                            UINT64_MAX,  (uint64_t)0 - TP_SEGMENT_ADDRESS,
                            device_base, device_base - TP_SEGMENT_ADDRESS};
    enum { N = sizeof odd / sizeof *odd };
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < N; k++) {
            for (size_t n = 0; n < N; n++) {
                for (size_t m = 0; m < N; m++) {
                    uint64_t rows = odd[n] < (1u << 20) ? odd[n] % 100 : odd[n]; /* real rows are copied one by one */
                    copy(m & 1, device_base, odd[k], odd[i], rows, odd[m], odd[(i + m) % N]);
                }
            }
        }
    }
    /* The device side may be pinned memory, too, and memsets and device copies reach it. */
    free(device_memory);
    device_memory = NULL;
    uint64_t other = 0;
    GIVES(0, take(size, &other));
    for (uint64_t i = 0; i < size; i++) {
        host[i] = (unsigned char)(i * 11 + i / 253);
    }
    GIVES(0, copy(true, TP_SEGMENT_ADDRESS + other, size, size, 1, run, size)); /* in several pieces, as rows are */
    CHECK(memcmp(segment.base + other, host, size) == 0);
    memset(segment.base + other, 0, size);
    GIVES(0, copy(true, TP_SEGMENT_ADDRESS + other, HOST_PITCH, WIDTH, HEIGHT, run + 10, HOST_PITCH));
    for (uint64_t y = 0; y < HEIGHT; y++) {
        const unsigned char *row = segment.base + other + y * HOST_PITCH;
        CHECK(memcmp(row, host + 10 + y * HOST_PITCH, WIDTH) == 0 && (y == HEIGHT - 1 || row[WIDTH] == 0));
    }
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(true, TP_SEGMENT_ADDRESS + other + 1, size, size, 1, run, size));
    GIVES(CUDA_ERROR_INVALID_VALUE, copy(true, TP_SEGMENT_ADDRESS, size, size, 1, run, size));
    struct tpg_cuMemsetD8Async_in set = {.dstDevice = TP_SEGMENT_ADDRESS + other, .N = size, .hStream = 1};
    GIVES(0, tpw_cuMemsetD8Async(&session, &frame, &set));
    set.N++;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_cuMemsetD8Async(&session, &frame, &set));
    struct tpg_copy_device_in across = {.rows = {TP_SEGMENT_ADDRESS + run, size, device_base, size, size, 1},
                                        .stream = 1};
    GIVES(0, tpw_copy_device(&session, &frame, &across, &only));
    GIVES(0, give(run, size));
    GIVES(0, give(other, size));
    struct tpg_memory_free_in in = {.address = device_base};
    GIVES(0, tpw_memory_free(&session, &frame, &in));
}

/* A word never overtakes what was said before it: it waits while that does not fit into the reply ring. */
static void test_words(void) {
    struct tpg_stream_mark_in in = {.stream = 1, .word = 7, .value = 41};
    const _Atomic uint64_t *word = &tp_slot_at(segment.base, SLOT)->done[7];
    gpu_runs = client_reads = false; /* the driver above has no cuStreamWriteValue64: the GPU would not wait */
    GIVES(0, tpw_stream_mark(&session, &frame, &in, &only));
    tpw_poll(&session);
    tpw_words_write(&session);
    CHECK(atomic_load(word) == 0);
    gpu_runs = true;
    tpw_poll(&session);
    CHECK(atomic_load(word) == 0); /* the stream has come there, but the client was not told what failed before */
    tpw_words_write(&session);
    CHECK(atomic_load(word) == 0);
    client_reads = true;
    tpw_words_write(&session);
    CHECK(atomic_load(word) == 41);
    segment.registered = false;
    in.value = 42;
    GIVES(0, tpw_stream_mark(&session, &frame, &in, &only));
    tpw_poll(&session);
    CHECK(atomic_load(word) == 42);
    segment.registered = true;
}

/* What the driver was asked to pin, and that no byte was pinned twice. */
static struct tpw_piece asked[16];
static size_t asked_count;
static CUresult pin(void *memory, size_t size, unsigned int flags) {
    uint64_t offset = (uint64_t)((unsigned char *)memory - segment.base);
    CHECK(flags == (CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP) && asked_count < 16);
    CHECK(offset % 4096 == 0 && size && offset + size <= segment.size);
    for (size_t i = 0; i < asked_count; i++) {
        CHECK(offset + size <= asked[i].offset || asked[i].offset + asked[i].size <= offset);
    }
    asked[asked_count++] = (struct tpw_piece){.offset = offset, .size = size};
    return CUDA_SUCCESS;
}
static CUresult does_not_pin(void *memory, size_t size, unsigned int flags) {
    (void)memory, (void)size, (void)flags;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static void in_one_piece(uint64_t offset, uint64_t size) {
    size_t holding = 0;
    for (size_t i = 0; i < asked_count; i++) {
        holding += offset >= asked[i].offset && offset + size <= asked[i].offset + asked[i].size;
    }
    CHECK(offset && holding == 1);
}

/* A client that waits has little pinned before it goes on; its pinned memory always lies in one piece. */
static void test_pieces(void) {
    enum { PIECES_MIB = 1024 };
    const uint64_t size = (uint64_t)PIECES_MIB * MIB, table = TP_OWNERS_BYTES(size);
    uint32_t first = 0, blocks = 0;
    begin(0);
    session.cuda.cuMemHostRegister_v2 = pin;
    session.link = (struct tpw_link *)(void *)&session;
    session.segment = &segment;
    void *got = mmap((void *)TP_SEGMENT_ADDRESS, size, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
    CHECK(got == (void *)TP_SEGMENT_ADDRESS);
    segment = (struct tpw_segment){.base = got, .size = size, .owners = calloc(1, table), .slot = TP_SLOTS};
    GIVES(0, tpw_segment_register(&session)); /* nobody is served yet: all of it */
    CHECK(asked_count == 1 && asked[0].size == size && segment.registered);

    for (int full = 0; full < 2; full++) {
        segment = (struct tpw_segment){.base = got, .size = size, .owners = segment.owners, .slot = SLOT};
        memset(segment.owners, 0, table);
        asked_count = 0;
        CHECK(tp_arena_take(segment.owners, size, OTHER, 200 * MIB)); /* the run does not lie at the beginning */
        CHECK(tp_segment_grant(got, size, segment.owners, SLOT, &first, &blocks));
        tp_segment_release(got, size, segment.owners, OTHER);
        segment.run = tp_run_layout(first, blocks);
        GIVES(0, tpw_segment_register(&session));
        GIVES(0, tpw_segment_register(&session));
        CHECK(asked_count == 2 && segment.registered && segment.device == TP_SEGMENT_ADDRESS);
        in_one_piece(4096, TP_SLOTS * (uint64_t)TP_SLOT_SIZE);
        in_one_piece(segment.run.commands, segment.run.granules * TP_GRANULE);
        uint64_t a = tpw_segment_take(&session, full ? 100 * MIB : MIB);
        in_one_piece(a, full ? 100 * MIB : MIB);
        CHECK(asked_count == 3 && asked[2].size == (full ? 100 : 64) * MIB);
        in_one_piece(tpw_segment_take(&session, MIB),
                     MIB); /* beside it, or, if that is full, with what is left there */
        CHECK(asked_count == 3u + (unsigned)full);
        in_one_piece(tpw_segment_take(&session, 500 * MIB), 500 * MIB);
        for (uint64_t more = 90 * MIB; more; more /= 3) {
            for (uint64_t at; (at = tpw_segment_take(&session, more)) != 0;) {
                in_one_piece(at, more);
                CHECK(tp_arena_owns(segment.owners, size, SLOT, at, more));
            }
        }
        CHECK(asked_count <= TPW_PIECES && tp_arena_left(segment.owners, size) == 0);
    }
    /* Nothing is handed out, or kept, that the driver does not pin. */
    segment = (struct tpw_segment){.base = got, .size = size, .owners = segment.owners, .slot = SLOT};
    memset(segment.owners, 0, table);
    CHECK(tp_segment_grant(got, size, segment.owners, SLOT, &first, &blocks));
    segment.run = tp_run_layout(first, blocks);
    asked_count = 0;
    GIVES(0, tpw_segment_register(&session));
    uint64_t left = tp_arena_left(segment.owners, size);
    session.cuda.cuMemHostRegister_v2 = does_not_pin;
    CHECK(tpw_segment_take(&session, MIB) == 0 && tp_arena_left(segment.owners, size) == left);
    segment.piece_count = 0;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_segment_register(&session));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_segment_register(&session));
    session.link = NULL;
    session.segment = NULL;
    munmap(got, size);
    free(segment.owners);
}

void test_pinned(void) {
    test_pieces();
    open_segment();
    test_words();
    test_runs();
    test_copies();
    close_segment();
}
