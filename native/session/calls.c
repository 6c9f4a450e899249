/*
 * System calls that a session has not got: those that no driver needs, and those that reach into other processes.
 *
 * The main thread enters, before there is another; the kernel keeps the filter for the process and its children. What is refused
 * outright a container of Docker's refuses as well, where the driver runs every day, or it needs a privilege, or it is a way to
 * other processes and other programs. Of a call that names a process by its number only the own number is left: a signal, a bound
 * or a priority would otherwise reach every process of the same user. A thread cannot name another one
 * so either; the kernel does not let a filter look up whose number it is.
 *
 * With a list that was recorded with the driver (tools/record_syscalls.py) only those calls are left; a second filter does that.
 */
#include "tpw_main.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 1024u     /* instructions: two for each call, and a few more */
#define X32 (1u << 30) /* the other set of numbers that the kernel may have for this processor */

/* Of Linux 6.18, for C libraries that are older. */
enum {
    PIDFD_SEND_SIGNAL = 424,
    IO_URING_SETUP = 425,
    IO_URING_ENTER,
    IO_URING_REGISTER,
    OPEN_TREE,
    MOVE_MOUNT,
    FSOPEN,
    FSCONFIG,
    FSMOUNT,
    FSPICK,
    PIDFD_OPEN,
    CLONE3,
    OPENAT2 = 437,
    PIDFD_GETFD,
    PROCESS_MADVISE = 440,
    MOUNT_SETATTR = 442,
    QUOTACTL_FD,
    PROCESS_MRELEASE = 448,
    FCHMODAT2 = 452,
    OPEN_TREE_ATTR = 467
};

static const unsigned refused[] = {
    /* what is mounted where, other roots, other namespaces */
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_unshare, SYS_setns, OPEN_TREE, OPEN_TREE_ATTR, MOVE_MOUNT,
    FSOPEN, FSCONFIG, FSMOUNT, FSPICK, MOUNT_SETATTR,
    /* the machine */
    SYS_reboot, SYS_kexec_load, SYS_kexec_file_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_swapon,
    SYS_swapoff, SYS_acct, SYS_quotactl, QUOTACTL_FD, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime,
    SYS_adjtimex, SYS_sethostname, SYS_setdomainname, SYS_syslog, SYS_vhangup, SYS_iopl, SYS_ioperm, SYS_modify_ldt,
    SYS_personality, SYS_lookup_dcookie,
    /* large parts of the kernel that nobody here uses */
    SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_fanotify_init, SYS_fanotify_mark, SYS_inotify_init,
    SYS_inotify_init1, SYS_inotify_add_watch, IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER, SYS_add_key,
    SYS_request_key, SYS_keyctl,
    /* from its own cell of the quota page to those of others; the C library then copies */
    SYS_mremap, SYS_remap_file_pages,
    /* other processes, files without their names, other programs */
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_migrate_pages, SYS_move_pages, PIDFD_OPEN,
    PIDFD_GETFD, PIDFD_SEND_SIGNAL, PROCESS_MADVISE, PROCESS_MRELEASE, SYS_tkill, SYS_name_to_handle_at,
    SYS_open_by_handle_at, SYS_execve, SYS_execveat};

/* Where a call has the rights of a file: nobody needs programs that run as their owner. Where there are flags, too, these rights count
 * only for a file that is made. */
static const struct {
    unsigned call, rights, flags;
} makers[] = {{SYS_chmod, 1, 0},   {SYS_fchmod, 1, 0}, {SYS_fchmodat, 2, 0}, {FCHMODAT2, 2, 0},
              {SYS_creat, 1, 0},   {SYS_mkdir, 1, 0},  {SYS_mkdirat, 2, 0},  {SYS_mknod, 1, 0},
              {SYS_mknodat, 2, 0}, {SYS_open, 2, 1},   {SYS_openat, 3, 2}};

/* An argument that may have some values only. */
struct bound {
    unsigned call, argument;
    unsigned count;
    unsigned values[4];
};

struct program {
    unsigned short count;
    bool full;
    struct sock_filter steps[MOST];
};

static void step(struct program *to, unsigned short code, unsigned k, unsigned char yes, unsigned char no) {
    if (to->count == MOST) {
        to->full = true;
        return;
    }
    to->steps[to->count++] = (struct sock_filter){.code = code, .k = k, .jt = yes, .jf = no};
}

static void give(struct program *to, unsigned result) { step(to, BPF_RET | BPF_K, result, 0, 0); }
static void load(struct program *to, unsigned offset) { step(to, BPF_LD | BPF_W | BPF_ABS, offset, 0, 0); }

static void load_argument(struct program *to, unsigned argument) {
    load(to,
         (unsigned)(offsetof(struct seccomp_data, args) + 8 * argument)); /* the lower half: the kernel takes an int */
}

#define REFUSED(error) (SECCOMP_RET_ERRNO | (error))

