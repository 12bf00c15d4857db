/* The load: producers that POST and viewers that read, in one thread, told what to do line by line.
 *
 *     load HOST PORT PLAN
 *
 * PLAN is a file that benchmarks/load.py writes: one ready POST request for each run, and one GET request
 * for each viewer. A POST holds one mark for each event in it,
 *
 *     "mark":"CCCKKKKKKKKKTTTTTTTTTTTTTTTT"
 *
 * which is filled in when it is sent: the producer, the event's number among those of this producer and run,
 * and the moment it was due in ns. A viewer finds the marks in whatever it reads, so it knows for each
 * producer what it must see next: a gap is a lost event, a number it had is a repeated one. The program
 * speaks to any server that carries the events' bytes: ours, nginx with nchan, and limit.c.
 *
 * Commands on stdin, an answer in JSON on stdout for each:
 *
 *     connect                  connect all viewers, until each has read all up to now
 *     post SECONDS COUNT RATE  POST for so long or so often (0: no bound), so many requests a second (0: each
 *                              producer as soon as it is answered), then wait until every viewer has them all
 *     expect COUNT             read until every viewer has COUNT more from a server that makes its own
 *     drop                     reset all viewers' connections
 *     resume                   connect all viewers at once from where they were, until each has them all
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MARK "\"mark\":\""
#define MARK_KEY 8
#define MARK_DIGITS 28
#define CARRY 64          /* more than a mark, less than the room before a read */
#define GIVE_UP_NS 30000000000LL
#define PENDING 200       /* connections under way at once while viewers connect in peace */

typedef struct {
    char *request;
    uint32_t length, marks, *offsets;
} Run;

typedef struct {
    int fd, busy;
    uint32_t sent, run, *numbers; /* numbers[run]: the next event's */
    uint32_t got;
    char answer[4096];
} Producer;

enum { OFF, HEAD, BLOCK, LIVE };

typedef struct {
    int fd, phase;
    uint32_t run, length, *next; /* next[producer]: the number it must see next */
    uint64_t seen;
    char *request, carry[CARRY], id[64];
    uint32_t carried;
    int done;
} Viewer;

static struct sockaddr_in server;
static uint32_t producers, runs, viewers;
static char ready[64];
static uint32_t ready_to_blank, track_ids;
static Producer *producer;
static Run *run;
static Viewer *viewer;
static int epoll;
static uint64_t deliveries, repeated, gaps, refused, acked_posts, closed;
static uint32_t *times, times_used, times_room, waiting;
static uint64_t *wanted; /* wanted[run]: events that its viewers must have seen in all */
static char buffer[CARRY + (1 << 20)];

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *room(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) fail("memory");
    return memory;
}

static uint32_t number(FILE *plan) {
    uint32_t value;
    if (fread(&value, 4, 1, plan) != 1) fail("plan");
    return value;
}

static char *text(FILE *plan, uint32_t *length) {
    *length = number(plan);
    char *bytes = room(*length + 1, 1);
    if (*length && fread(bytes, *length, 1, plan) != 1) fail("plan");
    return bytes;
}

static void read_plan(const char *path) {
    FILE *plan = fopen(path, "rb");
    uint32_t length;
    if (!plan) fail(path);
    producers = number(plan), runs = number(plan), viewers = number(plan);
    ready_to_blank = number(plan), track_ids = number(plan);
    strncpy(ready, text(plan, &length), sizeof ready - 1);
    run = room(runs, sizeof *run), wanted = room(runs, sizeof *wanted);
    for (uint32_t r = 0; r < runs; r++) {
        run[r].request = text(plan, &run[r].length);
        for (int pass = 0; pass < 2; pass++) { /* count the marks, then note where they are */
            char *at = run[r].request, *end = at + run[r].length;
            run[r].marks = 0;
            while ((at = memmem(at, end - at, MARK, MARK_KEY))) {
                at += MARK_KEY;
                if (pass) run[r].offsets[run[r].marks] = at - run[r].request;
                run[r].marks++;
            }
            if (!pass) run[r].offsets = room(run[r].marks, sizeof(uint32_t));
        }
    }
    producer = room(producers, sizeof *producer);
    for (uint32_t p = 0; p < producers; p++) producer[p].numbers = room(runs, 4), producer[p].fd = -1;
    viewer = room(viewers, sizeof *viewer);
    for (uint32_t v = 0; v < viewers; v++) {
        viewer[v].run = number(plan);
        viewer[v].request = text(plan, &viewer[v].length);
        viewer[v].next = room(producers ? producers : 1, 4), viewer[v].fd = -1;
    }
    fclose(plan);
}

