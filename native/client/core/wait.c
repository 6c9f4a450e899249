/*
 * Waiting for a worker: one line on standard error, and signals that the program handles.
 *
 * A program that leaves SIGINT alone is ended by it wherever it stands. One with a handler, as every Python program has, sees
 * nothing of it: its handler notes the signal and the program looks at the note when our call returns, in up to 15 minutes. So
 * while somebody waits, and only then, a handler of ours stands in front of the program's: it calls that one, as the kernel
 * would have, and ends the wait. A signal that the program ignores stays ignored.
 *
 * Owns the handlers while `depth` is above 0, and the line that is to be said. Any thread enters. The handler runs on any thread
 * of the program, at any moment, also a little after the wait: what it reads is never freed and always whole. A program that
 * sets a handler of its own while we wait keeps it: only our own is taken away.
 */
#include "tp_wait.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <tp_secure.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define SAID_ON_TERMINAL_NS (SECOND / 2)
#define SAID_ELSEWHERE_NS (4 * SECOND)
#define SAID_AGAIN_NS (60 * SECOND)
#define PASSING_NS (SECOND / 10) /* what takes no longer is not worth a line */

typedef void information_handler(int, siginfo_t *, void *);
/* What the program did with a signal: one of the two, or neither. */
struct before {
    void (*_Atomic plain)(int);
    information_handler *_Atomic with_information;
    bool ours; /* our handler was put in front; under guard */
};

static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
#define SIGNALS (sizeof signals / sizeof *signals)

_Atomic uint32_t tpc_waiters;
static struct before before[SIGNALS];
static _Atomic uint32_t interruptions;
static _Atomic uint32_t interruptions_at_begin;

static struct tp_lock guard;
static uint32_t depth;    /* under guard */
static char subject[512]; /* under guard: what is waited for */
static uint64_t began;    /* under guard: the wait */
static uint64_t until;    /* under guard */
/* What was said last: a loop that waits for one thing and then another tells each of them once a minute. Under guard. */
static struct told {
    uint64_t hash, at;
} told[8];
static uint32_t told_next;
static _Atomic uint64_t due; /* when the line is to be said */

/* ---- signals ---- */

static void on_signal(int number, siginfo_t *information, void *context) {
    int saved = errno;
    for (size_t i = 0; i < SIGNALS; i++) {
        if (signals[i] == number) {
            information_handler *informed = atomic_load(&before[i].with_information);
            void (*plain)(int) = atomic_load(&before[i].plain);
            atomic_fetch_add(&interruptions, 1);
            if (informed) {
                informed(number, information, context);
            } else if (plain) {
                plain(number);
            }
        }
    }
    errno = saved;
}

static bool is_ours(const struct sigaction *action) {
    return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == on_signal;
}

static void put_in_front(size_t i) {
    struct sigaction theirs;
    if (sigaction(signals[i], NULL, &theirs) != 0 || is_ours(&theirs)) {
        return;
    }
    bool informed = theirs.sa_flags & SA_SIGINFO;
    if (!informed && (theirs.sa_handler == SIG_DFL || theirs.sa_handler == SIG_IGN)) {
        return;
    }
    atomic_store(&before[i].with_information, informed ? theirs.sa_sigaction : NULL);
    atomic_store(&before[i].plain, informed ? NULL : theirs.sa_handler);
    /* Its mask, its alternate stack, once only or again and again: all as the program has it. */
    struct sigaction own = theirs;
    own.sa_sigaction = on_signal;
    own.sa_flags = theirs.sa_flags | SA_SIGINFO;
    before[i].ours = sigaction(signals[i], &own, NULL) == 0;
}

static void take_away(size_t i) {
    struct sigaction now;
    if (!before[i].ours || sigaction(signals[i], NULL, &now) != 0) {
        return;
    }
    before[i].ours = false;
    if (!is_ours(&now)) {
        return; /* the program has set another since, or the signal came and its handler was good for once */
    }
    information_handler *informed = atomic_load(&before[i].with_information);
    if (informed) {
        now.sa_sigaction = informed;
    } else {
        now.sa_flags &= ~SA_SIGINFO;
        now.sa_handler = atomic_load(&before[i].plain);
    }
    sigaction(signals[i], &now, NULL);
}

