/*
 * OpenSSL as the machine has it: opened at run time, linked by nobody.
 *
 * The client links libc only and must not bring a TLS library into programs that have one already. OpenSSL is what is there: Python,
 * curl and every distribution bring it, and its functions used here are the same in 1.1.1 and in 3.x. libcurl was the other
 * candidate for URLs: it is often not installed, is several libraries under one name (OpenSSL, GnuTLS, NSS), and waits out of our
 * reach. A copy of a TLS library in our source would be ours to mend.
 *
 * The library is opened when it is first needed and never closed. One that the process has loaded is taken before another is
 * loaded. Where the program itself exports functions of such names (a statically linked OpenSSL or BoringSSL), libssl would call
 * those instead of its own and crash: then nothing is called and a sentence says so.
 *
 * Owns the table below, which one thread fills once: in the client the one that holds the connection's lock, in the session the
 * executor. The error queue of a thread is the program's: whoever calls leaves it as it was (ERR_set_mark, ERR_pop_to_mark). A thread
 * that only seals and opens records has nothing of OpenSSL's own, neither a queue nor a mark in it: OpenSSL would take that away when the
 * process ends, while the thread ends as well.
 */
#ifndef TP_OPENSSL_H
#define TP_OPENSSL_H

#include <stddef.h>
#include <tp_base.h>

/* Values of OpenSSL's headers, the same since 1.1.0. */
#define TP_VERIFY_PEER 1
#define TP_CTRL_SESSION_CACHE 44
#define TP_CTRL_TLSEXT_HOSTNAME 55
#define TP_CTRL_GROUPS_LIST 92
#define TP_CTRL_MIN_PROTOCOL 123
#define TP_CTRL_MAX_PROTOCOL 124
#define TP_TLS_1_2 0x0303
#define TP_TLS_1_3 0x0304

typedef void tp_ssl, tp_ssl_ctx, tp_ssl_method, tp_ssl_session, tp_ssl_cipher, tp_bio, tp_bio_method, tp_x509_param,
    tp_evp_md, tp_evp_cipher, tp_evp_ctx;

