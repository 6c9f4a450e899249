/*
 * A TCP connection as TLS 1.3, for a client that has a secret: the functions of a non-blocking socket, and the same contract.
 *
 * The key is fresh for each connection. The greeting, with the secret's place taken by a name of the secret and a random number,
 * is the identity of a pre-shared key that both sides derive from the secret and that identity (docs/wire-format.md, 1). The
 * supervisor looks at the first message, tells whether its sender knows the secret, and gives the key to the session, which
 * never learns the secret. Keys of records come from an exchange (X25519 or P-256) as well: who learns the secret later cannot
 * read what was recorded.
 *
 * A connection that is NULL is a plain one, and costs a branch. One thread may send while another receives: they share nothing but
 * two flags. Bytes are the peer's until they have been checked, and nothing of a record is given out before the whole of it is
 * right.
 */
#ifndef TP_SECURE_H
#define TP_SECURE_H

#include "tp_net.h"

#include <errno.h>

#include <sys/socket.h>
#include <sys/uio.h>

#define TP_PSK_SIZE 32u
#define TP_HELLO_MAX 2048u /* bytes that a client says first */

struct tp_secure;

/* What of the secret goes over the network, in its place of a greeting. */
struct tp_secret_name {
    unsigned char key[8];    /* the same for all connections with this secret */
    unsigned char nonce[32]; /* never the same */
    unsigned char zeros[24];
};
/* Puts the name into the secret's place and gives the key that belongs to it. False without random numbers. */
bool tp_secure_name(struct tp_greeting *greeting, unsigned char psk[TP_PSK_SIZE]);

/* The socket stays the caller's, and has to be non-blocking. NULL with a sentence without OpenSSL or memory. `first` is what the
 * client gets as soon as it has shown that it has the key. */
struct tp_secure *tp_secure_client(int fd, const struct tp_greeting *greeting, const unsigned char psk[TP_PSK_SIZE],
                                   char *why, size_t why_size);
struct tp_secure *tp_secure_server(int fd, const unsigned char psk[TP_PSK_SIZE], const struct tp_welcome *first,
                                   char *why, size_t why_size);
void tp_secure_free(struct tp_secure *secure); /* NULL: nothing; nobody uses it any more */

/* Goes on with the handshake: true when it is done. False with errno: EAGAIN when it is the peer's turn to say something. Until it
 * is done one thread enters; receiving does the same, and fails with EAGAIN meanwhile. */
bool tp_secure_handshake(struct tp_secure *secure);
bool tp_secure_ready(const struct tp_secure *secure);

/* As recv, send and sendmsg with MSG_DONTWAIT | MSG_NOSIGNAL, and 0 where the peer's socket ends. After EAGAIN from sending, what is
 * sent next begins with the same bytes, wherever they lie then. */
ssize_t tp_secure_receive(struct tp_secure *secure, void *data, size_t size);
ssize_t tp_secure_send(struct tp_secure *secure, const struct iovec *parts, size_t count);
/* There may be bytes that poll knows nothing of: receive before waiting. */
bool tp_secure_holds(const struct tp_secure *secure);
/* What errno means after one of these; also of a plain socket. */
const char *tp_secure_error(const struct tp_secure *secure, int error);
/* How bad that is: the peer, or somebody between, does what nobody does by mistake; or the connection is just over. */
static inline enum tp_status tp_secure_status(int error) {
    return error == EPROTO || error == EBADMSG ? TP_ERROR_PROTOCOL : TP_ERROR_LOST;
}

/* Whether a peer that begins so speaks TLS; a welcome begins with 'T'. */
static inline bool tp_secure_speaks(unsigned char first) { return first >= 0x14 && first <= 0x17; }

static inline ssize_t tp_stream_receive(struct tp_secure *secure, int fd, void *data, size_t size) {
    return TP_LIKELY(!secure) ? recv(fd, data, size, MSG_DONTWAIT) : tp_secure_receive(secure, data, size);
}
static inline ssize_t tp_stream_send(struct tp_secure *secure, int fd, const void *data, size_t size) {
    const struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    return TP_LIKELY(!secure) ? send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) : tp_secure_send(secure, &part, 1);
}
static inline ssize_t tp_stream_send_parts(struct tp_secure *secure, int fd, struct iovec *parts, size_t count) {
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    return TP_LIKELY(!secure) ? sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : tp_secure_send(secure, parts, count);
}
static inline bool tp_stream_holds(const struct tp_secure *secure) { return secure && tp_secure_holds(secure); }

#endif
