/*
 * System calls that old C libraries have no function for, or another one than new C libraries have.
 *
 * The client files must load into programs on glibc 2.17. There fstat is no function but a call of __fxstat with a version,
 * and getrandom is not there at all; a file built against a new glibc would ask for symbols that an old one lacks. On the
 * machines that we build for, the kernel's struct stat is that of the C library. And writing all of some bytes, for which no C library
 * has a function. Inline, so that nothing else is to be linked.
 */
#ifndef TP_SYSTEM_H
#define TP_SYSTEM_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(struct stat) == 144 || sizeof(struct stat) == 128,
               "as the kernels of x86-64 and aarch64 fill it");

/* As fstat, fstatat without following a link, and stat. */
static inline int tp_about(int fd, struct stat *about) { return (int)syscall(SYS_fstat, fd, about); }
static inline int tp_about_at(int folder, const char *name, struct stat *about) {
    return (int)syscall(SYS_newfstatat, folder, name, about, AT_SYMLINK_NOFOLLOW);
}
static inline int tp_about_path(const char *path, struct stat *about) { /* follows links */
    return (int)syscall(SYS_newfstatat, AT_FDCWD, path, about, 0);
}
/* Random bytes of the kernel; false with errno set when it has none to give. */
static inline bool tp_random(void *bytes, size_t size) { return syscall(SYS_getrandom, bytes, size, 0) == (long)size; }
/* All of it, however often it takes. */
static inline bool tp_write_all(int fd, const void *bytes, size_t size) {
    for (const char *at = bytes; size;) {
        ssize_t n = write(fd, at, size);
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return false;
        }
        at += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

#endif
