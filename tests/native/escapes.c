/*
 * Plays a session that was taken over: preloaded, it tries what such a one would try, after the session has given up its rights, and
 * writes what came of each attempt into the file ESCAPES_REPORT. Does nothing in other programs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t supervisor;

static int opens(const char *name, int flags) {
    int fd = open(getenv(name), flags, 0600);
    return fd < 0 ? -1 : close(fd);
}

static int read_secrets(void) { return opens("ESCAPES_SECRETS", O_RDONLY); }
static int write_secrets(void) { return opens("ESCAPES_SECRETS", O_WRONLY); }
static int move_secrets(void) {
    return rename(getenv("ESCAPES_SECRETS"), getenv("ESCAPES_NEW")) ||
           rename(getenv("ESCAPES_NEW"), getenv("ESCAPES_SECRETS"));
}
static int make_file(void) { return opens("ESCAPES_NEW", O_WRONLY | O_CREAT); }
static int make_link(void) { return symlink("/", getenv("ESCAPES_NEW")); }
static int make_folder(void) { return mkdir(getenv("ESCAPES_NEW"), 0700); }
static int read_shadow(void) {
    int fd = open("/etc/shadow", O_RDONLY);
    return fd < 0 ? -1 : close(fd);
}
static int list_root(void) {
    DIR *list = opendir("/root");
    return list ? closedir(list) : -1;
}
static int signal_supervisor(void) { return kill(supervisor, 0); }
static int read_supervisor(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", supervisor);
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : close(fd);
}
static int trace_supervisor(void) { return (int)ptrace(PTRACE_SEIZE, supervisor, 0, 0); }
static int mount_something(void) { return mount("none", "/mnt", "tmpfs", 0, NULL); }
static int become_another(void) { return setuid(12345); }
static int change_root(void) { return chroot("/tmp"); }
static int open_raw_socket(void) {
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    return fd < 0 ? -1 : close(fd);
}
static int connect_somewhere(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(getenv("ESCAPES_PORT")))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof to);
}

#define TRY(name) {#name, name}
static const struct {
    const char *name;
    int (*attempt)(void);
} attempts[] = {TRY(read_secrets),      TRY(write_secrets),   TRY(make_file),        TRY(make_link),
                TRY(make_folder),       TRY(move_secrets),    TRY(read_shadow),      TRY(list_root),
                TRY(signal_supervisor), TRY(read_supervisor), TRY(trace_supervisor), TRY(mount_something),
                TRY(become_another),    TRY(change_root),     TRY(open_raw_socket),  TRY(connect_somewhere)};

int epoll_create1(int flags) {
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
        int out = open(report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        for (size_t i = 0; out >= 0 && i < sizeof attempts / sizeof *attempts; i++) {
            pid_t child = fork(); /* some change the process */
            if (child == 0) {
                errno = 0;
                int result = attempts[i].attempt();
                dprintf(out, "%s %s\n", attempts[i].name, result == 0 ? "done" : strerror(errno));
                _exit(0);
            }
            waitpid(child, NULL, 0);
        }
        close(out);
    }
    return real(flags);
}
