/*
 * The session's memory files by themselves: allocation, limits, ranges, transfers, and hostile arguments.
 *
 * The fakes around them (test_arena_fakes.c) fail the test when an address or a length gets past the session's checks.
 * One thread.
 */
#include "test_arena.h"

static uint64_t alloc(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    GIVES(0, tpw_memory_alloc(&session, &frame, &in, &out));
    CHECK(is_mapped(out.address, size) && out.address % 512 == 0);
    return out.address;
}
static int32_t try_alloc(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    return tpw_memory_alloc(&session, &frame, &in, &out);
}
static int32_t release_at(uint64_t address) {
    struct tpg_memory_free_in in = {.address = address};
    return tpw_memory_free(&session, &frame, &in);
}

static uint64_t state = 88172645463325252ull;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void test_allocations(void) {
    enum { LIVE = 200 };
    uint64_t live[LIVE] = {0}, sizes[LIVE] = {0}, total = 0;
    begin(0);
    for (int step = 0; step < 20000; step++) {
        size_t i = next() % LIVE;
        gpu_runs = next() % 3 == 0;
        if (live[i]) {
            GIVES(0, release_at(live[i]));
            GIVES(CUDA_ERROR_INVALID_VALUE, release_at(live[i]));
            total -= sizes[i];
            live[i] = 0;
        } else {
            sizes[i] = next() % 8 ? next() % 20000 + 1 : next() % (3 * MIB) + 1;
            gpu_runs = true;
            if (total + sizes[i] < 100 * MIB) {
                live[i] = alloc(sizes[i]);
                total += sizes[i];
            }
        }
        gpu_runs = true;
        if (step % 16 == 0) {
            tpw_poll(&session);
            CHECK(tp_quota_used(session.quota, 0) == total);
        }
        int32_t error = 0;
        if (live[i]) {
            tpw_check_range(&session, live[i], sizes[i], &error);
            GIVES(0, error);
            tpw_check_range(&session, live[i], sizes[i] + 1, &error);
            GIVES(CUDA_ERROR_INVALID_VALUE, error);
        }
    }
    for (size_t i = 0; i < LIVE; i++) {
        if (live[i]) {
            GIVES(0, release_at(live[i]));
        }
    }
    end();
}

static void test_limit(void) {
    begin(10 * MIB);
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(10 * MIB + 1));
    uint64_t a = alloc(10 * MIB - 1), b = alloc(1);
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(1));
    GIVES(0, release_at(a));
    CHECK(tp_quota_used(session.quota, 0) == 10 * MIB); /* queued work may still use it */
    struct tpg_cuMemGetInfo_v2_out told = {0};
    GIVES(0, tpw_cuMemGetInfo_v2(&session, &frame, &told));
    CHECK(told.total == 10 * MIB && told.free == 10 * MIB - 1); /* but the client's view is immediate */
    a = alloc(10 * MIB - 1);                                    /* waits for it */
    GIVES(0, release_at(a));
    GIVES(0, release_at(b));
    GIVES(CUDA_ERROR_INVALID_VALUE, try_alloc(0));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(UINT64_MAX));
    end();
    begin(0); /* no limit: the card itself ends it, and freed granules come back */
    for (int i = 0; i < 3; i++) {
        a = alloc(200 * MIB);
        GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(100 * MIB));
        GIVES(0, release_at(a));
    }
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(1ull << 50));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, try_alloc(UINT64_MAX));
    end();
}

static uint64_t alloc_or_nothing(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    return tpw_memory_alloc(&session, &frame, &in, &out) ? 0 : out.address;
}

