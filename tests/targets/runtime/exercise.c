/* Uses every function of the toy library. `exercise CASE` runs one of the cases at the end of this file. */
#define _POSIX_C_SOURCE 200809L
#include "toy.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)

enum { COUNT = 24, GUARD = 16 };

/* Inputs and outputs, at an offset from aligned addresses. */
struct buffers {
    _Alignas(64) unsigned char memory[7][512];
    const void *inputs[3];
    void *outputs[4];
};

static const size_t output_bytes[4] = {4 * COUNT, 4 * COUNT, 8, 5};

static void fill(struct buffers *buffers, size_t offset, float seed)
{
    int64_t n = (int64_t)seed - 7;
    for (int i = 0; i < 7; ++i)
        memset(buffers->memory[i], 0xee, sizeof buffers->memory[i]);
    for (int i = 0; i < 3; ++i)
        buffers->inputs[i] = buffers->memory[i] + offset;
    for (int i = 0; i < 4; ++i)
        buffers->outputs[i] = buffers->memory[3 + i] + offset;
    for (int i = 0; i < COUNT; ++i) {
        float x = seed + (float)i, y = 0.5f * (float)i;
        memcpy(buffers->memory[0] + offset + 4 * i, &x, 4);
        memcpy(buffers->memory[1] + offset + 4 * i, &y, 4);
    }
    memcpy(buffers->memory[2] + offset, &n, 8);
}

static float float_at(const void *data, int index)
{
    float value;
    memcpy(&value, (const unsigned char *)data + 4 * index, 4);
    return value;
}

static void check_outputs(const struct buffers *buffers, float seed)
{
    int64_t n;
    for (int i = 0; i < COUNT; ++i) {
        float scaled = (seed + (float)i) * (float)(i % 4 + 1);
        CHECK(float_at(buffers->outputs[0], i) == scaled + 0.5f * (float)i);
        CHECK(float_at(buffers->outputs[1], i) == scaled);
    }
    memcpy(&n, buffers->outputs[2], 8);
    CHECK(n == (int64_t)seed - 7);
    CHECK(memcmp(buffers->outputs[3], "\1\2\3\4\5", 5) == 0);
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < GUARD; ++k)
            CHECK(((unsigned char *)buffers->outputs[i])[output_bytes[i] + (size_t)k] == 0xee);
}

static void run_checked(toy_context *context, size_t offset, float seed)
{
    struct buffers buffers;
    fill(&buffers, offset, seed);
    CHECK(toy_run(context, buffers.inputs, buffers.outputs) == TOY_OK);
    check_outputs(&buffers, seed);
}

static toy_context *made(int32_t threads)
{
    toy_context *context = toy_create();
    CHECK(context);
    if (threads != 1)
        CHECK(toy_set_threads(context, threads) == TOY_OK);
    return context;
}

static void describes_itself(void)
{
    CHECK(toy_abi() == TOY_ABI && strcmp(toy_version(), TOY_VERSION) == 0);
    CHECK(toy_input_count() == 3 && TOY_INPUT_COUNT == 3 && toy_output_count() == 4 && TOY_OUTPUT_COUNT == 4);
    const toy_tensor *x = toy_input(0), *n = toy_input(2), *sum = toy_output(0), *constant = toy_output(3);
    CHECK(strcmp(x->name, "x") == 0 && x->dtype == TOY_FLOAT32 && x->rank == 2 && x->shape[0] == 3 && x->shape[1] == 8);
    CHECK(x->bytes == 96 && TOY_INPUT_0_BYTES == 96);
    CHECK(n->dtype == TOY_INT64 && n->rank == 0 && n->bytes == 8);
    CHECK(strcmp(sum->name, "sum \"of\" */ both") == 0);
    CHECK(constant->dtype == TOY_INT8 && constant->bytes == 5 && constant->shape[0] == 5);
    CHECK(!toy_input(-1) && !toy_input(3) && !toy_output(-1) && !toy_output(4));
    CHECK(toy_layer_count() == 6 && strcmp(toy_layer_name(1), "scale \xc3\xa9 + tanh?" "?/\n") == 0);
    CHECK(!toy_layer_name(-1) && !toy_layer_name(6));
    CHECK(toy_weight_bytes() == 80 && toy_decoded_bytes() == 0 && toy_arena_bytes() > 160);
}

