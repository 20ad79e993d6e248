/* The functions of the header NAME.h. Included by the generated driver, which defines:
 *   NAME(suffix), MACRO(suffix)     the model's prefix, as in its header
 *   ARENA_BYTES, STAGING_BYTES, WEIGHT_BYTES, DECODED_BYTES, LAYER_COUNT, INPUTS, OUTPUTS (at least 1, for arrays), ALIGNMENT
 *   input_tensors, output_tensors   descriptions
 *   input_staging, output_staging   offset in the staging memory of each tensor's copy
 *   layer_names
 */
#include <stdio.h>
#include <string.h>

enum { CACHE_LINE = 64, MESSAGE_BYTES = 512 };

/* The calls of a run, by what the processor has. */
struct variant {
    const char *name;
    int32_t (*run)(NAME(context) *context, const unsigned char *const *inputs, unsigned char *const *outputs);
};

struct NAME(context) {
    struct graphopt_frame_v1 frame; /* first: a frame leads to its context */
    const struct variant *variant;
    struct pool pool;
    NAME(hook) hook;
    void *hook_user;
    const unsigned char *decoded; /* weights that were stored compressed, if any */
    unsigned char *arena;
    unsigned char *staging; /* of callers' buffers that kernels cannot use in place */
    atomic_flag busy;
    atomic_flag failed; /* `detail` is taken */
    char detail[MESSAGE_BYTES / 2];
    char error[MESSAGE_BYTES];
};

static const struct variant variants[]; /* the first runs on every processor of the target */
static const struct variant *choose_variant(void);

static int context_launch(struct graphopt_frame_v1 *frame, parallel_body body, void *data, int tasks)
{
    NAME(context) *context = (NAME(context) *)frame;
    return pool_launch(&context->pool, frame, body, data, tasks);
}

static void context_fail(struct graphopt_frame_v1 *frame, const char *message)
{
    NAME(context) *context = (NAME(context) *)frame;
    if (!atomic_flag_test_and_set(&context->failed))
        snprintf(context->detail, sizeof context->detail, ": %s", message);
}

int32_t NAME(abi)(void) { return MACRO(ABI); }
const char *NAME(version)(void) { return MACRO(VERSION); }
int32_t NAME(input_count)(void) { return MACRO(INPUT_COUNT); }
int32_t NAME(output_count)(void) { return MACRO(OUTPUT_COUNT); }
int32_t NAME(layer_count)(void) { return LAYER_COUNT; }
size_t NAME(weight_bytes)(void) { return WEIGHT_BYTES; }
size_t NAME(decoded_bytes)(void) { return DECODED_BYTES; }

const NAME(tensor) *NAME(input)(int32_t index)
{
    return index >= 0 && index < MACRO(INPUT_COUNT) ? &input_tensors[index] : NULL;
}

const NAME(tensor) *NAME(output)(int32_t index)
{
    return index >= 0 && index < MACRO(OUTPUT_COUNT) ? &output_tensors[index] : NULL;
}

const char *NAME(layer_name)(int32_t index)
{
    return index >= 0 && index < LAYER_COUNT ? layer_names[index] : NULL;
}

