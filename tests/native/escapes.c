/*
 * Plays a session that was taken over: preloaded, it tries what such a one would try, after the session has given up its rights, and
 * writes what came of each attempt into the file ESCAPES_REPORT. Does nothing in other programs. Where an attempt succeeds it hurts
 * nobody: it sets what is set already, or asks for what makes no sense once it is past the check of rights.
 */
#include "escapes.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>

pid_t supervisor, bystander;
volatile unsigned long *limits;
char *cell;
int limits_fd = -1, log_fd = -1;

static void look_for_page(void) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512], rights[8];
    unsigned long from, offset;
    while (maps && fgets(line, sizeof line, maps)) {
        if (strstr(line, "tensor-fusion-quota") && sscanf(line, "%lx-%*x %7s %lx", &from, rights, &offset) == 3) {
            limits = offset ? limits : (volatile unsigned long *)from;
            cell = rights[1] == 'w' ? (char *)from : cell;
        }
    }
    if (maps) {
        fclose(maps);
    }
}

static void look_for_files(void) {
    for (int fd = 0; fd < 256; fd++) {
        char link[64], target[512];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(link, target, sizeof target - 1);
        target[size > 0 ? size : 0] = 0;
        limits_fd = strstr(target, "tensor-fusion-quota") ? fd : limits_fd;
        log_fd = size > 4 && strcmp(target + size - 4, "/log") == 0 ? fd : log_fd;
    }
}

static void try_one(int out, const struct attempt *one) {
    int status = 0;
    pid_t child = fork(); /* some change the process */
    if (child == 0) {
        alarm(10);
        errno = 0;
        int result = one->attempt();
        dprintf(out, "ESCAPE %s %s %s\n", one->who, one->name, result == 0 ? "done" : strerror(errno));
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0) {
        dprintf(out, "ESCAPE %s %s not tried: %s\n", one->who, one->name, strerror(errno));
    } else if (status) {
        dprintf(out, "ESCAPE %s %s ended by status %d\n", one->who, one->name, status);
    }
}

int epoll_create1(int flags) {
    static const struct attempt *const tables[] = {on_files, on_processes, on_network, on_kernel};
    static int (*real)(int);
    char exe[512];
    ssize_t size = readlink("/proc/self/exe", exe, sizeof exe - 1);
    const char *report = getenv("ESCAPES_REPORT");
    exe[size > 0 ? size : 0] = 0;
    if (!real) {
        real = (int (*)(int))dlsym(RTLD_NEXT, "epoll_create1");
    }
    if (report && strstr(exe, "tensor-fusion-session")) {
        supervisor = getppid();
        bystander = number("ESCAPES_BYSTANDER");
        look_for_page();
        look_for_files();
        int out = open(report, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
        out = out < 0 ? 2 : out; /* in the full jail, where no file can be written */
        for (size_t i = 0; out >= 0 && i < sizeof tables / sizeof *tables; i++) {
            for (const struct attempt *one = tables[i]; one->name; one++) {
                try_one(out, one);
            }
        }
        if (out != 2) {
            close(out);
        }
    }
    return real(flags);
}
