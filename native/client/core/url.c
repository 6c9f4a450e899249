/* See url.h. */
#include "url.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_printable(const char *text) {
    for (; *text; text++) {
        if (*text <= ' ' || *text >= 127) {
            return false;
        }
    }
    return true;
}

/* HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT. */
static bool parse_authority(const char *text, size_t length, uint32_t usual_port, char *authority, size_t size,
                            struct tp_endpoint *at) {
    if (length == 0 || length >= size || memchr(text, '@', length)) {
        return false;
    }
    memcpy(authority, text, length);
    authority[length] = 0;
    bool bracket = authority[0] == '[';
    const char *end = strchr(authority, bracket ? ']' : ':');
    size_t host_length = end ? (size_t)(end - authority) : length;
    const char *port = bracket && end ? end + 1 : end;
    if ((bracket && (!end || (*port && *port != ':'))) || host_length <= bracket) {
        return false;
    }
    host_length -= bracket;
    at->port = usual_port;
    if (port && *port) {
        char *rest;
        unsigned long number = strtoul(port + 1, &rest, 10);
        if (!isdigit((unsigned char)port[1]) || *rest || number < 1 || number > 65535) {
            return false;
        }
        at->port = (uint32_t)number;
    }
    if (host_length >= sizeof at->host) {
        return false;
    }
    memcpy(at->host, authority + bracket, host_length);
    at->host[host_length] = 0;
    return true;
}

bool tpc_url_parse(const char *what, const char *text, struct tpc_url *url, char *why, size_t why_size) {
    memset(url, 0, sizeof *url);
    url->tls = strncasecmp(text, "https://", 8) == 0;
    bool good = (url->tls || strncasecmp(text, "http://", 7) == 0) && strlen(text) < TPC_URL_MAX && is_printable(text);
    if (good) {
        const char *host = strstr(text, "://") + 3;
        size_t length = strcspn(host, "/?#");
        const char *path = host + length;
        snprintf(url->path, sizeof url->path, "%s%.*s", *path == '/' ? "" : "/", (int)strcspn(path, "#"), path);
        good = parse_authority(host, length, url->tls ? 443 : 80, url->authority, sizeof url->authority, &url->at);
    }
    if (!good) {
        snprintf(why, why_size, "%s is '%.500s', which is no URL of the form http://HOST[:PORT]/PATH or https://….",
                 what, is_printable(text) ? text : "text with spaces or control characters");
    }
    return good;
}

bool tpc_url_follow(const struct tpc_url *from, const char *location, struct tpc_url *to, char *why, size_t why_size) {
    char text[TPC_URL_MAX + 400];
    const char *what = "The place that it redirects to";
    const char *scheme = from->tls ? "https" : "http";
    size_t name = strcspn(location, ":/?#");
    if (location[name] == ':') {
        return tpc_url_parse(what, location, to, why, why_size);
    }
    int size;
    if (strncmp(location, "//", 2) == 0) {
        size = snprintf(text, sizeof text, "%s:%s", scheme, location);
    } else if (location[0] == '/') {
        size = snprintf(text, sizeof text, "%s://%s%s", scheme, from->authority, location);
    } else { /* beside the path that was asked for */
        size_t path = strcspn(from->path, "?");
        while (path > 1 && from->path[path - 1] != '/') {
            path--;
        }
        size = snprintf(text, sizeof text, "%s://%s%.*s%s", scheme, from->authority, (int)path, from->path, location);
    }
    if (size < 0 || (size_t)size >= sizeof text) {
        snprintf(why, why_size, "%s is a URL of more than %u characters.", what, TPC_URL_MAX);
        return false;
    }
    return tpc_url_parse(what, text, to, why, why_size);
}

bool tpc_url_same_server(const struct tpc_url *a, const struct tpc_url *b) {
    return a->tls == b->tls && a->at.port == b->at.port && strcasecmp(a->at.host, b->at.host) == 0;
}

/* ---- proxies ---- */

static bool is_loopback(const char *host) {
    struct in_addr four;
    struct in6_addr six;
    return strcasecmp(host, "localhost") == 0 ||
           (inet_pton(AF_INET, host, &four) == 1 && ntohl(four.s_addr) >> 24 == 127) ||
           (inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six));
}

/* NETWORK/BITS, of either family. */
static bool in_network(const char *host, const char *network) {
    char address[64];
    unsigned char ours[16], theirs[16];
    const char *slash = strchr(network, '/');
    size_t length = slash ? (size_t)(slash - network) : strlen(network);
    if (!slash || length >= sizeof address || !isdigit((unsigned char)slash[1])) {
        return false;
    }
    memcpy(address, network, length);
    address[length] = 0;
    int family = strchr(address, ':') ? AF_INET6 : AF_INET;
    unsigned long bits = strtoul(slash + 1, NULL, 10);
    if (inet_pton(family, address, theirs) != 1 || inet_pton(family, host, ours) != 1 ||
        bits > (family == AF_INET ? 32u : 128u)) {
        return false;
    }
    unsigned char last = (unsigned char)(0xff00u >> bits % 8);
    return memcmp(ours, theirs, bits / 8) == 0 &&
           (bits % 8 == 0 || (ours[bits / 8] & last) == (theirs[bits / 8] & last));
}

