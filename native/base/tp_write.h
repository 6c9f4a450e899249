/*
 * Writes into files of ours in the program's process.
 */
#ifndef TP_WRITE_H
#define TP_WRITE_H

#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

/* write() into a file that the program has not asked for. Beyond `ulimit -f` it fails with EFBIG, as ever, but without the signal
 * that ends who does not expect it: that is blocked in this thread meanwhile, and taken back if it came. */
static inline ssize_t tp_write(int fd, const void *data, size_t size) {
    sigset_t beyond, before, pending;
    sigemptyset(&beyond);
    sigaddset(&beyond, SIGXFSZ);
    sigemptyset(&pending);
    if (pthread_sigmask(SIG_BLOCK, &beyond, &before) != 0) {
        errno = EINVAL;
        return -1;
    }
    if (sigismember(&before, SIGXFSZ)) {
        sigpending(&pending); /* the program's own stays */
    }
    ssize_t written = write(fd, data, size);
    int error = errno;
    if (written < 0 && error == EFBIG && !sigismember(&pending, SIGXFSZ)) {
        const struct timespec now = {0};
        while (sigtimedwait(&beyond, NULL, &now) < 0 && errno == EINTR) {
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return written;
}

#endif
