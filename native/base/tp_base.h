/*
 * Small things that every native part needs: logging, time, a lock that never enters the kernel when uncontended.
 *
 * Lives in strangers' processes: nothing here runs at library load, aborts or writes to stdout. The one that
 * handles signals, while it waits for a worker, is native/client/core/wait.c.
 * All functions may be called from any thread.
 */
#ifndef TP_BASE_H
#define TP_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TP_EXPORT __attribute__((visibility("default")))
#define TP_COLD __attribute__((cold, noinline))
#define TP_LIKELY(x) __builtin_expect(!!(x), 1)
#define TP_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Puts an element in front of a list by `next`. */
#define TP_PUSH(head, element)                                                                                         \
    do {                                                                                                               \
        (element)->next = (head);                                                                                      \
        (head) = (element);                                                                                            \
    } while (0)
/* Takes an element out of such a list, which may have it. */
#define TP_UNLINK(head, element)                                                                                       \
    do {                                                                                                               \
        __typeof__(head) *tp_at = &(head);                                                                             \
        while (*tp_at && *tp_at != (element)) {                                                                        \
            tp_at = &(*tp_at)->next;                                                                                   \
        }                                                                                                              \
        *tp_at = *tp_at ? (element)->next : NULL;                                                                      \
    } while (0)

/* The first element of a list by `next` of which the condition is true, which calls it `it`; NULL if there is none. */
#define TP_FIND(head, condition)                                                                                       \
    ({                                                                                                                 \
        __typeof__(&*(head)) it = (head); /* which may be read only itself */                                          \
        while (it && !(condition)) {                                                                                   \
            it = it->next;                                                                                             \
        }                                                                                                              \
        it;                                                                                                            \
    })
/* Takes that element out of the list. */
#define TP_TAKE(head, condition)                                                                                       \
    ({                                                                                                                 \
        __typeof__(head) *tp_at = &(head), it = *tp_at;                                                                \
        while (it && !(condition)) {                                                                                   \
            tp_at = &it->next;                                                                                         \
            it = *tp_at;                                                                                               \
        }                                                                                                              \
        *tp_at = it ? it->next : NULL;                                                                                 \
        it;                                                                                                            \
    })

enum tp_status {
    TP_OK = 0,
    TP_ERROR_CONFIG,      /* no or bad connection string */
    TP_ERROR_UNREACHABLE, /* nobody answers at that address */
    TP_ERROR_REFUSED,     /* the worker answered and said no */
    TP_ERROR_LOST,        /* the connection ended */
    TP_ERROR_MEMORY,
    TP_ERROR_PROTOCOL,    /* the peer broke the format */
    TP_ERROR_FORKED,      /* the connection belongs to the parent process */
    TP_ERROR_INTERRUPTED, /* a signal that the program handles ended the wait */
};

/* ---- log: TF_ENABLE_LOG, TF_LOG_LEVEL, TF_LOG_PATH; off by default; stderr when no path is given ----
 * Level error is also written to stderr when logging is off, because it is the only way a user learns why CUDA fails. */
enum tp_log_level { TP_TRACE, TP_DEBUG, TP_INFO, TP_WARN, TP_ERROR, TP_SILENT };
TP_EXPORT extern _Atomic int tp_log_threshold; /* lowest level that is written */
TP_EXPORT void
tp_log_setup(const char *who);        /* reads the environment; `who` stands in each line; may be called again */
TP_EXPORT void tp_log_stderr(int fd); /* instead of 2, from now on */
/* At most so many lines in a second from now on, unless the level asks for everything: for a process whose peer is hostile. */
TP_EXPORT void tp_log_bound(uint32_t most);
TP_EXPORT void tp_log_write(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define tp_log(level, ...)                                                                                             \
    do {                                                                                                               \
        if ((level) >= atomic_load_explicit(&tp_log_threshold, memory_order_relaxed)) {                                \
            tp_log_write((level), __VA_ARGS__);                                                                        \
        }                                                                                                              \
    } while (0)

/* What a program cannot know by itself and its user needs: why something is refused here. Written once for each `said`, also to
 * stderr and also when logging is off; but not where TF_ENABLE_LOG=0 asks for silence. */
TP_EXPORT void tp_say_once(_Atomic bool *said, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What a program's user needs to see now, once: to the log's file, where there is one, and to stderr, also when logging is off;
 * but not where TF_ENABLE_LOG=0 asks for silence. */
TP_EXPORT void tp_say(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- environment ---- */
TP_EXPORT bool tp_switch(const char *name); /* a variable that is on or off; another value is said, and is off */

/* ---- time ---- */
TP_EXPORT uint64_t tp_now_ns(void); /* CLOCK_MONOTONIC */
static inline void tp_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* ---- lock: 0 free, 1 held, 2 held and somebody sleeps; acquire pairs with release of the same word ---- */
struct tp_lock {
    _Atomic uint32_t state;
};
TP_EXPORT void tp_lock_slow(struct tp_lock *lock);
TP_EXPORT void tp_unlock_slow(struct tp_lock *lock);
static inline void tp_lock_take(struct tp_lock *lock) {
    uint32_t free_state = 0;
    if (TP_UNLIKELY(!atomic_compare_exchange_strong_explicit(&lock->state, &free_state, 1, memory_order_acquire,
                                                             memory_order_relaxed))) {
        tp_lock_slow(lock);
    }
}
static inline bool tp_lock_try(struct tp_lock *lock) {
    uint32_t free_state = 0;
    return atomic_compare_exchange_strong_explicit(&lock->state, &free_state, 1, memory_order_acquire,
                                                   memory_order_relaxed);
}
static inline void tp_lock_drop(struct tp_lock *lock) {
    if (TP_UNLIKELY(atomic_exchange_explicit(&lock->state, 0, memory_order_release) == 2)) {
        tp_unlock_slow(lock);
    }
}

/* ---- futex: waits while *word == value; timeout_ns 0 = no timeout; false on timeout ---- */
TP_EXPORT bool tp_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
TP_EXPORT void tp_futex_wake(_Atomic uint32_t *word, int waiters);

#endif