static bool is_excepted(const struct tp_endpoint *at, const char *list) {
    char entry[300];
    while (*list) {
        list += strspn(list, ", \t");
        size_t length = strcspn(list, ", \t");
        if (length > 0 && length < sizeof entry) {
            memcpy(entry, list, length);
            entry[length] = 0;
            char *port = strrchr(entry, ':');
            bool has_port = port && strchr(entry, ':') == port && port[1] && !port[1 + strspn(port + 1, "0123456789")];
            bool same_port = !has_port || strtoul(port + 1, NULL, 10) == at->port;
            if (has_port) {
                *port = 0;
            }
            const char *name = entry + (entry[0] == '.') + (entry[0] == '*' && entry[1] == '.' ? 2 : 0);
            size_t host = strlen(at->host), tail = strlen(name);
            bool suffix = tail > 0 && tail <= host && strcasecmp(at->host + host - tail, name) == 0 &&
                          (tail == host || at->host[host - tail - 1] == '.');
            if (same_port && (suffix || strcmp(entry, "*") == 0 || in_network(at->host, entry))) {
                return true;
            }
        }
        list += length;
    }
    return false;
}

static const char *first_set(const char *const *names, const char **value) {
    for (; *names; names++) {
        *value = getenv(*names);
        if (*value && **value) {
            return *names;
        }
    }
    return NULL;
}

static void base64(const char *from, size_t size, char *to) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t word = 0;
        for (size_t j = 0; j < 3; j++) {
            word = word << 8 | (i + j < size ? (unsigned char)from[i + j] : 0);
        }
        for (size_t j = 0; j < 4; j++) {
            *to++ = i + j > size ? '=' : digits[word >> (18 - 6 * j) & 63];
        }
    }
    *to = 0;
}

/* USER:PASSWORD with %XX for what a URL cannot hold. */
static bool decode_user(const char *text, size_t length, char *authorization) {
    char plain[512];
    size_t size = 0;
    for (size_t i = 0; i < length && size < sizeof plain; i++, size++) {
        char hex[3] = {0};
        bool coded = text[i] == '%' && i + 2 < length && isxdigit((unsigned char)text[i + 1]) &&
                     isxdigit((unsigned char)text[i + 2]);
        if (coded) {
            memcpy(hex, text + i + 1, 2);
            i += 2;
        }
        plain[size] = coded ? (char)strtoul(hex, NULL, 16) : text[i];
    }
    if (size == sizeof plain) {
        return false;
    }
    base64(plain, size, authorization);
    return true;
}

bool tpc_url_proxy(const struct tpc_url *url, struct tpc_proxy *proxy, char *why, size_t why_size) {
    /* HTTP_PROXY in capitals is not among them: in a CGI program it is what the visitor sent. */
    static const char *const plain[] = {"http_proxy", "all_proxy", "ALL_PROXY", NULL};
    static const char *const secure[] = {"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", NULL};
    static const char *const excepted[] = {"no_proxy", "NO_PROXY", NULL};
    const char *text, *list, *variable = first_set(url->tls ? secure : plain, &text);
    memset(proxy, 0, sizeof *proxy);
    if (!variable || is_loopback(url->at.host) || (first_set(excepted, &list) && is_excepted(&url->at, list))) {
        return true;
    }
    const char *scheme = strstr(text, "://");
    const char *host = scheme ? scheme + 3 : text;
    const char *user_end = strchr(host, '@');
    size_t user = user_end ? (size_t)(user_end - host) : 0;
    char authority[300];
    host = user_end ? user_end + 1 : host;
    if (scheme && strncasecmp(text, "http://", 7) != 0) {
        snprintf(why, why_size,
                 "%s names a proxy of the kind %.*s, which cannot be used here; name an http:// proxy, add %s to "
                 "no_proxy, or set TENSOR_FUSION_OPERATOR_CONNECTION_INFO to the connection string.",
                 variable, (int)(scheme - text < 20 ? scheme - text : 20), text, url->at.host);
        return false;
    }
    if (!is_printable(text) || !decode_user(user_end ? user_end - user : "", user, proxy->authorization) ||
        !parse_authority(host, strcspn(host, "/?#"), 80, authority, sizeof authority, &proxy->at)) {
        /* Not its value, which may hold a password. */
        snprintf(why, why_size, "%s is no proxy of the form http://[USER:PASSWORD@]HOST:PORT.", variable);
        return false;
    }
    proxy->variable = variable;
    return true;
}