/* Allocations of a little more than nothing, or than half a granule, that each hold much more than they count. */
static void test_limit_of_granules(void) {
    enum { LIMIT = 100, MOST = (LIMIT + (TPW_CACHE_BYTES >> 20)) / 2 };
    static uint64_t live[TPW_GRANULE_UNITS * (MOST + 10)];
    static const uint64_t sizes[] = {MIB + 1, 1};
    for (size_t k = 0; k < 2; k++) {
        size_t fit = k ? TPW_GRANULE_UNITS : 1, count = 0;
        begin(LIMIT * MIB);
        while (count < sizeof live / sizeof *live && (live[count] = alloc_or_nothing(sizes[k]))) {
            count++;
        }
        CHECK(count >= LIMIT / 2 * fit && count <= MOST * fit);
        CHECK(tp_quota_used(session.quota, 0) <= LIMIT * MIB);
        /* The last unit of each granule keeps it. */
        for (size_t i = 0; i < count; i++) {
            if (i % fit || fit == 1) {
                GIVES(0, release_at(live[i]));
                tpw_poll(&session);
            }
        }
        uint64_t held = k ? count / fit * TPW_GRANULE : 0;
        CHECK(tp_quota_used(session.quota, 0) + TPW_CACHE_BYTES >= held);
        for (size_t i = 0; i < count; i += fit) {
            if (fit > 1) {
                GIVES(0, release_at(live[i]));
            }
        }
        tpw_poll(&session);
        CHECK(tp_quota_used(session.quota, 0) == 0);
        end();
    }
}

static void test_hostile_ranges(void) {
    begin(0);
    uint64_t a = alloc(5000), b = alloc(3 * MIB);
    static const uint64_t odd[] = {0, 1, 4999, 5000, 5001, 1ull << 32, 1ull << 62, UINT64_MAX - 1, UINT64_MAX};
    enum { N = sizeof odd / sizeof *odd };
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < N; k++) {
            for (size_t n = 0; n < N; n++) {
                struct tpg_cuMemsetD2D32Async_in set = {
                    .dstDevice = a, .dstPitch = odd[i], .Width = odd[k], .Height = odd[n], .hStream = 1};
                tpw_cuMemsetD2D32Async(&session, &frame, &set); /* the driver above checks what gets through */
                struct tpg_copy_device_in copy = {.rows = {a, odd[i], b, odd[k], odd[n], odd[(i + k + n) % N]},
                                                  .stream = 1};
                tpw_copy_device(&session, &frame, &copy, &only);
                struct tpg_copy_device_in line = {.rows = {a + odd[i], odd[n], b + odd[k], odd[n], odd[n], 1},
                                                  .stream = 1};
                tpw_copy_device(&session, &frame, &line, &only);
                struct tpg_copy_out_post_in post = {
                    .area = {a, odd[i], odd[k], odd[n] % 100}, .stream = 1, .transfer = 7};
                download_given = download_sent = download_dropped = 0;
                download_last = false;
                tpw_copy_out_post(&session, &frame, &post);
                tpw_poll(&session);
                struct tpg_copy_in_in in = {.area = {a, odd[i], odd[k], odd[n]},
                                            .stream = 1,
                                            .data = received,
                                            .data_size = odd[k] < 5001 ? odd[k] : 1};
                violated = false;
                tpw_copy_in(&session, &frame, &in);
                tpw_poll(&session);
            }
        }
        struct tpg_cuMemsetD8Async_in set = {.dstDevice = a + odd[i], .N = odd[N - 1 - i], .hStream = 1};
        tpw_cuMemsetD8Async(&session, &frame, &set);
    }
    int32_t error = 0;
    tpw_memory_publish(&session, a + 10, 100); /* overlaps: refused */
    tpw_memory_publish(&session, 0x1000, 100);
    tpw_check_range(&session, 0x1000, 100, &error);
    GIVES(0, error);
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at(0x1000));
    tpw_memory_retract(&session, a); /* not what was published */
    tpw_memory_retract(&session, 0x1000);
    tpw_check_range(&session, 0x1000, 1, &error);
    GIVES(CUDA_ERROR_INVALID_VALUE, error);
    error = 0;
    tpw_check_range(&session, a, 5000, &error);
    GIVES(0, error);
    GIVES(0, release_at(a));
    GIVES(0, release_at(b));
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at(0));
    end();
}

