/*
 * TLS 1.3 with a pre-shared key over a non-blocking socket. What it promises: tp_secure.h.
 *
 * OpenSSL makes the handshake, through a BIO of ours that gives it of the socket what it asks for and no more; then its object goes,
 * and records.c has the keys of both directions. The sender seals a few records at a time and sends them together. A piece that
 * the socket has not taken whole counts as not sent: its bytes are promised, and the call that brings them again only
 * sends what is left.
 *
 * Only TLS 1.3, one cipher and no certificates: a server that does not know the key cannot end the handshake, because the client
 * trusts no certificate and asks that the key was used. There are no tickets and no early data.
 */
#include "tp_secure.h"

#include "tp_openssl.h"
#include "tp_records.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OUT_RECORDS 4u /* for one send: they stay in the processor's cache */
#define OUT_SIZE (OUT_RECORDS * (TP_RECORD_PLAIN + 2 * TP_RECORD_MORE + 8))
#define IN_SIZE (4 * (TP_RECORD_PLAIN + TP_RECORD_MORE))

/* Values of OpenSSL's headers. */
#define BIO_OURS 0x0400
#define BIO_AGAIN_READ 0x09
#define BIO_AGAIN_WRITE 0x0a
#define BIO_AGAIN_ALL 0x0f
#define BIO_CTRL_FLUSH 11
#define CIPHER "TLS_AES_128_GCM_SHA256"
static const unsigned char cipher_number[] = {0x13, 0x01};
static char groups[] = "X25519:P-256";

struct tp_secure {
    int fd;
    bool server, shaken; /* shaken: OpenSSL has done its part of the handshake */
    _Atomic bool ready;  /* released with all of the handshake by the thread that made it */
    char reason[120];    /* why the handshake failed */
    struct handshake {
        tp_ssl_ctx *context;
        tp_ssl *ssl;
        tp_bio_method *method;
        unsigned char psk[TP_PSK_SIZE], secrets[2][TP_SHA256_SIZE]; /* secrets: of the client's records, the server's */
        bool known[2];
        struct tp_greeting identity; /* of a client */
        struct tp_welcome first;     /* of a server */
        bool starved, ended;         /* what the socket said last */
        int failure;                 /* its errno */
    } *shake;                        /* NULL once it is done */

    /* Whoever sends; during the handshake whoever makes it. */
    struct tp_half sends;
    size_t out_start, out_end, promised;
    unsigned char out[OUT_SIZE]; /* from out_start to out_end not sent yet */

    /* Whoever receives. */
    struct tp_half receives;
    size_t in_start, in_end, plain_start, plain_end; /* plain: of the record before in_start what was not given out */
    int over;                                        /* errno that ends it, or -1: the peer said that this is the end */
    unsigned char in[IN_SIZE];

    _Atomic bool holds, update; /* update: the peer wants the sender's keys changed */
};

/* ---- keys ---- */

bool tp_secure_name(struct tp_greeting *greeting, unsigned char psk[TP_PSK_SIZE]) {
    static const char name[] = "tensor-fusion key id", salt[] = "tensor-fusion psk";
    const unsigned char last = 1;
    unsigned char secret[sizeof greeting->secret], digest[TP_SHA256_SIZE];
    struct tp_secret_name shown = {.zeros = {0}};
    memcpy(secret, greeting->secret, sizeof secret);
    bool random = syscall(SYS_getrandom, shown.nonce, sizeof shown.nonce, 0) == (long)sizeof shown.nonce;
    tp_hmac(secret, sizeof secret, name, sizeof name - 1, "", 0, digest);
    memcpy(shown.key, digest, sizeof shown.key);
    memcpy(greeting->secret, &shown, sizeof greeting->secret);
    tp_hmac(salt, sizeof salt - 1, secret, sizeof secret, "", 0, digest); /* HKDF: extract, then one block */
    tp_hmac(digest, sizeof digest, greeting, sizeof *greeting, &last, 1, psk);
    tp_wipe(secret, sizeof secret);
    tp_wipe(digest, sizeof digest);
    return random;
}

