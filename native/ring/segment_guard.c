/*
 * A segment whose file was cut short under us.
 *
 * Any process that may write the file may also truncate it, and a page that is no longer in the file ends whoever touches it by a
 * signal: the supervisor with all its clients. So the worker's processes put an empty page of their own in its place and
 * remember that they did. Owns the process's handler of SIGBUS, for one segment; entered on whatever thread met the hole,
 * with async-signal-safe calls only. Client processes are strangers' and install nothing.
 */
#include "tp_segment.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#define PAGE 4096u

static unsigned char *guarded;
static uint64_t guarded_size;
static _Atomic bool cut;
static struct sigaction before;

static void on_hole(int number, siginfo_t *info, void *context) {
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    (void)number, (void)context;
    if (at - (uintptr_t)guarded < guarded_size &&
        mmap((void *)(at & ~(uintptr_t)(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
        atomic_store(&cut, true);
    } else {
        sigaction(SIGBUS, &before, NULL); /* not ours: it comes again, and does what it always did */
    }
    errno = saved;
}

bool tp_segment_guard(void *base, uint64_t size) {
    struct sigaction action = {.sa_sigaction = on_hole, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    guarded = base;
    guarded_size = size;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &before) == 0;
}

bool tp_segment_was_cut(void) { return atomic_load(&cut); }