static void test_transfers(void) {
    enum { WIDTH = 3001, HEIGHT = 1700, PITCH = 3500, SIZE = WIDTH * HEIGHT };
    static unsigned char data[SIZE];
    begin(0);
    for (size_t i = 0; i < SIZE; i++) {
        data[i] = (unsigned char)next();
    }
    device_base = alloc((uint64_t)PITCH * HEIGHT);
    device_memory = calloc(PITCH, HEIGHT);
    /* Blocks in any order, with borders in the middle of rows. */
    static struct tpw_block blocks[64];
    size_t count = 0;
    for (uint64_t offset = 0; offset < SIZE;) {
        uint64_t size = next() % 200000 + 1;
        size = size < SIZE - offset ? size : SIZE - offset;
        CHECK(count < 64 || size);
        if (count == 63) {
            size = SIZE - offset;
        }
        blocks[count] =
            (struct tpw_block){.transfer = 5, .offset = offset, .size = (uint32_t)size, .memory = data + offset};
        offset += size;
        count++;
    }
    for (size_t i = 0; i < count; i++) {
        size_t k = i + next() % (count - i);
        struct tpw_block swap = blocks[i];
        blocks[i] = blocks[k];
        blocks[k] = swap;
        uploads[i] = &blocks[i];
    }
    upload_count = count;
    upload_given = 0;
    struct tpg_copy_in_bulk_in in = {.area = {device_base, PITCH, WIDTH, HEIGHT}, .stream = 1, .transfer = 5};
    GIVES(0, tpw_copy_in_bulk(&session, &frame, &in));
    tpw_poll(&session);
    CHECK(upload_given == count);
    for (size_t i = 0; i < HEIGHT; i++) {
        CHECK(memcmp(device_memory + i * PITCH, data + i * WIDTH, WIDTH) == 0);
    }
    /* And back, with fewer blocks than it takes. */
    download_given = download_sent = download_dropped = 0;
    download_last = false;
    reply_count = 0;
    struct tp_frame call = {.op = 9, .flags = TP_FRAME_CALL, .thread = 1};
    struct tpg_copy_out_bulk_in out = {.area = {device_base, PITCH, WIDTH, HEIGHT}, .stream = 1, .transfer = 6};
    GIVES(TPW_LATER, tpw_copy_out_bulk(&session, &call, &out));
    tpw_poll(&session);
    CHECK(download_last && reply_count == 1 && reply_op == 9 && deferred == 0);
    CHECK(memcmp(received, data, SIZE) == 0);
    /* A refused upload is drained, a block outside its transfer ends the session. */
    in.area.address = 12345;
    dropped = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_copy_in_bulk(&session, &frame, &in));
    CHECK(dropped == SIZE);
    static const struct {
        uint64_t offset;
        uint32_t size;
    } bad[] = {{SIZE, 1}, {SIZE - 1, 2}, {UINT64_MAX, 1}, {UINT64_MAX - 5, 100}};
    in.area.address = device_base;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tpw_block block = {.transfer = 5, .offset = bad[i].offset, .size = bad[i].size, .memory = data};
        uploads[0] = &block;
        upload_count = 1;
        violated = false;
        GIVES(TPW_LATER, tpw_copy_in_bulk(&session, &frame, &in));
        CHECK(violated);
        uploads[0] = &block;
        upload_count = 1;
        violated = false;
        int32_t error = 0;
        CHECK(!tpw_take_upload(&session, 5, SIZE, &error) && violated && error);
    }
    /* The first half twice: the second is not what this process had in that memory. */
    enum { HALF = 3000 };
    int32_t none = 0;
    struct tpw_block twice[2];
    for (size_t i = 0; i < 2; i++) {
        twice[i] = (struct tpw_block){.transfer = 5, .size = HALF, .memory = data};
        uploads[i] = &twice[i];
    }
    upload_count = 2;
    upload_given = 0;
    volatile unsigned char *before = malloc(2 * HALF); /* volatile: these stores are meant to stay */
    CHECK(before);
    for (size_t i = 0; i < 2 * HALF; i++) {
        before[i] = 0xee;
    }
    free((void *)(uintptr_t)before);
    unsigned char *body = tpw_take_upload(&session, 5, 2 * HALF, &none);
    CHECK(body && !none && memcmp(body, data, HALF) == 0);
    for (size_t i = HALF; i < 2 * HALF; i++) {
        CHECK(body[i] == 0);
    }
    free(body);
    violated = false;
    in.area.width = 0;
    GIVES(TPW_LATER, tpw_copy_in_bulk(&session, &frame, &in));
    CHECK(violated);
    in.area.width = in.area.height = 1ull << 33;
    violated = false;
    GIVES(TPW_LATER, tpw_copy_in_bulk(&session, &frame, &in));
    CHECK(violated);
    /* A posted download that fails tells the client that its bytes never come. */
    struct tpg_copy_out_post_in post = {.area = {777, 10, 10, 1}, .stream = 1, .transfer = 0x1234};
    reply_op = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_copy_out_post(&session, &frame, &post));
    uint64_t told = 0;
    memcpy(&told, reply, sizeof told);
    CHECK(reply_op == 5 && reply_size == 8 && told == 0x1234);
    /* More small copies than buffers while the GPU stands still, then it goes on. */
    gpu_runs = true;
    for (int i = 0; i < 1000; i++) {
        struct tpg_copy_in_in small = {
            .area = {device_base, 5000, 5000, 1}, .stream = 1, .data = data, .data_size = 5000};
        GIVES(0, tpw_copy_in(&session, &frame, &small));
    }
    free(device_memory);
    device_memory = NULL;
    GIVES(0, release_at(device_base));
    end();
}

