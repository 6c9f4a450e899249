/*
 * TLS for the connection string's URL, by the OpenSSL that the process or its system has.
 *
 * The client links libc only and must not bring a TLS library into programs that have one already. OpenSSL is what is there: Python,
 * curl and every distribution bring it, its functions used here are the same in 1.1.0 and in 3.x, and its memory BIOs leave the
 * socket, its deadlines and its signals to us. libcurl was the other candidate: it is often not installed, is several
 * libraries under one name (OpenSSL, GnuTLS, NSS), and waits out of our reach. A helper process would meet the program's
 * own waitpid and SIGCHLD handler.
 *
 * The library is opened at the first https URL and never closed. One that the process has loaded is taken before another is
 * loaded. Where the program itself exports functions of such names (a statically linked OpenSSL or BoringSSL), libssl would call
 * those instead of its own and crash: then nothing is called and a sentence says so.
 *
 * Owns its context and connection; the error queue of the thread, which is the program's, is left as it was found. Entered by
 * the one thread that makes the connection. Certificates and records are a stranger's, and are OpenSSL's to judge.
 */
#include "conn_internal.h"
#include "stream.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HANDSHAKE_NS 10000000000u
#define PIECE 16384

/* Values of OpenSSL's headers, the same since 1.1.0. */
#define VERIFY_PEER 1
#define CTRL_SET_TLSEXT_HOSTNAME 55
#define CTRL_SET_MIN_PROTO_VERSION 123
#define NAMETYPE_HOST_NAME 0
#define TLS_1_2 0x0303
#define ERROR_WANT_READ 2
#define ERROR_WANT_WRITE 3
#define ERROR_ZERO_RETURN 6

typedef void ssl_t, ssl_ctx_t, ssl_method_t, bio_t, bio_method_t, x509_param_t;

static struct {
    const ssl_method_t *(*TLS_client_method)(void);
    ssl_ctx_t *(*SSL_CTX_new)(const ssl_method_t *);
    void (*SSL_CTX_free)(ssl_ctx_t *);
    long (*SSL_CTX_ctrl)(ssl_ctx_t *, int, long, void *);
    void (*SSL_CTX_set_verify)(ssl_ctx_t *, int, int (*)(int, void *));
    int (*SSL_CTX_set_default_verify_paths)(ssl_ctx_t *);
    int (*SSL_CTX_load_verify_locations)(ssl_ctx_t *, const char *, const char *);
    ssl_t *(*SSL_new)(ssl_ctx_t *);
    void (*SSL_free)(ssl_t *);
    long (*SSL_ctrl)(ssl_t *, int, long, void *);
    int (*SSL_set1_host)(ssl_t *, const char *);
    x509_param_t *(*SSL_get0_param)(ssl_t *);
    int (*X509_VERIFY_PARAM_set1_ip_asc)(x509_param_t *, const char *);
    void (*SSL_set_bio)(ssl_t *, bio_t *, bio_t *);
    void (*SSL_set_connect_state)(ssl_t *);
    int (*SSL_do_handshake)(ssl_t *);
    int (*SSL_read)(ssl_t *, void *, int);
    int (*SSL_write)(ssl_t *, const void *, int);
    int (*SSL_get_error)(const ssl_t *, int);
    long (*SSL_get_verify_result)(const ssl_t *);
    const char *(*X509_verify_cert_error_string)(long);
    const bio_method_t *(*BIO_s_mem)(void);
    bio_t *(*BIO_new)(const bio_method_t *);
    int (*BIO_read)(bio_t *, void *, int);
    int (*BIO_write)(bio_t *, const void *, int);
    unsigned long (*ERR_get_error)(void);
    const char *(*ERR_reason_error_string)(unsigned long);
    int (*ERR_set_mark)(void);
    int (*ERR_pop_to_mark)(void);
    bool ready;
} openssl; /* filled once, by the thread that holds the connection's lock */

