/*
 * The session process: started by the supervisor, serves one client, ends with it.
 *
 * One executor thread owns everything; a second only waits for the client's end. Before a client comes, the process may be told to warm up: initialise the driver and
 * make the primary context of device 0, so that the client does not wait for either. If the client is there already it gets no
 * context before it wants one: contexts are made one after the other on a machine, and many programs ask for devices only. The control channel comes from the
 * supervisor and is trusted; the connection that it hands over is not. The process leaves with _exit: the driver gives back
 * everything a process held, in less time than it takes to destroy it object by object.
 */
#include "tpg_session.h"
#include "tpw_code.h"
#include "tpw_main.h"
#include "tpw_memory.h"
#include "tpw_stream.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <tp_openssl.h>
#include <tp_secure.h>
#include <tp_segment.h>
#include <tpg_schema.h>
#include <unistd.h>

static struct tpw_session *the_session; /* for the two functions below, which the link calls without an argument */

/* Pinned staging memory, which may be the first thing that wants a context. Called on the executor. */
static void *staging_allocate(size_t size) {
    struct tpw_session *s = the_session;
    void *memory = NULL;
    if (!tpw_home_enter(s)) {
        return NULL;
    }
    if (s->cuda.cuMemHostAlloc(&memory, size, CU_MEMHOSTALLOC_PORTABLE)) {
        memory = NULL;
    }
    tpw_home_leave(s);
    return memory;
}

static void staging_release(void *memory) {
    if (tpw_home_enter(the_session)) {
        the_session->cuda.cuMemFreeHost(memory);
        tpw_home_leave(the_session);
    }
}

static void control_send(struct tpw_session *s, uint32_t type, uint32_t argument, uint64_t value, const char *text) {
    struct tpw_packet packet = {.type = type, .argument = argument, .value = value};
    if (text) {
        snprintf(packet.text, sizeof packet.text, "%s", text);
    }
    (void)tpw_control_send(s, &packet, -1);
}

static bool more_control(const struct tpw_session *s) {
    struct pollfd on = {.fd = s->control, .events = POLLIN};
    return poll(&on, 1, 0) > 0;
}

/* Initialises the driver ahead of the client. Failure is told, and met again by the client's cuInit. */
static void warm_up(struct tpw_session *s, bool secrets) {
    size_t free_bytes = 0, total = 0;
    CUcontext context = NULL;
    char why[200];
    if (secrets && !tp_openssl_open("A worker with secrets", "", why, sizeof why)) {
        control_send(s, TPW_FAILED, 0, 0, why);
        return;
    }
    int32_t error = tpw_start_driver(s);
    if (!error && s->device_count == 0) {
        error = CUDA_ERROR_NO_DEVICE;
    }
    if (!error && more_control(s)) {
        return; /* the client has come meanwhile: what it needs, it asks for */
    }
    error = error ? error : tpw_primary(s, 0, &context);
    if (!error) {
        error = (int32_t)s->cuda.cuCtxSetCurrent(context);
        s->entered_native = context;
        s->entered = 0;
    }
    error = error ? error : (int32_t)s->cuda.cuMemGetInfo_v2(&free_bytes, &total);
    char name_of_device[200] = "";
    error = error ? error : (int32_t)s->cuda.cuDeviceGetName(name_of_device, sizeof name_of_device, s->devices[0]);
    const int part = error ? 0 : tpw_sm_count(s, 0);
    int all = 0;
    if (part) {
        error = (int32_t)s->cuda.cuDeviceGetAttribute(&all, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, s->devices[0]);
    }
    if (error) {
        const char *name = tpg_cuda_error_name(error);
        char text[200];
        snprintf(text, sizeof text, "%s: error %d (%s)",
                 s->share_failed ? "TF_CUDA_SM_PERCENT_LIMIT cannot be kept" : "the driver could not be initialised",
                 error, name ? name : "unknown");
        control_send(s, TPW_FAILED, (uint32_t)error, 0, text);
        return;
    }
    struct tpw_packet ready = {.type = TPW_READY,
                               .argument = (uint32_t)s->device_count,
                               .session = (uint64_t)part,
                               .key = (uint64_t)all,
                               .value = total - free_bytes};
    snprintf(ready.text, sizeof ready.text, "%s", name_of_device);
    for (int i = 0; i < s->device_count; i++) {
        CUuuid uuid;
        error = (int32_t)s->cuda.cuDeviceGetUuid_v2(&uuid, s->devices[i]);
        if (error) { /* zeros: nobody is shown this device's load */
            tp_log(TP_WARN, "the driver does not name device %d: error %d", i, error);
            continue;
        }
        memcpy(ready.body.devices[i], &uuid, sizeof ready.body.devices[i]);
    }
    (void)tpw_control_send(s, &ready, -1);
    s->process->told_ready = true;
}

