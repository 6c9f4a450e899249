/*
 * Sealing and opening records. What and why: tp_records.h.
 */
#include "tp_records.h"

#include "tp_openssl.h"

#include <string.h>

#define TAG 16
#define CTRL_GET_TAG 0x10
#define CTRL_SET_TAG 0x11
#define KIND_ALERT 21
#define KIND_HANDSHAKE 22
#define KIND_DATA 23
#define KEY_UPDATE 24
#define ALERT_CLOSE 0

/* ---- keys ---- */

/* The compiler knows nothing of it, and so leaves it in. */
static void *(*const volatile set)(void *, int, size_t) = memset;

void tp_wipe(void *secret, size_t size) { set(secret, 0, size); }

void tp_hmac(const void *key, size_t key_size, const void *first, size_t first_size, const void *second,
             size_t second_size, unsigned char out[TP_SHA256_SIZE]) {
    unsigned char pad[64], inner[TP_SHA256_SIZE];
    struct tp_sha256 sha;
    for (int outer = 0; outer < 2; outer++) {
        memset(pad, outer ? 0x5c : 0x36, sizeof pad);
        for (size_t i = 0; i < key_size; i++) { /* no key here is longer than a block */
            pad[i] ^= ((const unsigned char *)key)[i];
        }
        tp_sha256_begin(&sha);
        tp_sha256_add(&sha, pad, sizeof pad);
        tp_sha256_add(&sha, outer ? inner : first, outer ? sizeof inner : first_size);
        tp_sha256_add(&sha, second, outer ? 0 : second_size);
        tp_sha256_end(&sha, outer ? out : inner);
    }
    tp_wipe(pad, sizeof pad);
    tp_wipe(inner, sizeof inner);
    tp_wipe(&sha, sizeof sha);
}

/* HKDF-Expand-Label without a context (RFC 8446, 7.1), in one block. */
static void derive(const unsigned char secret[TP_SHA256_SIZE], const char *label, unsigned char *out, size_t size) {
    unsigned char info[32] = {0, (unsigned char)size, (unsigned char)(6 + strlen(label)), 't', 'l', 's', '1', '3', ' '};
    unsigned char block[TP_SHA256_SIZE];
    const unsigned char last[] = {0, 1}; /* the context's length, and the block's number */
    memcpy(info + 9, label, strlen(label));
    tp_hmac(secret, TP_SHA256_SIZE, info, 9 + strlen(label), last, sizeof last, block);
    memcpy(out, block, size);
    tp_wipe(block, sizeof block);
}

/* The key and the vector of the secret as it is now. */
static bool use_secret(struct tp_half *half, int seals) {
    unsigned char key[16];
    derive(half->secret, "key", key, sizeof key);
    derive(half->secret, "iv", half->iv, sizeof half->iv);
    half->sequence = 0;
    bool used = tp_openssl.EVP_CipherInit_ex(half->cipher, tp_openssl.EVP_aes_128_gcm(), NULL, key, NULL, seals) == 1;
    tp_wipe(key, sizeof key);
    return used;
}

bool tp_half_begin(struct tp_half *half, const unsigned char secret[TP_SHA256_SIZE], bool seals) {
    memcpy(half->secret, secret, sizeof half->secret);
    half->cipher = tp_openssl.EVP_CIPHER_CTX_new();
    return half->cipher && use_secret(half, seals);
}

void tp_half_end(struct tp_half *half) {
    if (half->cipher) {
        tp_openssl.EVP_CIPHER_CTX_free(half->cipher);
    }
    tp_wipe(half, sizeof *half);
}

static bool change_keys(struct tp_half *half, int seals) {
    unsigned char next[TP_SHA256_SIZE];
    derive(half->secret, "traffic upd", next, sizeof next);
    memcpy(half->secret, next, sizeof half->secret);
    tp_wipe(next, sizeof next);
    return use_secret(half, seals);
}

/* The vector of the next record, and the head as what is authenticated besides. */
static bool begin_record(struct tp_half *half, const unsigned char head[TP_RECORD_HEAD]) {
    unsigned char vector[sizeof half->iv];
    int n;
    memcpy(vector, half->iv, sizeof vector);
    for (size_t i = 0; i < 8; i++) {
        vector[sizeof vector - 1 - i] ^= (unsigned char)(half->sequence >> (8 * i));
    }
    half->sequence++;
    return tp_openssl.EVP_CipherInit_ex(half->cipher, NULL, NULL, NULL, vector, -1) == 1 &&
           tp_openssl.EVP_CipherUpdate(half->cipher, NULL, &n, head, TP_RECORD_HEAD) == 1;
}