void tp_wait_begin(void) {
    tp_lock_take(&guard);
    if (depth++ == 0) {
        subject[0] = 0;
        began = tp_now_ns();
        memset(told, 0, sizeof told);
        atomic_store(&due, UINT64_MAX);
        atomic_store(&interruptions_at_begin, atomic_load(&interruptions));
        for (size_t i = 0; i < SIGNALS; i++) {
            put_in_front(i);
        }
    }
    atomic_store(&tpc_waiters, depth);
    tp_lock_drop(&guard);
}

void tp_wait_end(void) {
    tp_lock_take(&guard);
    if (--depth == 0) {
        for (size_t i = 0; i < SIGNALS; i++) {
            take_away(i);
        }
    }
    atomic_store(&tpc_waiters, depth);
    tp_lock_drop(&guard);
}

void tpc_wait_fork_prepare(void) { tp_lock_take(&guard); }

void tpc_wait_fork_parent(void) { tp_lock_drop(&guard); }

void tpc_wait_fork_child(void) {
    for (size_t i = 0; depth > 0 && i < SIGNALS; i++) {
        take_away(i);
    }
    depth = 0; /* whoever waits is a thread of the parent */
    atomic_store(&tpc_waiters, 0);
    atomic_store_explicit(&guard.state, 0, memory_order_relaxed);
}

uint32_t tp_interruptions(void) { return atomic_load(&interruptions); }

/* ---- the line ---- */

static uint64_t hash_of(const char *text) {
    uint64_t hash = 14695981039346656037ull;
    while (*text) {
        hash = (hash ^ (unsigned char)*text++) * 1099511628211ull;
    }
    return hash;
}

static struct told *told_of(uint64_t hash) {
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        if (told[i].at && told[i].hash == hash) {
            return &told[i];
        }
    }
    return NULL;
}

void tpc_wait_for(uint64_t most_ns, const char *format, ...) {
    char text[sizeof subject];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!tpc_waiting()) {
        return;
    }
    tp_lock_take(&guard);
    uint64_t now = tp_now_ns();
    if (strcmp(text, subject) != 0) {
        memcpy(subject, text, sizeof text);
        const struct told *earlier = told_of(hash_of(text));
        uint64_t first = began + (isatty(STDERR_FILENO) ? SAID_ON_TERMINAL_NS : SAID_ELSEWHERE_NS);
        first = first > now + PASSING_NS ? first : now + PASSING_NS;
        atomic_store(&due, earlier ? earlier->at + SAID_AGAIN_NS : first);
    }
    until = now + most_ns;
    tp_lock_drop(&guard);
}

bool tpc_wait_goes_on(void) {
    if (!tpc_waiting()) {
        return true;
    }
    if (atomic_load(&interruptions) != atomic_load(&interruptions_at_begin)) {
        return false;
    }
    uint64_t now = tp_now_ns();
    if (now >= atomic_load(&due)) {
        tp_lock_take(&guard);
        if (now >= atomic_load(&due)) {
            uint64_t left = until > now ? (until - now + SECOND - 1) / SECOND : 0;
            bool minutes = left > 120;
            uint64_t hash = hash_of(subject);
            struct told *place = told_of(hash);
            place = place ? place : &told[told_next++ % (sizeof told / sizeof *told)];
            *place = (struct told){.hash = hash, .at = now};
            atomic_store(&due, now + SAID_AGAIN_NS);
            tp_say(TP_WARN, "Waiting for %s, for up to %llu %s more; Ctrl-C ends it", subject,
                   (unsigned long long)(minutes ? (left + 59) / 60 : left), minutes ? "minutes" : "seconds");
        }
        tp_lock_drop(&guard);
    }
    return true;
}