/* The supervisor starts no other session while one that serves makes its first context. */
static void tell_ready(struct tpw_session *s) {
    for (int i = 0; i < s->device_count && !s->process->told_ready; i++) {
        if (s->primary[i]) {
            s->process->told_ready = true;
            control_send(s, TPW_READY, (uint32_t)s->device_count, 0, NULL);
        }
    }
}

/* The names under which the GPU host's tools list this process: ps and top the short one, of 15 letters, nvidia-smi the title. */
static void rename_process(struct tpw_main *process, const char *program, const char *client, uint32_t pid) {
    char title[128], name[16];
    snprintf(name, sizeof name, "tf-%.12s", program);
    snprintf(title, sizeof title, "tensor-fusion: %.80s pid %u", client, pid);
    prctl(PR_SET_NAME, name);
    if (process->title_size > 1) {
        memset(process->title, 0, process->title_size);
        strncpy(process->title, title, process->title_size - 1);
    }
}

#define LAST_FRAMES_MS 800
#define LOOK_MS 100 /* at the life of a client that has no connection to wait on */

/* Each call of a client's that fails is a line, and it can send a million of them in a second. */
#define LOG_LINES_A_SECOND 50u

static void leave_at_last(void) {
    usleep(LAST_FRAMES_MS * 1000);
    tp_log(TP_INFO, "the client has gone while the driver was busy");
    _exit(0);
}

/* A client that is gone must not keep a GPU's memory, even while the executor is inside the driver for long: compiling, or
 * hung. The executor leaves by itself when it reads the end of the connection; this thread only makes sure. */
static void *watch_connection(void *argument) {
    int fd = (int)(intptr_t)argument;
    struct pollfd on = {.fd = fd, .events = POLLRDHUP};
    while (poll(&on, 1, -1) < 0 && errno == EINTR) {
    }
    leave_at_last();
    return NULL;
}

static void *watch_life(void *life) {
    while (!tp_life_over(life)) {
        usleep(LOOK_MS * 1000);
    }
    leave_at_last();
    return NULL;
}

static void start_watch(void *(*watch)(void *), void *what) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, watch, what)) {
        tp_log(TP_WARN, "nobody watches the client: %s", strerror(errno));
        return;
    }
    pthread_detach(thread);
}

/* Of a client with a secret: the supervisor has put the key of this connection into the secret's place, and a one behind it. False: the
 * client was told that it cannot be. */
static bool secure(struct tpw_packet *packet, int fd, struct tp_secure **out) {
    unsigned char *key = packet->body.greeting + offsetof(struct tp_greeting, secret);
    *out = NULL;
    if (!key[TP_PSK_SIZE]) {
        return true;
    }
    struct tp_welcome welcome = {.magic = TP_MAGIC,
                                 .version = TP_PROTOCOL,
                                 .status = TP_ACCEPTED,
                                 .session_id = packet->session,
                                 .session_key = packet->key,
                                 .data_connections = TP_DATA_CONNECTIONS,
                                 .release = TP_RELEASE};
    memcpy(welcome.schema, tpg_schema_hash, sizeof welcome.schema);
    *out = tp_secure_server(fd, key, &welcome, welcome.sentence, sizeof welcome.sentence);
    memset(key, 0, TP_PSK_SIZE + 1);
    if (*out) {
        return true;
    }
    unsigned char hello[TP_HELLO_MAX];
    tp_log(TP_ERROR, "a client with a secret cannot be served: %s", welcome.sentence);
    welcome.status = TP_NO_SESSION;
    welcome.session_id = welcome.session_key = welcome.data_connections = 0;
    /* What was not read would take the answer with it when the socket is closed. */
    if (recv(fd, hello, sizeof hello, MSG_DONTWAIT) > 0) {
        tp_net_send_all(fd, &welcome, sizeof welcome, 0);
    }
    close(fd);
    return false;
}

static bool adopt_connection(struct tpw_session *s, struct tpw_packet *packet, int fd) {
    struct tp_secure *tls;
    s->segment = NULL;
    if (!secure(packet, fd, &tls)) {
        return false;
    }
    if (tpw_link_open(&s->link, fd, tls, staging_allocate, staging_release) != TP_OK) {
        tp_log(TP_ERROR, "no memory for a connection");
        return false;
    }
    start_watch(watch_connection, (void *)(intptr_t)dup(fd));
    return true;
}

