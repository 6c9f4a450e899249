/* Attempts on the kernel: privileges, namespaces, mounts, and the parts of it where holes have been. */
#include "escapes.h"

#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/io.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/time.h>
#include <sys/wait.h>

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_fsopen 430
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

/* ---- namespaces, mounts ---- */

static int mount_something(void) {
    return mount("none", getenv("ESCAPES_FOLDER"), "tmpfs", 0, NULL) || umount(getenv("ESCAPES_FOLDER"));
}
static int make_root_writable(void) {
    const uint64_t writable[4] = {0, 1, 0, 0};
    return (int)syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, writable, sizeof writable);
}
static int copy_mounts(void) { return closed((int)syscall(SYS_open_tree, AT_FDCWD, "/", 1 | O_CLOEXEC)); }
static int open_file_system(void) { return closed((int)syscall(SYS_fsopen, "tmpfs", 1)); }
static int unmount(void) { return past(umount2(getenv("ESCAPES_SECRETS"), 0)); }
static int change_root(void) { return chroot("/tmp"); }
static int swap_roots(void) { return past(syscall(SYS_pivot_root, "/", "/")); }
static int new_user_namespace(void) { return unshare(CLONE_NEWUSER); }
static int new_network_namespace(void) { return unshare(CLONE_NEWNET); }
static int born(long child) {
    if (child == 0) {
        _exit(0);
    }
    return child < 0 ? -1 : waitpid((pid_t)child, NULL, 0) < 0 ? -1 : 0;
}
static int child_with_namespaces(void) {
    return born(syscall(SYS_clone, CLONE_NEWUSER | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0));
}
static int newer_child_with_namespaces(void) {
    const uint64_t words[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0};
    return born(syscall(SYS_clone3, words, sizeof words));
}

/* ---- privileges ---- */

static int become_another(void) { return setuid(12345); }
static int leave_groups(void) { return setgroups(0, NULL); }
static int take_capabilities(void) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct all[2] = {{.effective = 1u << CAP_SYS_ADMIN, .permitted = 1u << CAP_SYS_ADMIN}};
    return (int)syscall(SYS_capset, &head, all);
}
static int raise_core_limit(void) { return setrlimit(RLIMIT_CORE, &(struct rlimit){1 << 20, 1 << 20}); }
static int raise_priority(void) { return setpriority(PRIO_PROCESS, 0, -5); }
static int become_real_time(void) {
    return sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
}
static int outlive_others(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, "-999", 4) != 4 ? -1 : 0;
}
static int reach_ports(void) { return iopl(3); }

/* ---- the machine ---- */

static int restart_machine(void) { return past(syscall(SYS_reboot, 1, 2, 3, 0)); }
static int set_clock(void) {
    struct timezone zone = {0};
    return settimeofday(NULL, &zone);
}
static int set_name(void) {
    char name[128] = "";
    return gethostname(name, sizeof name - 1) || sethostname(name, strlen(name));
}
static int load_module(void) { return past(syscall(SYS_init_module, "x", 1, "")); }
static int remove_module(void) { return past(syscall(SYS_delete_module, "tf_escape_is_no_module", O_NONBLOCK)); }
static int load_kernel(void) { return past(syscall(SYS_kexec_load, 0, 0, NULL, 0xf0000000ul)); }
static int switch_swap_off(void) { return past(swapoff("/nowhere/at/all")); }
static int switch_accounting_off(void) { return acct(NULL); }
static int read_messages(void) {
    static char text[4096];
    return klogctl(3, text, sizeof text) < 0 ? -1 : 0;
}

/* ---- parts that have had holes ---- */

static int run_in_kernel(void) {
    union bpf_attr about = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
    return closed((int)syscall(SYS_bpf, BPF_MAP_CREATE, &about, sizeof about));
}
static int measure_another(void) {
    struct perf_event_attr about = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof about, .config = PERF_COUNT_SW_TASK_CLOCK};
    return closed((int)syscall(SYS_perf_event_open, &about, bystander, -1, -1, 0));
}
static int stop_at_faults(void) { return closed((int)syscall(SYS_userfaultfd, O_CLOEXEC | 1)); }
static int queue_calls(void) {
    unsigned about[30] = {0};
    return closed((int)syscall(SYS_io_uring_setup, 4, about));
}
static int watch_all_files(void) { return closed((int)syscall(SYS_fanotify_init, 0x200, O_RDONLY)); }
static int keep_a_key(void) { return same(syscall(SYS_add_key, "user", "tf-escape", "x", 1, -1)); }
static int ask_for_a_key(void) { return past(syscall(SYS_request_key, "user", "tf-escape-none", NULL, 0)); }
static int list_keys(void) { return same(syscall(SYS_keyctl, 0, -4, 1)); }
static int change_segments(void) { return same(syscall(SYS_modify_ldt, 0, NULL, 0)); }
static int type_into_terminal(void) {
    char letter = '\n';
    return past(ioctl(0, TIOCSTI, &letter));
}
/* The filter knows the calls of this processor by one set of numbers only. */
static int use_older_numbers(void) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11"); /* getpid */
    errno = ENOSYS;
    return result > 0 ? 0 : -1;
#else
    return -1;
#endif
}
static int use_other_numbers(void) { return same(syscall(0x40000000 + SYS_getpid)); }

const struct attempt on_kernel[] = {BY_RIGHT(mount_something),
                                    BY_RIGHT(make_root_writable),
                                    BY_RIGHT(copy_mounts),
                                    BY_RIGHT(open_file_system),
                                    BY_RIGHT(unmount),
                                    BY_RIGHT(change_root),
                                    BY_RIGHT(swap_roots),
                                    PERHAPS(new_user_namespace),
                                    PERHAPS(new_network_namespace),
                                    PERHAPS(child_with_namespaces),
                                    PERHAPS(newer_child_with_namespaces),
                                    BY_RIGHT(become_another),
                                    BY_RIGHT(leave_groups),
                                    BY_RIGHT(take_capabilities),
                                    PERHAPS(raise_core_limit),
                                    BY_RIGHT(raise_priority),
                                    BY_RIGHT(become_real_time),
                                    BY_RIGHT(outlive_others),
                                    PERHAPS(reach_ports),
                                    BY_RIGHT(restart_machine),
                                    BY_RIGHT(set_clock),
                                    BY_RIGHT(set_name),
                                    BY_RIGHT(load_module),
                                    BY_RIGHT(remove_module),
                                    BY_RIGHT(load_kernel),
                                    BY_RIGHT(switch_swap_off),
                                    BY_RIGHT(switch_accounting_off),
                                    PERHAPS(read_messages),
                                    PERHAPS(run_in_kernel),
                                    PERHAPS(measure_another),
                                    PERHAPS(stop_at_faults),
                                    PERHAPS(queue_calls),
                                    PERHAPS(watch_all_files),
                                    BY_USER(keep_a_key),
                                    PERHAPS(ask_for_a_key),
                                    BY_USER(list_keys),
                                    BY_USER(change_segments),
                                    BY_USER(type_into_terminal),
                                    PERHAPS(use_older_numbers),
                                    PERHAPS(use_other_numbers),
                                    {0}};