static void test_virtual_memory(void) {
    begin(20 * MIB);
    struct tpg_address_reserve_in reserve = {.size = 16 * MIB};
    struct tpg_address_reserve_out got = {0}, second = {0};
    GIVES(0, tpw_address_reserve(&session, &frame, &reserve, &got));
    GIVES(0, tpw_address_reserve(&session, &frame, &reserve, &second));
    uint64_t own = alloc(4 * MIB);
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = 77,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
                                .win32HandleMetaData = (void *)8};
    struct tpg_memory_create_in make = {.memory = 3, .size = 4 * MIB};
    GIVES(0, tpw_memory_create(&session, &frame, &make, &prop));
    CHECK(tp_quota_used(session.quota, 0) == 8 * MIB);
    make.memory = 4;
    make.size = 14 * MIB;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_memory_create(&session, &frame, &make, &prop));
    /* Mapping outside what was reserved by this client, over something else, or past the physical memory. */
    const struct tpg_memory_map_in bad[] = {
        {.address = own, .size = 2 * MIB, .memory = 3},
        {.address = own + 64 * MIB, .size = 2 * MIB, .memory = 3},
        {.address = got.address, .size = 6 * MIB, .memory = 3},
        {.address = got.address, .size = 2 * MIB, .offset = 4 * MIB, .memory = 3},
        {.address = got.address, .size = 2 * MIB, .offset = UINT64_MAX - MIB, .memory = 3},
        {.address = got.address, .size = UINT64_MAX, .memory = 3},
        {.address = got.address + 14 * MIB, .size = 4 * MIB, .memory = 3},
        {.address = got.address, .size = 2 * MIB, .memory = 5},
        {.address = got.address, .size = 0, .memory = 3},
        {.address = 0, .size = 2 * MIB, .memory = 3},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_map(&session, &frame, &bad[i]));
    }
    struct tpg_memory_map_in good = {.address = got.address, .size = 4 * MIB, .memory = 3};
    GIVES(0, tpw_memory_map(&session, &frame, &good));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_map(&session, &frame, &good));
    struct tpg_memory_unmap_in undo = {.address = own, .size = 4 * MIB};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_unmap(&session, &frame, &undo)); /* not the client's mapping */
    undo = (struct tpg_memory_unmap_in){.address = got.address, .size = 2 * MIB};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_unmap(&session, &frame, &undo));
    undo.size = UINT64_MAX - 5;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_unmap(&session, &frame, &undo));
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at(got.address)); /* nor may it be freed as an allocation */
    struct tpg_address_free_in give = {.address = got.address, .size = 16 * MIB};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_free(&session, &frame, &give)); /* something is mapped */
    struct tpg_memory_release_in let = {.memory = 3};
    GIVES(0, tpw_memory_release(&session, &frame, &let));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_memory_release(&session, &frame, &let));
    CHECK(tp_quota_used(session.quota, 0) == 8 * MIB); /* the mapping keeps it */
    undo.size = 4 * MIB;
    GIVES(0, tpw_memory_unmap(&session, &frame, &undo));
    CHECK(tp_quota_used(session.quota, 0) == 4 * MIB);
    GIVES(0, tpw_address_free(&session, &frame, &give));
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_free(&session, &frame, &give));
    give.address = own; /* the arena's own addresses cannot be given back */
    give.size = 4 * MIB;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_free(&session, &frame, &give));
    give.address = second.address;
    give.size = 16 * MIB;
    GIVES(0, tpw_address_free(&session, &frame, &give));
    reserve.alignment = 3;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_address_reserve(&session, &frame, &reserve, &got));
    reserve.alignment = 1ull << 63;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_address_reserve(&session, &frame, &reserve, &got));
    reserve = (struct tpg_address_reserve_in){.size = ~(TPW_GRANULE - 1)};
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_address_reserve(&session, &frame, &reserve, &got));
    GIVES(0, release_at(own));
    end();
}

