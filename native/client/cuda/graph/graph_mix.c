/*
 * Host functions between copies of one graph: what they find in the program's memory, and what they leave there.
 *
 * On the thread that runs host functions. A function behind a download has to find the bytes, and what an upload behind it reads
 * may be what it wrote. While it runs the graph stands at it: copies in front of it are over, those behind it have not begun. So the
 * worker says which buffers are to be fetched before it is called and which filled behind it. For these copies the buffers are
 * pinned memory there, read and written by the processor: nothing needs a stream, of which eight that stand stop all others.
 */
#include "tpc_copy.h"
#include "tpc_graph.h"
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

/* Bytes [at, at+size) of the side, packed in `room`. */
static void move_rows(const struct tpc_host_side *side, uint64_t at, size_t size, unsigned char *room, bool out) {
    for (size_t part; size; at += part, room += part, size -= part) {
        const uint64_t row = at / side->width, x = at % side->width;
        unsigned char *there =
            side->first + side->slice * (row / side->height) + side->pitch * (row % side->height) + x;
        part = side->width - x < size ? (size_t)(side->width - x) : size;
        memcpy(out ? room : there, out ? there : room, part);
    }
}

static CUresult fill(const struct tpc_host_copy *copy, uint64_t at, size_t size) {
    unsigned char *room = malloc(size);
    struct tpg_host_twin_write_in in = {.address = copy->pinned + at, .data = room, .data_size = size};
    if (!room) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    move_rows(&copy->side, at, size, room, true);
    const CUresult result = tpc_post_host_twin_write("cuGraphLaunch", &in);
    free(room);
    return result;
}

static CUresult fetch(const struct tpc_host_copy *copy, uint64_t at, size_t size) {
    struct tpg_host_twin_read_out out = {0};
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_host_twin_read("cuGraphLaunch", copy->pinned + at, size, &out, &reply));
    if (out.data_size != size) {
        return tpc_bad_reply(&reply);
    }
    move_rows(&copy->side, at, size, (unsigned char *)(uintptr_t)out.data, false);
    return CUDA_SUCCESS;
}

static CUresult mixed(const uint64_t *buffers, size_t count, bool up) {
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        struct tpc_host_copy *copy = tpc_host_copy_hold(buffers[i]);
        if (!copy || copy->up != up || !copy->pinned) {
            result = CUDA_ERROR_INVALID_VALUE;
        }
        const uint64_t size = result ? 0 : copy->side.width * copy->side.height * copy->side.depth;
        for (uint64_t at = 0; at < size && result == CUDA_SUCCESS; at += TP_INLINE_MAX) {
            const size_t part = size - at < TP_INLINE_MAX ? (size_t)(size - at) : TP_INLINE_MAX;
            result = up ? fill(copy, at, part) : fetch(copy, at, part);
        }
        tpc_host_copy_drop(copy);
    }
    if (result != CUDA_SUCCESS) {
        tp_log(TP_ERROR, "a graph's copies beside a host function failed with %d; the session ends", (int)result);
    }
    return result;
}
TP_REGISTER(tpc_host_function_mixed, mixed);