static void computes(void)
{
    for (int32_t threads = 1; threads <= 4; ++threads) {
        toy_context *context = made(threads);
        for (int i = 0; i < 200; ++i)
            run_checked(context, 0, (float)i);
        toy_destroy(context);
    }
}

static void takes_unaligned_buffers(void)
{
    toy_context *context = made(2);
    for (size_t offset = 0; offset < 64; ++offset)
        run_checked(context, offset, 3);
    toy_destroy(context);
}

static void takes_outputs_that_overlap_inputs(void)
{
    toy_context *context = made(1);
    for (size_t shift = 0; shift <= 96; shift += 4) {
        struct buffers buffers;
        fill(&buffers, 128, 5);
        buffers.outputs[0] = buffers.memory[0] + 128 - 48 + shift; /* from before x to behind it */
        CHECK(toy_run(context, buffers.inputs, buffers.outputs) == TOY_OK);
        for (int i = 0; i < COUNT; ++i)
            CHECK(float_at(buffers.outputs[0], i) == (5 + (float)i) * (float)(i % 4 + 1) + 0.5f * (float)i);
    }
    struct buffers same;
    fill(&same, 0, 5);
    same.inputs[1] = same.inputs[0]; /* one buffer for two inputs */
    CHECK(toy_run(context, same.inputs, same.outputs) == TOY_OK);
    CHECK(float_at(same.outputs[0], 1) == 6 * 2 + 6);
    toy_destroy(context);
}

static void reports_errors(void)
{
    toy_context *context = made(1);
    struct buffers buffers;
    fill(&buffers, 0, 1);
    CHECK(strcmp(toy_last_error(context), "") == 0);
    CHECK(toy_run(NULL, buffers.inputs, buffers.outputs) == TOY_INVALID_ARGUMENT);
    CHECK(toy_run(context, NULL, buffers.outputs) == TOY_INVALID_ARGUMENT);
    CHECK(strcmp(toy_last_error(context), "inputs is NULL") == 0);
    CHECK(toy_run(context, buffers.inputs, NULL) == TOY_INVALID_ARGUMENT);
    CHECK(strcmp(toy_last_error(context), "outputs is NULL") == 0);
    buffers.inputs[1] = NULL;
    CHECK(toy_run(context, buffers.inputs, buffers.outputs) == TOY_INVALID_ARGUMENT);
    CHECK(strcmp(toy_last_error(context), "inputs[1] is NULL") == 0);
    fill(&buffers, 0, 1);
    buffers.outputs[1] = (unsigned char *)buffers.outputs[0] + 92;
    CHECK(toy_run(context, buffers.inputs, buffers.outputs) == TOY_INVALID_ARGUMENT);
    CHECK(strcmp(toy_last_error(context), "outputs[0] and outputs[1] overlap") == 0);
    for (int32_t threads = 1; threads <= 4; threads *= 2) {
        CHECK(toy_set_threads(context, threads) == TOY_OK);
        fill(&buffers, 0, 990);
        CHECK(toy_run(context, buffers.inputs, buffers.outputs) == TOY_KERNEL_FAILED);
        CHECK(strcmp(toy_last_error(context), "layer 0, check: the kernel failed: a value is too large") == 0);
        run_checked(context, 0, 2); /* and goes on */
    }
    CHECK(toy_set_threads(context, -1) == TOY_INVALID_ARGUMENT);
    CHECK(strcmp(toy_last_error(context), "-1 threads: expected 0 to 1024") == 0);
    CHECK(toy_set_threads(context, 1025) == TOY_INVALID_ARGUMENT);
    CHECK(toy_set_threads(NULL, 1) == TOY_INVALID_ARGUMENT);
    CHECK(strncmp(toy_last_error(NULL), "the context is NULL: create() returns that if there is no memory", 64) == 0);
    toy_set_hook(NULL, NULL, NULL);
    toy_destroy(NULL);
    toy_destroy(context);
}

