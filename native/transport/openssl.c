/*
 * Finding OpenSSL and its functions. What and why: tp_openssl.h.
 *
 * Entered by one thread at a time, as said there.
 */
#include "tp_openssl.h"

#include <dlfcn.h>
#include <stdio.h>

#define NO_ATEXIT 0x00080000

struct tp_openssl tp_openssl;

#define FUNCTION(name) {#name, (void **)(void *)&tp_openssl.name}
static const struct {
    const char *name;
    void **place;
} functions[] = {
    FUNCTION(TLS_method),
    FUNCTION(SSL_CTX_new),
    FUNCTION(SSL_CTX_free),
    FUNCTION(SSL_CTX_ctrl),
    FUNCTION(SSL_CTX_set_verify),
    FUNCTION(SSL_CTX_set_default_verify_paths),
    FUNCTION(SSL_CTX_load_verify_locations),
    FUNCTION(SSL_CTX_set_ciphersuites),
    FUNCTION(SSL_CTX_set_num_tickets),
    FUNCTION(SSL_CTX_set_psk_use_session_callback),
    FUNCTION(SSL_CTX_set_psk_find_session_callback),
    FUNCTION(SSL_CTX_set_keylog_callback),
    FUNCTION(SSL_new),
    FUNCTION(SSL_free),
    FUNCTION(SSL_ctrl),
    FUNCTION(SSL_set_ex_data),
    FUNCTION(SSL_get_ex_data),
    FUNCTION(SSL_set1_host),
    FUNCTION(SSL_get0_param),
    FUNCTION(X509_VERIFY_PARAM_set1_ip_asc),
    FUNCTION(SSL_set_bio),
    FUNCTION(SSL_set_connect_state),
    FUNCTION(SSL_set_accept_state),
    FUNCTION(SSL_do_handshake),
    FUNCTION(SSL_read),
    FUNCTION(SSL_write),
    FUNCTION(SSL_session_reused),
    FUNCTION(SSL_get_error),
    FUNCTION(SSL_get_verify_result),
    FUNCTION(SSL_CIPHER_find),
    FUNCTION(SSL_SESSION_new),
    FUNCTION(SSL_SESSION_free),
    FUNCTION(SSL_SESSION_set1_master_key),
    FUNCTION(SSL_SESSION_set_cipher),
    FUNCTION(SSL_SESSION_set_protocol_version),
    FUNCTION(X509_verify_cert_error_string),
    FUNCTION(BIO_s_mem),
    FUNCTION(BIO_meth_new),
    FUNCTION(BIO_meth_free),
    FUNCTION(BIO_meth_set_read),
    FUNCTION(BIO_meth_set_write),
    FUNCTION(BIO_meth_set_ctrl),
    FUNCTION(BIO_new),
    FUNCTION(BIO_free),
    FUNCTION(BIO_set_init),
    FUNCTION(BIO_set_data),
    FUNCTION(BIO_get_data),
    FUNCTION(BIO_set_flags),
    FUNCTION(BIO_clear_flags),
    FUNCTION(BIO_read),
    FUNCTION(BIO_write),
    FUNCTION(EVP_aes_128_gcm),
    FUNCTION(EVP_CIPHER_CTX_new),
    FUNCTION(EVP_CIPHER_CTX_free),
    FUNCTION(EVP_CIPHER_CTX_ctrl),
    FUNCTION(EVP_CipherInit_ex),
    FUNCTION(EVP_CipherUpdate),
    FUNCTION(EVP_CipherFinal_ex),
    FUNCTION(OPENSSL_init_crypto),
    FUNCTION(ERR_get_error),
    FUNCTION(ERR_reason_error_string),
    FUNCTION(ERR_set_mark),
    FUNCTION(ERR_pop_to_mark),
};

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

bool tp_openssl_open(const char *wanted, const char *instead, char *why, size_t why_size) {
    if (tp_openssl.ready) {
        return true;
    }
    void *library = find_library();
    if (!library) {
        snprintf(why, why_size,
                 "%s needs OpenSSL 1.1.1 or 3 (libssl.so.3) on this machine, and there is none; install it (package "
                 "libssl3, libssl1.1 or openssl-libs)%s.",
                 wanted, instead);
        dlerror();
        return false;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *address = dlsym(library, functions[i].name);
        void *global = dlsym(RTLD_DEFAULT, functions[i].name);
        dlerror(); /* what the program finds there shall be its own */
        if (!address) {
            snprintf(why, why_size,
                     "The libssl of this machine has no %s, which is needed; install OpenSSL 1.1.1 or 3%s.",
                     functions[i].name, instead);
            return false;
        }
        if (global && global != address) {
            snprintf(
                why, why_size,
                "%s needs OpenSSL, and this program brings a TLS library of its own (it exports %s), beside which the "
                "system's cannot be used; start another build of the program%s.",
                wanted, functions[i].name, instead);
            return false;
        }
        *functions[i].place = address;
    }
    /* Where nobody has begun with it yet, it is not taken down at exit: threads of ours would be in the middle of it. */
    tp_openssl.ready = tp_openssl.OPENSSL_init_crypto(NO_ATEXIT, NULL) == 1;
    if (!tp_openssl.ready) {
        snprintf(why, why_size, "OpenSSL cannot be started (%s).", tp_openssl_reason());
    }
    return tp_openssl.ready;
}

const char *tp_openssl_reason(void) {
    unsigned long code = tp_openssl.ERR_get_error();
    const char *text = code ? tp_openssl.ERR_reason_error_string(code) : NULL;
    return text ? text : "no reason is given";
}