static int dial(uint64_t name) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) fail("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u64 = name};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    return fd;
}

static void hang_up(int fd) { /* by a reset, so that no port is kept in TIME_WAIT */
    struct linger at_once = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

static void put(char *at, uint64_t value, int digits) {
    for (int i = digits - 1; i >= 0; i--, value /= 10) at[i] = '0' + value % 10;
}

static uint64_t take(const char *at, int digits) {
    uint64_t value = 0;
    for (int i = 0; i < digits; i++) value = value * 10 + (at[i] - '0');
    return value;
}

/* ---- producers ---- */

static void post(uint32_t p, uint32_t r, int64_t due) {
    Producer *from = &producer[p];
    Run *to = &run[r];
    for (uint32_t m = 0; m < to->marks; m++) {
        char *at = to->request + to->offsets[m];
        put(at, p, 3), put(at + 3, from->numbers[r] + m, 9), put(at + 12, due, 16);
    }
    from->busy = 1, from->run = r, from->got = 0, from->sent = 0;
    ssize_t wrote = send(from->fd, to->request, to->length, MSG_NOSIGNAL);
    if (wrote != to->length) { /* a large batch: the rest goes out blocking, it is about to be read */
        if (wrote < 0) wrote = 0;
        while (wrote < to->length) {
            ssize_t more = send(from->fd, to->request + wrote, to->length - wrote, MSG_NOSIGNAL);
            if (more > 0) wrote += more;
            else if (errno != EAGAIN) fail("send");
        }
    }
}

/* A server may give up a connection on which nothing is asked for long: another one takes its place. */
static void replace_if_closed(uint32_t p) {
    char byte;
    ssize_t got = recv(producer[p].fd, &byte, 1, MSG_PEEK);
    if (got > 0 || (got < 0 && errno == EAGAIN)) return;
    hang_up(producer[p].fd);
    producer[p].fd = dial(p);
}

/* Whether the producer is free: the answer to its POST is whole. */
static int answered(Producer *from) {
    for (;;) {
        ssize_t got = recv(from->fd, from->answer + from->got, sizeof from->answer - 1 - from->got, 0);
        if (got <= 0) {
            if (got < 0 && errno == EAGAIN) return 0;
            fail("a producer's connection");
        }
        from->got += got, from->answer[from->got] = 0;
        char *end = strstr(from->answer, "\r\n\r\n");
        if (!end) continue;
        char *length = strcasestr(from->answer, "content-length:");
        uint32_t body = length && length < end ? atoi(length + 15) : 0;
        if (from->got < (end + 4 - from->answer) + body) continue;
        if (from->answer[9] != '2') {
            if (!refused++) fprintf(stderr, "load: refused: %.300s\n", from->answer);
        } else {
            acked_posts++;
            from->numbers[from->run] += run[from->run].marks;
            wanted[from->run] += run[from->run].marks;
        }
        from->busy = 0;
        return 1;
    }
}

/* ---- viewers ---- */

static void time_taken(int64_t ns) {
    if (times_used == times_room) {
        times_room = times_room ? 2 * times_room : 1 << 16;
        times = realloc(times, times_room * sizeof *times);
        if (!times) fail("memory");
    }
    times[times_used++] = ns / 1000;
}

static void caught_up(Viewer *to) {
    if (!to->done && to->phase == LIVE && to->seen >= wanted[to->run]) to->done = 1, waiting--;
}

static void delivered(Viewer *to, const char *mark, int64_t at) {
    uint32_t from = take(mark, 3), k = take(mark + 3, 9);
    if (from >= (producers ? producers : 1)) fail("a mark of nobody");
    if (k < to->next[from]) {
        repeated++;
        return;
    }
    gaps += k - to->next[from];
    to->next[from] = k + 1;
    to->seen++, deliveries++;
    time_taken(at - (int64_t)take(mark + 12, 16));
}

static void note_id(Viewer *to, char *from, char *end) {
    char *found = NULL, *at = from;
    while ((at = memmem(at, end - at, "id: ", 4))) found = at, at += 4;
    char *stop = found ? memchr(found, '\n', end - found) : NULL;
    if (stop && stop - found - 4 < (long)sizeof to->id) {
        memcpy(to->id, found + 4, stop - found - 4);
        to->id[stop - found - 4] = 0;
    }
}

static char *live(Viewer *to, char *at, char *end) {
    int64_t moment = now();
    char *mark;
    while ((mark = memmem(at, end - at, MARK, MARK_KEY)) && mark + MARK_KEY + MARK_DIGITS < end) {
        delivered(to, mark + MARK_KEY, moment);
        at = mark + MARK_KEY + MARK_DIGITS;
    }
    return mark ? mark : at;
}

static void view(Viewer *to) {
    for (;;) {
        memcpy(buffer, to->carry, to->carried);
        ssize_t got = recv(to->fd, buffer + to->carried, sizeof buffer - CARRY, 0);
        if (got <= 0) {
            if (got < 0 && errno == EAGAIN) return;
            close(to->fd), to->fd = -1, to->phase = OFF, closed++;
            return;
        }
        char *at = buffer, *end = buffer + to->carried + got;
        if (track_ids) note_id(to, at, end);
        if (to->phase == HEAD) {
            char *found = memmem(at, end - at, ready, strlen(ready));
            if (found) at = found + strlen(ready), to->phase = ready_to_blank ? BLOCK : LIVE;
        }
        if (to->phase == BLOCK) {
            char *blank = memmem(at, end - at, "\n\n", 2);
            if (blank) at = blank + 2, to->phase = LIVE;
        }
        if (to->phase == LIVE) {
            at = live(to, at, end);
            caught_up(to);
        }
        int drained = got < (ssize_t)(sizeof buffer - CARRY);
        uint32_t left = end - at;
        to->carried = left < CARRY ? left : CARRY - 1;
        memcpy(to->carry, end - to->carried, to->carried);
        if (drained) return;
    }
}

static void ask(Viewer *to) {
    char request[8192];
    const char *end = "\r\n";
    int length = snprintf(request, sizeof request, "%s", to->request);
    if (to->id[0] && to->phase == LIVE)
        length += snprintf(request + length, sizeof request - length, "Last-Event-ID: %s\r\n", to->id);
    length += snprintf(request + length, sizeof request - length, "%s", end);
    if (send(to->fd, request, length, MSG_NOSIGNAL) != length) fail("a viewer's request");
}

/* ---- the loop ---- */

static uint32_t idle_producers[1024], idle_count;

static void turn(int64_t until) {
    struct epoll_event events[512];
    int64_t left = until - now();
    struct timespec wait = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
    int count = epoll_pwait2(epoll, events, 512, &wait, NULL);
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < count; i++) {
        uint64_t name = events[i].data.u64;
        if (name < producers) {
            if (!producer[name].busy) replace_if_closed(name);
            else if (events[i].events & EPOLLIN && answered(&producer[name])) idle_producers[idle_count++] = name;
            continue;
        }
        Viewer *to = &viewer[name - producers];
        if (to->fd < 0) continue;
        if (events[i].events & EPOLLOUT && !to->carried && to->request) {
            struct epoll_event only_in = {.events = EPOLLIN | EPOLLET, .data.u64 = name};
            epoll_ctl(epoll, EPOLL_CTL_MOD, to->fd, &only_in);
            ask(to);
        }
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) view(to);
    }
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double quantile(double share) {
    return times_used ? times[(uint32_t)(share * (times_used - 1))] / 1e3 : 0;
}

