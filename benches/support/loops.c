/* K-means, a support vector machine and PageRank as one writes them over MPI: the same steps on the same data as the
 * examples `kmeans`, `svm` and `pagerank`.
 *
 * Prints the median of what a round takes, and a number that follows from the result.
 *
 * usage: loops kmeans POINTS DIMENSIONS K ROUNDS | svm EXAMPLES FEATURES ROUNDS | pagerank VERTICES EDGES ROUNDS
 */
#define _GNU_SOURCE
#include <math.h>
#include <mpi.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, SEED = 1 };

static int rank, size;
static double *times;

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

static void *make(size_t count, size_t bytes) {
    void *made = calloc(count ? count : 1, bytes);
    if (!made) {
        fprintf(stderr, "loops: no memory\n");
        MPI_Abort(MPI_COMM_WORLD, 3);
    }
    return made;
}

static int by_value(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static void report(int rounds, double answer) {
    qsort(times, rounds, sizeof *times, by_value);
    if (rank == 0)
        printf("round_us=%.3f\nanswer=%.6f\n", 1e6 * times[rounds / 2], answer);
}

/* SplitMix64, from any draw on. */
#define STEP 0x9e3779b97f4a7c15ull
static uint64_t at(uint64_t seed, uint64_t draw) { return seed + draw * STEP; }
static uint64_t draw(uint64_t *state) {
    *state += STEP;
    uint64_t z = (*state ^ (*state >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static double unit(uint64_t *state) { return (double)(draw(state) >> 11) / 9007199254740992.0; }

static double coordinate(uint64_t *state, uint64_t spread) {
    return (double)(draw(state) % (spread * 1024)) / 1024;
}

static void kmeans(long points, int dimensions, int k, int rounds) {
    long first = points * rank / size, last = points * (rank + 1) / size, own = last - first;
    double *places = make((size_t)k * dimensions, sizeof *places);
    double *mine = make(own * dimensions, sizeof *mine);
    uint64_t state = SEED;
    for (long i = 0; i < (long)k * dimensions; i++)
        places[i] = coordinate(&state, 1000);
    double *centroids = make((size_t)k * dimensions, sizeof *centroids);
    for (long n = 0; n < own + k; n++) {
        long number = n < own ? first + n : n - own;
        double *point = n < own ? &mine[n * dimensions] : &centroids[number * dimensions];
        state = at(SEED, (uint64_t)(k + number) * dimensions);
        for (int d = 0; d < dimensions; d++)
            point[d] = places[number % k * dimensions + d] + coordinate(&state, 100);
    }
    int blocks = (k + LANES - 1) / LANES;
    double(*lanes)[LANES] = make((size_t)blocks * dimensions, sizeof *lanes);
    for (long i = 0; i < (long)blocks * dimensions; i++)
        for (int lane = 0; lane < LANES; lane++)
            lanes[i][lane] = INFINITY;
    int length = k * (dimensions + 1) + 1;
    double *sums = make(length, sizeof *sums);
    for (int round = 0; round < rounds; round++) {
        double start = MPI_Wtime();
        for (int c = 0; c < k; c++)
            for (int d = 0; d < dimensions; d++)
                lanes[c / LANES * dimensions + d][c % LANES] = centroids[c * dimensions + d];
        memset(sums, 0, length * sizeof *sums);
        double squares = 0;
        for (long p = 0; p < own; p++) {
            const double *point = &mine[p * dimensions];
            int nearest = 0;
            double least = INFINITY;
            for (int block = 0; block < blocks; block++) {
                double distances[LANES] = {0};
                for (int d = 0; d < dimensions; d++)
                    for (int lane = 0; lane < LANES; lane++) {
                        double difference = point[d] - lanes[block * dimensions + d][lane];
                        distances[lane] += difference * difference;
                    }
                for (int lane = 0; lane < LANES; lane++)
                    if (distances[lane] < least) {
                        least = distances[lane];
                        nearest = block * LANES + lane;
                    }
            }
            squares += least;
            double *sum = &sums[nearest * (dimensions + 1)];
            for (int d = 0; d < dimensions; d++)
                sum[d] += point[d];
            sum[dimensions] += 1;
        }
        sums[length - 1] = squares;
        MPI_Allreduce(MPI_IN_PLACE, sums, length, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        for (int c = 0; c < k; c++)
            if (sums[c * (dimensions + 1) + dimensions] > 0)
                for (int d = 0; d < dimensions; d++)
                    centroids[c * dimensions + d] = sums[c * (dimensions + 1) + d] / sums[c * (dimensions + 1) + dimensions];
        times[round] = MPI_Wtime() - start;
    }
    double sum = 0;
    for (long i = 0; i < (long)k * dimensions; i++)
        sum += centroids[i];
    report(rounds, sum);
}

static double dot(const double *weights, const double *features, int count) {
    double lanes[LANES] = {0}, sum = 0;
    for (int i = 0; i < count; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += weights[i + lane] * features[i + lane];
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

static void svm(long examples, int features, int rounds) {
    long first = examples * rank / size, own = examples * (rank + 1) / size - first;
    int padded = (features + 1 + LANES - 1) / LANES * LANES;
    double *mine = make(own * padded, sizeof *mine), *classes = make(own, sizeof *classes);
    double *hidden = make(padded, sizeof *hidden), *weights = make(padded + 1, sizeof *weights);
    uint64_t state = ~(uint64_t)SEED;
    for (int i = 0; i <= features; i++)
        hidden[i] = 2 * unit(&state) - 1;
    for (long n = 0; n < own; n++) {
        state = at(SEED, (uint64_t)(first + n) * (features + 1));
        int wrong = (uint64_t)(((unsigned __int128)draw(&state) * 20) >> 64) == 0;
        double *example = &mine[n * padded];
        example[0] = 1;
        for (int i = 1; i <= features; i++)
            example[i] = 2 * unit(&state) - 1;
        classes[n] = (dot(hidden, example, padded) > 0) == wrong ? -1 : 1;
    }
    double steps = 0, regularization = 1e-3, loss_mean = 0;
    for (int round = 0; round < rounds; round++) {
        double start = MPI_Wtime(), losses = 0;
        for (long n = 0; n < own; n++) {
            const double *example = &mine[n * padded];
            steps += 1;
            double step = 1 / (regularization * steps + 1);
            double loss = 1 - classes[n] * dot(weights, example, padded);
            for (int i = 0; i < padded; i++)
                weights[i] *= 1 - step * regularization;
            if (loss > 0) {
                for (int i = 0; i < padded; i++)
                    weights[i] += step * classes[n] * example[i];
                losses += loss;
            }
        }
        weights[padded] = losses;
        MPI_Allreduce(MPI_IN_PLACE, weights, padded + 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        loss_mean = weights[padded] / examples;
        for (int i = 0; i <= padded; i++)
            weights[i] /= size;
        times[round] = MPI_Wtime() - start;
    }
    report(rounds, loss_mean);
}

static void pagerank(uint64_t vertices, long edges, int rounds) {
    static const uint64_t MIX[] = {4294967311ull, 4294967357ull};
    long block = (vertices + size - 1) / size, first = block * rank;
    long own = (long)vertices - first < block ? (long)vertices - first : block;
    uint32_t *degrees = make(block * size, sizeof *degrees), *sources = NULL;
    long *starts = make(block + 1, sizeof *starts);
    /* Every rank makes all edges, and keeps those to its own vertices: once to count, and once to put them down. */
    for (int pass = 0; pass < 2; pass++) {
        for (long n = 0; n < edges; n++) {
            uint64_t state = at(SEED, 2 * (uint64_t)n);
            double u = unit(&state), v = unit(&state);
            uint64_t from = (uint64_t)(u * u * vertices) * (MIX[0] % vertices) % vertices;
            uint64_t to = (uint64_t)(v * v * v * vertices) * (MIX[1] % vertices) % vertices;
            long place = (long)to - first;
            int here = place >= 0 && place < own;
            if (pass == 0) {
                degrees[from]++;
                if (here)
                    starts[place + 1]++;
            } else if (here) {
                sources[starts[place]++] = from;
            }
        }
        if (pass == 0) {
            for (long i = 0; i < block; i++)
                starts[i + 1] += starts[i];
            sources = make(starts[block], sizeof *sources);
        }
    }
    memmove(starts + 1, starts, block * sizeof *starts);
    starts[0] = 0;
    double *all = make(block * size, sizeof *all), *shares = make(block, sizeof *shares);
    double *ranks = make(block, sizeof *ranks), *inverse = make(block, sizeof *inverse), damping = 0.85;
    double totals[2] = {0};
    for (long i = 0; i < own; i++) {
        ranks[i] = 1.0 / vertices;
        inverse[i] = degrees[first + i] ? 1.0 / degrees[first + i] : 0;
        totals[0] += degrees[first + i] ? 0 : ranks[i];
    }
    MPI_Allreduce(MPI_IN_PLACE, totals, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (int round = 0; round < rounds; round++) {
        double start = MPI_Wtime(), base = (1 - damping + damping * totals[0]) / vertices;
        for (long i = 0; i < own; i++)
            shares[i] = ranks[i] * inverse[i];
        MPI_Allgather(shares, block, MPI_DOUBLE, all, block, MPI_DOUBLE, MPI_COMM_WORLD);
        totals[0] = totals[1] = 0;
        for (long i = 0; i < own; i++) {
            double sum = 0;
            for (long edge = starts[i]; edge < starts[i + 1]; edge++)
                sum += all[sources[edge]];
            double new = base + damping * sum;
            totals[1] += fabs(new - ranks[i]);
            ranks[i] = new;
            totals[0] += inverse[i] == 0 ? new : 0;
        }
        MPI_Allreduce(MPI_IN_PLACE, totals, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        times[round] = MPI_Wtime() - start;
    }
    double highest = 0;
    for (long i = 0; i < own; i++)
        highest = fmax(highest, ranks[i]);
    MPI_Allreduce(MPI_IN_PLACE, &highest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    report(rounds, highest);
}

int main(int count, char **words) {
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    pin();
    long numbers[4] = {0};
    for (int i = 2; i < count && i < 6; i++)
        numbers[i - 2] = atol(words[i]);
    int rounds = count > 2 ? (int)numbers[count - 3] : 0;
    times = make(rounds + 1, sizeof *times);
    if (count == 6 && !strcmp(words[1], "kmeans"))
        kmeans(numbers[0], (int)numbers[1], (int)numbers[2], rounds);
    else if (count == 5 && !strcmp(words[1], "svm"))
        svm(numbers[0], (int)numbers[1], rounds);
    else if (count == 5 && !strcmp(words[1], "pagerank"))
        pagerank(numbers[0], numbers[1], rounds);
    else {
        fprintf(stderr, "loops: wrong words\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    MPI_Finalize();
    return 0;
}
