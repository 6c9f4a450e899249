/*
 * Copies within device memory, and between devices.
 *
 * Executor thread only; owns nothing. Both sides are checked against the client's ranges. Where the stream's device reaches
 * both sides, one copy of unified addresses serves; else a peer copy, which needs no access (peer.c), or, with the host on
 * one side, a copy beside the stream.
 */
#include "tpg_session.h"
#include "tpw_copy.h"

enum way { DIRECT, PEER, HOST };

/* How to copy for `stream`; HOST copies are within host memory; DIRECT copies go into aside->stream, in the context that is current then. */
static int32_t begin(struct tpw_session *s, CUstream stream, uint64_t to, uint64_t from, struct tpw_aside *aside,
                     enum way *way) {
    bool to_host = tpw_is_host(tpw_range_at(s, to)), from_host = tpw_is_host(tpw_range_at(s, from));
    *aside = (struct tpw_aside){.stream = stream};
    *way = DIRECT;
    if (to_host && tpw_between_hosts(s, from, stream)) {
        *way = HOST;
        return CUDA_SUCCESS;
    }
    if (to_host || from_host) {
        return tpw_aside_begin(s, stream, to_host ? from : to, aside);
    }
    const struct tpw_stream *client = s->device_count > 1 ? tpw_stream_native(s, stream) : NULL;
    if (client) {
        tpw_enter_stream(s, client);
        *way = tpw_reaches(s, client->device, to) && tpw_reaches(s, client->device, from) ? DIRECT : PEER;
    }
    return CUDA_SUCCESS;
}

/* A copy that needs no access, in the contexts that both sides are of. */
static int32_t copy_peer(struct tpw_session *s, const struct tpg_rows *rows, CUstream stream) {
    CUDA_MEMCPY3D_PEER copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                               .srcDevice = rows->from,
                               .srcPitch = rows->from_pitch,
                               .srcHeight = rows->height,
                               .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                               .dstDevice = rows->to,
                               .dstPitch = rows->to_pitch,
                               .dstHeight = rows->height,
                               .WidthInBytes = rows->width,
                               .Height = rows->height,
                               .Depth = 1};
    TPW_TRY(tpw_home(s, rows->to, &copy.dstContext));
    TPW_TRY(tpw_home(s, rows->from, &copy.srcContext));
    return (int32_t)(rows->height > 1 ? s->cuda.cuMemcpy3DPeerAsync(&copy, stream)
                                      : s->cuda.cuMemcpyPeerAsync(rows->to, copy.dstContext, rows->from,
                                                                  copy.srcContext, rows->width, stream));
}

static int32_t copy_direct(struct tpw_session *s, const struct tpg_rows *rows, CUstream stream) {
    return rows->height == 1 ? (int32_t)s->cuda.cuMemcpyDtoDAsync_v2(rows->to, rows->from, rows->width, stream)
                             : tpw_copy_rows(s, rows, CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_DEVICE, stream);
}

int32_t tpw_copy_device(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_device_in *in,
                        struct tpw_stream *stream) {
    const struct tpg_rows *rows = &in->rows;
    int32_t error = CUDA_SUCCESS;
    enum way way = DIRECT;
    struct tpw_aside aside;
    tpw_check_area(s, &(struct tpg_area){rows->to, rows->to_pitch, rows->width, rows->height}, &error);
    tpw_check_area(s, &(struct tpg_area){rows->from, rows->from_pitch, rows->width, rows->height}, &error);
    if (error || !rows->width || !rows->height) {
        return error;
    }
    TPW_TRY(begin(s, stream->native, rows->to, rows->from, &aside, &way));
    if (way == PEER) {
        return copy_peer(s, rows, stream->native);
    }
    return way == HOST ? tpw_copy_host(s, rows, stream->native)
                       : tpw_aside_end(s, &aside, copy_direct(s, rows, aside.stream));
}

/* Between arrays and device memory. The driver's answer is the program's, because only the driver knows the arrays' bounds. */
int32_t tpw_copy_box(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_box_in *in,
                     const CUDA_MEMCPY3D *copy, struct tpw_stream *stream) {
    int32_t error = tpw_refuse_capture(s, stream);
    return error ? error : (int32_t)s->cuda.cuMemcpy3DAsync_v2(copy, stream->native);
}
