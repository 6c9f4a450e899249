/*
 * Waiting for a worker in a stranger's process: said on standard error, and ended by Ctrl-C as anything else is.
 *
 * A wait begins before the URL is asked and ends with the session's first reply. Several threads may be inside; what one of
 * them is told ends all. While nobody waits, nothing here has any effect.
 */
#ifndef TP_WAIT_H
#define TP_WAIT_H

#include <netdb.h>
#include <sys/types.h>
#include <tp_base.h>

/* The longest that a waiter sleeps before it looks again: cuInit is to return 0.2 s after Ctrl-C. */
#define TPC_SLICE_NS 50000000u

/* Around the whole of a wait; they nest. */
TP_EXPORT void tp_wait_begin(void);
TP_EXPORT void tp_wait_end(void);
/* Around fork, so that a child neither waits nor has our handlers. */
void tpc_wait_fork_prepare(void);
void tpc_wait_fork_parent(void);
void tpc_wait_fork_child(void);
/* How many waits signals have ended so far. Whoever waited for a lock while that grew was interrupted, too. */
TP_EXPORT uint32_t tp_interruptions(void);

/* What is waited for from here on, to stand behind "Waiting for …", and for how long at most. */
void tpc_wait_for(uint64_t most_ns, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Between two slices: says what is waited for when it is time to. False: a signal came, and the wait is over. */
bool tpc_wait_goes_on(void);
extern _Atomic uint32_t tpc_waiters;
static inline bool tpc_waiting(void) { return atomic_load_explicit(&tpc_waiters, memory_order_relaxed) > 0; }
/* The sentence for a wait that a signal ended. */
void tpc_wait_sentence(char *why, size_t why_size);

/* In slices. False: interrupted. */
bool tpc_wait_nap(uint64_t ns);
/* Sleeps until the socket is ready for `events`. 0, or EINTR (interrupted), ETIMEDOUT, or poll's error. */
int tpc_wait_ready(int socket, short events, uint64_t deadline);
struct tp_secure;
/* At least one byte: how many; 0 at the end; -1 with errno as above, or the socket's error. `secure`: NULL for a plain socket. */
ssize_t tpc_wait_receive(struct tp_secure *secure, int socket, void *data, size_t size, uint64_t deadline);
/* getaddrinfo, which cannot be interrupted, in a thread that is left behind when a signal comes. Returns its code, or
 * EAI_SYSTEM with errno EINTR. freeaddrinfo frees the list. */
int tpc_wait_resolve(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **list);

#endif
