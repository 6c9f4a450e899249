/* Attempts on other processes of the same user: the supervisor, and a bystander that has nothing to do with us. */
#include "escapes.h"

#include <dirent.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <signal.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/uio.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif

static int signal_supervisor(void) { return kill(supervisor, 0); }
static int signal_bystander(void) { return kill(bystander, 0); }
static int signal_all(void) { return kill(-1, 0); }
static int signal_group(void) { return kill(-getpgid(supervisor), 0); }
static int signal_thread(void) { return (int)syscall(SYS_tgkill, bystander, bystander, 0); }
static int signal_any_thread(void) { return (int)syscall(SYS_tkill, bystander, 0); }
static int queue_signal(void) {
    siginfo_t about = {.si_code = SI_QUEUE};
    return (int)syscall(SYS_rt_sigqueueinfo, bystander, SIGURG, &about);
}
static int signal_by_folder(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", (int)bystander);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -1 : (int)syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0);
}
static int open_process(void) { return closed((int)syscall(SYS_pidfd_open, bystander, 0)); }
static int take_descriptor(void) {
    int fd = (int)syscall(SYS_pidfd_open, supervisor, 0);
    return fd < 0 ? -1 : closed((int)syscall(SYS_pidfd_getfd, fd, 0, 0));
}
static int read_supervisor(void) { return opens_path(of_process(supervisor, "mem"), O_RDONLY); }
static int read_bystander(void) { return opens_path(of_process(bystander, "mem"), O_RDONLY); }
static int trace_supervisor(void) { return (int)ptrace(PTRACE_SEIZE, supervisor, 0, 0); }
static int trace_bystander(void) { return (int)ptrace(PTRACE_SEIZE, bystander, 0, 0); }
static int copies(bool write) {
    static char byte;
    struct iovec here = {&byte, 1};
    struct iovec there = {(void *)strtoul(getenv("ESCAPES_MEMORY"), NULL, 0), 1};
    ssize_t got = write ? process_vm_writev(bystander, &here, 1, &there, 1, 0)
                        : process_vm_readv(bystander, &here, 1, &there, 1, 0);
    return got == 1 ? 0 : -1;
}
static int copy_its_memory(void) { return copies(false); }
static int change_its_memory(void) { return copies(true); }
static int read_its_environment(void) { return opens_path(of_process(bystander, "environ"), O_RDONLY); }
static int read_its_words(void) { return opens_path(of_process(bystander, "cmdline"), O_RDONLY); }
static int read_its_maps(void) { return opens_path(of_process(bystander, "maps"), O_RDONLY); }
static int list_its_descriptors(void) {
    DIR *list = opendir(of_process(bystander, "fd"));
    return list ? closedir(list) : -1;
}
static int go_to_its_folder(void) { return chdir(of_process(bystander, "cwd")); }
static int go_through_its_root(void) { return opens_path(of_process(bystander, "root/etc/passwd"), O_RDONLY); }
static int compare_descriptors(void) { return same(syscall(SYS_kcmp, supervisor, bystander, 0, 0, 0)); }
static int list_processes(void) {
    DIR *list = opendir("/proc");
    int others = 0;
    for (const struct dirent *entry; list && (entry = readdir(list)) != NULL;) {
        others += atoi(entry->d_name) > 0 && atoi(entry->d_name) != getppid(); /* the session, whose child this is */
    }
    if (list) {
        closedir(list);
    }
    errno = ENOENT;
    return others ? 0 : -1;
}
static int bound_it(void) {
    struct rlimit bound;
    return prlimit(bystander, RLIMIT_NOFILE, NULL, &bound) || prlimit(bystander, RLIMIT_NOFILE, &bound, NULL);
}
static int slow_it(void) { return setpriority(PRIO_PROCESS, (id_t)bystander, 0); }
static int slow_all(void) { return setpriority(PRIO_USER, geteuid(), 0); }
static int keep_it_on_a_processor(void) {
    cpu_set_t set;
    return sched_getaffinity(bystander, sizeof set, &set) || sched_setaffinity(bystander, sizeof set, &set);
}
static int schedule_it(void) {
    return sched_setscheduler(bystander, SCHED_OTHER, &(struct sched_param){.sched_priority = 0});
}
static int slow_its_disk(void) {
    return same(syscall(SYS_ioprio_set, 1, bystander, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 4)));
}
static int move_its_pages(void) {
    unsigned long nodes = 1;
    return same(syscall(SYS_migrate_pages, bystander, 8 * sizeof nodes, &nodes, &nodes));
}
static int join_its_network(void) {
    int fd = open(of_process(bystander, "ns/net"), O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : setns(fd, CLONE_NEWNET);
}
static int join_its_mounts(void) {
    int fd = open(of_process(bystander, "ns/mnt"), O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : setns(fd, CLONE_NEWNS);
}

/* ---- objects that it shares with its own ---- */

static int attach_shared_memory(void) {
    int id = shmget((key_t)number("ESCAPES_KEY"), 0, 0600);
    return id < 0 || shmat(id, NULL, 0) == (void *)-1 ? -1 : 0;
}
static int read_queue(void) { return same(msgget((key_t)number("ESCAPES_KEY"), 0600)); }
static int take_semaphore(void) { return same(semget((key_t)number("ESCAPES_KEY"), 1, 0600)); }
static int open_named_queue(void) {
    return closed((int)syscall(SYS_mq_open, getenv("ESCAPES_NAME"), O_RDONLY, 0, NULL));
}
static int open_named_memory(void) {
    char path[256];
    snprintf(path, sizeof path, "/dev/shm/%s", getenv("ESCAPES_NAME"));
    return opens_path(path, O_RDWR);
}

const struct attempt on_processes[] = {BY_USER(signal_supervisor),
                                       BY_USER(signal_bystander),
                                       BY_USER(signal_all),
                                       BY_USER(signal_group),
                                       BY_USER(signal_thread),
                                       BY_USER(signal_any_thread),
                                       BY_USER(queue_signal),
                                       BY_USER(signal_by_folder),
                                       BY_USER(open_process),
                                       PERHAPS(take_descriptor),
                                       BY_RIGHT(read_supervisor),
                                       PERHAPS(read_bystander),
                                       BY_RIGHT(trace_supervisor),
                                       PERHAPS(trace_bystander),
                                       PERHAPS(copy_its_memory),
                                       PERHAPS(change_its_memory),
                                       PERHAPS(read_its_environment),
                                       BY_USER(read_its_words),
                                       PERHAPS(read_its_maps),
                                       PERHAPS(list_its_descriptors),
                                       PERHAPS(go_to_its_folder),
                                       PERHAPS(go_through_its_root),
                                       PERHAPS(compare_descriptors),
                                       BY_USER(list_processes),
                                       BY_USER(bound_it),
                                       BY_PEER(slow_it),
                                       BY_PEER(slow_all),
                                       BY_PEER(keep_it_on_a_processor),
                                       BY_PEER(schedule_it),
                                       BY_PEER(slow_its_disk),
                                       PERHAPS(move_its_pages),
                                       BY_RIGHT(join_its_network),
                                       BY_RIGHT(join_its_mounts),
                                       BY_USER(attach_shared_memory),
                                       BY_USER(read_queue),
                                       BY_USER(take_semaphore),
                                       PERHAPS(open_named_queue),
                                       BY_USER(open_named_memory),
                                       {0}};