#define FUNCTION(name) {#name, (void **)(void *)&openssl.name}
static const struct {
    const char *name;
    void **place;
} functions[] = {
    FUNCTION(TLS_client_method),
    FUNCTION(SSL_CTX_new),
    FUNCTION(SSL_CTX_free),
    FUNCTION(SSL_CTX_ctrl),
    FUNCTION(SSL_CTX_set_verify),
    FUNCTION(SSL_CTX_set_default_verify_paths),
    FUNCTION(SSL_CTX_load_verify_locations),
    FUNCTION(SSL_new),
    FUNCTION(SSL_free),
    FUNCTION(SSL_ctrl),
    FUNCTION(SSL_set1_host),
    FUNCTION(SSL_get0_param),
    FUNCTION(X509_VERIFY_PARAM_set1_ip_asc),
    FUNCTION(SSL_set_bio),
    FUNCTION(SSL_set_connect_state),
    FUNCTION(SSL_do_handshake),
    FUNCTION(SSL_read),
    FUNCTION(SSL_write),
    FUNCTION(SSL_get_error),
    FUNCTION(SSL_get_verify_result),
    FUNCTION(X509_verify_cert_error_string),
    FUNCTION(BIO_s_mem),
    FUNCTION(BIO_new),
    FUNCTION(BIO_read),
    FUNCTION(BIO_write),
    FUNCTION(ERR_get_error),
    FUNCTION(ERR_reason_error_string),
    FUNCTION(ERR_set_mark),
    FUNCTION(ERR_pop_to_mark),
};

/* Where distributions keep the certificates that they trust; OpenSSL knows the place of the one that built it only. */
static const char *const bundles[] = {
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
};

struct tpc_tls {
    int fd;
    ssl_ctx_t *context;
    ssl_t *ssl;
    bio_t *in, *out; /* records from and for the socket; the connection's */
};

/* ---- the library ---- */

static void *find_library(void) {
    static const char *const names[] = {"libssl.so.3", "libssl.so.1.1"};
    for (int load = 0; load < 2; load++) {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            void *found = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | (load ? 0 : RTLD_NOLOAD));
            if (found) {
                return found;
            }
        }
    }
    return NULL;
}

static bool load(char *why, size_t why_size) {
    if (openssl.ready) {
        return true;
    }
    void *library = find_library();
    if (!library) {
        snprintf(
            why, why_size,
            "An https URL needs OpenSSL 1.1 or 3 (libssl.so.3) in the program's machine, and there is none; install "
            "it (package libssl3, libssl1.1 or openssl-libs), or use an http:// URL.");
        dlerror();
        return false;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *address = dlsym(library, functions[i].name);
        void *global = dlsym(RTLD_DEFAULT, functions[i].name);
        dlerror(); /* what the program finds there shall be its own */
        if (!address || (global && global != address)) {
            snprintf(why, why_size,
                     address
                         ? "This program brings a TLS library of its own (it exports %s), beside which the system's "
                           "cannot be used; use an http:// URL for it, or set "
                           "TENSOR_FUSION_OPERATOR_CONNECTION_INFO to the connection string."
                         : "The libssl of this machine has no %s, which https needs; install OpenSSL 1.1 or 3.",
                     functions[i].name);
            return false;
        }
        *functions[i].place = address;
    }
    openssl.ready = true;
    return true;
}

/* The first error in the queue, which says the most. */
static const char *reason(void) {
    unsigned long code = openssl.ERR_get_error();
    const char *text = code ? openssl.ERR_reason_error_string(code) : NULL;
    return text ? text : "no reason is given";
}

/* ---- records ---- */

/* Moves what OpenSSL wrote to the socket. */
static enum tp_status flush(struct tpc_tls *tls, uint64_t deadline) {
    char piece[PIECE];
    for (int n; (n = openssl.BIO_read(tls->out, piece, sizeof piece)) > 0;) {
        enum tp_status status = tp_net_send_all(tls->fd, piece, (size_t)n, deadline);
        if (status != TP_OK) {
            return status;
        }
    }
    return TP_OK;
}