/* The run's place comes from the supervisor; what the slot says of it is for the client. */
static bool adopt_slot(struct tpw_session *s, uint32_t slot, uint32_t first, uint32_t blocks) {
    struct tpw_segment *segment = s->segment;
    struct tp_run run = tp_run_layout(first, blocks);
    if (!segment || slot >= TP_SLOTS || blocks == 0 || blocks > TP_BLOCKS_MAX ||
        !tp_arena_owns(segment->owners, segment->size, slot, run.commands, run.granules * TP_GRANULE)) {
        tp_log(TP_ERROR, "the supervisor handed over slot %u with %u blocks at granule %u, which is not a client's run",
               slot, blocks, first);
        return false;
    }
    if (segment->error) {
        tp_log(TP_ERROR, "the shared segment cannot be used: the driver did not pin it, error %d", segment->error);
        return false;
    }
    struct tp_slot *shared = tp_slot_at(segment->base, slot);
    if (!tp_life_begin(&shared->session_life) ||
        tpw_link_open_slot(&s->link, segment->base, slot, first, blocks) != TP_OK) {
        tp_log(TP_ERROR, "slot %u cannot be served: no memory, or no robust mutexes", slot);
        return false;
    }
    segment->slot = slot;
    segment->run = run;
    start_watch(watch_life, &shared->client_life);
    return true;
}

static void adopt(struct tpw_session *s, struct tpw_packet *packet, int fd) {
    char name[33] = "";
    const uint32_t slot = packet->argument;
    const uint64_t place = packet->value;
    if (s->link) {
        tp_log(TP_ERROR, "the supervisor handed over a second client");
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    memcpy(name, packet->body.greeting + 192, 32);
    for (char *at = name; *at; at++) { /* the client's own words, for the log and for whoever lists processes */
        *at = (char)(*at < ' ' || *at > '~' ? '?' : *at);
    }
    memcpy(&s->client_pid, packet->body.greeting + 52, 4);
    if (!tpw_memory_watch()) {
        s->ended = true;
        s->exit_code = 1;
        return;
    }
    if (fd >= 0 ? !adopt_connection(s, packet, fd)
                : !adopt_slot(s, slot - 1, (uint32_t)(place >> 32), (uint32_t)place)) {
        s->ended = true;
        s->exit_code = 1;
        return;
    }
    char client[sizeof packet->text];
    snprintf(client, sizeof client, "%s", packet->text);
    rename_process(s->process, name[0] ? name : "client", client[0] ? client : name, s->client_pid);
    tp_log(TP_INFO, "serving %s, process %u of the client's machine", name, s->client_pid);
}

static void look_at_control(struct tpw_session *s) {
    struct tpw_packet packet;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } aux;
    if (TP_UNLIKELY(!s->process->told_ready)) {
        tell_ready(s);
    }
    if (TP_UNLIKELY(s->spoken && !s->process->told_spoken)) {
        s->process->told_spoken = true;
        control_send(s, TPW_SPOKEN, 0, 0, NULL);
    }
    for (;;) {
        struct iovec part = {.iov_base = &packet, .iov_len = sizeof packet};
        struct msghdr envelope = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &aux, .msg_controllen = sizeof aux};
        ssize_t size = recvmsg(s->control, &envelope, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (size != sizeof packet) {
            /* The supervisor has gone, and with it the session's reason to be. */
            tp_log(TP_INFO, "the supervisor has gone");
            s->ended = true;
            return;
        }
        int fd = -1;
        struct cmsghdr *head = CMSG_FIRSTHDR(&envelope);
        if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            memcpy(&fd, CMSG_DATA(head), sizeof fd);
        }
        if (packet.type == TPW_ADOPT) {
            adopt(s, &packet, fd);
        } else if (packet.type == TPW_DATA && fd >= 0 && s->link) {
            struct tp_secure *tls;
            if (secure(&packet, fd, &tls) && tpw_link_add_data(s->link, packet.argument, fd, tls) != TP_OK) {
                tp_log(TP_ERROR, "data connection %u could not be used", packet.argument);
            }
        } else if (packet.type == TPW_WARM) {
            warm_up(s, packet.argument);
        } else if (packet.type >= TPW_SHARED && packet.type <= TPW_LISTED) {
            tpw_control_told(s, &packet, fd);
        } else if (fd >= 0) {
            close(fd);
        }
    }
}
TP_REGISTER(tpw_control, look_at_control);

/* Whoever has a descriptor can map the cells of others, to write by the second one: so both are closed before there is a client. */
static const struct tp_quota *map_quota(struct tp_quota *quota, int page, int cells, uint32_t row) {
    const bool mapped = tp_quota_map(quota, page, cells, row);
    close(page);
    close(cells);
    return mapped ? quota : NULL;
}

