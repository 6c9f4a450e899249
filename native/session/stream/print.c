/*
 * What kernels print: the driver writes it to this process's standard output and error, and it belongs to the client.
 *
 * Executor thread only, which makes every call in which the driver prints. Both outputs are files in memory of a fixed size, so
 * a client whose kernels print and that never asks takes no more than that. The offset that the driver shares through its
 * descriptor says how much was written. The session's own log goes where the standard error went.
 */
#include "tpg_answer.h"
#include "tpg_session.h"
#include "tpw_stream.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <tp_base.h>
#include <unistd.h>

#define ROOM (16l << 20)  /* of each; the buffer that kernels print into has 1 MiB unless the client wants another */
#define PART (256l << 10) /* in one answer */
#define WAITERS 1024u     /* threads of a client that end contexts at once */

static struct printed {
    int number; /* of the descriptor; the driver writes there */
    bool open;
    off_t told;
} outputs[] = {{.number = STDOUT_FILENO}, {.number = STDERR_FILENO}};

#if defined(TP_SANITIZED)
#define OUTPUTS 1u /* the sanitizer's reports are for whoever tests */
#else
#define OUTPUTS 2u
#endif

bool tpw_print_open(void) {
    const int log = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (log < 0) {
        return false;
    }
    tp_log_stderr(log);
    for (size_t i = 0; i < OUTPUTS; i++) {
        /* glibc 2.17 has no function for it */
        const int file = (int)syscall(SYS_memfd_create, "tensor-fusion-printed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        outputs[i].open = file >= 0 && !ftruncate(file, ROOM) &&
                          !fcntl(file, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) && dup2(file, outputs[i].number) >= 0;
        if (!outputs[i].open) {
            return false;
        }
        close(file);
    }
    return true;
}

/* Up to PART bytes of what is new; *left if there are more. What did not fit is gone, and is said where it would stand. */
static void part(struct tpw_session *s, struct printed *from, const void **bytes, size_t *size, unsigned int *left,
                 int32_t *error) {
    static const char full[] = "[the rest of what the kernels printed had no room on the worker]\n";
    const off_t end = from->open ? lseek(from->number, 0, SEEK_CUR) : 0;
    off_t new = end - from->told;
    new = new > PART ? PART : new;
    if (new <= 0 || *error) {
        return;
    }
    char *room = tpw_scratch(s, (uint64_t)new + sizeof full, 1, error);
    const ssize_t got = room ? pread(from->number, room, (size_t)new, from->told) : 0;
    if (got <= 0) {
        *error = *error ? *error : CUDA_ERROR_OPERATING_SYSTEM;
        return;
    }
    *bytes = room;
    *size = (size_t)got;
    from->told += got;
    if (from->told < end) {
        *left = 1;
        return;
    }
    if (end == ROOM) {
        memcpy(room + got, full, sizeof full - 1);
        *size += sizeof full - 1;
    }
    from->told = lseek(from->number, 0, SEEK_SET);
    (void)fallocate(from->number, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                    end); /* else the memory stays: no harm */
    clearerr(stdout);
}

/* The driver prints when it is asked to wait, for whatever is done: so for the executor's own stream, where nothing ever is. Its
 * answer is no news: a broken context says so again, and one that is gone has printed already. The first time the driver
 * makes that stream, which must not wait. */
void tpw_print_now(struct tpw_session *s) {
    if (!tpw_stream_may_wait(s)) {
        (void)s->cuda.cuStreamSynchronize(CU_STREAM_PER_THREAD);
    }
}

static int32_t take(struct tpw_session *s, const struct tp_frame *frame, struct tpg_print_take_out *out) {
    int32_t error = 0;
    struct tp_frame inside = *frame; /* a green context has no such stream */
    inside.context = tpw_home_of(s, frame->context);
    if (!tpw_enter(s, &inside)) {
        tpw_print_now(s);
    }
    fflush(stdout);
    part(s, &outputs[0], &out->output, &out->output_size, &out->left, &error);
    part(s, &outputs[1], &out->errors, &out->errors_size, &out->left, &error);
    return error;
}

static struct asked {
    struct tp_frame frame; /* header only */
    struct asked *next;
} *waiting;
static uint32_t waiters;

int32_t tpw_print_take(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_print_take_in *in,
                       struct tpg_print_take_out *out) {
    if (!in->ended || !s->unfinished) {
        return take(s, frame, out);
    }
    struct asked *asked = waiters < WAITERS ? malloc(sizeof *asked) : NULL;
    if (!asked) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    waiters++;
    *asked = (struct asked){.frame = *frame, .next = waiting};
    waiting = asked;
    return TPW_LATER;
}

void tpw_print_ended(struct tpw_session *s) {
    for (struct asked *asked; (asked = waiting);) {
        struct tpg_print_take_out out = {0};
        waiting = asked->next;
        waiters--;
        tpg_answer_print_take(s, &asked->frame, take(s, &asked->frame, &out), &out);
        free(asked);
    }
}
