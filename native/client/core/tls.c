/*
 * TLS for the connection string's URL, by the OpenSSL that the process or its system has (tp_openssl.h).
 *
 * Its memory BIOs leave the socket, its deadlines and its signals to us. A helper process would meet the program's own waitpid and
 * SIGCHLD handler.
 *
 * Owns its context and connection; the error queue of the thread, which is the program's, is left as it was found. Entered by
 * the one thread that makes the connection. Certificates and records are a stranger's, and are OpenSSL's to judge.
 */
#include "conn_internal.h"
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tp_openssl.h>
#include <unistd.h>

#define HANDSHAKE_NS 10000000000u
#define PIECE 16384

#define NAMETYPE_HOST_NAME 0
#define ERROR_WANT_READ 2
#define ERROR_WANT_WRITE 3
#define ERROR_ZERO_RETURN 6

/* Where distributions keep the certificates that they trust; OpenSSL knows the place of the one that built it only. */
static const char *const bundles[] = {
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
};

struct tpc_tls {
    int fd;
    tp_ssl_ctx *context;
    tp_ssl *ssl;
    tp_bio *in, *out; /* records from and for the socket; the connection's */
};

/* ---- records ---- */

/* Moves what OpenSSL wrote to the socket. */
static enum tp_status flush(struct tpc_tls *tls, uint64_t deadline) {
    char piece[PIECE];
    for (int n; (n = tp_openssl.BIO_read(tls->out, piece, sizeof piece)) > 0;) {
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
    ssize_t n = tpc_wait_receive(NULL, tls->fd, piece, sizeof piece, deadline);
    if (n > 0 && tp_openssl.BIO_write(tls->in, piece, (int)n) != (int)n) {
        errno = ENOMEM;
        return -1;
    }
    return n > 0 ? 1 : (int)n;
}

/* What the call before with this result wants: 1 after it was given and the call may be made again; 0: the peer has said that
 * this is the end; -1 with errno: EPROTO when OpenSSL refuses. */
static int go_on(struct tpc_tls *tls, int result, uint64_t deadline) {
    int error = tp_openssl.SSL_get_error(tls->ssl, result);
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

static bool trust(tp_ssl_ctx *context, char *why, size_t why_size) {
    const char *own = getenv(TPC_CA_VARIABLE);
    if (own && *own) {
        if (access(own, R_OK) != 0) {
            snprintf(why, why_size, TPC_CA_VARIABLE " names %.500s, which cannot be read (%s).", own, strerror(errno));
            return false;
        }
        if (tp_openssl.SSL_CTX_load_verify_locations(context, own, NULL) != 1) {
            snprintf(why, why_size, TPC_CA_VARIABLE " names %.500s, which holds no certificate in PEM format (%s).",
                     own, tp_openssl_reason());
            return false;
        }
        return true;
    }
    tp_openssl.SSL_CTX_set_default_verify_paths(context); /* also where there are none: then nobody is trusted */
    for (size_t i = 0; i < sizeof bundles / sizeof *bundles; i++) {
        if (access(bundles[i], R_OK) == 0 && tp_openssl.SSL_CTX_load_verify_locations(context, bundles[i], NULL) == 1) {
            break;
        }
    }
    return true;
}

/* Whom the certificate must name. */
static bool expect(struct tpc_tls *tls, const char *host) {
    struct in6_addr ignored;
    if (inet_pton(AF_INET, host, &ignored) == 1 || inet_pton(AF_INET6, host, &ignored) == 1) {
        return tp_openssl.X509_VERIFY_PARAM_set1_ip_asc(tp_openssl.SSL_get0_param(tls->ssl), host) == 1;
    }
    char name[256];
    snprintf(name, sizeof name, "%s", host);
    return tp_openssl.SSL_set1_host(tls->ssl, host) == 1 &&
           tp_openssl.SSL_ctrl(tls->ssl, TP_CTRL_TLSEXT_HOSTNAME, NAMETYPE_HOST_NAME, name) == 1;
}

static enum tp_status handshake(struct tpc_tls *tls, const char *host, char *why, size_t why_size) {
    uint64_t deadline = tp_now_ns() + HANDSHAKE_NS;
    tpc_wait_for(HANDSHAKE_NS, "%s to answer as a TLS server does", host);
    for (;;) {
        int result = tp_openssl.SSL_do_handshake(tls->ssl);
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
        long verdict = tp_openssl.SSL_get_verify_result(tls->ssl);
        if (verdict != 0) {
            const char *own = getenv(TPC_CA_VARIABLE);
            snprintf(why, why_size, "The certificate of %s is not accepted: %s; %s", host,
                     tp_openssl.X509_verify_cert_error_string(verdict),
                     own && *own ? "it was checked against " TPC_CA_VARIABLE "."
                                 : "name the file of the authority that signed it in " TPC_CA_VARIABLE ".");
        } else {
            snprintf(why, why_size, "%s answers, but not as a TLS server does (%s); check the URL.", host,
                     tp_openssl_reason());
        }
        return TP_ERROR_CONFIG;
    }
}

enum tp_status tpc_tls_open(struct tpc_tls **out, int fd, const char *host, char *why, size_t why_size) {
    if (!tp_openssl_open(
            "An https URL",
            ", or use an http:// URL, or set TENSOR_FUSION_OPERATOR_CONNECTION_INFO to the connection string", why,
            why_size)) {
        return TP_ERROR_CONFIG;
    }
    struct tpc_tls *tls = calloc(1, sizeof *tls);
    if (!tls) {
        return TP_ERROR_MEMORY;
    }
    tp_openssl.ERR_set_mark();
    tls->fd = fd;
    tls->context = tp_openssl.SSL_CTX_new(tp_openssl.TLS_method());
    enum tp_status status = tls->context ? TP_OK : TP_ERROR_MEMORY;
    if (status == TP_OK) {
        tp_openssl.SSL_CTX_ctrl(tls->context, TP_CTRL_MIN_PROTOCOL, TP_TLS_1_2, NULL);
        tp_openssl.SSL_CTX_set_verify(tls->context, TP_VERIFY_PEER, NULL);
        status = trust(tls->context, why, why_size) ? TP_OK : TP_ERROR_CONFIG;
    }
    if (status == TP_OK) {
        tls->ssl = tp_openssl.SSL_new(tls->context);
        tls->in = tp_openssl.BIO_new(tp_openssl.BIO_s_mem());
        tls->out = tp_openssl.BIO_new(tp_openssl.BIO_s_mem());
        status = tls->ssl && tls->in && tls->out ? TP_OK : TP_ERROR_MEMORY;
    }
    if (status == TP_OK) {
        tp_openssl.SSL_set_bio(tls->ssl, tls->in, tls->out); /* which are its own from now on */
        tp_openssl.SSL_set_connect_state(tls->ssl);
        if (!expect(tls, host)) {
            snprintf(why, why_size, "No certificate can be for %s (%s); check the URL.", host, tp_openssl_reason());
            status = TP_ERROR_CONFIG;
        }
    }
    status = status ? status : handshake(tls, host, why, why_size);
    if (status != TP_OK) {
        tpc_tls_close(tls);
        return status;
    }
    *out = tls;
    return TP_OK;
}

enum tp_status tpc_tls_send(struct tpc_tls *tls, const char *data, size_t size, uint64_t deadline) {
    while (size > 0) {
        int result = tp_openssl.SSL_write(tls->ssl, data, (int)(size < PIECE ? size : PIECE));
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
        int result = tp_openssl.SSL_read(tls->ssl, data, (int)(size < PIECE ? size : PIECE));
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
        tp_openssl.SSL_free(tls->ssl); /* and with it the BIOs */
    }
    if (tls->context) {
        tp_openssl.SSL_CTX_free(tls->context);
    }
    tp_openssl.ERR_pop_to_mark();
    free(tls);
}