static bool options(struct tpw_session *s, int count, char **words) {
    static const struct option known[] = {{"control-fd", required_argument, 0, 'c'},
                                          {"quota-fd", required_argument, 0, 'l'},
                                          {"cells-fd", required_argument, 0, 'e'},
                                          {"row", required_argument, 0, 'r'},
                                          {"segment-fd", required_argument, 0, 'f'},
                                          {"segment-size", required_argument, 0, 'z'},
                                          {"owners-fd", required_argument, 0, 'o'},
                                          {"driver", required_argument, 0, 'd'},
                                          {"kernel-timeout", required_argument, 0, 't'},
                                          {"nvml", required_argument, 0, 'n'},
                                          {"simulated", no_argument, 0, 'g'},
                                          {"jail", no_argument, 0, 'j'},
                                          {"confine", required_argument, 0, 'k'},
                                          {"calls", required_argument, 0, 'a'},
                                          {"layers", no_argument, 0, 'y'},
                                          {0, 0, 0, 0}};
    struct tpw_main *process = s->process;
    int quota = -1, cells = -1, row = 0, segment = -1, owners = -1, letter;
    bool probe = false;
    uint64_t segment_size = 0;
    s->control = -1;
    while ((letter = getopt_long(count, words, "", known, NULL)) != -1) {
        switch (letter) {
        case 'c':
            s->control = atoi(optarg);
            break;
        case 'l':
            quota = atoi(optarg);
            break;
        case 'e':
            cells = atoi(optarg);
            break;
        case 'r':
            row = atoi(optarg);
            break;
        case 'f':
            segment = atoi(optarg);
            break;
        case 'z':
            segment_size = strtoull(optarg, NULL, 10);
            break;
        case 'o':
            owners = atoi(optarg);
            break;
        case 'd':
            s->driver_path = strdup(optarg);
            break;
        case 't':
            s->kernel_timeout = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            s->nvml_path = strdup(optarg);
            break;
        case 'g':
            s->simulated = true;
            break;
        case 'j':
            process->jail.basic = true;
            break;
        case 'k':
            if (!tpw_jail_parse(optarg, &process->jail.layers)) {
                tp_log(TP_ERROR, "a layer of --confine %s is unknown", optarg);
                return false;
            }
            break;
        case 'a':
            process->jail.calls = strdup(optarg);
            break;
        case 'y':
            probe = true;
            break;
        default:
            return false;
        }
    }
    process->jail.driver = s->driver_path;
    process->jail.nvml = s->nvml_path;
    if (probe) {
        tpw_jail_probe(&process->jail);
        exit(0);
    }
    s->quota = quota >= 0 ? map_quota(&process->quota, quota, cells, (uint32_t)row) : NULL;
    if (s->control < 0 || !s->driver_path || (quota >= 0 && !s->quota)) {
        fprintf(stderr, "tensor-fusion-session is started by tensor-fusion-worker, not by hand.\n");
        return false;
    }
    if (segment >= 0) {
        if (!tpw_segment_map(&process->segment, segment, segment_size, owners)) {
            return false;
        }
        s->segment = &process->segment;
    }
    /* From here on the words of the command line are only the process's title. */
    process->title = words[0];
    process->title_size = (size_t)(words[count - 1] + strlen(words[count - 1]) - words[0]) + 1;
    return true;
}

int main(int count, char **words) {
    static struct tpw_session session;
    static struct tpw_main process;
    struct tpw_session *s = the_session = &session;
    s->process = &process;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files may end the keeping of images, not the session */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    tp_log_setup("session");
    tp_log_bound(LOG_LINES_A_SECOND);
    if (!options(s, count, words) || tpw_callbacks_open(s)) {
        return 2;
    }
    if (!tpw_jail_enter(&process.jail)) {
        tp_log(TP_ERROR, "the session cannot be confined: %s", process.jail.why);
        return 1;
    }
    if (process.jail.layers >> TPW_MOUNT & 1 || process.jail.layers >> TPW_LANDLOCK & 1) {
        tpw_images_through_supervisor(s);
    }
    s->driver_path = process.jail.driver;
    s->nvml_path = process.jail.nvml;
    s->events = epoll_create1(EPOLL_CLOEXEC); /* the first call in the jail: tools/record_syscalls.py begins here */
    struct epoll_event wanted = {.events = EPOLLIN};
    if (s->events < 0 || epoll_ctl(s->events, EPOLL_CTL_ADD, s->control, &wanted) ||
        epoll_ctl(s->events, EPOLL_CTL_ADD, tpw_callbacks_fd(s), &wanted)) {
        tp_log(TP_ERROR, "epoll: %s", strerror(errno));
        return 1;
    }
    if (!tpw_print_open()) {
        tp_log(TP_ERROR, "there is no memory for what kernels print: %s", strerror(errno));
        return 1;
    }
    tpw_execute(s);
    if (s->link) {
        tpw_link_await_reason(s->link);
    }
    tpw_images_close();
    control_send(s, TPW_GONE, 0, s->frames, NULL);
    tp_log(TP_INFO, "the client has gone after %llu frames", (unsigned long long)s->frames);
    _exit(s->exit_code);
}
