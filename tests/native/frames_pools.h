/*
 * What a hostile client, and a hostile session behind the supervisor, can say of pools that are shared: a case of test_frames.c,
 * which has what it uses. The supervisor is a socket here, and its answers are made by hand.
 */
#ifndef FRAMES_POOLS_H
#define FRAMES_POOLS_H

#include <sys/socket.h>

static int the_supervisor;

static void execute(void) {
    session.ended = false;
    fuzz_link_again(the_link);
    tpw_execute(&session);
}

/* What the session asks next; its descriptor, -1: none. */
static struct tpw_packet asks(uint32_t type, int *fd) {
    char space[CMSG_SPACE(sizeof(int))];
    struct tpw_packet packet;
    struct iovec part = {.iov_base = &packet, .iov_len = sizeof packet};
    struct msghdr envelope = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    execute();
    CHECK(recvmsg(the_supervisor, &envelope, MSG_DONTWAIT) == sizeof packet && packet.type == type);
    const struct cmsghdr *head = CMSG_FIRSTHDR(&envelope);
    *fd = -1;
    if (head) {
        memcpy(fd, CMSG_DATA(head), sizeof *fd);
    }
    return packet;
}

static void tell(uint32_t type, uint32_t argument, uint64_t number, const struct tpw_shared *what, int fd) {
    struct tpw_packet packet = {.type = type, .argument = argument, .value = number, .body.shared = *what};
    tpw_control_told(&session, &packet, fd);
}

static struct tpw_range *memory_of(const struct tpw_pool *pool) {
    struct tp_interval *at = tp_interval_from(&session.memory->ranges, 0);
    while (at && ((struct tpw_range *)at)->detail != pool) {
        at = tp_interval_from(&session.memory->ranges, at->start + 1);
    }
    return (struct tpw_range *)at;
}

static struct tpw_pool *pool_at(uint32_t index) {
    const struct tpw_object *object = tpw_object(&session, TPG_POOL, handle(TPG_POOL, index));
    return object ? tpw_pool_of(&session, (CUmemoryPool)(uintptr_t)object->native) : NULL;
}

/* An import of the pool, of which the supervisor says that. */
static bool imports(uint32_t index, const struct tpw_shared *what, int fd) {
    int none;
    SEND(0, pool_import, CALL, .pool = handle(TPG_POOL, index));
    tell(TPW_IMPORTED, asks(TPW_IMPORT, &none).argument, 5, what, dup(fd));
    bool has = tpw_object(&session, TPG_POOL, handle(TPG_POOL, index));
    CHECK(has || asks(TPW_LEAVE, &none).argument == 1); /* what it was given it gives back */
    return has;
}

static bool imports_pointer(const struct tpw_shared *what, unsigned char tag) {
    CUmemPoolPtrExportData data = {.reserved = {tag}};
    struct tpw_packet asked;
    int none;
    SEND(0, pool_pointer, CALL, .pool = handle(TPG_POOL, 3), .handle = data);
    asked = asks(TPW_IMPORT, &none);
    CHECK(asked.body.shared.kind == TPW_SHARES_POINTER && asked.body.shared.handle[0] == tag);
    tell(TPW_IMPORTED, asked.argument, 6, what, -1);
    return memory_of(pool_at(3));
}