/* Pages of their own, as many as the session's memory allows. */
static void large_twins(void) {
    const uint64_t size = (1 << 20) + 3;
    uint64_t made[200];
    size_t count = 0;
    setenv("TF_SESSION_MEMORY_LIMIT", "64", 1);
    struct tpg_host_twin_in make = {.size = size};
    struct tpg_host_twin_out got = {0};
    for (; count < 200; count++) {
        int32_t error = tpw_host_twin(&session, &frame, &make, &got);
        if (error) {
            CHECK(error == CUDA_ERROR_OUT_OF_MEMORY);
            break;
        }
        made[count] = got.address;
        CHECK(count == 0 || got.address >= made[count - 1] + size);
        CHECK(got.address >= session.memory->base + session.memory->size + TPW_GRANULE);
    }
    CHECK(count == 15); /* 32 MiB for pages and shadows of 1 MiB and a page each */
    unsigned char *last = (unsigned char *)(uintptr_t)made[14];
    struct tpg_host_twin_write_in write = {.address = made[14] + size - 3, .data = "abc", .data_size = 3};
    GIVES(0, tpw_host_twin_write(&session, &frame, &write));
    write.address++;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_write(&session, &frame, &write));
    reply_count = 0;
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 0 && last[size - 1] == 'c');
    memset(last + 65536 - 4, 1, 8); /* in two pieces, and the last byte */
    last[size - 1] = 'd';
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 3);
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 3);
    make = (struct tpg_host_twin_in){.size = 4096, .read_only = 1};
    GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
    *(unsigned char *)(uintptr_t)got.address = 5; /* nobody looks whether it was */
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 3);
    struct tpg_host_twin_free_in over = {.address = got.address};
    GIVES(0, tpw_host_twin_free(&session, &frame, &over));
    make = (struct tpg_host_twin_in){.size = 5 << 20}; /* several threads look */
    for (size_t i = 0; i < 12; i++) {
        over.address = made[--count];
        GIVES(0, tpw_host_twin_free(&session, &frame, &over));
    }
    tpw_poll(&session);
    GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
    for (unsigned round = 0, sum = 3; round < 200; round++) {
        unsigned char *at = (unsigned char *)(uintptr_t)got.address;
        for (unsigned k = 0; k < 3; k++) {
            at[(round * 7919 + k * 1700000 + 4096 * k) % (5 << 20)]++;
        }
        TP_TELL(tpw_twins_leave, &session);
        CHECK(reply_count == (sum += 3));
    }
    over.address = got.address;
    GIVES(0, tpw_host_twin_free(&session, &frame, &over));
    tpw_poll(&session);
    make = (struct tpg_host_twin_in){.size = size};
    while (count < 15) {
        GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
        made[count++] = got.address;
    }
    for (int round = 0; round < 3000; round++) { /* addresses are used again */
        struct tpg_host_twin_free_in gone = {.address = made[round % 15]};
        GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
        tpw_poll(&session);
        GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
        made[round % 15] = got.address;
    }
    for (size_t i = 0; i < count; i++) {
        struct tpg_host_twin_free_in gone = {.address = made[i]};
        GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    }
    tpw_poll(&session);
    CHECK(session.memory->twin_bytes == 0);
    unsetenv("TF_SESSION_MEMORY_LIMIT");
}