/* Moves what the socket has to OpenSSL: 1; 0 at its end, -1 with errno. */
static int fill(struct tpc_tls *tls, uint64_t deadline) {
    char piece[PIECE];
    ssize_t n = tpc_wait_receive(tls->fd, piece, sizeof piece, deadline);
    if (n > 0 && openssl.BIO_write(tls->in, piece, (int)n) != (int)n) {
        errno = ENOMEM;
        return -1;
    }
    return n > 0 ? 1 : (int)n;
}

/* What the call before with this result wants: 1 after it was given and the call may be made again; 0: the peer has said that
 * this is the end; -1 with errno: EPROTO when OpenSSL refuses. */
static int go_on(struct tpc_tls *tls, int result, uint64_t deadline) {
    int error = openssl.SSL_get_error(tls->ssl, result);
    if (flush(tls, deadline) != TP_OK) {
        return -1;
    }
    if (error == ERROR_WANT_READ) {
        int filled = fill(tls, deadline);
        if (filled == 0) {
            errno = ECONNRESET; /* without the peer's farewell: somebody may have cut it short */
        }
        return filled == 1 ? 1 : -1;
    }
    if (error == ERROR_WANT_WRITE) {
        return 1;
    }
    errno = EPROTO;
    return error == ERROR_ZERO_RETURN ? 0 : -1;
}

/* ---- connections ---- */

static bool trust(ssl_ctx_t *context, char *why, size_t why_size) {
    const char *own = getenv(TPC_CA_VARIABLE);
    if (own && *own) {
        if (access(own, R_OK) != 0) {
            snprintf(why, why_size, TPC_CA_VARIABLE " names %.500s, which cannot be read (%s).", own, strerror(errno));
            return false;
        }
        if (openssl.SSL_CTX_load_verify_locations(context, own, NULL) != 1) {
            snprintf(why, why_size, TPC_CA_VARIABLE " names %.500s, which holds no certificate in PEM format (%s).",
                     own, reason());
            return false;
        }
        return true;
    }
    openssl.SSL_CTX_set_default_verify_paths(context); /* also where there are none: then nobody is trusted */
    for (size_t i = 0; i < sizeof bundles / sizeof *bundles; i++) {
        if (access(bundles[i], R_OK) == 0 && openssl.SSL_CTX_load_verify_locations(context, bundles[i], NULL) == 1) {
            break;
        }
    }
    return true;
}

/* Whom the certificate must name. */
static bool expect(struct tpc_tls *tls, const char *host) {
    struct in6_addr ignored;
    if (inet_pton(AF_INET, host, &ignored) == 1 || inet_pton(AF_INET6, host, &ignored) == 1) {
        return openssl.X509_VERIFY_PARAM_set1_ip_asc(openssl.SSL_get0_param(tls->ssl), host) == 1;
    }
    char name[256];
    snprintf(name, sizeof name, "%s", host);
    return openssl.SSL_set1_host(tls->ssl, host) == 1 &&
           openssl.SSL_ctrl(tls->ssl, CTRL_SET_TLSEXT_HOSTNAME, NAMETYPE_HOST_NAME, name) == 1;
}

static enum tp_status handshake(struct tpc_tls *tls, const char *host, char *why, size_t why_size) {
    uint64_t deadline = tp_now_ns() + HANDSHAKE_NS;
    tpc_wait_for(HANDSHAKE_NS, "%s to answer as a TLS server does", host);
    for (;;) {
        int result = openssl.SSL_do_handshake(tls->ssl);
        if (result == 1) {
            return flush(tls, deadline) == TP_OK ? TP_OK : TP_ERROR_UNREACHABLE;
        }
        if (go_on(tls, result, deadline) == 1) {
            continue;
        }
        if (errno == EINTR) {
            return TP_ERROR_INTERRUPTED;
        }
        if (errno != EPROTO) {
            snprintf(why, why_size, "%s takes connections but completes no TLS handshake (%s)", host, strerror(errno));
            return TP_ERROR_UNREACHABLE;
        }
        long verdict = openssl.SSL_get_verify_result(tls->ssl);
        if (verdict != 0) {
            const char *own = getenv(TPC_CA_VARIABLE);
            snprintf(why, why_size, "The certificate of %s is not accepted: %s; %s", host,
                     openssl.X509_verify_cert_error_string(verdict),
                     own && *own ? "it was checked against " TPC_CA_VARIABLE "."
                                 : "name the file of the authority that signed it in " TPC_CA_VARIABLE ".");
        } else {
            snprintf(why, why_size, "%s answers, but not as a TLS server does (%s); check the URL.", host, reason());
        }
        return TP_ERROR_CONFIG;
    }
}

