/* The measurements of `updraft bench`, as an MPI program does them.
 *
 * Ranks play in pairs, each even one with the one after it, each pinned to a core. A batch of messages is
 * timed as a whole, and the bare hand-over of a cache line between the two cores right before and after it;
 * sizes, trips and windows are those of `rank.rs`. Prints a line for each batch:
 *
 *     batch BYTES HOP_BEFORE HOP_AFTER 0 NS
 *
 * with times in nanoseconds, one way; of an operation among all ranks, the time of one, as `collectives/rank.rs`
 * takes it.
 *
 * usage: peer latency|stream|OPERATOR TOUCH REPEATS WARMUP HOP SIZE...
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <mpi.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { HOP_TRIPS = 100, HOP_WARM = 10, MARKED = 64, PATH_BYTES = 64, ANSWER = 4, LONG = 4096 };

/* Two words, each in a line of its own. */
struct hop {
    _Alignas(256) volatile uint64_t words[2][32];
};

static int rank, size, peer, touch;
static struct hop *hop;
static uint64_t turn;
static char *out_buffers, *in_buffers;

static void fail(const char *what) {
    fprintf(stderr, "peer: could not %s\n", what);
    MPI_Abort(MPI_COMM_WORLD, 3);
    exit(3);
}

static double now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}

static void pin(void) {
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    int skip = rank % CPU_COUNT(&allowed);
    for (int core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &allowed) || skip-- > 0)
            continue;
        CPU_ZERO(&one);
        CPU_SET(core, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Shares a page with the other rank of the pair, in which the distance is taken. */
static void meet(void) {
    char path[PATH_BYTES] = "";
    int file;
    if (rank % 2 == 0) {
        file = memfd_create("hop", 0);
        if (file < 0 || ftruncate(file, 4096) != 0)
            fail("make memory to share");
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), file);
        MPI_Send(path, PATH_BYTES, MPI_CHAR, peer, 1, MPI_COMM_WORLD);
    } else {
        MPI_Recv(path, PATH_BYTES, MPI_CHAR, peer, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        file = open(path, O_RDWR);
    }
    hop = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (hop == MAP_FAILED)
        fail("share memory");
    /* The even rank holds the file open until here. */
    MPI_Sendrecv(path, 1, MPI_CHAR, peer, 2, path + 1, 1, MPI_CHAR, peer, 2, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
}

static void pass(int side) {
    turn++;
    __atomic_store_n(&hop->words[side][0], turn, __ATOMIC_RELEASE);
}

static void await(int side, uint64_t until) {
    while (__atomic_load_n(&hop->words[1 - side][0], __ATOMIC_ACQUIRE) != until)
        relax();
}

/* The bare hand-over of a line, one way. */
static double take_hop(void) {
    if (hop == NULL)
        return 0;
    int side = rank % 2;
    double start = now_ns();
    for (int trip = 0; trip < HOP_WARM + HOP_TRIPS; trip++) {
        /* The first trips wait for the other rank. */
        if (trip == HOP_WARM)
            start = now_ns();
        if (side == 0) {
            pass(side);
            await(side, turn);
        } else {
            await(side, turn + 1);
            pass(side);
        }
    }
    return (now_ns() - start) / (2 * HOP_TRIPS);
}

static void write_all(char *buffer, size_t bytes, unsigned char value) {
    memset(buffer, value, touch || bytes < MARKED ? bytes : MARKED);
}

/* Every byte or-ed together, eight at a time where there are eight. */
static unsigned char read_all(const char *buffer, size_t bytes) {
    if (!touch && bytes > MARKED)
        bytes = MARKED;
    uint64_t all = 0, word;
    size_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        memcpy(&word, buffer + at, 8);
        all |= word;
    }
    for (; at < bytes; at++)
        all |= (unsigned char)buffer[at];
    for (int shift = 32; shift >= 8; shift /= 2)
        all |= all >> shift;
    return (unsigned char)all;
}

static void check(unsigned char read, unsigned char written) {
    if (read != written)
        fail("read what was written");
}

static size_t clamp(size_t value, size_t low, size_t high) {
    return value < low ? low : value > high ? high : value;
}