static void case_pool_share(void) {
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    struct tpw_shared what = {.handle = {7}};
    int pair[2], fd, none;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    session.control = pair[0];
    the_supervisor = pair[1];
    SEND(0, pool_create, CALL, .pool = handle(TPG_POOL, 2), .props = &props, .props_size = sizeof props);
    SEND(0, pool_export, CALL, .pool = handle(TPG_POOL, 2));   /* refused, 1: it was not made for that */
    SEND(0, pool_export, CALL, .pool = handle(TPG_POOL, 0));   /* 2: a device's own */
    SEND(0, pool_export, CALL, .pool = handle(TPG_STREAM, 0)); /* 3 */
    SEND(0, pool_export, CALL, .pool = handle(TPG_POOL, 99));  /* 4 */
    props.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
    SEND(0, pool_create, CALL, .pool = handle(TPG_POOL, 1), .props = &props, .props_size = sizeof props); /* 5 */
    props.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    SEND(0, pool_create, CALL, .pool = handle(TPG_POOL, 1), .props = &props, .props_size = sizeof props);
    SEND(0, pool_alloc, CALL, .pool = handle(TPG_POOL, 1), .size = 100000, .stream = 1);
    execute();
    CHECK(fuzz_link_failures(the_link) == 5);
    const struct tpw_pool *own = pool_at(1);
    const uint64_t address = memory_of(own)->at.start;

    SEND(0, cuMemPoolExportPointer, CALL, .ptr = address); /* 6: its pool was not exported */
    SEND(0, pool_export, CALL, .pool = handle(TPG_POOL, 1));
    const struct tpw_packet shares = asks(TPW_SHARE, &fd);
    CHECK(fd >= 0 && shares.body.shared.kind == TPW_SHARES_POOL && shares.body.shared.block == TPW_GRANULE);
    SEND(0, cuMemPoolExportPointer, CALL, .ptr = address);   /* 7: nor is it yet */
    SEND(0, pool_export, CALL, .pool = handle(TPG_POOL, 1)); /* 8: asked again */
    execute();
    tell(TPW_SHARED, shares.argument, 5, &what, -1);
    CHECK(asks(TPW_GROWN, &none).key == TPW_GRANULE);
    const uint64_t wrong[] = {address + 16, 16, 0, UINT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        SEND(0, cuMemPoolExportPointer, CALL, .ptr = wrong[i]); /* 12 */
    }
    SEND(0, cuMemPoolExportPointer, CALL, .ptr = address);
    const struct tpw_packet pointer = asks(TPW_SHARE, &none);
    CHECK(none == -1 && pointer.body.shared.kind == TPW_SHARES_POINTER && pointer.body.shared.block == 5);
    tell(TPW_SHARED, pointer.argument, 6, &what, -1);
    SEND(0, pool_alloc, CALL, .pool = handle(TPG_POOL, 1), .size = 3 << 20, .stream = 1);
    const struct tpw_packet grown = asks(TPW_GROWN, &none);
    CHECK(grown.value == 5 && grown.key == 2 * TPW_GRANULE);
    SEND(0, pool_pointer, CALL, .pool = handle(TPG_POOL, 1)); /* 13: it was not imported */
    execute();
    CHECK(fuzz_link_failures(the_link) == 13);

    /* What another session may say of its pool. */
    const struct tpw_shared right = {.block = TPW_GRANULE, .size = TPW_GRANULE, .kind = TPW_SHARES_POOL};
    struct tpw_shared lie = right;
    int file = memfd_create("no pool", 0);
    CHECK(!imports(3, &right, file)); /* 14 */
    CHECK(!imports(3, &right, -1));   /* 15 */
    lie.device = 99;
    CHECK(!imports(3, &lie, fd)); /* 16 */
    lie = right;
    lie.block = lie.size = 4096;
    CHECK(!imports(3, &lie, fd)); /* 17 */
    CHECK(!session.memory->import_count);
    CHECK(imports(3, &right, fd));
    SEND(0, pool_export, CALL, .pool = handle(TPG_POOL, 3));                           /* 18 */
    SEND(0, pool_alloc, CALL, .pool = handle(TPG_POOL, 3), .size = 4096, .stream = 1); /* 19 */
    SEND(0, cuDeviceSetMemPool, CALL, .pool = handle(TPG_POOL, 3), .dev = 0);          /* 20 */
    execute();
    CHECK(fuzz_link_failures(the_link) == 20);
    struct tpw_shared of = {.kind = TPW_SHARES_POINTER, .block = 5};
    CHECK(!imports_pointer(&of, 1)); /* 21: no bytes of the driver's */
    memcpy(of.native, pointer.body.shared.native, sizeof of.native);
    of.block = 4;
    CHECK(!imports_pointer(&of, 2)); /* 22: of another pool */
    of.block = 5;
    of.size = UINT64_MAX; /* nobody asks how large another session says it is */
    SEND(0, pool_pointer, CALL, .pool = handle(TPG_POOL, 3), .handle = {.reserved = {3}});
    SEND(0, pool_pointer, CALL, .pool = handle(TPG_POOL, 3), .handle = {.reserved = {3}}); /* before it is answered */
    const uint32_t one = asks(TPW_IMPORT, &none).argument, other = asks(TPW_IMPORT, &none).argument;
    tell(TPW_IMPORTED, one, 6, &of, -1);
    tell(TPW_IMPORTED, other, 6, &of, -1);
    CHECK(pool_at(3)->taken == 1); /* it is open once */
    const struct tpw_range *open = memory_of(pool_at(3));
    CHECK(open->at.size == 100000 && !open->charged);
    SEND(0, pool_pointer, CALL, .pool = handle(TPG_POOL, 3),
         .handle = {.reserved = {[24] = 6}});                 /* it is open: nobody is asked */
    SEND(0, pool_destroy, CALL, .pool = handle(TPG_POOL, 3)); /* 23 */
    execute();
    const uint64_t its = open->at.start;
    SEND(0, pool_free, 0, .address = its, .stream = 1);
    SEND(0, pool_free, CALL, .address = its, .stream = 1); /* 24 */
    fuzz_link_pause(the_link);
    SEND(0, pool_destroy, CALL, .pool = handle(TPG_POOL, 3));
    const struct tpw_packet left = asks(TPW_LEAVE, &none);
    CHECK(left.value == 5 && left.argument == 1 && !pool_at(3));
    SEND(0, pool_free, 0, .address = address, .stream = 1);
    SEND(0, pool_destroy, 0, .pool = handle(TPG_POOL, 1));
    execute();
    close(file);
    close(fd);
}

#endif
