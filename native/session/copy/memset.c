/*
 * Memsets: checked against the client's ranges, then handed to the driver.
 *
 * Executor thread only; owns nothing. Counts and pitches are the client's: their products are formed without overflow
 * before they are compared with what the client was given.
 */
#include "tpg_session.h"
#include "tpw_copy.h"

static int32_t check(struct tpw_session *s, const struct tp_frame *frame, uint64_t address, uint64_t pitch,
                     uint64_t count, uint64_t height, uint64_t unit, uint64_t handle, struct tpw_aside *aside) {
    int32_t error = CUDA_SUCCESS;
    uint64_t width = 0;
    bool nothing = !count || !height; /* the client has answered, and it cannot fail */
    if (!nothing && (__builtin_mul_overflow(count, unit, &width) || address % unit || (height > 1 && pitch % unit))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t extent = tpw_area_extent(pitch, width, height, &error);
    int32_t unknown = CUDA_SUCCESS;
    tpw_check_range(s, address, extent, &unknown);
    struct tpw_stream *stream = tpw_stream_of(s, frame, handle, &error);
    if (error || nothing) {
        return error;
    }
    if (unknown) { /* in a graph the address is looked at when it runs, like those that kernels take */
        *aside = (struct tpw_aside){.stream = stream->native};
        return tpw_capturing_graph(s, stream, &error) || error ? error : unknown;
    }
    return tpw_aside_begin(s, stream->native, address, aside);
}

#define MEMSET_1D(bits, field)                                                                                         \
    int32_t tpw_cuMemsetD##bits##Async(struct tpw_session *s, const struct tp_frame *frame,                            \
                                       const struct tpg_cuMemsetD##bits##Async_in *in) {                               \
        struct tpw_aside aside;                                                                                        \
        int32_t error = check(s, frame, in->dstDevice, 0, in->N, 1, bits / 8, in->hStream, &aside);                    \
        if (error || !in->N) {                                                                                         \
            return error;                                                                                              \
        }                                                                                                              \
        error = (int32_t)s->cuda.cuMemsetD##bits##Async(in->dstDevice, in->field, in->N, aside.stream);                \
        return tpw_aside_end(s, &aside, error);                                                                        \
    }
#define MEMSET_2D(bits, field)                                                                                         \
    int32_t tpw_cuMemsetD2D##bits##Async(struct tpw_session *s, const struct tp_frame *frame,                          \
                                         const struct tpg_cuMemsetD2D##bits##Async_in *in) {                           \
        struct tpw_aside aside;                                                                                        \
        int32_t error =                                                                                                \
            check(s, frame, in->dstDevice, in->dstPitch, in->Width, in->Height, bits / 8, in->hStream, &aside);        \
        if (error || !in->Width || !in->Height) {                                                                      \
            return error;                                                                                              \
        }                                                                                                              \
        error = (int32_t)s->cuda.cuMemsetD2D##bits##Async(in->dstDevice, in->dstPitch, in->field, in->Width,           \
                                                          in->Height, aside.stream);                                   \
        return tpw_aside_end(s, &aside, error);                                                                        \
    }
MEMSET_1D(8, uc)
MEMSET_1D(16, us)
MEMSET_1D(32, ui)
MEMSET_2D(8, uc)
MEMSET_2D(16, us)
MEMSET_2D(32, ui)