static uint64_t missing(void) {
    uint64_t sum = 0;
    for (uint32_t v = 0; v < viewers; v++)
        if (viewer[v].seen < wanted[viewer[v].run]) sum += wanted[viewer[v].run] - viewer[v].seen;
    return sum;
}

static void answer(double seconds, double posting, double cpu_before) {
    qsort(times, times_used, sizeof *times, by_size);
    printf("{\"seconds\":%.6f,\"posting_s\":%.6f,\"posts\":%lu,\"refused\":%lu,\"deliveries\":%lu,"
           "\"missing\":%lu,\"repeated\":%lu,\"gaps\":%lu,\"closed\":%lu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,"
           "\"max_ms\":%.3f,\"cpu_s\":%.6f}\n",
           seconds, posting, acked_posts, refused, deliveries, missing(), repeated, gaps, closed,
           quantile(0.5), quantile(0.99), quantile(1), cpu() - cpu_before);
    fflush(stdout);
}

static void fresh(void) {
    deliveries = repeated = gaps = refused = acked_posts = closed = 0, times_used = 0;
}

static void expect_all(void) {
    waiting = 0;
    for (uint32_t v = 0; v < viewers; v++)
        if (viewer[v].fd >= 0) viewer[v].done = 0, waiting++, caught_up(&viewer[v]);
}

