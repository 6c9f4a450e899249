/*
 * What the session tells its supervisor, and asks it.
 *
 * Executor thread only, but for telling, which any thread may. The supervisor always reads, so telling waits for nobody; what comes from it is read by main.c. A
 * question waits for its answer in a list, and the client for that: the executor goes on.
 */
#include "tpw_session.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define QUESTIONS_MAX 1024u

bool tpw_control_send(const struct tpw_session *s, const struct tpw_packet *packet, int fd) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } aux = {.space = {0}};
    struct tpw_packet copy = *packet; /* an iovec is not const */
    struct iovec part = {.iov_base = &copy, .iov_len = sizeof copy};
    struct msghdr envelope = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        envelope.msg_control = &aux;
        envelope.msg_controllen = sizeof aux;
        aux.head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
        memcpy(CMSG_DATA(&aux.head), &fd, sizeof fd);
    }
    while (sendmsg(s->control, &envelope, MSG_NOSIGNAL) < 0) {
        if (errno == EPIPE) {
            return false; /* it has gone, which is told where its end is read */
        }
        if (errno != EINTR) {
            tp_log(TP_WARN, "the supervisor does not listen: %s", strerror(errno));
            return false;
        }
    }
    return true;
}

void tpw_leave_share(const struct tpw_session *s, uint64_t number, uint32_t grants) {
    const struct tpw_packet packet = {.type = TPW_LEAVE, .argument = grants, .value = number};
    (void)tpw_control_send(s, &packet, -1);
}

int32_t tpw_ask(struct tpw_session *s, const struct tpw_question *question, struct tpw_packet *packet, int fd) {
    struct tpw_question *asked = s->question_count < QUESTIONS_MAX ? malloc(sizeof *asked) : NULL;
    if (!asked) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *asked = *question;
    asked->number = packet->argument = ++s->last_question;
    asked->context = s->entered;
    if (!tpw_control_send(s, packet, fd)) {
        free(asked);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    TP_PUSH(s->questions, asked);
    s->question_count++;
    return TPW_LATER;
}

static void answered(struct tpw_session *s, const struct tpw_packet *packet, int fd) {
    struct tpw_question *question = TP_TAKE(s->questions, it->number == packet->argument);
    if (!question) {
        tp_log(TP_ERROR, "the supervisor answers a question that was not asked");
        return;
    }
    s->question_count--;
    question->answered(s, question, packet, fd);
    free(question);
}

void tpw_control_told(struct tpw_session *s, const struct tpw_packet *packet, int fd) {
    if (packet->type == TPW_SHARED || packet->type == TPW_IMPORTED || packet->type == TPW_LISTED) {
        answered(s, packet, fd);
    } else {
        TP_TELL(tpw_share_news, s, packet);
    }
    if (fd >= 0) {
        close(fd);
    }
}