/* The context's own fields, rounded up so that the arena after them is aligned. */
static size_t head_bytes(void) { return (sizeof(NAME(context)) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

size_t NAME(arena_bytes)(void) { return head_bytes() + (size_t)ARENA_BYTES + (size_t)STAGING_BYTES; }

NAME(context) *NAME(create)(void)
{
    void *memory;
    if (posix_memalign(&memory, CACHE_LINE, NAME(arena_bytes)()) != 0)
        return NULL;
    NAME(context) *context = memory;
    memset(context, 0, sizeof *context);
#if DECODED_BYTES
    context->decoded = decoded_acquire();
    if (!context->decoded) {
        free(context);
        return NULL;
    }
#endif
    context->variant = choose_variant();
    context->frame.launch = context_launch;
    context->frame.fail = context_fail;
    context->arena = (unsigned char *)memory + head_bytes();
    context->staging = context->arena + (size_t)ARENA_BYTES;
    atomic_flag_clear(&context->busy);
    pool_init(&context->pool);
    install_parallel_launch();
    return context;
}

void NAME(destroy)(NAME(context) *context)
{
    if (!context)
        return;
    pool_stop(&context->pool);
#if DECODED_BYTES
    decoded_release();
#endif
    free(context);
}

const char *NAME(last_error)(const NAME(context) *context)
{
    return context ? context->error
                   : "the context is NULL: create() returns that if there is no memory for arena_bytes() and, in the "
                     "first context, decoded_bytes()";
}

const char *NAME(variant)(const NAME(context) *context) { return context ? context->variant->name : variants[0].name; }

void NAME(set_hook)(NAME(context) *context, NAME(hook) hook, void *user)
{
    if (!context)
        return;
    context->hook = hook;
    context->hook_user = user;
}

NAME(status) NAME(set_threads)(NAME(context) *context, int32_t threads)
{
    if (!context)
        return MACRO(INVALID_ARGUMENT);
    if (atomic_flag_test_and_set_explicit(&context->busy, memory_order_acquire))
        return MACRO(BUSY);
    NAME(status) status = MACRO(OK);
    if (threads < 0 || threads > MAX_THREADS) {
        snprintf(context->error, sizeof context->error, "%d threads: expected 0 to %d", (int)threads, MAX_THREADS);
        status = MACRO(INVALID_ARGUMENT);
    } else if (!pool_start(&context->pool, threads ? (int)threads : processors())) {
        snprintf(context->error, sizeof context->error, "the system refused to make %d threads", (int)threads);
        status = MACRO(NO_THREADS);
    }
    atomic_flag_clear_explicit(&context->busy, memory_order_release);
    return status;
}

static int aligned(const void *pointer) { return (uintptr_t)pointer % ALIGNMENT == 0; }

static int overlap(const void *left, size_t left_bytes, const void *right, size_t right_bytes)
{
    uintptr_t first = (uintptr_t)left, second = (uintptr_t)right;
    return first < second ? second - first < left_bytes : first - second < right_bytes && left_bytes > 0;
}

/* Check the caller's buffers; 0, or the error is set. */
static int check_buffers(NAME(context) *context, const void *const *inputs, void *const *outputs)
{
    const char *kind = NULL;
    int32_t index = 0;
    if ((!inputs && MACRO(INPUT_COUNT) > 0) || (!outputs && MACRO(OUTPUT_COUNT) > 0)) {
        snprintf(context->error, sizeof context->error, "%s is NULL", outputs ? "inputs" : "outputs");
        return 1;
    }
    for (int32_t i = 0; i < MACRO(INPUT_COUNT) && !kind; ++i)
        if (!inputs[i] && input_tensors[i].bytes > 0)
            kind = "inputs", index = i;
    for (int32_t i = 0; i < MACRO(OUTPUT_COUNT) && !kind; ++i)
        if (!outputs[i] && output_tensors[i].bytes > 0)
            kind = "outputs", index = i;
    if (kind) {
        snprintf(context->error, sizeof context->error, "%s[%d] is NULL", kind, (int)index);
        return 1;
    }
    for (int32_t i = 0; i < MACRO(OUTPUT_COUNT); ++i)
        for (int32_t k = 0; k < i; ++k)
            if (overlap(outputs[i], output_tensors[i].bytes, outputs[k], output_tensors[k].bytes)) {
                snprintf(context->error, sizeof context->error, "outputs[%d] and outputs[%d] overlap", (int)k, (int)i);
                return 1;
            }
    return 0;
}

/* Kernels need aligned buffers, and outputs apart from inputs: others are replaced by staging memory. */
static void choose_buffers(NAME(context) *context, const void *const *inputs, void *const *outputs,
                           const unsigned char **in, unsigned char **out)
{
    for (int32_t i = 0; i < MACRO(INPUT_COUNT); ++i) {
        in[i] = inputs[i];
        if (!aligned(inputs[i])) {
            in[i] = context->staging + input_staging[i];
            memcpy(context->staging + input_staging[i], inputs[i], input_tensors[i].bytes);
        }
    }
    for (int32_t i = 0; i < MACRO(OUTPUT_COUNT); ++i) {
        int in_place = aligned(outputs[i]);
        for (int32_t k = 0; k < MACRO(INPUT_COUNT) && in_place; ++k)
            in_place = !overlap(outputs[i], output_tensors[i].bytes, inputs[k], input_tensors[k].bytes);
        out[i] = in_place ? outputs[i] : context->staging + output_staging[i];
    }
}

static NAME(status) run_locked(NAME(context) *context, const void *const *inputs, void *const *outputs)
{
    if (check_buffers(context, inputs, outputs))
        return MACRO(INVALID_ARGUMENT);
    const unsigned char *in[INPUTS];
    unsigned char *out[OUTPUTS];
    choose_buffers(context, inputs, outputs, in, out);
    pool_check_process(&context->pool);
    atomic_flag_clear(&context->failed);
    context->detail[0] = '\0';

    struct graphopt_frame_v1 *outer = graphopt_current_v1;
    graphopt_current_v1 = &context->frame;
    int32_t failed = context->variant->run(context, in, out);
    graphopt_current_v1 = outer;
    if (failed >= 0) {
        snprintf(context->error, sizeof context->error, "layer %d, %.200s: the kernel failed%s", (int)failed,
                 layer_names[failed], context->detail);
        return MACRO(KERNEL_FAILED);
    }
    for (int32_t i = 0; i < MACRO(OUTPUT_COUNT); ++i)
        if (out[i] != outputs[i] && output_tensors[i].bytes > 0)
            memcpy(outputs[i], out[i], output_tensors[i].bytes);
    return MACRO(OK);
}

NAME(status) NAME(run)(NAME(context) *context, const void *const *inputs, void *const *outputs)
{
    if (!context)
        return MACRO(INVALID_ARGUMENT);
    if (atomic_flag_test_and_set_explicit(&context->busy, memory_order_acquire))
        return MACRO(BUSY);
    NAME(status) status = run_locked(context, inputs, outputs);
    atomic_flag_clear_explicit(&context->busy, memory_order_release);
    return status;
}
