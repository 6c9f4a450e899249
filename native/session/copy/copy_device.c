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

static int32_t homes(struct tpw_session *s, uint64_t to, uint64_t from, CUcontext *to_home, CUcontext *from_home) {
    int32_t error = tpw_home(s, to, to_home);
    return error ? error : tpw_home(s, from, from_home);
}

int32_t tpw_copy_device(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_device_in *in,
                        struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    enum way way = DIRECT;
    struct tpw_aside aside;
    CUcontext to = NULL, from = NULL;
    tpw_check_range(s, in->destination, in->size, &error);
    tpw_check_range(s, in->source, in->size, &error);
    if (error || !in->size) {
        return error;
    }
    error = begin(s, stream->native, in->destination, in->source, &aside, &way);
    if (!error && way == PEER) {
        error = homes(s, in->destination, in->source, &to, &from);
        return error ? error
                     : (int32_t)s->cuda.cuMemcpyPeerAsync(in->destination, to, in->source, from, in->size,
                                                          stream->native);
    }
    if (!error && way == HOST) {
        const struct tpw_rows row = {.to = in->destination,
                                     .to_pitch = in->size,
                                     .from = in->source,
                                     .from_pitch = in->size,
                                     .width = in->size,
                                     .height = 1};
        return tpw_copy_host(s, &row, stream->native);
    }
    if (error) {
        return error;
    }
    error = (int32_t)s->cuda.cuMemcpyDtoDAsync_v2(in->destination, in->source, in->size, aside.stream);
    return tpw_aside_end(s, &aside, error);
}

static int32_t peer_rows(struct tpw_session *s, const struct tpg_copy_device_2d_in *in, CUstream stream) {
    CUDA_MEMCPY3D_PEER copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                               .srcDevice = in->source,
                               .srcPitch = in->source_pitch,
                               .srcHeight = in->height,
                               .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                               .dstDevice = in->destination,
                               .dstPitch = in->destination_pitch,
                               .dstHeight = in->height,
                               .WidthInBytes = in->width,
                               .Height = in->height,
                               .Depth = 1};
    int32_t error = homes(s, in->destination, in->source, &copy.dstContext, &copy.srcContext);
    return error ? error : (int32_t)s->cuda.cuMemcpy3DPeerAsync(&copy, stream);
}

int32_t tpw_copy_device_2d(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_device_2d_in *in,
                           struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    enum way way = DIRECT;
    struct tpw_aside aside;
    tpw_check_area(s, in->destination, in->destination_pitch, in->width, in->height, &error);
    tpw_check_area(s, in->source, in->source_pitch, in->width, in->height, &error);
    if (error || !in->width || !in->height) {
        return error;
    }
    error = begin(s, stream->native, in->destination, in->source, &aside, &way);
    if (error || way == PEER) {
        return error ? error : peer_rows(s, in, stream->native);
    }
    if (way == HOST) {
        struct tpw_rows rows = {.to = in->destination,
                                .to_pitch = in->destination_pitch,
                                .from = in->source,
                                .from_pitch = in->source_pitch,
                                .width = in->width,
                                .height = in->height};
        return tpw_copy_host(s, &rows, stream->native);
    }
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = in->source,
                          .srcPitch = in->source_pitch,
                          .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                          .dstDevice = in->destination,
                          .dstPitch = in->destination_pitch,
                          .WidthInBytes = in->width,
                          .Height = in->height};
    return tpw_aside_end(s, &aside, (int32_t)s->cuda.cuMemcpy2DAsync_v2(&copy, aside.stream));
}

/* Between arrays and device memory. The driver's answer is the program's, because only the driver knows the arrays' bounds. */
int32_t tpw_copy_box(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_copy_box_in *in,
                     const CUDA_MEMCPY3D *copy, struct tpw_stream *stream) {
    int32_t error = tpw_refuse_capture(s, stream);
    return error ? error : (int32_t)s->cuda.cuMemcpy3DAsync_v2(copy, stream->native);
}
