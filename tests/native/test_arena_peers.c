/*
 * Peer access by itself: what is mapped is reached by its own device and by those with access, whenever it was mapped.
 *
 * One thread. All memory is of device 0; the contexts 1, 3, … are on device 1, the contexts 2, 4, … on device 0.
 */
#include "test_arena.h"

#define OWN 1u
#define BOTH 3u

static uint64_t alloc(uint64_t size) {
    struct tpg_memory_alloc_in in = {.size = size};
    struct tpg_memory_alloc_out out = {0};
    GIVES(0, tpw_memory_alloc(&session, &frame, &in, &out));
    return out.address;
}

static void give_up(uint64_t address) {
    struct tpg_memory_free_in in = {.address = address};
    GIVES(0, tpw_memory_free(&session, &frame, &in));
}

static int32_t enable(uint32_t reader, uint32_t owner) {
    struct tpg_cuCtxEnablePeerAccess_in in = {.peerContext = owner};
    session.entered = reader;
    int32_t error = 0;
    CUcontext peer = (CUcontext)(uintptr_t)tpw_native(&session, &frame, TPG_CONTEXT, owner, false, &error);
    return error ? error : tpw_cuCtxEnablePeerAccess(&session, &frame, &in, peer);
}

static int32_t disable(uint32_t reader, uint32_t owner) {
    struct tpg_cuCtxDisablePeerAccess_in in = {.peerContext = owner};
    session.entered = reader;
    int32_t error = 0;
    CUcontext peer = (CUcontext)(uintptr_t)tpw_native(&session, &frame, TPG_CONTEXT, owner, false, &error);
    return error ? error : tpw_cuCtxDisablePeerAccess(&session, &frame, &in, peer);
}

static void ends(uint32_t context) {
    const struct tpw_gone gone = {.id = context};
    TP_TELL(tpw_context_ends, &session, &gone);
}

static void start(void) {
    begin(0);
    session.device_count = 2;
    session.devices[1] = 1;
    for (uint64_t handle = 1; handle < 8; handle++) {
        context(handle);
    }
}

/* Used, cached and about to be freed: nothing that is mapped is forgotten. */
static void follows_what_is_mapped(void) {
    start();
    uint64_t small = alloc(512), large = alloc(3 * MIB), cached = alloc(5 * MIB), pending = alloc(7 * MIB);
    CHECK(all_reached_by(OWN));
    give_up(cached);
    tpw_poll(&session);
    gpu_runs = false;
    give_up(pending);
    GIVES(CUDA_ERROR_INVALID_HANDLE, enable(1, 9));
    GIVES(0, enable(1, 2));
    GIVES(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, enable(1, 2));
    CHECK(all_reached_by(BOTH));
    gpu_runs = true;
    tpw_poll(&session);
    uint64_t again = alloc(7 * MIB), fresh = alloc(20 * MIB);
    CHECK(all_reached_by(BOTH));
    size_t answers = reply_count;
    GIVES(TPW_LATER, disable(1, 2));
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, disable(1, 2));
    CHECK(all_reached_by(BOTH) && reply_count == answers); /* until the work is done */
    tpw_poll(&session);
    CHECK(all_reached_by(OWN) && reply_count == answers + 1);
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, disable(1, 2));
    give_up(small), give_up(large), give_up(again), give_up(fresh);
    end();
}

/* Any pair of contexts of two devices is enough; a pair goes with either. */
static void counts_pairs(void) {
    start();
    uint64_t memory = alloc(4 * MIB);
    GIVES(0, enable(1, 2));
    GIVES(0, enable(3, 2));
    GIVES(0, enable(3, 4));
    GIVES(TPW_LATER, disable(1, 2));
    tpw_poll(&session);
    ends(4);
    CHECK(all_reached_by(BOTH));
    ends(3);
    CHECK(all_reached_by(OWN));
    GIVES(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, disable(3, 2));
    give_up(memory);
    end();
}

/* Enabled anew before it has ended, and disabled again: the last call counts. A context may go before the work is done. */
static void changes_of_mind(void) {
    start();
    uint64_t memory = alloc(4 * MIB);
    GIVES(0, enable(1, 2));
    gpu_runs = false;
    GIVES(TPW_LATER, disable(1, 2));
    GIVES(0, enable(1, 2));
    gpu_runs = true;
    tpw_poll(&session);
    CHECK(all_reached_by(BOTH));
    gpu_runs = false;
    GIVES(TPW_LATER, disable(1, 2));
    GIVES(0, enable(1, 2));
    GIVES(TPW_LATER, disable(1, 2));
    ends(1);
    CHECK(all_reached_by(OWN));
    GIVES(0, enable(1, 2));
    gpu_runs = true;
    tpw_poll(&session);
    CHECK(all_reached_by(BOTH));
    session.entered = 2;
    give_up(memory);
    end();
}

/* All or nothing. */
static void refusals(void) {
    start();
    uint64_t memory[8];
    for (size_t i = 0; i < 8; i++) {
        memory[i] = alloc(4 * MIB);
    }
    for (size_t left = 0; left < 8; left++) {
        access_left = left;
        GIVES(CUDA_ERROR_OUT_OF_MEMORY, enable(1, 2));
        CHECK(all_reached_by(OWN));
    }
    access_left = 8;
    GIVES(0, enable(1, 2));
    struct tpg_memory_alloc_in in = {.size = 30 * MIB};
    struct tpg_memory_alloc_out out = {0};
    access_left = 0;
    size_t before = physical_used;
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, tpw_memory_alloc(&session, &frame, &in, &out));
    CHECK(physical_used == before);
    access_left = SIZE_MAX;
    for (size_t i = 0; i < 8; i++) {
        give_up(memory[i]);
    }
    end();
}

void test_peers(void) {
    follows_what_is_mapped();
    counts_pairs();
    changes_of_mind();
    refusals();
}