void tpc_wait_sentence(char *why, size_t why_size) {
    tp_lock_take(&guard);
    snprintf(why, why_size, "The program was interrupted while it waited for %s.", subject);
    tp_lock_drop(&guard);
}

/* ---- sleeping ---- */

bool tpc_wait_nap(uint64_t ns) {
    uint64_t end = tp_now_ns() + ns;
    while (tpc_wait_goes_on()) {
        uint64_t now = tp_now_ns();
        if (now >= end) {
            return true;
        }
        struct timespec time = {.tv_nsec = (long)(end - now < TPC_SLICE_NS ? end - now : TPC_SLICE_NS)};
        nanosleep(&time, NULL);
    }
    return false;
}

int tpc_wait_ready(int socket, short events, uint64_t deadline) {
    struct pollfd wait = {.fd = socket, .events = events};
    for (;;) {
        if (!tpc_wait_goes_on()) {
            return EINTR;
        }
        uint64_t now = tp_now_ns();
        if (now >= deadline) {
            return ETIMEDOUT;
        }
        uint64_t ns = deadline - now < TPC_SLICE_NS ? deadline - now : TPC_SLICE_NS;
        int ready = poll(&wait, 1, (int)(ns / 1000000u) + 1);
        if (ready > 0) {
            return 0;
        }
        if (ready < 0 && errno != EINTR) {
            return errno;
        }
    }
}

ssize_t tpc_wait_receive(struct tp_secure *secure, int socket, void *data, size_t size, uint64_t deadline) {
    for (;;) {
        ssize_t n = tp_stream_receive(secure, socket, data, size);
        if (n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
            return n;
        }
        int error = tpc_wait_ready(socket, POLLIN, deadline);
        if (error) {
            errno = error;
            return -1;
        }
    }
}

/* ---- names ---- */

struct lookup {
    _Atomic uint32_t holders; /* the thread and the one that waits for it: the last one frees */
    _Atomic uint32_t done;
    struct addrinfo hints, *list;
    int code, error;
    char host[256], port[16];
};

static void let_go(struct lookup *lookup) {
    if (atomic_fetch_sub(&lookup->holders, 1) == 1) {
        if (lookup->list) {
            freeaddrinfo(lookup->list);
        }
        free(lookup);
    }
}

static void *look_up(void *argument) {
    struct lookup *lookup = argument;
    lookup->code = getaddrinfo(lookup->host, lookup->port, &lookup->hints, &lookup->list);
    lookup->error = errno;
    if (lookup->code != 0) {
        lookup->list = NULL;
    }
    atomic_store(&lookup->done, 1);
    tp_futex_wake(&lookup->done, 1);
    let_go(lookup);
    return NULL;
}

int tpc_wait_resolve(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **list) {
    struct addrinfo plain = *hints;
    plain.ai_flags |= AI_NUMERICHOST;
    int code = getaddrinfo(host, port, &plain, list); /* an address asks nobody */
    if (code != EAI_NONAME || !tpc_waiting()) {
        return code == EAI_NONAME ? getaddrinfo(host, port, hints, list) : code;
    }
    struct lookup *lookup = calloc(1, sizeof *lookup);
    if (!lookup) {
        return EAI_MEMORY;
    }
    lookup->holders = 2;
    lookup->hints = *hints;
    snprintf(lookup->host, sizeof lookup->host, "%s", host);
    snprintf(lookup->port, sizeof lookup->port, "%s", port);
    if (tp_thread_start(NULL, "tf-resolve", 512u << 10, look_up, lookup) != TP_OK) {
        free(lookup);
        return EAI_MEMORY;
    }
    while (tpc_wait_goes_on() && !atomic_load(&lookup->done)) {
        tp_futex_wait(&lookup->done, 0, TPC_SLICE_NS);
    }
    code = EAI_SYSTEM;
    errno = EINTR;
    if (atomic_load(&lookup->done)) {
        code = lookup->code;
        *list = lookup->list;
        lookup->list = NULL;
        errno = lookup->error;
    }
    int error = errno;
    let_go(lookup);
    errno = error;
    return code;
}
