/*
 * Connection strings: native+HOST+PORT+VERSION[+SECRET] and shmem+FILE+MB+VERSION[+SECRET].
 *
 * Owns nothing; any thread may enter. The text comes from the environment or from an HTTP server, so every field is bounded
 * before it is copied. The checks and their order are those of tensor_fusion/config.py; tests/data/connection_strings.json
 * holds both to the same answers.
 */
#include "tp_config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define STRING_MAX 1024u
#define TEXT_FIELD_MAX 63u
#define HOST_MAX 253u
#define SHMEM_MEGABYTES_MAX (1u << 20)
#define FIELDS_MAX 6 /* one more than allowed, so that too many are seen */
#define FORM "native+HOST+PORT+VERSION[+SECRET] or shmem+FILE+MB+VERSION[+SECRET]"

struct fields {
    char text[STRING_MAX + 1];  /* cut into fields */
    char shown[STRING_MAX + 8]; /* without what follows the fourth field */
    char *field[FIELDS_MAX];
    int count;
};

static bool is_host_character(char c, bool edge) {
    return isalnum((unsigned char)c) || c == '_' || (!edge && (c == '.' || c == '-'));
}

static bool valid_ipv6(const char *text, size_t size, char *host) {
    char address[64] = "";
    struct in6_addr ignored;
    const char *zone = memchr(text, '%', size);
    size_t length = zone ? (size_t)(zone - text) : size;
    if (length >= sizeof address) {
        return false;
    }
    memcpy(address, text, length);
    if (inet_pton(AF_INET6, address, &ignored) != 1) {
        return false;
    }
    if (zone) {
        size_t zone_size = size - length - 1;
        for (size_t i = 0; i < zone_size; i++) {
            if (!is_host_character(zone[1 + i], false)) {
                return false;
            }
        }
        if (zone_size < 1 || zone_size > 15) {
            return false;
        }
    }
    memcpy(host, text, size);
    host[size] = 0;
    return true;
}

static bool valid_host(const char *text, char *host) {
    size_t size = strlen(text);
    if (size >= 2 && text[0] == '[' && text[size - 1] == ']') {
        return valid_ipv6(text + 1, size - 2, host);
    }
    if (size < 1 || size > HOST_MAX || !is_host_character(text[0], true) ||
        (!is_host_character(text[size - 1], true) && text[size - 1] != '.')) {
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        if (!is_host_character(text[i], false)) {
            return false;
        }
    }
    struct in_addr ignored;
    if (strspn(text, "0123456789.") == size && inet_pton(AF_INET, text, &ignored) != 1) {
        return false;
    }
    memcpy(host, text, size + 1);
    return true;
}

/* A decimal number from 1 to `largest`, with no sign, and no more digits than `largest` has; 0 when it is none. */
static uint32_t number(const char *text, uint32_t largest) {
    char digits[16];
    size_t longest = (size_t)snprintf(digits, sizeof digits, "%u", largest);
    size_t size = strlen(text);
    if (size < 1 || size > longest || strspn(text, "0123456789") != size) {
        return 0;
    }
    unsigned long value = strtoul(text, NULL, 10);
    return value <= largest ? (uint32_t)value : 0;
}

static void cut(struct fields *f) {
    f->count = 0;
    char *at = f->text;
    while (f->count < FIELDS_MAX) {
        f->field[f->count++] = at;
        at = strchr(at, '+');
        if (!at) {
            break;
        }
        *at++ = 0;
    }
}

static void show(struct fields *f) {
    snprintf(f->shown, sizeof f->shown, "%s", f->text);
    char *at = f->shown;
    for (int plus = 0; (at = strchr(at, '+')) != NULL; at++) {
        if (++plus == 4) {
            snprintf(at, sizeof f->shown - (size_t)(at - f->shown), "+…");
            return;
        }
    }
}

static int version_and_secret(const struct fields *f, struct tp_endpoint *out, char *why, size_t why_size) {
    size_t size = strlen(f->field[3]);
    if (size < 1 || size > TEXT_FIELD_MAX) {
        snprintf(why, why_size,
                 "The version, fourth field of '%s', has %zu characters; 1 to %u are allowed; 0 is the usual one.",
                 f->shown, size, TEXT_FIELD_MAX);
        return TP_FAULT_VERSION;
    }
    memcpy(out->version, f->field[3], size + 1);
    if (f->count == 5) {
        size = strlen(f->field[4]);
        if (size < 1 || size > TEXT_FIELD_MAX) {
            snprintf(why, why_size,
                     "The secret, fifth field of the connection string, has %zu characters; 1 to %u are allowed.", size,
                     TEXT_FIELD_MAX);
            return TP_FAULT_SECRET;
        }
        memcpy(out->secret, f->field[4], size + 1);
    }
    return TP_FAULT_NONE;
}

