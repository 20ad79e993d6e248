/* Uses a library of constants, packed.h, that stores them compressed: output i is constant i, and the file given holds
 * them all. Linked with --wrap=posix_memalign, so that memory can be short.
 */
#include "packed.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

enum { THREADS = 4, ROUNDS = 50 };

static int fail_after = -1; /* allocations that succeed before one fails; -1: all do */
static int living;          /* allocations that were not counted down by hand */

int __real_posix_memalign(void **memory, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes)
{
    if (fail_after == 0)
        return 12; /* ENOMEM */
    if (fail_after > 0)
        --fail_after;
    __atomic_add_fetch(&living, 1, __ATOMIC_RELAXED);
    return __real_posix_memalign(memory, alignment, bytes);
}

static unsigned char *expected;

static void check_run(packed_context *context)
{
    void *outputs[PACKED_OUTPUT_COUNT];
    const unsigned char *next = expected;
    for (int32_t i = 0; i < PACKED_OUTPUT_COUNT; ++i)
        CHECK((outputs[i] = malloc(packed_output(i)->bytes)));
    CHECK(packed_run(context, NULL, outputs) == PACKED_OK);
    for (int32_t i = 0; i < PACKED_OUTPUT_COUNT; next += packed_output(i)->bytes, ++i) {
        CHECK(memcmp(outputs[i], next, packed_output(i)->bytes) == 0);
        free(outputs[i]);
    }
}

static void *use_contexts(void *unused)
{
    (void)unused;
    for (int i = 0; i < ROUNDS; ++i) {
        packed_context *context = packed_create();
        CHECK(context);
        check_run(context);
        packed_destroy(context);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    size_t total = 0;
    for (int32_t i = 0; i < PACKED_OUTPUT_COUNT; ++i)
        total += packed_output(i)->bytes;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    CHECK(file && (expected = malloc(total)) && fread(expected, 1, total, file) == total);
    fclose(file);
    CHECK(packed_weight_bytes() >= total && packed_decoded_bytes() > 0);

    for (int allowed = 0; allowed < 2; ++allowed) { /* no context; a context, but no weights */
        fail_after = allowed;
        CHECK(!packed_create());
        CHECK(strstr(packed_last_error(NULL), "decoded_bytes()"));
    }
    fail_after = -1;
    living = 0;
    packed_context *first = packed_create(), *second = packed_create();
    CHECK(first && second && living == 3); /* the weights are there once */
    packed_destroy(first);
    check_run(second); /* and stay for the last */
    fail_after = 0;
    CHECK(!packed_create());
    fail_after = -1;
    check_run(second);
    packed_destroy(second);

    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; ++i)
        CHECK(pthread_create(&threads[i], NULL, use_contexts, NULL) == 0);
    for (int i = 0; i < THREADS; ++i)
        CHECK(pthread_join(threads[i], NULL) == 0);
    free(expected);
    puts("right");
    return 0;
}
