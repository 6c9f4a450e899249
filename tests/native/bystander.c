/*
 * A process of the same user that has nothing to do with us, for escapes.c to reach: it has memory, objects of System V under the key
 * that it is given, and a queue and shared memory under the name. It says where its memory is, and ends when its input does.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words) {
    static volatile char memory = 'x';
    key_t key = count == 3 ? (key_t)atoi(words[1]) : 0;
    int shared = shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0600), queue = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    int semaphore = semget(key, 1, IPC_CREAT | IPC_EXCL | 0600);
    char path[256];
    snprintf(path, sizeof path, "/%s", words[2]);
    int named = (int)syscall(SYS_mq_open, words[2], O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
    int file = shm_open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (shared < 0 || queue < 0 || semaphore < 0 || file < 0) {
        perror("bystander");
        return 1;
    }
    printf("%p %s\n", (void *)&memory, named < 0 ? "no queue" : "queue");
    fflush(stdout);
    while (read(0, path, 1) > 0) {
    }
    shmctl(shared, IPC_RMID, NULL);
    msgctl(queue, IPC_RMID, NULL);
    semctl(semaphore, 0, IPC_RMID);
    syscall(SYS_mq_unlink, words[2]);
    snprintf(path, sizeof path, "/%s", words[2]);
    shm_unlink(path);
    return 0;
}