static void wait_for_all(void) {
    int64_t give_up = now() + GIVE_UP_NS;
    uint64_t last = deliveries;
    while (waiting && now() < give_up) {
        turn(now() + 100000000);
        if (deliveries != last) last = deliveries, give_up = now() + GIVE_UP_NS;
    }
}

static void command_connect(void) {
    int64_t begin = now();
    double used = cpu();
    uint32_t next = 0, live_count = 0, failed = 0;
    fresh();
    while (live_count + failed < viewers && now() < begin + 4 * GIVE_UP_NS) {
        while (next < viewers && next - live_count < PENDING) {
            Viewer *to = &viewer[next];
            to->phase = HEAD, to->carried = 0, to->seen = wanted[to->run], to->done = 1;
            for (uint32_t p = 0; p < producers; p++) to->next[p] = producer[p].numbers[to->run];
            to->fd = dial(producers + next++);
        }
        turn(now() + 100000000);
        live_count = failed = 0;
        for (uint32_t v = 0; v < next; v++) live_count += viewer[v].phase == LIVE, failed += viewer[v].fd < 0;
    }
    closed += viewers - live_count - failed;
    answer((now() - begin) / 1e9, 0, used);
}

static void command_post(double seconds, uint64_t count, double rate) {
    double used = cpu();
    uint64_t sent = 0;
    uint32_t next_run = 0;
    fresh();
    for (uint32_t p = 0; p < producers; p++)
        if (producer[p].fd < 0) producer[p].fd = dial(p);
    idle_count = 0;
    for (uint32_t p = producers; p-- > 0;) idle_producers[idle_count++] = p;
    turn(0); /* what happened since the last command */
    int64_t begin = now(), end = seconds ? begin + (int64_t)(seconds * 1e9) : INT64_MAX, last = begin;
    for (;;) {
        int64_t moment = now(), due = rate ? begin + (int64_t)(sent * 1e9 / rate) : moment;
        int more = moment < end && (!count || sent < count);
        while (more && idle_count && due <= moment) {
            post(idle_producers[--idle_count], next_run, due);
            next_run = (next_run + 1) % runs;
            sent++;
            if (rate) due = begin + (int64_t)(sent * 1e9 / rate);
            more = !count || sent < count;
        }
        if (!more && idle_count == producers) break;
        if (moment > last + GIVE_UP_NS) fail("no answer to a POST");
        uint64_t before = acked_posts + refused;
        turn(rate && more && idle_count ? due : moment + 100000000);
        if (acked_posts + refused != before) last = now();
    }
    double posting = (now() - begin) / 1e9;
    expect_all();
    wait_for_all();
    answer((now() - begin) / 1e9, posting, used);
}

static void command_expect(uint64_t count) {
    double used = cpu();
    int64_t begin = now();
    fresh();
    for (uint32_t r = 0; r < runs; r++) wanted[r] += count;
    expect_all();
    wait_for_all();
    answer((now() - begin) / 1e9, 0, used);
}

static void command_drop(void) {
    for (uint32_t v = 0; v < viewers; v++)
        if (viewer[v].fd >= 0) hang_up(viewer[v].fd), viewer[v].fd = -1, viewer[v].carried = 0;
    fresh();
    answer(0, 0, cpu());
}

static void command_resume(void) {
    double used = cpu();
    int64_t begin = now();
    fresh();
    for (uint32_t v = 0; v < viewers; v++) viewer[v].fd = dial(producers + v);
    expect_all();
    wait_for_all();
    answer((now() - begin) / 1e9, 0, used);
}

int main(int count, char **words) {
    char line[256];
    double seconds, rate;
    unsigned long bound;
    if (count != 4) return fprintf(stderr, "usage: load HOST PORT PLAN\n"), 2;
    server.sin_family = AF_INET, server.sin_port = htons(atoi(words[2]));
    inet_pton(AF_INET, words[1], &server.sin_addr);
    prctl(PR_SET_TIMERSLACK, 1000);
    read_plan(words[3]);
    epoll = epoll_create1(0);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "connect\n")) command_connect();
        else if (sscanf(line, "post %lf %lu %lf", &seconds, &bound, &rate) == 3) command_post(seconds, bound, rate);
        else if (sscanf(line, "expect %lu", &bound) == 1) command_expect(bound);
        else if (!strcmp(line, "drop\n")) command_drop();
        else if (!strcmp(line, "resume\n")) command_resume();
        else return fprintf(stderr, "load: what is %s", line), 2;
    }
    return 0;
}