/* The key as OpenSSL wants it; what it is given is its own. */
static tp_ssl_session *session_of(const struct tp_secure *secure) {
    const tp_ssl_cipher *cipher = tp_openssl.SSL_CIPHER_find(secure->shake->ssl, cipher_number);
    tp_ssl_session *session = tp_openssl.SSL_SESSION_new();
    if (session && cipher &&
        tp_openssl.SSL_SESSION_set1_master_key(session, secure->shake->psk, sizeof secure->shake->psk) == 1 &&
        tp_openssl.SSL_SESSION_set_cipher(session, cipher) == 1 &&
        tp_openssl.SSL_SESSION_set_protocol_version(session, TP_TLS_1_3) == 1) {
        return session;
    }
    if (session) {
        tp_openssl.SSL_SESSION_free(session);
    }
    return NULL;
}

static int use_session(tp_ssl *ssl, const tp_evp_md *digest, const unsigned char **identity, size_t *size,
                       tp_ssl_session **session) {
    const struct tp_secure *secure = tp_openssl.SSL_get_ex_data(ssl, 0);
    (void)digest; /* there is one cipher */
    *identity = (const unsigned char *)&secure->shake->identity;
    *size = sizeof secure->shake->identity;
    *session = session_of(secure);
    return *session != NULL;
}

/* The supervisor has looked at the identity and given the key that belongs to it: with another identity it fits no more. */
static int find_session(tp_ssl *ssl, const unsigned char *identity, size_t size, tp_ssl_session **session) {
    (void)identity;
    (void)size;
    *session = session_of(tp_openssl.SSL_get_ex_data(ssl, 0));
    return *session != NULL;
}

/* OpenSSL tells secrets as text, for those who write them into a file: a name, the client's random number, the secret. */
static void keep_secret(const tp_ssl *ssl, const char *line) {
    static const char *const names[] = {"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "};
    struct handshake *shake = ((struct tp_secure *)tp_openssl.SSL_get_ex_data(ssl, 0))->shake;
    for (int i = 0; i < 2; i++) {
        const char *at = strncmp(line, names[i], strlen(names[i])) == 0 ? strrchr(line, ' ') + 1 : NULL;
        bool known = at && strlen(at) == 2 * sizeof shake->secrets[i];
        for (size_t k = 0; known && k < sizeof shake->secrets[i]; k++) {
            known = sscanf(at + 2 * k, "%2hhx", &shake->secrets[i][k]) == 1;
        }
        shake->known[i] |= known;
    }
}

/* ---- between OpenSSL and the socket ---- */

