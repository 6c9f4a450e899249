/* Attempts to reach somebody: over the network, over sockets of this machine, past it. */
#include "escapes.h"

#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_in place(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)number("ESCAPES_PORT"))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return to;
}
static int opens_socket(int family, int type, int protocol) {
    return closed(socket(family, type | SOCK_CLOEXEC, protocol));
}
static int connect_somewhere(void) {
    struct sockaddr_in to = place();
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof to);
}
static int send_somewhere(void) {
    struct sockaddr_in to = place();
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to) == 1 ? 0 : -1;
}
static int listen_for_others(void) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1);
}
static int connects(const char *name, bool abstract) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(to.sun_path + abstract, sizeof to.sun_path - 1, "%s", name);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name));
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, size + !abstract);
}
static int connect_abstract(void) { return connects(getenv("ESCAPES_NAME"), true); }
static int connect_by_path(void) { return connects(getenv("ESCAPES_SOCKET"), false); }
static int connect_to_status(void) {
    char path[256];
    snprintf(path, sizeof path, "%s/worker-%d.sock", getenv("TF_RUNTIME_PATH"), (int)supervisor);
    return connects(path, false);
}
static int open_raw_socket(void) { return opens_socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static int open_packet_socket(void) { return opens_socket(AF_PACKET, SOCK_RAW, 0); }
static int open_socket_of_machine(void) { return opens_socket(AF_VSOCK, SOCK_STREAM, 0); }
static int open_crypto_socket(void) { return opens_socket(AF_ALG, SOCK_SEQPACKET, 0); }
static int change_interface(void) {
    struct ifreq about = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 || ioctl(fd, SIOCGIFFLAGS, &about) ? -1 : ioctl(fd, SIOCSIFFLAGS, &about);
}
static int reach_an_address(void) { /* no packet leaves: it only finds a way */
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53)};
    to.sin_addr.s_addr = htonl(0x7f000001);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof to);
}

const struct attempt on_network[] = {BY_USER(connect_somewhere),
                                     BY_USER(send_somewhere),
                                     BY_USER(listen_for_others),
                                     BY_USER(connect_abstract),
                                     BY_USER(connect_by_path),
                                     BY_USER(connect_to_status),
                                     BY_RIGHT(open_raw_socket),
                                     BY_RIGHT(open_packet_socket),
                                     PERHAPS(open_socket_of_machine),
                                     PERHAPS(open_crypto_socket),
                                     BY_RIGHT(change_interface),
                                     BY_USER(reach_an_address),
                                     {0}};
