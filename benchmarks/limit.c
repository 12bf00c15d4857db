/* The limit of fan-out: a server that does nothing but write(2).
 *
 *     limit VIEWERS COUNT CHUNK
 *
 * Prints its port, accepts VIEWERS connections, reads each one's request and answers with a header; then, on a
 * line from stdin, writes the bytes of the file CHUNK to each of them, COUNT times over, one call for each. The
 * mark in the chunk counts up, so the reader checks it as it checks any server.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARK "\"mark\":\""

static void put(char *at, unsigned long value, int digits) {
    for (int i = digits - 1; i >= 0; i--, value /= 10) at[i] = '0' + value % 10;
}

static void check(int fine, const char *what) {
    if (!fine) perror(what), exit(1);
}

int main(int count, char **words) {
    static char chunk[65536], request[65536];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    const char *head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    int one = 1;
    if (count != 4) return fprintf(stderr, "usage: limit VIEWERS COUNT CHUNK\n"), 2;
    int viewers = atoi(words[1]), events = atoi(words[2]);
    FILE *file = fopen(words[3], "rb");
    check(file != NULL, words[3]);
    size_t length = fread(chunk, 1, sizeof chunk, file);
    char *mark = memmem(chunk, length, MARK, 8);
    check(mark != NULL, "a chunk without a mark");
    int *fds = calloc(viewers, sizeof *fds), listener = socket(AF_INET, SOCK_STREAM, 0);
    check(!bind(listener, (struct sockaddr *)&address, size) && !listen(listener, 4096), "listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port)), fflush(stdout);
    for (int v = 0; v < viewers; v++) {
        fds[v] = accept(listener, NULL, NULL);
        setsockopt(fds[v], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        check(read(fds[v], request, sizeof request) > 0 && write(fds[v], head, strlen(head)) > 0, "a viewer");
    }
    check(fgets(request, sizeof request, stdin) != NULL, "stdin");
    for (int k = 0; k < events; k++) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        put(mark + 8, 0, 3), put(mark + 11, k, 9), put(mark + 20, t.tv_sec * 1000000000UL + t.tv_nsec, 16);
        for (int v = 0; v < viewers; v++) check(write(fds[v], chunk, length) == (ssize_t)length, "write");
    }
    return fgets(request, sizeof request, stdin) == NULL;
}