static int bio_read(tp_bio *bio, char *data, int size) {
    struct tp_secure *secure = tp_openssl.BIO_get_data(bio);
    struct handshake *shake = secure->shake;
    ssize_t n;
    do {
        n = recv(secure->fd, data, (size_t)size, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    tp_openssl.BIO_clear_flags(bio, BIO_AGAIN_ALL);
    shake->starved = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (shake->starved) {
        tp_openssl.BIO_set_flags(bio, BIO_AGAIN_READ);
    } else if (n < 0) {
        shake->failure = errno;
    }
    shake->ended |= n == 0;
    return (int)n;
}

static int bio_write(tp_bio *bio, const char *data, int size) {
    struct tp_secure *secure = tp_openssl.BIO_get_data(bio);
    size_t room = OUT_SIZE - secure->out_end, n = (size_t)size < room ? (size_t)size : room;
    tp_openssl.BIO_clear_flags(bio, BIO_AGAIN_ALL);
    if (n == 0) {
        tp_openssl.BIO_set_flags(bio, BIO_AGAIN_WRITE);
        return -1;
    }
    memcpy(secure->out + secure->out_end, data, n);
    secure->out_end += n;
    return (int)n;
}

static long bio_ctrl(tp_bio *bio, int command, long number, void *pointer) {
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

/* ---- making ---- */

static bool make_ssl(struct tp_secure *secure) {
    struct handshake *shake = secure->shake;
    tp_ssl_ctx *context = shake->context = tp_openssl.SSL_CTX_new(tp_openssl.TLS_method());
    tp_bio_method *method = shake->method = tp_openssl.BIO_meth_new(BIO_OURS, "tensor-fusion");
    if (!context || !method || tp_openssl.SSL_CTX_ctrl(context, TP_CTRL_MIN_PROTOCOL, TP_TLS_1_3, NULL) != 1 ||
        tp_openssl.SSL_CTX_ctrl(context, TP_CTRL_MAX_PROTOCOL, TP_TLS_1_3, NULL) != 1 ||
        tp_openssl.SSL_CTX_set_ciphersuites(context, CIPHER) != 1 ||
        tp_openssl.SSL_CTX_ctrl(context, TP_CTRL_GROUPS_LIST, 0, groups) != 1 ||
        tp_openssl.SSL_CTX_set_num_tickets(context, 0) != 1) {
        return false;
    }
    tp_openssl.SSL_CTX_ctrl(context, TP_CTRL_SESSION_CACHE, 0, NULL);
    tp_openssl.SSL_CTX_set_keylog_callback(context, keep_secret);
    if (secure->server) {
        tp_openssl.SSL_CTX_set_psk_find_session_callback(context, find_session);
    } else {
        tp_openssl.SSL_CTX_set_verify(context, TP_VERIFY_PEER, NULL);
        tp_openssl.SSL_CTX_set_psk_use_session_callback(context, use_session);
    }
    tp_openssl.BIO_meth_set_read(method, bio_read);
    tp_openssl.BIO_meth_set_write(method, bio_write);
    tp_openssl.BIO_meth_set_ctrl(method, bio_ctrl);
    shake->ssl = tp_openssl.SSL_new(context);
    tp_bio *bio = tp_openssl.BIO_new(method);
    if (!shake->ssl || !bio || tp_openssl.SSL_set_ex_data(shake->ssl, 0, secure) != 1) {
        if (bio) {
            tp_openssl.BIO_free(bio);
        }
        return false;
    }
    tp_openssl.BIO_set_data(bio, secure);
    tp_openssl.BIO_set_init(bio, 1);
    tp_openssl.SSL_set_bio(shake->ssl, bio, bio); /* which is its own from now on */
    (secure->server ? tp_openssl.SSL_set_accept_state : tp_openssl.SSL_set_connect_state)(shake->ssl);
    return true;
}

static struct tp_secure *make(int fd, const struct tp_greeting *identity, const struct tp_welcome *first,
                              const unsigned char psk[TP_PSK_SIZE], char *why, size_t why_size) {
    if (!tp_openssl_open(first ? "A client with a secret" : "A secret in the connection string", "", why, why_size)) {
        return NULL;
    }
    struct tp_secure *secure = calloc(1, sizeof *secure);
    struct handshake *shake = calloc(1, sizeof *shake);
    if (!secure || !shake) {
        snprintf(why, why_size, "There is no memory for an encrypted connection.");
        free(secure);
        free(shake);
        return NULL;
    }
    secure->fd = fd;
    secure->server = first != NULL;
    secure->shake = shake;
    memcpy(shake->psk, psk, sizeof shake->psk);
    if (first) {
        shake->first = *first;
    } else {
        shake->identity = *identity;
    }
    tp_openssl.ERR_set_mark();
    if (!make_ssl(secure)) {
        snprintf(why, why_size, "The OpenSSL of this machine does not do TLS 1.3 with " CIPHER " (%s).",
                 tp_openssl_reason());
        tp_secure_free(secure);
        secure = NULL;
    }
    tp_openssl.ERR_pop_to_mark();
    return secure;
}

struct tp_secure *tp_secure_client(int fd, const struct tp_greeting *greeting, const unsigned char psk[TP_PSK_SIZE],
                                   char *why, size_t why_size) {
    return make(fd, greeting, NULL, psk, why, why_size);
}

struct tp_secure *tp_secure_server(int fd, const unsigned char psk[TP_PSK_SIZE], const struct tp_welcome *first,
                                   char *why, size_t why_size) {
    return make(fd, NULL, first, psk, why, why_size);
}

static void end_handshake(struct tp_secure *secure) {
    struct handshake *shake = secure->shake;
    secure->shake = NULL;
    if (!shake) {
        return;
    }
    if (shake->ssl) {
        tp_openssl.SSL_free(shake->ssl); /* and with it the BIO */
    }
    if (shake->context) {
        tp_openssl.SSL_CTX_free(shake->context);
    }
    if (shake->method) {
        tp_openssl.BIO_meth_free(shake->method);
    }
    tp_wipe(shake, sizeof *shake);
    free(shake);
}

void tp_secure_free(struct tp_secure *secure) {
    if (!secure) {
        return;
    }
    end_handshake(secure);
    tp_half_end(&secure->sends);
    tp_half_end(&secure->receives);
    tp_wipe(secure, sizeof *secure);
    free(secure);
}

/* ---- sending ---- */

/* Sends what is sealed: true when that was all. */
static bool flush(struct tp_secure *secure) {
    while (secure->out_start < secure->out_end) {
        ssize_t n = send(secure->fd, secure->out + secure->out_start, secure->out_end - secure->out_start,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            secure->out_start += (size_t)n;
        } else if (errno != EINTR) {
            return false;
        }
    }
    secure->out_start = secure->out_end = 0;
    return true;
}

/* Seals the first of it into so many records as there is room for. False when OpenSSL refuses. */
static bool seal(struct tp_secure *secure, const struct iovec *parts, size_t count) {
    size_t part = 0, done = 0; /* of that part */
    for (int record = 0; record < (int)OUT_RECORDS && part < count; record++) {
        struct tp_piece pieces[4];
        size_t used = 0, total = 0;
        while (part < count && used < sizeof pieces / sizeof *pieces && total < TP_RECORD_PLAIN) {
            const size_t left = parts[part].iov_len - done, room = TP_RECORD_PLAIN - total;
            const size_t size = left < room ? left : room;
            pieces[used] = (struct tp_piece){.start = (const char *)parts[part].iov_base + done, .size = size};
            used += size > 0;
            total += size;
            done = size < left ? done + size : 0;
            part += size == left;
        }
        if (total > 0) {
            bool update = TP_UNLIKELY(atomic_load_explicit(&secure->update, memory_order_relaxed)) &&
                          atomic_exchange(&secure->update, false);
            size_t size = tp_seal(&secure->sends, update, pieces, used, secure->out + secure->out_end);
            if (size == 0) {
                return false;
            }
            secure->out_end += size;
            secure->promised += total;
        }
    }
    return true;
}

ssize_t tp_secure_send(struct tp_secure *secure, const struct iovec *parts, size_t count) {
    if (!tp_secure_ready(secure)) {
        errno = ENOTCONN; /* nobody sends before the handshake is done */
        return -1;
    }
    if (!secure->promised && !seal(secure, parts, count)) {
        errno = EBADMSG;
        return -1;
    }
    if (!flush(secure)) {
        return -1;
    }
    const size_t sent = secure->promised;
    secure->promised = 0;
    return (ssize_t)sent;
}

/* ---- the handshake ---- */

bool tp_secure_ready(const struct tp_secure *secure) {
    return atomic_load_explicit(&secure->ready, memory_order_acquire);
}

/* True when OpenSSL has done its part, and both sides have the key. */
static bool shake_hands(struct tp_secure *secure) {
    struct handshake *shake = secure->shake;
    if (tp_openssl.SSL_do_handshake(shake->ssl) != 1) {
        if (!shake->starved && !shake->ended && !shake->failure) {
            snprintf(secure->reason, sizeof secure->reason, "%s", tp_openssl_reason());
        }
        return false;
    }
    const int ours = secure->server, theirs = !ours;
    if (!tp_openssl.SSL_session_reused(shake->ssl) || !shake->known[0] || !shake->known[1] ||
        !tp_half_begin(&secure->sends, shake->secrets[ours], true) ||
        !tp_half_begin(&secure->receives, shake->secrets[theirs], false)) {
        snprintf(secure->reason, sizeof secure->reason, "the key was not used");
        return false;
    }
    const struct iovec first = {.iov_base = &shake->first, .iov_len = sizeof shake->first};
    return !secure->server || seal(secure, &first, 1);
}

bool tp_secure_handshake(struct tp_secure *secure) {
    struct handshake *shake = secure->shake;
    if (!shake) {
        return true;
    }
    tp_openssl.ERR_set_mark();
    shake->starved = false;
    bool done = shake_hands(secure);
    tp_openssl.ERR_pop_to_mark();
    /* A socket to which nothing was sent takes these two or three kilobytes at once. */
    if (!flush(secure)) {
        errno = errno == EAGAIN || errno == EWOULDBLOCK ? ENOBUFS : errno;
        return false;
    }
    if (!done) {
        errno = shake->starved ? EAGAIN : shake->ended ? ECONNRESET : shake->failure ? shake->failure : EPROTO;
        return false;
    }
    secure->promised = 0;
    end_handshake(secure);
    atomic_store_explicit(&secure->ready, true, memory_order_release);
    return true;
}

/* ---- receiving ---- */

bool tp_secure_holds(const struct tp_secure *secure) {
    return atomic_load_explicit(&secure->holds, memory_order_relaxed);
}

/* The size of the record that is wholly there; 0: none is. */
static size_t whole(struct tp_secure *secure) {
    const size_t have = secure->in_end - secure->in_start;
    size_t size = have >= TP_RECORD_HEAD ? tp_record_size(secure->in + secure->in_start) : 0;
    if (have >= TP_RECORD_HEAD && size == 0) {
        secure->over = EBADMSG;
    }
    return size <= have ? size : 0;
}

static void open_record(struct tp_secure *secure, size_t size) {
    size_t plain = 0;
    secure->plain_start = secure->in_start + TP_RECORD_HEAD;
    secure->in_start += size;
    enum tp_opened found = tp_open(&secure->receives, secure->in + secure->in_start - size, &plain);
    secure->plain_end = secure->plain_start + (found == TP_OPENED_DATA ? plain : 0);
    if (found == TP_OPENED_ASKS) {
        atomic_store(&secure->update, true);
    }
    secure->over = found == TP_OPENED_END ? -1 : found == TP_OPENED_WRONG ? EBADMSG : 0;
}

/* False when nothing came; `most`: as much as it could be. */
static bool fill(struct tp_secure *secure, bool *most) {
    if (secure->in_start > 0) {
        memmove(secure->in, secure->in + secure->in_start, secure->in_end - secure->in_start);
        secure->in_end -= secure->in_start;
        secure->in_start = secure->plain_start = secure->plain_end = 0;
    }
    const size_t room = IN_SIZE - secure->in_end;
    ssize_t n = recv(secure->fd, secure->in + secure->in_end, room, MSG_DONTWAIT);
    *most = n == (ssize_t)room;
    if (n > 0) {
        secure->in_end += (size_t)n;
    } else if (n == 0) {
        secure->over = -1;
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        secure->over = errno;
    }
    return n > 0;
}

ssize_t tp_secure_receive(struct tp_secure *secure, void *data, size_t size) {
    if (TP_UNLIKELY(!tp_secure_ready(secure)) && !tp_secure_handshake(secure)) {
        return -1;
    }
    unsigned char *to = data;
    size_t got = 0, record;
    bool most = true;
    while (got < size) {
        const size_t left = secure->plain_end - secure->plain_start, n = left < size - got ? left : size - got;
        if (n > 0) {
            memcpy(to + got, secure->in + secure->plain_start, n);
            secure->plain_start += n;
            got += n;
        } else if (secure->over) {
            break;
        } else if ((record = whole(secure)) > 0) {
            open_record(secure, record);
        } else if (secure->over || (got > 0 && !most) || !fill(secure, &most)) {
            break; /* after a short read the socket is most likely empty */
        }
    }
    const int error = secure->over > 0 ? secure->over : EAGAIN;
    /* What ends it shows when it is asked again. */
    bool holds =
        secure->plain_start < secure->plain_end || whole(secure) > 0 || secure->over; /* which whole() may set */
    atomic_store_explicit(&secure->holds, holds, memory_order_relaxed);
    if (got > 0 || secure->over < 0) {
        return (ssize_t)got;
    }
    errno = error;
    return -1;
}

const char *tp_secure_error(const struct tp_secure *secure, int error) {
    if (secure && error == EPROTO) {
        return secure->reason;
    }
    return error == EBADMSG ? "what came is not what the other side sent: it was changed on the way" : strerror(error);
}