static void refuse(struct program *to, unsigned call, unsigned error) {
    step(to, BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
    give(to, REFUSED(error));
}

static void bind_argument(struct program *to, const struct bound *bound) {
    step(to, BPF_JMP | BPF_JEQ | BPF_K, bound->call, 0, (unsigned char)(bound->count + 3));
    load_argument(to, bound->argument);
    for (unsigned i = 0; i < bound->count; i++) {
        step(to, BPF_JMP | BPF_JEQ | BPF_K, bound->values[i], (unsigned char)(bound->count - i), 0);
    }
    give(to, REFUSED(EPERM));
    give(to, SECCOMP_RET_ALLOW);
}

static void no_owners_program(struct program *to, unsigned call, unsigned rights, unsigned flags) {
    step(to, BPF_JMP | BPF_JEQ | BPF_K, call, 0, flags ? 6 : 4);
    if (flags) {
        load_argument(to, flags);
        step(to, BPF_JMP | BPF_JSET | BPF_K, O_CREAT | (unsigned)(O_TMPFILE & ~O_DIRECTORY), 0, 3);
    }
    load_argument(to, rights);
    step(to, BPF_JMP | BPF_JSET | BPF_K, S_ISUID | S_ISGID, 0, 1);
    give(to, REFUSED(EPERM));
    give(to, SECCOMP_RET_ALLOW);
}

static void begin(struct program *to) {
    load(to, offsetof(struct seccomp_data, arch));
    step(to, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    give(to, SECCOMP_RET_KILL_PROCESS);
    load(to, offsetof(struct seccomp_data, nr));
    step(to, BPF_JMP | BPF_JGE | BPF_K, X32, 0, 1);
    give(to, REFUSED(ENOSYS));
}

static bool hold(struct tpw_jail *jail, struct program *program) {
    const struct sock_fprog wanted = {.len = program->count, .filter = program->steps};
    if (program->full) {
        errno = E2BIG;
        return tpw_jail_fails(jail, "seccomp");
    }
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &wanted) == 0 || tpw_jail_fails(jail, "seccomp");
}

bool tpw_calls_enter(struct tpw_jail *jail) {
    static struct program program;
    const unsigned own = (unsigned)getpid();
    const unsigned namespaces =
        CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
    const struct bound bounds[] = {{SYS_kill, 0, 1, {own}},
                                   {SYS_tgkill, 0, 1, {own}},
                                   {SYS_rt_sigqueueinfo, 0, 1, {own}},
                                   {SYS_rt_tgsigqueueinfo, 0, 1, {own}},
                                   {SYS_prlimit64, 0, 2, {0, own}},
                                   {SYS_setpriority, 1, 2, {0, own}},
                                   {SYS_ioprio_set, 1, 2, {0, own}},
                                   {SYS_sched_setscheduler, 0, 2, {0, own}},
                                   {SYS_sched_setparam, 0, 2, {0, own}},
                                   {SYS_sched_setattr, 0, 2, {0, own}},
                                   {SYS_sched_setaffinity, 0, 2, {0, own}},
                                   {SYS_socket, 0, 4, {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK}}};
    program.count = 0;
    begin(&program);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        refuse(&program, refused[i], EPERM);
    }
    refuse(&program, CLONE3,
           ENOSYS); /* its flags lie in memory, where no filter looks; the C library then takes the older one */
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        bind_argument(&program, &bounds[i]);
    }
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        no_owners_program(&program, makers[i].call, makers[i].rights, makers[i].flags);
    }
    step(&program, BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4);
    load_argument(&program, 0);
    step(&program, BPF_JMP | BPF_JSET | BPF_K, namespaces, 0, 1);
    give(&program, REFUSED(EPERM));
    give(&program, SECCOMP_RET_ALLOW);
    /* Letters typed into a terminal are read as its user's. */
    step(&program, BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 5);
    load_argument(&program, 1);
    step(&program, BPF_JMP | BPF_JEQ | BPF_K, TIOCSTI, 1, 0);
    step(&program, BPF_JMP | BPF_JEQ | BPF_K, TIOCLINUX, 0, 1);
    give(&program, REFUSED(EPERM));
    give(&program, SECCOMP_RET_ALLOW);
    give(&program, SECCOMP_RET_ALLOW); /* every other call */
    return hold(jail, &program);
}

bool tpw_calls_only(struct tpw_jail *jail) {
    static struct program program;
    program.count = 0;
    begin(&program);
    for (const char *at = jail->calls; *at;) {
        char *end;
        const unsigned long call = strtoul(at, &end, 10);
        if (end == at || (*end && *end != ',') || call >= X32) {
            errno = EINVAL;
            return tpw_jail_fails(jail, at);
        }
        step(&program, BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1);
        give(&program, SECCOMP_RET_ALLOW);
        at = end + (*end == ',');
    }
    give(&program, REFUSED(EPERM));
    return hold(jail, &program);
}