enum tp_status tpc_tls_open(struct tpc_tls **out, int fd, const char *host, char *why, size_t why_size) {
    if (!load(why, why_size)) {
        return TP_ERROR_CONFIG;
    }
    struct tpc_tls *tls = calloc(1, sizeof *tls);
    if (!tls) {
        return TP_ERROR_MEMORY;
    }
    openssl.ERR_set_mark();
    tls->fd = fd;
    tls->context = openssl.SSL_CTX_new(openssl.TLS_client_method());
    enum tp_status status = tls->context ? TP_OK : TP_ERROR_MEMORY;
    if (status == TP_OK) {
        openssl.SSL_CTX_ctrl(tls->context, CTRL_SET_MIN_PROTO_VERSION, TLS_1_2, NULL);
        openssl.SSL_CTX_set_verify(tls->context, VERIFY_PEER, NULL);
        status = trust(tls->context, why, why_size) ? TP_OK : TP_ERROR_CONFIG;
    }
    if (status == TP_OK) {
        tls->ssl = openssl.SSL_new(tls->context);
        tls->in = openssl.BIO_new(openssl.BIO_s_mem());
        tls->out = openssl.BIO_new(openssl.BIO_s_mem());
        status = tls->ssl && tls->in && tls->out ? TP_OK : TP_ERROR_MEMORY;
    }
    if (status == TP_OK) {
        openssl.SSL_set_bio(tls->ssl, tls->in, tls->out); /* which are its own from now on */
        openssl.SSL_set_connect_state(tls->ssl);
        if (!expect(tls, host)) {
            snprintf(why, why_size, "No certificate can be for %s (%s); check the URL.", host, reason());
            status = TP_ERROR_CONFIG;
        }
    }
    if (status == TP_OK) {
        status = handshake(tls, host, why, why_size);
    }
    if (status != TP_OK) {
        tpc_tls_close(tls);
        return status;
    }
    *out = tls;
    return TP_OK;
}

enum tp_status tpc_tls_send(struct tpc_tls *tls, const char *data, size_t size, uint64_t deadline) {
    while (size > 0) {
        int result = openssl.SSL_write(tls->ssl, data, (int)(size < PIECE ? size : PIECE));
        if (result > 0) {
            data += result;
            size -= (size_t)result;
        } else if (go_on(tls, result, deadline) != 1) {
            return errno == EINTR ? TP_ERROR_INTERRUPTED : TP_ERROR_LOST;
        }
    }
    return flush(tls, deadline);
}

ssize_t tpc_tls_receive(struct tpc_tls *tls, char *data, size_t size, uint64_t deadline) {
    for (;;) {
        int result = openssl.SSL_read(tls->ssl, data, (int)(size < PIECE ? size : PIECE));
        if (result > 0) {
            return result;
        }
        int wanted = go_on(tls, result, deadline);
        if (wanted != 1) {
            return wanted;
        }
    }
}

void tpc_tls_close(struct tpc_tls *tls) {
    if (tls->ssl) {
        openssl.SSL_free(tls->ssl); /* and with it the BIOs */
    }
    if (tls->context) {
        openssl.SSL_CTX_free(tls->context);
    }
    openssl.ERR_pop_to_mark();
    free(tls);
}
