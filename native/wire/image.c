/*
 * Lengths of module images, read from the containers themselves; every read is bounded by the limit that the caller gives.
 */
#include "tp_image.h"

#include <elf.h>
#include <stdbool.h>
#include <string.h>

#define CUDA_GLOBAL 0x70000007u
#define CUDA_SHARED 0x7000000au

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Sections without bytes in the file. NVIDIA has types of its own for them in relocatable objects (NVRTC 13, sm_75 to sm_90). */
static bool has_bytes(uint32_t type) {
    return type != SHT_NOBITS && type != SHT_NULL && type != CUDA_GLOBAL && type != CUDA_SHARED;
}

static size_t elf_size(const unsigned char *image, size_t limit) {
    Elf64_Ehdr head;
    if (limit < sizeof head) {
        return 0;
    }
    memcpy(&head, image, sizeof head);
    if (head.e_ident[EI_CLASS] != ELFCLASS64 || (head.e_shnum && head.e_shentsize != sizeof(Elf64_Shdr)) ||
        (head.e_phnum && head.e_phentsize != sizeof(Elf64_Phdr)) || head.e_shoff > limit || head.e_phoff > limit ||
        (uint64_t)head.e_shnum * sizeof(Elf64_Shdr) > limit - head.e_shoff ||
        (uint64_t)head.e_phnum * sizeof(Elf64_Phdr) > limit - head.e_phoff) {
        return 0;
    }
    uint64_t end = larger(head.e_shoff + (uint64_t)head.e_shnum * sizeof(Elf64_Shdr),
                          head.e_phoff + (uint64_t)head.e_phnum * sizeof(Elf64_Phdr));
    end = larger(end, sizeof head);
    for (unsigned i = 0; i < head.e_shnum; i++) {
        Elf64_Shdr section;
        memcpy(&section, image + head.e_shoff + i * sizeof section, sizeof section);
        if (!has_bytes(section.sh_type)) {
            continue;
        }
        if (section.sh_offset > limit || section.sh_size > limit - section.sh_offset) {
            return 0;
        }
        end = larger(end, section.sh_offset + section.sh_size);
    }
    for (unsigned i = 0; i < head.e_phnum; i++) {
        Elf64_Phdr segment;
        memcpy(&segment, image + head.e_phoff + i * sizeof segment, sizeof segment);
        if (segment.p_offset > limit || segment.p_filesz > limit - segment.p_offset) {
            return 0;
        }
        end = larger(end, segment.p_filesz ? segment.p_offset + segment.p_filesz : 0);
    }
    return (size_t)end;
}

static size_t fatbin_size(const unsigned char *image, size_t limit) {
    uint16_t header_size;
    uint64_t body;
    if (limit < 16) {
        return 0;
    }
    memcpy(&header_size, image + 6, sizeof header_size);
    memcpy(&body, image + 8, sizeof body);
    if (header_size < 16 || header_size > limit || body > limit - header_size) {
        return 0;
    }
    /* Entries follow each other: u16 kind, u16, u32 header size, u32 padded payload size, u32 of unknown meaning (not always
     * zero in cuBLASLt's images). */
    uint64_t at = 0;
    while (at < body) {
        uint32_t entry_header, payload;
        if (body - at < 16) {
            return 0;
        }
        memcpy(&entry_header, image + header_size + at + 4, sizeof entry_header);
        memcpy(&payload, image + header_size + at + 8, sizeof payload);
        if (entry_header < 16 || entry_header > body - at || payload > body - at - entry_header) {
            return 0;
        }
        /* What lies in an entry as it is (others are compressed) states its own lengths, by which the driver reads as well. */
        const unsigned char *inside = image + header_size + at + entry_header;
        if (payload >= SELFMAG && memcmp(inside, ELFMAG, SELFMAG) == 0 && !elf_size(inside, payload)) {
            return 0;
        }
        at += (uint64_t)entry_header + payload;
    }
    return header_size + (size_t)body;
}

size_t tp_image_size(const void *image, size_t limit) {
    const unsigned char *bytes = image;
    uint32_t magic;
    if (limit < sizeof magic) {
        return 0;
    }
    memcpy(&magic, bytes, sizeof magic);
    if (magic == TP_FATBIN) {
        return fatbin_size(bytes, limit);
    }
    if (memcmp(bytes, ELFMAG, SELFMAG) == 0) {
        return elf_size(bytes, limit);
    }
    /* PTX begins with white space, a comment or a directive. */
    if (strchr(" \t\r\n./", bytes[0]) && bytes[0]) {
        size_t length = strnlen(image, limit);
        return length < limit ? length + 1 : 0;
    }
    return 0;
}

#define FLAGS_AT 40u       /* in the header of a fatbin's entry */
#define COMPRESSED 0xa000u /* by LZ4 or zstd */

/* Device code that prints calls a function of this name, which the driver brings. PTX that only declares it has it once. */
static bool names_printf(const unsigned char *code, size_t size) {
    static const char name[] = "vprintf";
    const bool elf = size >= SELFMAG && memcmp(code, ELFMAG, SELFMAG) == 0;
    const unsigned char *found = memmem(code, size, name, sizeof name - 1);
    if (!found || elf) {
        return found;
    }
    found += sizeof name - 1;
    return memmem(found, size - (size_t)(found - code), name, sizeof name - 1);
}

enum tp_image_prints tp_image_prints(const void *image, size_t size) {
    const unsigned char *bytes = image;
    uint16_t at;
    if (size < 16 || memcmp(bytes, &(uint32_t){TP_FATBIN}, sizeof(uint32_t)) != 0) {
        return names_printf(bytes, size) ? TP_PRINTS : TP_PRINTS_NOT;
    }
    /* All entries come from one source: what lies there as it is speaks for those that are compressed. */
    bool readable = false, prints = false;
    memcpy(&at, bytes + 6, sizeof at);
    for (size_t place = at, next; place < size && size - place >= 16; place = next) {
        uint32_t header, payload;
        memcpy(&header, bytes + place + 4, sizeof header);
        memcpy(&payload, bytes + place + 8, sizeof payload);
        if (header > size - place || payload > size - place - header) {
            break;
        }
        uint64_t flags = 0;
        if (header >= FLAGS_AT + sizeof flags) {
            memcpy(&flags, bytes + place + FLAGS_AT, sizeof flags);
        }
        next = place + header + payload;
        if (!(flags & COMPRESSED)) {
            readable = true;
            prints = prints || names_printf(bytes + place + header, payload);
        }
        if (next == place) {
            break;
        }
    }
    return prints ? TP_PRINTS : readable ? TP_PRINTS_NOT : TP_PRINTS_MAYBE;
}

uint64_t tp_name_hash(const char *name) {
    /* FNV-1a with a final mix: names come from the program's own images, nobody gains by a collision. */
    uint64_t hash = 0xcbf29ce484222325ull;
    for (; *name; name++) {
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3ull;
    }
    hash ^= hash >> 32;
    hash *= 0x9e3779b97f4a7c15ull;
    return hash ^ hash >> 29;
}
