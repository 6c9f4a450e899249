/*
 * Stream capture: keeping the session itself out of it. The operations on captures are in graph/graph_capture.c.
 *
 * Executor thread only. Every capture is begun in relaxed mode, because the driver's modes are about threads and all of the
 * client's threads act through this one; what the modes forbid is refused in the client. The list holds the captures that
 * this session began and has not seen end; a capture of whose end it did not hear costs questions, nothing else.
 */
#include "tpg_session.h"
#include "tpw_stream.h"

bool tpw_touchable(struct tpw_session *s, const struct tpw_stream *stream) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (TP_LIKELY(!s->captures)) {
        return true;
    }
    /* For the legacy stream the driver answers CUDA_ERROR_STREAM_CAPTURE_IMPLICIT while a blocking stream captures, and
     * this question disturbs nothing. */
    CUcontext before = s->entered_native;
    const uint32_t entered = s->entered;
    if (before != stream->context) {
        tpw_go_into(s, stream->context);
    }
    int32_t error = (int32_t)s->cuda.cuStreamIsCapturing(stream->native, &status);
    /* What else goes wrong is no capture: whatever is done in the stream then fails with the driver's own error. */
    bool free_of = error ? error != CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : status == CU_STREAM_CAPTURE_STATUS_NONE;
    if (before != stream->context) {
        tpw_go_into(s, before);
        s->entered = s->entered_native == before ? entered : 0;
    }
    return free_of;
}

int32_t tpw_refuse_capture(struct tpw_session *s, const struct tpw_stream *stream) {
    if (tpw_touchable(s, stream)) {
        return CUDA_SUCCESS;
    }
    /* A query is not allowed during a capture, never waits, and ends it as any other such operation does. */
    int32_t error = (int32_t)s->cuda.cuStreamQuery(stream->native);
    return error && error != CUDA_ERROR_NOT_READY ? error : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

void tpw_refuse_capturing(struct tpw_session *s, CUstream native, int32_t *error) {
    const struct tpw_stream *stream = s->captures && !*error ? tpw_stream_native(s, native) : NULL;
    if (stream) {
        *error = tpw_refuse_capture(s, stream);
    }
}

int32_t tpw_refuse_captures(struct tpw_session *s) {
    int32_t error = CUDA_SUCCESS;
    for (struct tpw_capture *capture = s->captures; capture; capture = capture->next) {
        if (capture->origin->context_id == s->entered || capture->origin->home == s->entered) {
            int32_t broken = tpw_refuse_capture(s, capture->origin);
            error = error ? error : broken;
        }
    }
    return error;
}

CUgraph tpw_capturing_graph(struct tpw_session *s, const struct tpw_stream *stream, int32_t *error) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    CUgraph graph = NULL;
    if (!s->captures) {
        return NULL;
    }
    *error = (int32_t)s->cuda.cuStreamGetCaptureInfo_v2(stream->native, &status, &id, &graph, NULL, NULL);
    if (*error == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) { /* the legacy stream, while another captures */
        *error = CUDA_SUCCESS;
        return NULL;
    }
    return !*error && status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? graph : NULL;
}

int32_t tpw_capture_keeps(struct tpw_session *s, const struct tpw_stream *stream, uint32_t kind, uint64_t handle) {
    int32_t error = CUDA_SUCCESS;
    CUgraph graph = TP_UNLIKELY(s->captures) ? tpw_capturing_graph(s, stream, &error) : NULL;
    if (graph) {
        TP_ASK(tpw_node_captured, error, s, graph, kind, handle);
    }
    return error;
}