struct record {
    int calls;
    int32_t seen[32][2];
    toy_context *context;
    toy_status nested;
};

static void remember(void *user, int32_t layer, int32_t finished)
{
    struct record *record = user;
    struct buffers buffers;
    fill(&buffers, 0, 1);
    record->seen[record->calls][0] = layer;
    record->seen[record->calls++][1] = finished;
    record->nested = toy_run(record->context, buffers.inputs, buffers.outputs);
}

static void calls_the_hook_around_layers(void)
{
    struct record record = {0, {{0}}, made(2), TOY_OK};
    toy_set_hook(record.context, remember, &record);
    run_checked(record.context, 0, 4);
    CHECK(record.calls == 12);
    for (int i = 0; i < 12; ++i)
        CHECK(record.seen[i][0] == i / 2 && record.seen[i][1] == i % 2);
    CHECK(record.nested == TOY_BUSY); /* a context that runs is not entered again */
    toy_set_hook(record.context, NULL, NULL);
    run_checked(record.context, 0, 4);
    CHECK(record.calls == 12);
    toy_destroy(record.context);
}

static void *use_a_context(void *argument)
{
    float seed = *(const float *)argument;
    toy_context *context = made(seed > 2 ? 2 : 1);
    for (int i = 0; i < 300; ++i)
        run_checked(context, 0, seed);
    toy_destroy(context);
    return NULL;
}

static void serves_contexts_at_once(void)
{
    pthread_t threads[4];
    float seeds[4] = {1, 2, 3, 4};
    for (int i = 0; i < 4; ++i)
        CHECK(pthread_create(&threads[i], NULL, use_a_context, &seeds[i]) == 0);
    for (int i = 0; i < 4; ++i)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void changes_its_threads(void)
{
    toy_context *context = made(0);
    for (int i = 0; i < 20; ++i) {
        CHECK(toy_set_threads(context, 1 + i * 7 % 5) == TOY_OK);
        run_checked(context, 0, (float)i);
    }
    struct timespec pause = {0, 20000000};
    CHECK(toy_set_threads(context, 3) == TOY_OK);
    for (int i = 0; i < 5; ++i) { /* long enough for the threads to fall asleep */
        nanosleep(&pause, NULL);
        run_checked(context, 0, (float)i);
    }
    toy_destroy(context);
}

static void works_after_fork(void)
{
    toy_context *context = made(3);
    run_checked(context, 0, 1);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run_checked(context, 0, 2);
        CHECK(toy_set_threads(context, 2) == TOY_OK);
        run_checked(context, 0, 3);
        toy_destroy(context);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    run_checked(context, 0, 4);
    toy_destroy(context);
}

static pthread_t handled_on;
static void handle(int number)
{
    (void)number;
    handled_on = pthread_self();
}

static void leaves_signals_to_the_program(void)
{
    struct sigaction action = {0};
    action.sa_handler = handle;
    toy_context *context = made(4);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int i = 0; i < 50; ++i) {
        CHECK(kill(getpid(), SIGUSR1) == 0);
        run_checked(context, 0, 1);
        CHECK(pthread_equal(handled_on, pthread_self()));
    }
    toy_destroy(context);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"describes_itself", describes_itself},
    {"computes", computes},
    {"takes_unaligned_buffers", takes_unaligned_buffers},
    {"takes_outputs_that_overlap_inputs", takes_outputs_that_overlap_inputs},
    {"reports_errors", reports_errors},
    {"calls_the_hook_around_layers", calls_the_hook_around_layers},
    {"serves_contexts_at_once", serves_contexts_at_once},
    {"changes_its_threads", changes_its_threads},
    {"works_after_fork", works_after_fork},
    {"leaves_signals_to_the_program", leaves_signals_to_the_program},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i)
        if (argc == 1 || strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            printf("%s\n", cases[i].name);
        }
    return 0;
}