static int parse_native(const struct fields *f, struct tp_endpoint *out, char *why, size_t why_size) {
    out->transport = TP_TRANSPORT_NATIVE;
    if (!valid_host(f->field[1], out->host)) {
        snprintf(why, why_size,
                 "'%s' in the connection string '%s' is no host name or address; write an IPv6 address in brackets.",
                 f->field[1], f->shown);
        return TP_FAULT_HOST;
    }
    out->port = number(f->field[2], 65535);
    if (!out->port) {
        snprintf(why, why_size, "'%s' in the connection string '%s' is no port; use 1 to 65535.", f->field[2],
                 f->shown);
        return TP_FAULT_PORT;
    }
    return version_and_secret(f, out, why, why_size);
}

static int parse_shmem(const struct fields *f, struct tp_endpoint *out, char *why, size_t why_size) {
    out->transport = TP_TRANSPORT_SHMEM;
    if (!f->field[1][0]) {
        snprintf(why, why_size, "The connection string '%s' names no file of shared memory.", f->shown);
        return TP_FAULT_FILE;
    }
    snprintf(out->file, sizeof out->file, "%s", f->field[1]);
    out->megabytes = number(f->field[2], SHMEM_MEGABYTES_MAX);
    if (!out->megabytes) {
        snprintf(why, why_size, "'%s' in the connection string '%s' is no size in MB; use 1 to %u.", f->field[2],
                 f->shown, SHMEM_MEGABYTES_MAX);
        return TP_FAULT_SIZE;
    }
    return version_and_secret(f, out, why, why_size);
}

int tp_parse_connection(const char *text, struct tp_endpoint *out, char *why, size_t why_size) {
    struct fields f;
    memset(out, 0, sizeof *out);
    if (why_size) {
        why[0] = 0;
    }
    text += strspn(text, " \t\r\n");
    size_t size = strlen(text);
    while (size > 0 && strchr(" \t\r\n", text[size - 1])) {
        size--;
    }
    if (size == 0) {
        snprintf(why, why_size, "The connection string is empty; it has the form %s.", FORM);
        return TP_FAULT_EMPTY;
    }
    if (size > STRING_MAX) {
        snprintf(why, why_size, "The connection string has %zu characters; at most %u are allowed.", size, STRING_MAX);
        return TP_FAULT_LENGTH;
    }
    memcpy(f.text, text, size);
    f.text[size] = 0;
    show(&f);
    for (size_t i = 0; i < size; i++) {
        if (f.text[i] < '!' || f.text[i] > '~') {
            snprintf(why, why_size, "The connection string '%s' holds a space or a character that is not plain ASCII.",
                     f.shown);
            return TP_FAULT_CHARACTERS;
        }
    }
    cut(&f);
    bool native = strcasecmp(f.field[0], "native") == 0;
    if (!native && strcasecmp(f.field[0], "shmem") != 0) {
        snprintf(why, why_size, "Unknown protocol '%s' in the connection string; the form is %s.", f.field[0], FORM);
        return TP_FAULT_PROTOCOL;
    }
    if (f.count != 4 && f.count != 5) {
        snprintf(why, why_size, "The connection string '%s' has %s fields instead of 4 or 5; the form is %s.", f.shown,
                 f.count > 5 ? "too many" : "too few", FORM);
        return TP_FAULT_FIELDS;
    }
    return native ? parse_native(&f, out, why, why_size) : parse_shmem(&f, out, why, why_size);
}

enum tp_status tp_config_endpoint(struct tp_endpoint *out, char *why, size_t why_size) {
    char fetched[STRING_MAX + 2];
    const char *text = getenv("TENSOR_FUSION_OPERATOR_CONNECTION_INFO");
    if (!text || !*text) {
        const char *url = getenv("TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL");
        if (!url || !*url) {
            snprintf(
                why, why_size,
                "No GPU worker is configured: set TENSOR_FUSION_OPERATOR_CONNECTION_INFO to where it is, for example "
                "native+192.168.1.100+12345+0.");
            return TP_ERROR_CONFIG;
        }
        enum tp_status status = tp_fetch_connection(url, fetched, sizeof fetched, why, why_size);
        if (status != TP_OK) {
            return status;
        }
        char fault[900];
        if (tp_parse_connection(fetched, out, fault, sizeof fault) != TP_FAULT_NONE) {
            snprintf(why, why_size, "%.300s does not answer with a connection string. %s", url, fault);
            return TP_ERROR_CONFIG;
        }
        return TP_OK;
    }
    return tp_parse_connection(text, out, why, why_size) == TP_FAULT_NONE ? TP_OK : TP_ERROR_CONFIG;
}
