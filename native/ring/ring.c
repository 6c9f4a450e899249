/*
 * Sleeping beside a ring: the part of tp_ring.h that enters the kernel.
 *
 * Owns nothing. Any thread that owns a bell may wait on it; anybody who publishes may ring it. The word lies in memory that
 * the peer can write: a lie there costs a sleep its end or wakes somebody for nothing, and every sleep has a limit.
 */
#include "tp_ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NAP_FIRST_NS 50000u
#define NAP_MOST_NS 5000000u
/* With a common kernel the sleep ends by the bell; the limit is for a peer that ended between its bytes and its ring. */
#define ROUND_NS 20000000u

/* True: it was rung. */
static bool sleep_while(struct tp_bell *bell, enum tp_bell_state state, uint64_t ns) {
    const struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    if (syscall(SYS_futex, &bell->sleeps, FUTEX_WAIT, state, &time, NULL, 0) == 0) {
        return true;
    }
    if (errno == EFAULT) {
        nanosleep(&time, NULL); /* a device's memory has no futexes */
    }
    return false;
}

void tp_bell_wait(struct tp_bell *bell, struct tp_nap *nap, uint64_t most_ns) {
    int saved = errno;
    uint64_t now = tp_now_ns();
    nap->since = nap->since ? nap->since : now;
    uint64_t ns = (now - nap->since) / 8;
    ns = nap->same_kernel ? ROUND_NS : ns < NAP_FIRST_NS ? NAP_FIRST_NS : ns > NAP_MOST_NS ? NAP_MOST_NS : ns;
    ns = ns < most_ns ? ns : most_ns;
    if (sleep_while(bell, TP_SLEEPS, ns)) {
        nap->since = 0;
    }
    tp_bell_disarm(bell);
    errno = saved;
}

void tp_bell_nap(struct tp_bell *bell, uint64_t ns) {
    int saved = errno;
    sleep_while(bell, TP_NAPS, ns);
    tp_bell_disarm(bell);
    errno = saved;
}

void tp_bell_wake(struct tp_bell *bell) {
    int saved = errno;
    atomic_store_explicit(&bell->sleeps, TP_AWAKE, memory_order_seq_cst);
    syscall(SYS_futex, &bell->sleeps, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    errno = saved;
}
