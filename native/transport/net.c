/*
 * Socket options, exact sends and receives with a deadline, and helper threads.
 *
 * Owns nothing; any thread may enter; sockets are always non-blocking. Bytes received here go to buffers whose size the
 * caller gave; nothing is interpreted.
 *
 * TCP_USER_TIMEOUT is not used: Linux also applies it to a peer that is alive but reads slowly (zero window; with 3 s set, a
 * reader that paused was cut off after 4 s, Linux 6.18), and a session may rightly hold back an upload for as long as a kernel
 * before it runs. Keepalive finds a vanished peer on an idle connection; tp_net_silent finds it where data is unanswered.
 */
#include "tp_net.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SILENT_MS 9000
#define BULK_BUFFER (4 << 20)

static long kernel_limit(const char *path) {
    char text[32] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
    }
    return strtol(text, NULL, 10);
}

static void set(int socket, int level, int name, int value) { setsockopt(socket, level, name, &value, sizeof value); }

void tp_net_tune(int socket, bool bulk) {
    int flags = fcntl(socket, F_GETFL);
    fcntl(socket, F_SETFL, flags | O_NONBLOCK);
    set(socket, IPPROTO_TCP, TCP_NODELAY, 1);
    set(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(socket, IPPROTO_TCP, TCP_KEEPIDLE, 3);
    set(socket, IPPROTO_TCP, TCP_KEEPINTVL, 2);
    set(socket, IPPROTO_TCP, TCP_KEEPCNT, 3);
    /* An explicit size ends the kernel's own tuning: ask only where the answer is not smaller than what tuning reaches. */
    if (bulk && kernel_limit("/proc/sys/net/core/wmem_max") >= BULK_BUFFER) {
        set(socket, SOL_SOCKET, SO_SNDBUF, BULK_BUFFER);
    }
    if (bulk && kernel_limit("/proc/sys/net/core/rmem_max") >= BULK_BUFFER) {
        set(socket, SOL_SOCKET, SO_RCVBUF, BULK_BUFFER);
    }
}

bool tp_net_silent(int socket) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
        return false; /* not TCP: the kernel tells the end of the peer by itself */
    }
    bool unanswered = (info.tcpi_unacked > 0 && info.tcpi_retransmits > 0) || info.tcpi_probes > 1;
    return unanswered && info.tcpi_last_ack_recv >= SILENT_MS;
}

static bool wait_ready(int socket, short events, uint64_t deadline) {
    uint64_t now = tp_now_ns();
    if (now >= deadline) {
        errno = ETIMEDOUT;
        return false;
    }
    uint64_t ms = (deadline - now) / 1000000u + 1;
    struct pollfd wait = {.fd = socket, .events = events};
    return poll(&wait, 1, ms > 600000 ? 600000 : (int)ms) >= 0 || errno == EINTR;
}

enum tp_status tp_net_send_all(int socket, const void *data, size_t size, uint64_t deadline) {
    const unsigned char *at = data;
    while (size > 0) {
        ssize_t n = send(socket, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            at += n;
            size -= (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_ready(socket, POLLOUT, deadline)) {
                return TP_ERROR_LOST;
            }
        } else if (errno != EINTR) {
            return TP_ERROR_LOST;
        }
    }
    return TP_OK;
}

enum tp_status tp_net_receive_all(int socket, void *data, size_t size, uint64_t deadline) {
    unsigned char *at = data;
    while (size > 0) {
        ssize_t n = recv(socket, at, size, MSG_DONTWAIT);
        if (n > 0) {
            at += n;
            size -= (size_t)n;
        } else if (n == 0) {
            errno = ECONNRESET;
            return TP_ERROR_LOST;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_ready(socket, POLLIN, deadline)) {
                return TP_ERROR_LOST;
            }
        } else if (errno != EINTR) {
            return TP_ERROR_LOST;
        }
    }
    return TP_OK;
}

uint64_t tp_spin_ns(uint64_t full) {
    cpu_set_t set_of_cpus;
    int cpus = sched_getaffinity(0, sizeof set_of_cpus, &set_of_cpus) == 0 ? CPU_COUNT(&set_of_cpus) : 1;
    return cpus >= 4 ? full : cpus >= 2 ? full / 10 : 0;
}

enum tp_status tp_thread_start(pthread_t *thread, const char *name, size_t stack, void *(*run)(void *),
                               void *argument) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t id;
    if (pthread_attr_init(&attributes) != 0) {
        return TP_ERROR_MEMORY;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_attr_setstacksize(&attributes, stack);
    rc = rc ? rc : pthread_create(&id, &attributes, run, argument);
    if (rc == EINVAL) { /* the program's thread-local storage may not fit into a small stack: take the default size */
        rc = pthread_create(&id, NULL, run, argument);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (rc == 0) {
        pthread_setname_np(id, name);
        if (thread) {
            *thread = id;
        } else {
            pthread_detach(id);
        }
    }
    return rc == 0 ? TP_OK : TP_ERROR_MEMORY;
}