static void round_trip(size_t bytes, unsigned char value) {
    if (rank % 2 == 0) {
        write_all(out_buffers, bytes, value);
        MPI_Send(out_buffers, (int)bytes, MPI_CHAR, peer, 0, MPI_COMM_WORLD);
        MPI_Recv(in_buffers, (int)bytes, MPI_CHAR, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        check(read_all(in_buffers, bytes), value);
    } else {
        MPI_Recv(in_buffers, (int)bytes, MPI_CHAR, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        write_all(out_buffers, bytes, read_all(in_buffers, bytes));
        MPI_Send(out_buffers, (int)bytes, MPI_CHAR, peer, 0, MPI_COMM_WORLD);
    }
}

static double bounce(size_t bytes) {
    size_t trips = clamp((512 << 10) / bytes, 4, 500);
    for (size_t trip = 0; trip < trips / 10 + 1; trip++)
        round_trip(bytes, (unsigned char)(trip | 1));
    double start = now_ns();
    for (size_t trip = 0; trip < trips; trip++)
        round_trip(bytes, (unsigned char)(trip | 1));
    return (now_ns() - start) / (double)(2 * trips);
}

static double stream(size_t bytes) {
    MPI_Request requests[64];
    size_t window = clamp((32 << 20) / bytes, 4, 64);
    size_t windows = clamp((2 << 20) / (bytes * window), 1, 16);
    char answer[ANSWER];
    double start = now_ns();
    for (size_t number = 0; number < windows; number++) {
        unsigned char value = (unsigned char)(number | 1), all = 0;
        for (size_t at = 0; at < window; at++) {
            if (rank % 2 == 0) {
                write_all(out_buffers + at * bytes, bytes, value);
                MPI_Isend(out_buffers + at * bytes, (int)bytes, MPI_CHAR, peer, 0, MPI_COMM_WORLD, requests + at);
            } else {
                MPI_Irecv(in_buffers + at * bytes, (int)bytes, MPI_CHAR, peer, 0, MPI_COMM_WORLD, requests + at);
            }
        }
        if (rank % 2 == 0) {
            for (size_t at = 0; at < window; at++)
                MPI_Wait(requests + at, MPI_STATUS_IGNORE);
            MPI_Recv(answer, ANSWER, MPI_CHAR, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            check((unsigned char)answer[0], value);
        } else {
            for (size_t at = 0; at < window; at++) {
                MPI_Wait(requests + at, MPI_STATUS_IGNORE);
                all |= read_all(in_buffers + at * bytes, bytes);
            }
            memset(answer, all, ANSWER);
            MPI_Send(answer, ANSWER, MPI_CHAR, peer, 0, MPI_COMM_WORLD);
        }
    }
    return (now_ns() - start) / (double)(windows * window);
}

/* The operators, in the words of `updraft bench collectives`. */
enum operator { BARRIER, BROADCAST, REDUCE, ALL_REDUCE, REDUCE_SCATTER, SCAN, GATHER, SCATTER, ALL_GATHER, ALL_TO_ALL, NONE };
static const char *const operators[] = {"barrier", "broadcast", "reduce", "all_reduce", "reduce_scatter",
                                        "scan", "gather", "scatter", "all_gather", "all_to_all"};

static enum operator operator_named(const char *name) {
    int found = 0;
    while (found < NONE && strcmp(name, operators[found]) != 0)
        found++;
    return (enum operator)found;
}

static double value_of(int of, size_t round) {
    return (double)(round % 7 + 1) + of;
}

/* Elements given and taken, of vectors or blocks of `len`. */
static size_t given_of(enum operator operator, size_t len) {
    int blocks = operator == SCATTER || operator == REDUCE_SCATTER || operator == ALL_TO_ALL;
    return blocks ? len * (size_t)size : len;
}

static size_t taken_of(enum operator operator, size_t len) {
    int blocks = operator == GATHER || operator == ALL_GATHER || operator == ALL_TO_ALL;
    return blocks ? len * (size_t)size : len;
}

static void carry_out(enum operator operator, int root, int len, double *given, double *taken) {
    MPI_Comm all = MPI_COMM_WORLD;
    switch (operator) {
    case BROADCAST: MPI_Bcast(taken, len, MPI_DOUBLE, root, all); break;
    case REDUCE: MPI_Reduce(given, taken, len, MPI_DOUBLE, MPI_SUM, root, all); break;
    case ALL_REDUCE: MPI_Allreduce(given, taken, len, MPI_DOUBLE, MPI_SUM, all); break;
    case REDUCE_SCATTER: MPI_Reduce_scatter_block(given, taken, len, MPI_DOUBLE, MPI_SUM, all); break;
    case SCAN: MPI_Scan(given, taken, len, MPI_DOUBLE, MPI_SUM, all); break;
    case GATHER: MPI_Gather(given, len, MPI_DOUBLE, taken, len, MPI_DOUBLE, root, all); break;
    case SCATTER: MPI_Scatter(given, len, MPI_DOUBLE, taken, len, MPI_DOUBLE, root, all); break;
    case ALL_GATHER: MPI_Allgather(given, len, MPI_DOUBLE, taken, len, MPI_DOUBLE, all); break;
    case ALL_TO_ALL: MPI_Alltoall(given, len, MPI_DOUBLE, taken, len, MPI_DOUBLE, all); break;
    default: MPI_Barrier(all);
    }
}

static void check_result(enum operator operator, int root, size_t round, size_t len, const double *taken) {
    int end = operator == SCAN ? rank + 1 : size;
    double expected = 0, found = 0;
    if ((operator == REDUCE || operator == GATHER) && rank != root)
        return;
    for (int of = 0; of < end; of++)
        expected += value_of(of, round);
    if (operator == BROADCAST || operator == SCATTER)
        expected = value_of(root, round);
    size_t count = taken_of(operator, len);
    for (size_t at = 0; at < count; at++)
        found += taken[at];
    if (found != expected * (double)len)
        fail("find the right result");
}

static double operate(enum operator operator, size_t bytes) {
    size_t len = operator == BARRIER ? 0 : (bytes + 7) / 8;
    size_t rounds = clamp((1 << 20) / bytes / (size_t)size, 3, size > 2 ? 100 : 500);
    double *given = (double *)out_buffers, *taken = (double *)in_buffers;
    MPI_Barrier(MPI_COMM_WORLD);
    double start = now_ns(), inside = 0, slowest;
    for (size_t round = 0; round < rounds; round++) {
        int root = (int)(round % (size_t)size);
        double value = value_of(rank, round);
        if (operator == BROADCAST) {
            for (size_t at = 0; rank == root && at < len; at++)
                taken[at] = value;
        } else if (operator != SCATTER || rank == root) {
            size_t count = given_of(operator, len);
            for (size_t at = 0; at < count; at++)
                given[at] = value;
        }
        if (bytes >= LONG) {
            MPI_Barrier(MPI_COMM_WORLD);
            double begin = now_ns();
            carry_out(operator, root, (int)len, given, taken);
            inside += now_ns() - begin;
        } else {
            carry_out(operator, root, (int)len, given, taken);
        }
        check_result(operator, root, round, len, taken);
    }
    double time = (bytes >= LONG ? inside : now_ns() - start) / (double)rounds;
    MPI_Allreduce(&time, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

static char *buffers(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 2 << 20, bytes) != 0)
        fail("have memory for messages");
    memset(memory, 0, bytes);
    return memory;
}

int main(int count, char **words) {
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (count < 7 || size % 2 != 0)
        fail("understand the command line");
    int latency = strcmp(words[1], "latency") == 0;
    enum operator operator = operator_named(words[1]);
    touch = atoi(words[2]);
    int repeats = atoi(words[3]), warmup = atoi(words[4]);
    peer = rank ^ 1;
    pin();
    if (atoi(words[5]) && (operator == NONE || size == 2))
        meet();
    size_t most = 0;
    for (int at = 6; at < count; at++) {
        size_t bytes = strtoull(words[at], NULL, 10);
        if (bytes == 0)
            fail("understand a size");
        size_t room = latency ? bytes : bytes * clamp((32 << 20) / bytes, 4, 64);
        if (operator != NONE)
            room = (bytes + 8) * (size_t)size;
        most = room > most ? room : most;
    }
    out_buffers = buffers(most);
    in_buffers = buffers(most);
    MPI_Barrier(MPI_COMM_WORLD);
    for (int at = 6; at < count; at++) {
        size_t bytes = strtoull(words[at], NULL, 10);
        for (int batch = 0; batch < warmup + repeats; batch++) {
            double before = take_hop();
            double ns = operator != NONE ? operate(operator, bytes) : latency ? bounce(bytes) : stream(bytes);
            double after = take_hop();
            if ((operator == NONE ? rank % 2 == 0 : rank == 0) && batch >= warmup)
                printf("batch %zu %.2f %.2f 0 %.3f\n", bytes, before, after, ns);
        }
    }
    MPI_Finalize();
    return 0;
}
