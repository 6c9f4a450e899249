/*
 * Lengths that containers of images state: the driver reads by them, so they must lie within what came. And what they say about
 * printing.
 *
 * One thread, no arguments; tests/test_frames.py builds and runs this.
 */
#include "simgpu_check.h"

#include <elf.h>
#include <tp_image.h>

#define CUDA_GLOBAL 0x70000007u /* without bytes in the file, as NVRTC 13 writes it with -rdc=true */

struct elf {
    Elf64_Ehdr head;
    Elf64_Phdr segment;
    Elf64_Shdr section;
    unsigned char bytes[64];
};

static struct elf good(void) {
    struct elf elf = {.head = {.e_phoff = sizeof(Elf64_Ehdr),
                               .e_phnum = 1,
                               .e_phentsize = sizeof(Elf64_Phdr),
                               .e_shoff = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
                               .e_shnum = 1,
                               .e_shentsize = sizeof(Elf64_Shdr)}};
    memcpy(elf.head.e_ident, ELFMAG, SELFMAG);
    elf.head.e_ident[EI_CLASS] = ELFCLASS64;
    elf.segment = (Elf64_Phdr){.p_type = PT_LOAD, .p_offset = sizeof elf - 64, .p_filesz = 64, .p_memsz = 1 << 30};
    elf.section = (Elf64_Shdr){.sh_type = SHT_PROGBITS, .sh_offset = sizeof elf - 64, .sh_size = 64};
    return elf;
}

struct fatbin {
    uint32_t magic;
    uint16_t version, header_size;
    uint64_t body;
    uint16_t kind, unused;
    uint32_t entry_header, payload, more[7];
    uint64_t flags, rest[2];
    struct elf elf;
};

static struct fatbin fatbin_of(struct elf elf) {
    return (struct fatbin){.magic = TP_FATBIN,
                           .version = 1,
                           .header_size = 16,
                           .body = sizeof(struct fatbin) - 16,
                           .kind = 2,
                           .entry_header = 64,
                           .payload = sizeof elf,
                           .elf = elf};
}

static size_t in_fatbin(struct elf elf) {
    struct fatbin fatbin = fatbin_of(elf);
    return tp_image_size(&fatbin, sizeof fatbin);
}

static void check_prints(void) {
    static const char text[] = ".extern .func (.param .b32 r) vprintf (.param .b64 f); call (r), vprintf, (f);";
    const size_t declared = 45;
    struct elf elf = good();
    CHECK(tp_image_prints(text, sizeof text) == TP_PRINTS && tp_image_prints(text, declared) == TP_PRINTS_NOT);
    CHECK(tp_image_prints(&elf, sizeof elf) == TP_PRINTS_NOT);
    struct fatbin fatbin = fatbin_of(elf);
    CHECK(tp_image_prints(&fatbin, sizeof fatbin) == TP_PRINTS_NOT);
    memcpy(fatbin.elf.bytes + 57, "vprintf", 7);
    CHECK(tp_image_prints(&fatbin, sizeof fatbin) == TP_PRINTS);
    CHECK(tp_image_prints(&fatbin, sizeof fatbin - 1) == TP_PRINTS_MAYBE); /* an entry that ends behind what came */
    fatbin.flags = 0x8011;                                                 /* compressed by zstd */
    CHECK(tp_image_prints(&fatbin, sizeof fatbin) == TP_PRINTS_MAYBE);
}

int main(void) {
    struct elf elf = good();
    CHECK(tp_image_size(&elf, sizeof elf) == sizeof elf && in_fatbin(elf) == sizeof(struct fatbin));
    elf.segment.p_filesz = 65;
    CHECK(tp_image_size(&elf, sizeof elf) == 0 && in_fatbin(elf) == 0);
    elf.segment.p_filesz = UINT64_MAX;
    CHECK(tp_image_size(&elf, sizeof elf) == 0 && in_fatbin(elf) == 0);
    elf = good();
    elf.section.sh_size = 65;
    CHECK(tp_image_size(&elf, sizeof elf) == 0 && in_fatbin(elf) == 0);
    elf.section.sh_type = CUDA_GLOBAL;
    CHECK(tp_image_size(&elf, sizeof elf) == sizeof elf && in_fatbin(elf) == sizeof(struct fatbin));
    check_prints();
    return 0;
}
