/*
 * Sockets, helper threads and the two fixed structures that open every connection.
 *
 * Used by the client and the session. Owns nothing; any thread may enter. Whatever is received into the structures below is
 * the peer's: text fields need not end in a zero byte.
 */
#ifndef TP_NET_H
#define TP_NET_H

#include <tp_base.h>
#include <tp_wire.h>

enum tp_role { TP_ROLE_CONTROL = 1, TP_ROLE_DATA = 2, TP_ROLE_LOOK = 4 };
enum tp_welcome_status {
    TP_ACCEPTED = 0,
    TP_PROTOCOL_DIFFERS,
    TP_SCHEMA_DIFFERS,
    TP_SECRET_REFUSED,
    TP_NO_SESSION,
    TP_STOPPED = 8, /* to TP_ROLE_LOOK */
};

struct tp_greeting {
    char magic[8];
    uint32_t version, role;
    unsigned char schema[16];
    union {
        struct {
            uint64_t session_id, session_key;
        };
        unsigned char machine[16]; /* TP_ROLE_CONTROL: which machine and process namespace it is; zeros: not known */
    };
    union {
        uint32_t index;   /* TP_ROLE_DATA */
        uint32_t release; /* TP_RELEASE of the client: every other role */
    };
    uint32_t process;
    uint64_t zero;
    char secret[64], connection_version[64], program[32], user[32];
};
struct tp_welcome {
    char magic[8];
    uint32_t version, status;
    unsigned char schema[16];
    uint64_t session_id, session_key;
    uint32_t data_connections, zero;
    uint32_t release; /* of the worker; 0 before 0.2.0 */
    unsigned char reserved[4];
    char sentence[448];
};
_Static_assert(sizeof(struct tp_greeting) == TP_GREETING_SIZE, "greeting");
_Static_assert(sizeof(struct tp_welcome) == TP_WELCOME_SIZE, "welcome");

/* Non-blocking, no delay, keepalive; `bulk` also asks for large buffers. */
void tp_net_tune(int socket, bool bulk);
/* True when the peer has answered nothing for 9 s although something of ours waits for its answer. To be asked about once a
 * second by whoever waits on the socket. */
bool tp_net_silent(int socket);
/* All of `size` bytes before the deadline (tp_now_ns time). TP_ERROR_LOST on end, error or deadline, errno tells which. */
enum tp_status tp_net_send_all(int socket, const void *data, size_t size, uint64_t deadline);
enum tp_status tp_net_receive_all(int socket, void *data, size_t size, uint64_t deadline);
/* Spinning pays only when the one waited for runs at the same time: full budget from 4 usable cores, little below. */
uint64_t tp_spin_ns(uint64_t full);

#include <pthread.h>
/* A thread with every signal blocked, so that the program's handlers never run on it. Joinable, or, with NULL for `thread`,
 * detached: threads that nobody ends before the process ends. */
enum tp_status tp_thread_start(pthread_t *thread, const char *name, size_t stack, void *(*run)(void *), void *argument);

#endif
