/*
 * Completion by the GPU: it writes a word of the client's slot itself when a stream has come to a point, so that no process is
 * in the way of a client that waits for it.
 *
 * Executor thread only. What failed before is in the reply ring before the GPU, or the executor itself, writes the word: the
 * client looks there when it sees it. After a sticky error the word never comes; the client then asks by a call. The words lie in memory
 * that the client can write: it can only end its own waits early.
 */
#include "tpg_session.h"
#include "tpw_stream.h"

#include <stdlib.h>

CUdeviceptr tpw_mark_address(struct tpw_session *s, const struct tp_frame *frame, uint32_t word, int32_t *error) {
    struct tpw_segment *segment = s->segment;
    if (!segment || word >= TP_DONE_WORDS) {
        tpw_violation(s, frame, "a mark without a slot, or beyond its words");
        *error = TPW_LATER;
        return 0;
    }
    tpw_stops_streaming(s); /* somebody waits for it as for an answer */
    const struct tp_slot *slot = tp_slot_at(segment->base, segment->slot);
    return segment->device + (uint64_t)((const unsigned char *)&slot->done[word] - segment->base);
}

/* Where the driver did not take the segment, and where nothing may be put into the stream, the executor writes the word when
 * it has seen the stream come there. */
struct by_hand {
    uint32_t word;
    uint64_t value;
};

void tpw_words_write(struct tpw_session *s) {
    struct tpw_segment *segment = s->segment;
    if (TP_LIKELY(!segment || !segment->owed_count) || !tpw_link_flush(s->link)) {
        return;
    }
    struct tp_slot *slot = tp_slot_at(segment->base, segment->slot);
    for (uint32_t word = 0; word < TP_DONE_WORDS; word++) {
        if (segment->owed[word]) {
            atomic_store_explicit(&slot->done[word], segment->owed[word], memory_order_release);
            segment->owed[word] = 0;
        }
    }
    segment->owed_count = 0;
}

/* The word says "complete" like a frame that completes. It must not be seen before what was said until now, as a copy or a post
 * that failed, so it waits until all of that is in the reply ring. */
static void write_by_hand(struct tpw_session *s, void *what, int32_t error) {
    struct by_hand *mark = what;
    if (!error) {
        tpw_leave(s);
        s->segment->owed_count += !s->segment->owed[mark->word];
        s->segment->owed[mark->word] = mark->value;
        tpw_words_write(s);
    }
    free(mark);
}

int32_t tpw_mark(struct tpw_session *s, CUstream stream, CUdeviceptr address, uint32_t word, uint64_t value) {
    bool told = tpw_link_flush(s->link);
    if (s->segment->registered && told) { /* the GPU does not wait until the client has read the rest */
        struct tpw_stream *record = tpw_stream_native(s, stream);
        if (record) {
            tpw_enter_stream(s, record);
        }
        s->segment->word = word;
        s->segment->value = value;
        int32_t error = (int32_t)s->cuda.cuStreamWriteValue64_v2(stream, address, value, CU_STREAM_WRITE_VALUE_DEFAULT);
        if (record && !error) {
            record->mark = &tp_slot_at(s->segment->base, s->segment->slot)->done[word];
            record->marked = value;
        }
        return error;
    }
    struct by_hand *by_hand = malloc(sizeof *by_hand);
    if (!by_hand) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *by_hand = (struct by_hand){.word = word, .value = value};
    int32_t error = tpw_when_done(s, stream, write_by_hand, by_hand);
    if (error) {
        free(by_hand);
    }
    return error;
}

bool tpw_mark_owed(const struct tpw_session *s) {
    const struct tpw_segment *segment = s->segment;
    if (!segment || !segment->value) {
        return false;
    }
    const struct tp_slot *slot = tp_slot_at(segment->base, segment->slot);
    return atomic_load_explicit(&slot->done[segment->word], memory_order_relaxed) != segment->value;
}

int32_t tpw_stream_mark(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_stream_mark_in *in,
                        struct tpw_stream *stream) {
    int32_t error = CUDA_SUCCESS;
    CUdeviceptr address = tpw_mark_address(s, frame, in->word, &error);
    tpw_refuse_capturing(s, stream->native, &error);
    return error ? error : tpw_mark(s, stream->native, address, in->word, in->value);
}

int32_t tpw_watch(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_watch_in *in) {
    int32_t error = CUDA_SUCCESS;
    tpw_mark_address(s, frame, in->word, &error);
    bool event = tp_handle_is(in->subject, TPG_EVENT);
    uint64_t native = tpw_native(s, frame, event ? TPG_EVENT : TPG_STREAM, in->subject, false, &error);
    struct by_hand *by_hand = error ? NULL : malloc(sizeof *by_hand);
    if (error || !by_hand) {
        return error ? error : CUDA_ERROR_OUT_OF_MEMORY;
    }
    *by_hand = (struct by_hand){.word = in->word, .value = in->value};
    error = tpw_when_complete(s, event ? in->subject : 0, native, write_by_hand, by_hand);
    if (error) {
        free(by_hand);
    }
    return error;
}