/* ---- sealing ---- */

static size_t seal_one(struct tp_half *half, unsigned char kind, const struct tp_piece *pieces, size_t count,
                       unsigned char *out) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total += pieces[i].size;
    }
    const size_t behind = total + 1 + TAG;
    const unsigned char head[TP_RECORD_HEAD] = {KIND_DATA, 3, 3, (unsigned char)(behind >> 8), (unsigned char)behind};
    unsigned char *at = out + sizeof head;
    int n;
    memcpy(out, head, sizeof head);
    bool sealed = begin_record(half, head);
    for (size_t i = 0; i < count && sealed; i++) {
        sealed = tp_openssl.EVP_CipherUpdate(half->cipher, at, &n, pieces[i].start, (int)pieces[i].size) == 1;
        at += pieces[i].size;
    }
    sealed = sealed && tp_openssl.EVP_CipherUpdate(half->cipher, at, &n, &kind, 1) == 1 &&
             tp_openssl.EVP_CipherFinal_ex(half->cipher, at + 1, &n) == 1 &&
             tp_openssl.EVP_CIPHER_CTX_ctrl(half->cipher, CTRL_GET_TAG, TAG, at + 1) == 1;
    return sealed ? sizeof head + behind : 0;
}

size_t tp_seal(struct tp_half *half, bool update, const struct tp_piece *pieces, size_t count, unsigned char *out) {
    static const unsigned char message[] = {KEY_UPDATE, 0, 0, 1, 0};
    const struct tp_piece said = {.start = message, .size = sizeof message};
    size_t before = 0;
    if (TP_UNLIKELY(update || half->sequence >= TP_RECORDS_OF_A_KEY)) {
        before = seal_one(half, KIND_HANDSHAKE, &said, 1, out);
        if (before == 0 || !change_keys(half, 1)) {
            return 0;
        }
    }
    const size_t size = seal_one(half, KIND_DATA, pieces, count, out + before);
    return size ? before + size : 0;
}

/* ---- opening ---- */

size_t tp_record_size(const unsigned char head[TP_RECORD_HEAD]) {
    const size_t size = (size_t)head[3] << 8 | head[4];
    bool right = head[0] == KIND_DATA && head[1] == 3 && head[2] == 3 && size > TAG;
    return right && TP_RECORD_HEAD + size <= TP_RECORD_MOST ? TP_RECORD_HEAD + size : 0;
}

static enum tp_opened take_message(struct tp_half *half, const unsigned char *message, size_t size) {
    static const unsigned char update[] = {KEY_UPDATE, 0, 0, 1};
    if (size != sizeof update + 1 || memcmp(message, update, sizeof update) != 0 || message[4] > 1 ||
        !change_keys(half, 0)) {
        return TP_OPENED_WRONG;
    }
    return message[4] ? TP_OPENED_ASKS : TP_OPENED_NOTHING;
}

enum tp_opened tp_open(struct tp_half *half, unsigned char *record, size_t *size) {
    size_t left = tp_record_size(record) - TP_RECORD_HEAD - TAG;
    unsigned char *plain = record + TP_RECORD_HEAD, *tag = plain + left;
    int n;
    if (!begin_record(half, record) || tp_openssl.EVP_CipherUpdate(half->cipher, plain, &n, plain, (int)left) != 1 ||
        tp_openssl.EVP_CIPHER_CTX_ctrl(half->cipher, CTRL_SET_TAG, TAG, tag) != 1 ||
        tp_openssl.EVP_CipherFinal_ex(half->cipher, tag, &n) != 1) {
        tp_wipe(plain, left);
        return TP_OPENED_WRONG;
    }
    while (left > 0 && plain[left - 1] == 0) { /* padding, of which we send none */
        left--;
    }
    if (left == 0 || left - 1 > TP_RECORD_PLAIN) {
        return TP_OPENED_WRONG;
    }
    const unsigned char kind = plain[--left];
    *size = left;
    switch (kind) {
    case KIND_DATA:
        return TP_OPENED_DATA;
    case KIND_HANDSHAKE:
        return take_message(half, plain, left);
    case KIND_ALERT:
        return left == 2 && plain[1] == ALERT_CLOSE ? TP_OPENED_END : TP_OPENED_WRONG;
    default:
        return TP_OPENED_WRONG;
    }
}
