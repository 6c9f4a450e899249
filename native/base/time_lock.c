/*
 * Monotonic time and the lock and futex of tp_base.h.
 *
 * Owns nothing. Any thread enters. The lock words lie in memory of this process only, so nobody hostile can write them.
 * A taker spins for about as long as the short critical sections here last, then sleeps: on a machine with few cores the
 * holder may have been descheduled, and spinning would only keep it from running.
 */
#include <tp_base.h>

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPINS 100

uint64_t tp_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool tp_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns) {
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    int saved = errno;
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, timeout_ns ? &timeout : NULL, NULL, 0);
    bool timed_out = rc == -1 && errno == ETIMEDOUT;
    errno = saved;
    return !timed_out;
}

void tp_futex_wake(_Atomic uint32_t *word, int waiters) {
    int saved = errno;
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, waiters, NULL, NULL, 0);
    errno = saved;
}

void tp_lock_slow(struct tp_lock *lock) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&lock->state, memory_order_relaxed) == 0 && tp_lock_try(lock)) {
            return;
        }
        tp_pause();
    }
    /* Whoever has slept takes the lock as 2: it cannot know whether others still sleep, and a wake too many is harmless. */
    while (atomic_exchange_explicit(&lock->state, 2, memory_order_acquire) != 0) {
        tp_futex_wait(&lock->state, 2, 0);
    }
}

void tp_unlock_slow(struct tp_lock *lock) { tp_futex_wake(&lock->state, 1); }