struct tp_openssl {
    const tp_ssl_method *(*TLS_method)(void);
    tp_ssl_ctx *(*SSL_CTX_new)(const tp_ssl_method *);
    void (*SSL_CTX_free)(tp_ssl_ctx *);
    long (*SSL_CTX_ctrl)(tp_ssl_ctx *, int, long, void *);
    void (*SSL_CTX_set_verify)(tp_ssl_ctx *, int, int (*)(int, void *));
    int (*SSL_CTX_set_default_verify_paths)(tp_ssl_ctx *);
    int (*SSL_CTX_load_verify_locations)(tp_ssl_ctx *, const char *, const char *);
    int (*SSL_CTX_set_ciphersuites)(tp_ssl_ctx *, const char *);
    int (*SSL_CTX_set_num_tickets)(tp_ssl_ctx *, size_t);
    void (*SSL_CTX_set_psk_use_session_callback)(tp_ssl_ctx *,
                                                 int (*)(tp_ssl *, const tp_evp_md *, const unsigned char **, size_t *,
                                                         tp_ssl_session **));
    void (*SSL_CTX_set_psk_find_session_callback)(tp_ssl_ctx *,
                                                  int (*)(tp_ssl *, const unsigned char *, size_t, tp_ssl_session **));
    void (*SSL_CTX_set_keylog_callback)(tp_ssl_ctx *, void (*)(const tp_ssl *, const char *));
    tp_ssl *(*SSL_new)(tp_ssl_ctx *);
    void (*SSL_free)(tp_ssl *);
    long (*SSL_ctrl)(tp_ssl *, int, long, void *);
    int (*SSL_set_ex_data)(tp_ssl *, int, void *);
    void *(*SSL_get_ex_data)(const tp_ssl *, int);
    int (*SSL_set1_host)(tp_ssl *, const char *);
    tp_x509_param *(*SSL_get0_param)(tp_ssl *);
    int (*X509_VERIFY_PARAM_set1_ip_asc)(tp_x509_param *, const char *);
    void (*SSL_set_bio)(tp_ssl *, tp_bio *, tp_bio *);
    void (*SSL_set_connect_state)(tp_ssl *);
    void (*SSL_set_accept_state)(tp_ssl *);
    int (*SSL_do_handshake)(tp_ssl *);
    int (*SSL_read)(tp_ssl *, void *, int);
    int (*SSL_write)(tp_ssl *, const void *, int);
    int (*SSL_session_reused)(const tp_ssl *);
    int (*SSL_get_error)(const tp_ssl *, int);
    long (*SSL_get_verify_result)(const tp_ssl *);
    const tp_ssl_cipher *(*SSL_CIPHER_find)(tp_ssl *, const unsigned char *);
    tp_ssl_session *(*SSL_SESSION_new)(void);
    void (*SSL_SESSION_free)(tp_ssl_session *);
    int (*SSL_SESSION_set1_master_key)(tp_ssl_session *, const unsigned char *, size_t);
    int (*SSL_SESSION_set_cipher)(tp_ssl_session *, const tp_ssl_cipher *);
    int (*SSL_SESSION_set_protocol_version)(tp_ssl_session *, int);
    const char *(*X509_verify_cert_error_string)(long);
    const tp_bio_method *(*BIO_s_mem)(void);
    tp_bio_method *(*BIO_meth_new)(int, const char *);
    void (*BIO_meth_free)(tp_bio_method *);
    int (*BIO_meth_set_read)(tp_bio_method *, int (*)(tp_bio *, char *, int));
    int (*BIO_meth_set_write)(tp_bio_method *, int (*)(tp_bio *, const char *, int));
    int (*BIO_meth_set_ctrl)(tp_bio_method *, long (*)(tp_bio *, int, long, void *));
    tp_bio *(*BIO_new)(const tp_bio_method *);
    int (*BIO_free)(tp_bio *);
    void (*BIO_set_init)(tp_bio *, int);
    void (*BIO_set_data)(tp_bio *, void *);
    void *(*BIO_get_data)(tp_bio *);
    void (*BIO_set_flags)(tp_bio *, int);
    void (*BIO_clear_flags)(tp_bio *, int);
    int (*BIO_read)(tp_bio *, void *, int);
    int (*BIO_write)(tp_bio *, const void *, int);
    const tp_evp_cipher *(*EVP_aes_128_gcm)(void);
    tp_evp_ctx *(*EVP_CIPHER_CTX_new)(void);
    void (*EVP_CIPHER_CTX_free)(tp_evp_ctx *);
    int (*EVP_CIPHER_CTX_ctrl)(tp_evp_ctx *, int, int, void *);
    int (*EVP_CipherInit_ex)(tp_evp_ctx *, const tp_evp_cipher *, void *, const unsigned char *, const unsigned char *,
                             int);
    int (*EVP_CipherUpdate)(tp_evp_ctx *, unsigned char *, int *, const unsigned char *, int);
    int (*EVP_CipherFinal_ex)(tp_evp_ctx *, unsigned char *, int *);
    int (*OPENSSL_init_crypto)(uint64_t, const void *);
    unsigned long (*ERR_get_error)(void);
    const char *(*ERR_reason_error_string)(unsigned long);
    int (*ERR_set_mark)(void);
    int (*ERR_pop_to_mark)(void);
    bool ready;
};
extern struct tp_openssl tp_openssl;

/* False with a sentence where there is none to be used: `wanted` begins it ("An https URL"), and `instead`, which may be empty, ends
 * it with what else may be done ("; or use an http:// URL"). */
bool tp_openssl_open(const char *wanted, const char *instead, char *why, size_t why_size);
/* The first error in this thread's queue, which says the most. */
const char *tp_openssl_reason(void);

#endif