static void test_twins(void) {
    begin(0);
    struct tpg_host_twin_in make = {.size = 100};
    struct tpg_host_twin_out got = {0};
    GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
    unsigned char *twin = (unsigned char *)(uintptr_t)got.address;
    struct tpg_host_twin_write_in write = {.address = got.address + 96, .data = "abcd", .data_size = 4};
    GIVES(0, tpw_host_twin_write(&session, &frame, &write));
    CHECK(memcmp(twin + 96, "abcd", 4) == 0);
    write.data_size = 5;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_write(&session, &frame, &write));
    write.address = 0x1000;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_write(&session, &frame, &write));
    reply_count = 0;
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 0); /* what the client wrote is not told to it */
    memcpy(twin + 8, "ABCDEFGH", 8);
    twin[99] = 'x';
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 1 && reply_op == 4); /* two runs */
    TP_TELL(tpw_twins_leave, &session);
    CHECK(reply_count == 1);
    make.size = (1ull << 46) + 1;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin(&session, &frame, &make, &got));
    make.size = 0;
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin(&session, &frame, &make, &got));
    GIVES(CUDA_ERROR_INVALID_VALUE, release_at((uint64_t)(uintptr_t)twin));
    struct tpg_host_twin_free_in gone = {.address = (uint64_t)(uintptr_t)twin + 1};
    GIVES(CUDA_ERROR_INVALID_VALUE, tpw_host_twin_free(&session, &frame, &gone));
    gone.address--;
    GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    tpw_poll(&session); /* its place is free when queued work is done */
    uint64_t made[40];
    size_t count = 0;
    make.size = 65536;
    while (count < 40 && tpw_host_twin(&session, &frame, &make, &got) == 0) {
        made[count++] = got.address;
        tpw_poll(&session);
    }
    CHECK(count == 40); /* 2 MiB of them, then those with pages of their own */
    CHECK(made[31] < session.memory->base + session.memory->size + TPW_GRANULE && made[32] > made[31]);
    for (size_t i = 0; i < count; i++) {
        gone.address = made[i];
        GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    }
    tpw_poll(&session);
    GIVES(0, tpw_host_twin(&session, &frame, &make, &got));
    gone.address = got.address;
    GIVES(0, tpw_host_twin_free(&session, &frame, &gone));
    tpw_poll(&session);
    large_twins();
    end();
}

int main(void) {
    test_allocations();
    test_limit();
    test_limit_of_granules();
    test_hostile_ranges();
    test_transfers();
    test_virtual_memory();
    test_twins();
    test_pinned();
    test_peers();
    return 0;
}
