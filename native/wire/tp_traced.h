/*
 * What a session records of its work for a traced client: the entries of the message `traced`.
 *
 * The session writes them about this client's own frames and streams, with times of its own CLOCK_MONOTONIC. The client bounds
 * their number and believes nothing else of them: they become numbers and names in a file.
 */
#ifndef TP_TRACED_H
#define TP_TRACED_H

#include <stdint.h>

enum tp_traced_what {
    TP_TRACED_FRAME = 1, /* was executed; times: taken from the connection, begun, ended */
    TP_TRACED_ANSWER,    /* of a frame that had ended before it was answered; times: the answer */
    TP_TRACED_GPU,       /* the work of frames `first` to `frame` in a stream; times: given, seen complete */
};
enum tp_traced_how { TP_TRACED_POSTED, TP_TRACED_ANSWERED, TP_TRACED_LATER };
/* Streams without a handle of the client's. */
enum tp_traced_stream { TP_TRACED_LEGACY = 1, TP_TRACED_THREADS, TP_TRACED_SESSIONS };

struct tp_traced {
    uint16_t what, op;
    uint32_t thread; /* of the frame; of a GPU's work in TP_TRACED_THREADS the one whose stream it is */
    uint64_t frame, first;
    uint64_t times[3];
    int32_t result; /* of an answer, or of the work */
    uint16_t how, device;
    uint64_t stream; /* the client's handle, or one of the above */
};

_Static_assert(sizeof(struct tp_traced) == 64, "a record of the trace");

#endif
